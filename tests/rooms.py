"""Hostile input as data: a room with a model, its artifacts, factors and a text, what breaks it, and what must be said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.common import PICO_BUDGET, TARGET, Outcome, run_cli
from tests.folder_faults import Fault, overwrite


@dataclass(frozen=True)
class Case:
    """Hostile input as data.

    Args:
        command: arguments; MODEL, TEXT, FACTORS and OUT are replaced by paths in the room.
        code: the exit code.
        line: what the one line must say.
        breaking: what is done to the room first.
    """

    command: str
    code: int
    line: str
    breaking: Fault = lambda room: None


EXTEND = f"extend MODEL --target-length {TARGET} -o OUT --text TEXT {PICO_BUDGET}"
SEARCH = f"search MODEL --target-length {TARGET} -o OUT --text TEXT --max-evals 2 --documents 1 --threads 1"
CONVERT = "convert MODEL --factors FACTORS -o OUT --to hf"
VALIDATE = "validate HF --reference MODEL --text TEXT --windows 64 --threads 1 --json OUT"


def config(**changes: object) -> Fault:
    return overwrite("model/config.json", **changes)


def arguments(room: Path, command: str) -> list[str]:
    places = {
        "MODEL": room / "model",
        "HF": room / "hf",
        "GGUF": room / "model.gguf",
        "TEXT": room / "text.txt",
        "FACTORS": room / "factors.json",
        "OUT": room / "out",
        "ROOM": room,
    }
    found = []
    for word in command.split():
        head, slash, tail = word.partition("/")
        found.append(f"{places[head]}{slash}{tail}" if head in places else word)
    return found


def listing(room: Path) -> dict[str, int]:
    """Every file and its size."""
    return {str(path.relative_to(room)): path.stat().st_size for path in sorted(room.rglob("*")) if path.is_file()}


def assert_one_line(lines: Sequence[str], wanted: str) -> None:
    """One line of error; lines of progress and warnings may stand before it."""
    errors = [line for line in lines if line.startswith("Error: ")]
    assert len(errors) == 1, lines
    assert wanted in errors[0]
    assert lines[-1] == errors[0]
    assert not any("Traceback" in line or "fault of this program" in line for line in lines)


def refused(room: Path, case: Case) -> Outcome:
    """Run a case's command in its room, which is the current folder: its exit code, its one line, and nothing written."""
    case.breaking(room)
    before = listing(room)
    done = run_cli(*arguments(room, case.command))
    assert done.code == case.code, done.err
    assert_one_line(done.lines, case.line)
    assert listing(room) == before
    return done
