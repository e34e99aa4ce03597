"""Every hostile file that was found, and a short search for more: a line that says what is wrong, and no traceback."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.fuzz import Hostile, fuzz, put, run
from tests.hostile.targets import TARGETS, make_room

INPUTS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("inputs.json").read_text(encoding="utf-8"))
BY_KIND = {kind: list(rows) for kind, rows in groupby(sorted(INPUTS, key=lambda row: row["kind"]), lambda r: r["kind"])}
# Those whose commands take milliseconds; the others are `make fuzz`'s.
QUICK = ("factors", "config", "safetensors", "recipe", "gguf")


def test_there_are_inputs_of_every_kind() -> None:
    assert len(INPUTS) >= 60
    assert {kind for kind in TARGETS if kind not in BY_KIND} <= {"config-run", "artifact-config", "gguf-validate"}


@pytest.mark.parametrize("kind", sorted(BY_KIND))
def test_a_hostile_file_gets_its_line_and_its_exit_code(kind: str, tmp_path: Path) -> None:
    room = make_room(tmp_path / "room", [kind])
    for row in BY_KIND[kind]:
        hostile = Hostile(row["file"], row["edits"], row["command"])
        sound = (room / hostile.file).read_bytes()
        assert put(room, kind, hostile, sound), row
        code, err = run(room, hostile)
        (room / hostile.file).write_bytes(sound)
        lines = [line for line in err.splitlines() if line.startswith("Error: ")]
        assert code == row["exit"], (row, err[-2000:])
        assert len(lines) == 1, (row, lines)
        assert row["says"] in lines[0], (row, lines[0])
        assert lines[0].isprintable(), row


@pytest.mark.parametrize("kind", QUICK)
def test_a_short_search_finds_no_fault(kind: str, tmp_path: Path) -> None:
    """Faults of this program that it finds are told with what made them; `make fuzz` looks longer."""
    tally = fuzz(kind, make_room(tmp_path / "room", [kind]), seconds=120, batches=1, inputs=40)
    assert tally.inputs >= 20
    assert not tally.findings
