"""What work costs: wall clock, processor time, and the peak of memory, that of files told from the process's own.

Work that is compared takes turns, so that whatever else the machine does slows all sides alike; medians are compared.
"""

from __future__ import annotations

import os
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from benchmarks.figures import ROOT
from longrope.errors import InputError

# Seconds between two looks at a process's memory.
_INTERVAL = 0.02


@dataclass(frozen=True)
class Cost:
    """What a run took.

    Args:
        seconds: wall clock.
        cpu_seconds: of all its threads and children.
        peak_anonymous: most bytes of memory at one time, its processes together, that belong to no file; 0 where nobody
            looked.
        peak_file: the same for pages of files.
    """

    seconds: float
    cpu_seconds: float
    peak_anonymous: int = 0
    peak_file: int = 0


Run = Callable[[], Cost]


def taking_turns(runs: Mapping[str, Run], rounds: int) -> dict[str, list[Cost]]:
    """The costs of each run, `rounds` times, one after the other; who begins changes every round."""
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs) if number % 2 == 0 else reversed(list(runs)):
            costs[name].append(runs[name]())
    return costs


def ratio(over: Sequence[Cost], under: Sequence[Cost]) -> float:
    """Median seconds of one over those of the other."""
    return seconds(over) / seconds(under)


def seconds(costs: Sequence[Cost]) -> float:
    """The median."""
    return median(cost.seconds for cost in costs)


def cpu_seconds(costs: Sequence[Cost]) -> float:
    """The median."""
    return median(cost.cpu_seconds for cost in costs)


def of_work(work: Callable[[], object]) -> Cost:
    """The cost of work in this process and its children."""
    start, before = time.perf_counter(), os.times()
    work()
    after = os.times()
    return Cost(time.perf_counter() - start, sum(after[:4]) - sum(before[:4]))


def of_command(command: Sequence[str], extra: Mapping[str, str] | None = None) -> Cost:
    """The cost of a command, with variables added to its environment. Raises InputError when it fails."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**os.environ, **(extra or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    peaks = {"RssAnon": 0, "RssFile": 0}
    watcher = threading.Thread(target=_watch, args=(process, peaks))
    watcher.start()
    _, errors = process.communicate()
    took = time.perf_counter() - start
    watcher.join()
    if process.returncode:
        raise InputError(f"{' '.join(command[:6])} … failed: {errors.strip().splitlines()[-1:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(took, cpu, peaks["RssAnon"], peaks["RssFile"])


def _watch(process: subprocess.Popen[str], peaks: dict[str, int]) -> None:
    while process.poll() is None:
        now = dict.fromkeys(peaks, 0)
        for pid in (process.pid, *_children(process.pid)):
            for line in _read_or_empty(Path(f"/proc/{pid}/status")).splitlines():
                name, _, value = line.partition(":")
                if name in now:
                    now[name] += int(value.split()[0]) * 1024
        peaks.update({name: max(peaks[name], used) for name, used in now.items()})
        time.sleep(_INTERVAL)


def _children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _read_or_empty(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
