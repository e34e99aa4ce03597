"""`make fuzz`: hostile files of every kind, and what the command line makes of each.

    hypothesis ──edits──► hostile file ──command──► exit code     in a worker, whose end, hang or hunger its parent sees

A finding is an exit code 70, a command that takes longer than 10 seconds or 2 GB, or the end of the worker. Each is
printed as the edits that made it, as JSON, ready for `inputs.json`. The same seed gives the same inputs.

    python -m tests.hostile.fuzz --minutes 10 --kind gguf --seed 1
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.hostile.documents import NASTY, Edit, Form, places
from tests.hostile.targets import CALLS, TARGETS, make_room, words

HANG_SECONDS, MOST_BYTES, FAULT = 10.0, 2 << 30, 70
# Seconds by the clock after which a worker that uses no CPU hangs, too.
PATIENCE = 120.0
# Inputs that hypothesis makes from one seed.
BATCH = 100
_FRAME = re.compile(r'File "[^"]*?((?:longrope|converters|longrope_export)/[^"]+)", line (\d+), in (\w+)')


@dataclass(frozen=True)
class Hostile:
    """A file of a room, what is done to it, and the command that reads it."""

    file: str
    edits: list[Edit]
    command: str


# -- making inputs


def hostile_files(kind: str, room: Path) -> st.SearchStrategy[Hostile]:
    """Hostile files of a kind, after the sound ones of a room."""
    target = TARGETS[kind]

    def of(file: str) -> st.SearchStrategy[Hostile]:
        found = edits(target.files[file], (room / file).read_bytes())
        return st.builds(
            Hostile, st.just(file), st.lists(found, min_size=1, max_size=3), st.sampled_from(target.commands)
        )

    return st.sampled_from(sorted(target.files)).flatmap(of)


def edits(form: Form, content: bytes) -> st.SearchStrategy[Edit]:
    """Edits of one sound file."""
    share = st.floats(0, 1, exclude_max=True)
    in_bytes = st.one_of(
        st.builds(lambda at, bit: {"share": at, "flip": 1 << bit}, share, st.integers(0, 7)),
        st.builds(lambda at: {"share": at, "cut": True}, share),
        st.builds(
            lambda at, new, over: {"share": at, "put": new.hex(), "over": over},
            share,
            st.one_of(st.binary(max_size=16), st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\x1b[31m", b"\xed\xa0\x80"])),
            st.integers(0, 16),
        ),
        st.builds(lambda new: {"whole": new}, st.one_of(st.sampled_from(NASTY), st.text(max_size=20))),
    )
    tree = form.parse(content)
    if tree is None:
        return in_bytes
    found = list(places(tree))
    place = st.sampled_from(found[1:] or found).map(list)
    value = st.one_of(st.sampled_from(NASTY), st.from_type(float).map(repr), st.text(max_size=20).map(json.dumps))
    keys = [list(at) for at in found if at and isinstance(at[-1], str)]
    in_tree = [
        st.builds(lambda at, new: {"at": at, "set": new}, place, value),
        st.builds(lambda at: {"at": at, "drop": True}, place),
        st.builds(lambda at: {"at": at, "twice": True}, place),
    ]
    if keys:
        in_tree.append(st.builds(lambda at, new: {"at": at, "rename": new}, st.sampled_from(keys), st.text(max_size=8)))
    return st.one_of(in_tree[0], in_tree[0], *in_tree, in_bytes)


# -- one input


def put(room: Path, kind: str, hostile: Hostile, sound: bytes) -> bool:
    """Write a hostile file; False for edits that its form cannot express."""
    try:
        content = TARGETS[kind].files[hostile.file].hostile(sound, hostile.edits)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError, MemoryError):
        return False
    except Exception as error:
        if type(error).__module__ != "struct":
            raise
        return False
    (room / hostile.file).write_bytes(content)
    return True


def run(room: Path, hostile: Hostile) -> tuple[int, str]:
    """Exit code and standard error of a command in a room; what it writes is removed."""
    out = io.StringIO()
    name, *rest = words(room, hostile.command)
    with redirect_stdout(io.StringIO()), redirect_stderr(out):
        code = called(name, Path(rest[0])) if name in CALLS else commanded([name, *rest, "--debug"])
    for path in room.glob("out*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return code, out.getvalue()


def commanded(arguments: list[str]) -> int:
    """The exit code of a command in this process."""
    from longrope_export.cli import main

    try:
        main(arguments)
    except SystemExit as done:
        return int(done.code or 0)
    raise AssertionError


def called(name: str, path: Path) -> int:
    """What the command line would make of a call."""
    from longrope.errors import LongRopeError

    try:
        CALLS[name](path)
    except LongRopeError as error:
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    except Exception:  # noqa: BLE001  what is looked for
        traceback.print_exc()
        return FAULT
    return 0


# -- the worker


def worker(kind: str, room: Path, seeds: range, inputs: int, pipe: Connection) -> None:
    """Run inputs and tell the parent of each, before and after."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    sound = {file: (room / file).read_bytes() for file in TARGETS[kind].files}
    for command in TARGETS[kind].commands:  # what is imported late is imported now
        run(room, Hostile("", [], command))
        _restore(room, sound)
    pipe.send(("warm", _memory()))
    for number in seeds:
        _examine(kind, room, number, inputs, sound, pipe)
    pipe.send(("done",))


def _examine(kind: str, room: Path, number: int, inputs: int, sound: Mapping[str, bytes], pipe: Connection) -> None:
    """The inputs of one seed."""

    @seed(number)
    @settings(
        max_examples=inputs,
        phases=(Phase.generate,),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(hostile_files(kind, room))
    def examine(hostile: Hostile) -> None:
        if not put(room, kind, hostile, sound[hostile.file]):
            return
        pipe.send(("start", number, hostile))
        code, err = run(room, hostile)
        pipe.send(("end", code, err[-8000:], _memory()))
        _restore(room, sound)

    examine()


def _restore(room: Path, sound: Mapping[str, bytes]) -> None:
    for file, content in sound.items():
        (room / file).parent.mkdir(parents=True, exist_ok=True)
        (room / file).write_bytes(content)


def _memory() -> int:
    """The most that this process has used, in bytes. Linux counts its parent's into `ru_maxrss`."""
    status = Path("/proc/self/status")
    if status.is_file():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# -- the parent


@dataclass
class Tally:
    """What one kind gave."""

    kind: str
    inputs: int = 0
    codes: Counter[int] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    said: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def find(self, what: str, where: str, hostile: Hostile) -> None:
        """Count a finding, and print the first of its kind."""
        self.findings[what] += 1
        self.findings[f"{what}: {where}"] += 1
        if self.findings[f"{what}: {where}"] == 1:
            recipe = {"kind": self.kind, "file": hostile.file, "edits": hostile.edits, "command": hostile.command}
            print(f"{what}: {where}\n    {json.dumps(recipe)}", flush=True)  # noqa: T201

    def add(self, code: int, err: str, used: int, hostile: Hostile) -> None:
        """Count what a command ended with, and how much memory its process has used so far."""
        self.codes[code] += 1
        self.said[_message(err)] += 1
        if code == FAULT:
            self.find("traceback", _place(err), hostile)
        if used > MOST_BYTES:
            self.find("over 2 GB", hostile.file, hostile)

    def row(self) -> str:
        """A row of the table."""
        counts = [self.findings[name] for name in ("traceback", "hang", "over 2 GB", "death")]
        codes = " ".join(f"{code}:{count}" for code, count in sorted(self.codes.items()))
        return f"| {self.kind} | {self.inputs} | {' | '.join(map(str, counts))} | {self.seconds:.0f} | {codes} |"


_COLUMNS = ("kind", "inputs", "tracebacks", "hangs", "over 2 GB", "deaths", "seconds", "exit codes")
HEADER = f"| {' | '.join(_COLUMNS)} |\n{'|---' * len(_COLUMNS)}|"


def fuzz(
    kind: str, room: Path, *, seconds: float, first_seed: int = 0, batches: int = 1_000_000, inputs: int = BATCH
) -> Tally:
    """Run inputs of a kind for a time, which starts when everything is imported.

    Args:
        kind: of `TARGETS`.
        room: of `make_room`.
        seconds: most of them.
        first_seed: each seed gives a batch.
        batches: most of them.
        inputs: of a batch; hypothesis gives fewer where it would repeat itself.
    """
    tally, number = Tally(kind), first_seed
    while tally.seconds < seconds and number < first_seed + batches:
        number = 1 + _until_it_ends(
            tally, kind, room, range(number, first_seed + batches), seconds - tally.seconds, inputs
        )
    return tally


def _until_it_ends(tally: Tally, kind: str, room: Path, seeds: range, seconds: float, inputs: int) -> int:
    """Watch one worker until it is done, dead or out of time; returns the last seed that it took."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=worker, args=(kind, room, seeds, inputs, theirs))
    process.start()
    theirs.close()
    number, hostile = seeds[0], None
    began, warm = time.monotonic(), False
    try:
        while not warm or time.monotonic() - began < seconds:
            if not _answers(mine, process.pid, warm=warm):
                if hostile is not None:
                    tally.find("hang", f"over {HANG_SECONDS:.0f} s", hostile)
                return number
            message = mine.recv()
            if message[0] == "done":
                return seeds[-1]
            if message[0] == "warm":
                began, warm = time.monotonic(), True
            elif message[0] == "start":
                _, number, hostile = message
                tally.inputs += 1
            else:
                _, code, err, used = message
                tally.add(code, err, used, hostile)
                if used > MOST_BYTES:
                    return number
                hostile = None
        return seeds[-1]
    except EOFError:
        process.join()
        if hostile is not None:
            tally.find("death", f"exit {process.exitcode}", hostile)
        return number
    finally:
        tally.seconds += time.monotonic() - began
        process.kill()
        process.join()


def _answers(pipe: Connection, pid: int | None, *, warm: bool) -> bool:
    """Whether a worker says something before its time is up: seconds of its CPU, for machines are shared."""
    began, used = time.monotonic(), _cpu_seconds(pid)
    while not pipe.poll(1.0):
        waited = time.monotonic() - began
        if waited > (PATIENCE if warm else 5 * PATIENCE) or (warm and _cpu_seconds(pid) - used > HANG_SECONDS):
            return False
    return True


def _cpu_seconds(pid: int | None) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def _place(err: str) -> str:
    """The last frame of ours, and what was raised."""
    frames = _FRAME.findall(err)
    said = next((line for line in reversed(err.splitlines()) if line and not line.startswith((" ", "Error"))), "")
    return f"{':'.join(frames[-1]) if frames else '?'} {said[:160]}"


def _message(err: str) -> str:
    """The line of an error, without what differs from input to input."""
    line = next((line for line in reversed(err.splitlines()) if line.startswith("Error: ")), "no error")
    return re.sub(r"/\S*/|\d+|'[^']*'|\"[^\"]*\"", "#", line)[:110]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", help=f"one of {', '.join(TARGETS)}, or several by comma; all if not given")
    parser.add_argument("--minutes", type=float, default=1.0, help="for each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--said", action="store_true", help="print what was said, by how often")
    given = parser.parse_args()
    kinds = given.kind.split(",") if given.kind else list(TARGETS)
    rows = []
    for kind in kinds:
        with tempfile.TemporaryDirectory(prefix="longrope-fuzz-") as folder:
            room = make_room(Path(folder, "room"), [kind])
            rows.append(fuzz(kind, room, seconds=60 * given.minutes, first_seed=1_000_000 * given.seed))
            print(HEADER, rows[-1].row(), sep="\n", flush=True)  # noqa: T201
            for line, count in rows[-1].said.most_common(12 if given.said else 0):
                print(f"{count:6} {line}")  # noqa: T201
    print(HEADER, *(tally.row() for tally in rows), sep="\n")  # noqa: T201
    sys.exit(any(tally.findings for tally in rows))


if __name__ == "__main__":
    main()
