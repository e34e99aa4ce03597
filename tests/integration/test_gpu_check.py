"""`doctor --gpu --tiny` on a CPU: every section runs the code that a GPU runs, in the time that a test has."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from longrope_export.gpu_check import right
from longrope_export.gpu_check.base import Row, Setting, judged
from longrope_export.gpu_check.run import RESULT_NAME, SECTIONS
from tests.common import Outcome, run_cli

TINY = ("doctor", "--gpu", "--tiny", "--device", "cpu")


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Outcome]]:
    """A whole run, without the libraries that a machine with a GPU may lack."""
    folder = tmp_path_factory.mktemp("gpu") / "check"
    with pytest.MonkeyPatch.context() as patch:
        for library in ("llama_cpp", "onnxruntime", "onnx"):
            patch.setitem(sys.modules, library, None)
        yield folder, run_cli(*TINY, "-o", folder)


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / RESULT_NAME).read_text())
    return found


def rows(folder: Path, section: str) -> dict[str, dict[str, Any]]:
    return {row["what"]: row for row in result(folder)["sections"][section]["rows"]}


def test_every_section_runs_on_a_cpu_and_nothing_fails(checked: tuple[Path, Outcome]) -> None:
    folder, done = checked
    sections = result(folder)["sections"]
    assert tuple(sections) == SECTIONS
    assert all(section["finished"] for section in sections.values())
    assert [row for section in sections.values() for row in section["rows"] if row["state"] == "failed"] == []
    assert done.code == 0, done.err
    assert "evaluator, bfloat16: pairs of candidates in another order" in done.out


def test_16_bits_are_looked_at_and_are_not_float32(checked: tuple[Path, Outcome]) -> None:
    found = rows(checked[0], "right")
    assert found["evaluator, float32: largest difference of 20 losses"]["number"] == 0
    for dtype in ("bfloat16", "float16"):
        assert 0 < found[f"evaluator, {dtype}: largest difference of 20 losses"]["number"] < right.LOSS[dtype]


def test_running_out_of_memory_halves_the_pass(checked: tuple[Path, Outcome]) -> None:
    found = rows(checked[0], "memory")
    assert found["out of memory: tokens of a pass afterwards"]["number"] == 256
    assert found["a search with 1 MiB of memory"]["state"] == "ok"


def test_the_headline_has_every_method_at_every_length(checked: tuple[Path, Outcome]) -> None:
    found = rows(checked[0], "headline")
    for length in (256, 512):
        for name in ("none", "PI", "NTK", "YaRN 32/1", "best known ramp", "auto", "auto, trained"):
            assert "±" in found[f"{name}: perplexity at {length}, 2 windows"]["value"]
        assert f"auto, trained: passkeys found at {length}" in found
    none, ramp = (found[f"{name}: perplexity at 512, 2 windows"]["number"] for name in ("none", "best known ramp"))
    assert ramp < none


def test_finished_sections_are_not_run_again(checked: tuple[Path, Outcome]) -> None:
    folder, before = checked[0], result(checked[0])["sections"]
    done = run_cli(*TINY, "-o", folder, "--resume")
    assert done.code == 0
    assert done.err.count("finished before") == len(SECTIONS)
    assert result(folder)["sections"] == before


def test_a_run_is_kept_unless_it_is_resumed(checked: tuple[Path, Outcome]) -> None:
    assert run_cli(*TINY, "-o", checked[0]).code == 2
    other = run_cli(*TINY, "-o", checked[0], "--resume", "--model", "nobody/knows")
    assert other.code != 0


def test_a_step_that_fails_is_a_row_and_the_rest_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(setting: Setting) -> Iterator[Row]:
        yield Row("before", "seen")
        raise RuntimeError("CUDA error: on purpose")

    def works(setting: Setting) -> Iterator[Row]:
        yield judged("after", 1.0, 2.0)

    monkeypatch.setattr(right, "STEPS", (breaks, works))
    done = run_cli(*TINY, "--sections", "right", "-o", tmp_path / "check")
    assert done.code == 1
    states = {name: row["state"] for name, row in rows(tmp_path / "check", "right").items()}
    assert states == {"before": "measured", "breaks": "failed", "after": "ok"}


def test_a_section_that_was_stopped_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stops = [True, False]

    def first(setting: Setting) -> Iterator[Row]:
        yield Row("first", "done")

    def stopped(setting: Setting) -> Iterator[Row]:
        if stops.pop(0):
            raise KeyboardInterrupt
        yield Row("second", "done")

    monkeypatch.setattr(right, "STEPS", (first, stopped))
    command = (*TINY, "--sections", "right", "-o", tmp_path / "check")
    assert run_cli(*command).code != 0
    assert list(rows(tmp_path / "check", "right")) == ["first"]
    assert run_cli(*command, "--resume").code == 0
    assert list(rows(tmp_path / "check", "right")) == ["first", "second"]


@pytest.mark.parametrize("number", [math.nan, math.inf, 3.0])
def test_what_is_above_its_limit_or_non_finite_fails(number: float) -> None:
    assert judged("loss", number, 2.0).state == "failed"
    assert judged("loss", 1.0, 2.0).state == "ok"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpu", "-o", "x"), "--tiny"),
        (("--gpu", "--tiny"), "--output"),
        (("--tiny",), "--gpu"),
        (("--gpu", "--tiny", "-o", "x", "--sections", "wrong"), "right, memory, speed, headline"),
        (("--gpu", "--device", "cuda", "-o", "x"), "torch finds 0"),
    ],
)
def test_what_cannot_be_checked_is_refused(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_cli("doctor", *arguments)
    assert done.code in (2, 3)
    assert message in done.err
    assert list(tmp_path.iterdir()) == []
