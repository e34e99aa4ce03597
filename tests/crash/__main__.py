"""Every call of every scenario: `python -m tests.crash [NAME…] [--every N] [--folder FOLDER]`; `make crash-test` runs all.

Prints a line for each scenario and each thing that is wrong, and a table in the end; exit code 1 where something is.
"""

from __future__ import annotations

import argparse
import errno
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from tests.crash.harness import SCENARIOS, Box, Disturbance, Trial, compiler, make_inputs
from tests.hub import LocalHub

# What is done at how many of a scenario's calls, spread over all of them.
ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOMEM)


def main(arguments: Sequence[str]) -> int:
    """Run what was asked for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tests.crash")
    parser.add_argument("names", nargs="*", help=f"scenarios; all of {', '.join(SCENARIOS)}")
    parser.add_argument("--every", type=int, default=1, help="kill at every n-th call")
    parser.add_argument("--moments", type=int, default=6, help="SIGTERM, SIGINT and SIGHUP at so many calls each")
    parser.add_argument("--errors", type=int, default=6, help="each error of the system at so many calls")
    parser.add_argument("--folder", type=Path, help="where to work")
    given = parser.parse_args(arguments)
    if compiler() is None:
        print("skipped: there is no C compiler here, or this is not Linux")  # noqa: T201
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        return _run(given, folder)


def _run(given: argparse.Namespace, folder: Path) -> int:
    inputs = folder / "inputs"
    if not inputs.exists():
        make_inputs(inputs)
    rows, wrong = [], 0
    with Box(folder / "work", inputs) as box:
        for name in given.names or SCENARIOS:
            scenario, start = SCENARIOS[name], time.monotonic()
            with LocalHub() if scenario.network else nullcontext() as hub:
                trial = Trial(box, scenario, hub)
                planned = _planned(trial.calls, given)
                counts = dict.fromkeys(("kill", "signal", "error"), 0)
                for kind, disturbance, at, number in planned:
                    faults = trial.disturb(disturbance, at, number)
                    counts[kind] += 1
                    wrong += bool(faults)
                    for fault in faults:
                        print(f"{name}, {disturbance.name} {number or ''} at {at}: {fault}", flush=True)  # noqa: T201
            rows.append((name, trial.calls, *counts.values(), round(time.monotonic() - start)))
            print(*rows[-1], flush=True)  # noqa: T201
    for row in (("scenario", "calls", "kills", "signals", "errors", "s"), *rows):
        print("{:24} {:>6} {:>6} {:>8} {:>7} {:>5}".format(*row))  # noqa: T201
    print(f"{sum(row[2] for row in rows)} kills, {sum(row[3] for row in rows)} signals, ", end="")  # noqa: T201
    print(f"{sum(row[4] for row in rows)} errors: {wrong} of them left something wrong")  # noqa: T201
    return int(bool(wrong))


def _planned(calls: int, given: argparse.Namespace) -> list[tuple[str, Disturbance, int, int]]:
    """Kills by turns before a call and in the middle of it; signals and errors at calls spread over the whole run."""
    kills = [
        ("kill", Disturbance.KILL if at % 2 else Disturbance.KILL_HALF_WRITTEN, at, 0)
        for at in range(1, calls + 1, given.every)
    ]
    signals = [
        ("signal", Disturbance.SIGNAL, at, int(number))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        for at in _spread(calls, given.moments)
    ]
    errors = [
        (
            "error",
            Disturbance.FAIL_FROM_THEN_ON if number in (errno.ENOSPC, errno.EDQUOT) else Disturbance.FAIL,
            at,
            number,
        )
        for number in ERRORS
        for at in _spread(calls, given.errors)
    ]
    return [*kills, *signals, *errors]


def _spread(calls: int, count: int) -> list[int]:
    return sorted({1 + index * (calls - 1) // max(count - 1, 1) for index in range(min(count, calls))})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
