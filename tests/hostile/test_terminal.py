"""Names in other people's files hold escape sequences and markup: a terminal gets none of them, a page shows them as text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest

from converters import registry
from converters.base import Export
from converters.gguf.container import text
from longrope.checkpoint import Checkpoint
from longrope.factors import BoundFactors
from longrope.progress import Silent
from longrope_export.console import ConsoleProgress, print_table
from tests.common import PICO_BUDGET, run_cli
from tests.gguf_files import rewrite, set_key

HOSTILE = "\x1b]0;title\x07\x1b[31mred\x9b2J<script>alert(1)</script>[/x]"
RAW = ("\x1b", "\x07", "\x9b")


def assert_clean(*outputs: str) -> None:
    for output in outputs:
        assert not any(letter in output for letter in RAW), repr(output)


def test_inspect_prints_no_escape_sequence(pico: Checkpoint, dual: BoundFactors, tmp_path: Path) -> None:
    for name in ("gguf", "onnx"):
        registry.converter(name).convert(
            Export(pico, dual, "f32" if name == "gguf" else None), tmp_path / f"a.{name}", Silent()
        )
    hostile = rewrite(tmp_path / "a.gguf", tmp_path / "b.gguf", set_key("general.name", text(HOSTILE)))
    file = tmp_path / "a.onnx" / "model.onnx"
    model = onnx.load(file, load_external_data=False)
    model.producer_name, model.graph.name = HOSTILE, HOSTILE
    model.metadata_props.add(key=HOSTILE, value=HOSTILE)
    onnx.save(model, file)
    for path in (hostile, tmp_path / "a.onnx"):
        done = run_cli("inspect", path)
        assert done.code == 0, done.err
        assert "red" in done.out
        assert_clean(done.out, done.err)


def test_factor_files_and_their_names(factors_file: Path, tmp_path: Path) -> None:
    data = json.loads(factors_file.read_text())
    (tmp_path / "f.json").write_text(json.dumps({**data, "method": HOSTILE, "model_type": HOSTILE}))
    done = run_cli("factors", "show", tmp_path / "f.json")
    assert done.code == 0, done.err
    assert_clean(done.out, done.err)


def test_progress_and_tables_are_clean(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ConsoleProgress()
    progress.line(HOSTILE)
    progress.warn(HOSTILE)
    with progress.task(HOSTILE, 1) as task:
        task.advance(1, HOSTILE)
    print_table("title", ("a",), [[HOSTILE]])
    assert_clean(*capsys.readouterr())


def test_a_report_shows_a_hostile_name_as_text(pico: Checkpoint, texts: Path, tmp_path: Path) -> None:
    folder = "<img src=x onerror=alert(1)>"
    model = shutil.copytree(pico.path, tmp_path / folder)
    done = run_cli(
        *("extend", model, "--target-length", 256, "-o", tmp_path / "run", "--text", texts, "--formats", "hf"),
        *PICO_BUDGET.split(),
    )
    assert done.code == 0, done.err
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
