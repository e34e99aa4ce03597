"""The bundle for a machine without a network: parts that are small enough and join to what was packed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from benchmarks import gpu_bundle
from longrope_export.default_model import SEARCH_TEXTS


def test_parts_are_small_and_unpack_to_what_was_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room, archive = tmp_path / "longrope-gpu", tmp_path / "gpu-bundle.tar.gz"
    room.mkdir()
    (room / "model.gguf").write_bytes(os.urandom(3_000_000))
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(room, room.name)
    monkeypatch.setattr(gpu_bundle, "PART_BYTES", 1 << 20)
    parts = gpu_bundle.split(archive, tmp_path / "parts")
    assert len(parts) > 1
    assert max(part.stat().st_size for part in parts) <= 1 << 20
    (tmp_path / "there").mkdir()
    script = tmp_path / "unpack.sh"
    script.write_text(gpu_bundle.UNPACK)
    subprocess.run(["bash", script, *parts], cwd=tmp_path / "there", check=True)
    unpacked = tmp_path / "there" / "longrope-gpu"
    assert (unpacked / "model.gguf").read_bytes() == (room / "model.gguf").read_bytes()


def test_texts_are_one_document_a_line(tmp_path: Path) -> None:
    gpu_bundle.add_texts(tmp_path / "train.jsonl", None)
    documents = [json.loads(line)["text"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert documents == [path.read_text(encoding="utf-8") for path in sorted(SEARCH_TEXTS.glob("*.txt"))]


@pytest.mark.skipif(shutil.which("bash") is None, reason="the scripts are bash")
@pytest.mark.parametrize("script", [gpu_bundle.CHECK, gpu_bundle.UNPACK])
def test_scripts_are_sound(script: str) -> None:
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
