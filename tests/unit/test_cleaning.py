"""`doctor --clean` removes what dead processes left and nothing else."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from pathlib import Path

import pytest

from longrope.locks import alone_at
from longrope.owners import Owner
from longrope.unfinished import partial
from tests.common import run_cli

DEAD = dataclasses.replace(Owner.current(), pid=2**22, started=1).text
ELSEWHERE = dataclasses.replace(Owner.current(), host="00000000").text


def test_what_is_left_goes_and_everything_else_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room, temporary = tmp_path / "room", tmp_path / "tmp"
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    lock = "\n" + json.dumps({"pid": 1, "host": "here", "since": time.time(), "command": "extend"})
    gone = {
        f"room/run/.hf.{DEAD}-0.partial/model.safetensors": "half",
        f"room/.factors.json.{DEAD}-7.partial": "half",
        "room/tuned.training/checkpoints/.step-00000002.partial/tensors": "half",
        "room/.run.lock": lock,
        f"tmp/longrope-gguf-{DEAD}-abc/model.safetensors": "half",
    }
    kept = {
        f"room/.f.json.{ELSEWHERE}-7.partial": "half",
        "room/.mine.lock": "of another program",
        "room/mine/checkpoints/.step-00000002.partial/tensors": "of another program",
        "room/.download.partial": "of another program",
        "room/tuned.training/training.json": "{}",
        "tmp/longrope-notes/a": "mine",
    }
    for name, content in {**gone, **kept, "room/.out.replaced/config.json": "moved aside"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    with alone_at(room / "held"), partial(room / "now") as living:
        living.write_text("half")
        done = run_cli("doctor", "--clean", room)
        assert living.exists()
        assert (room / ".held.lock").exists()
    assert done.code == 0, done.err
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {*kept, "room/out/config.json"}
    assert len(done.lines) == len(gone) + 2
    assert "another machine" in next(line for line in done.lines if ELSEWHERE in line)


def test_nothing_to_clean_is_said_and_a_missing_folder_is_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run_cli("doctor", "--clean").err == "Nothing is left over.\n"
    assert json.loads(run_cli("doctor", "--clean", tmp_path, "--json").out) == []
    assert run_cli("doctor", "--clean", tmp_path / "nowhere").code == 2
    assert run_cli("doctor", "--clean", tmp_path, "--gpu", "-o", tmp_path / "x").code == 2
