"""How much `validate` measures, through the command line: presets, a time, and what was left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longrope.checkpoint import Checkpoint
from tests.common import TARGET, WINDOW, Outcome, run_cli

Json = dict[str, Any]


@pytest.fixture(scope="module")
def artifact(pico: Checkpoint, factors_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose weights are rounded, so that a second reference is made by default."""
    path = tmp_path_factory.mktemp("effort") / "a.gguf"
    made = run_cli(
        "convert",
        pico.path,
        "--to",
        "gguf",
        "--factors",
        factors_file,
        "--outtype",
        "q8_0",
        "--factor-sets",
        "dual",
        "-o",
        path,
    )
    assert made.code == 0, made.err
    return path


@pytest.fixture
def validated(artifact: Path, pico: Checkpoint, factors_file: Path, texts: Path, tmp_path: Path) -> Any:
    """`validate` with more options: what came of it, and its JSON."""

    def run(*more: object) -> tuple[Outcome, Json]:
        known = (
            "--reference",
            pico.path,
            "--factors",
            factors_file,
            "--text",
            texts,
            "--threads",
            1,
            "--isolate",
            "off",
        )
        done = run_cli("validate", artifact, *known, "--json", tmp_path / "result.json", *more)
        return done, json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))

    return run


def statuses(entry: Json) -> dict[str, str]:
    return {check["id"]: check["status"] for check in entry["checks"]}


def measured(entry: Json) -> dict[int, int]:
    """Length → windows of it."""
    return {window["length"]: len(window["texts"]) for window in entry["windows"]}


def test_quick_takes_two_windows_and_no_second_reference(validated: Any) -> None:
    done, entry = validated("--quick")
    assert done.code == 0, done.err + done.out
    assert measured(entry) == {WINDOW: 1, TARGET: 1}
    assert entry["runtime"] == entry["rounding"] == []
    found = statuses(entry)
    assert found["gguf.own_weights"] == "skip"
    assert found["gguf.budget"] == found[f"gguf.parity.long.{TARGET}"] == "pass"
    strict, _ = validated("--quick", "--policy", "strict")
    assert strict.code == 1  # what was left out has not passed


def test_thorough_takes_lengths_between_and_given_options_win(validated: Any) -> None:
    done, entry = validated("--thorough", "--windows-per-length", 1, "--no-crossing")
    assert done.code == 0, done.err + done.out
    assert measured(entry) == dict.fromkeys((WINDOW // 2, WINDOW, 2 * WINDOW, TARGET), 1)
    _, more = validated("--quick", "--windows", WINDOW, "--windows-per-length", 2, "--crossing")
    assert measured(more) == {WINDOW: 2}


def test_what_does_not_fit_is_a_skipped_check_and_fails_where_it_is_required(validated: Any, tmp_path: Path) -> None:
    """In no time at all, only what the rate is measured on counts."""
    done, entry = validated("--budget", "0.001s")
    assert done.code == 0, done.err + done.out
    assert measured(entry) == {WINDOW: 1}
    found = statuses(entry)
    assert found[f"gguf.parity.long.{WINDOW}"] == "pass"  # llama.cpp's smallest context is beyond the original window
    assert found[f"gguf.parity.long.{TARGET}"] == found[f"gguf.parity.crossing.{WINDOW + 8}"] == "skip"
    assert found["gguf.budget"] == "skip"
    policy = tmp_path / "all.yaml"
    policy.write_text("fail_if_not_run: ['*.parity.*']\n")
    required, _ = validated("--budget", "0.001s", "--policy", policy)
    assert required.code == 1
    enough, whole = validated("--budget", "1h")
    assert enough.code == 0
    assert measured(whole) == {WINDOW: 4, TARGET: 4, WINDOW + 8: 1}
    assert statuses(whole)["gguf.budget"] == "pass"


def test_a_reference_in_16_bits_is_said_and_refused_by_a_strict_policy(validated: Any) -> None:
    done, entry = validated("--reference-dtype", "bfloat16", "--windows-per-length", 1)
    assert done.code == 0, done.err + done.out
    assert entry["reference_dtype"] == "bfloat16"
    assert statuses(entry)["gguf.reference_dtype"] == "warn"
    assert statuses(entry)[f"gguf.parity.long.{TARGET}"] == "pass"
    assert max(window["kl_mean"] for window in entry["runtime"]) > 0
    strict, judged = validated("--reference-dtype", "bfloat16", "--windows", WINDOW, "--policy", "strict")
    assert strict.code == 1
    assert statuses(judged)["gguf.reference_dtype"] == "fail"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--quick", "--thorough"), "contradict"),
        (("--static", "--quick"), "--quick"),
        (("--from", "result.json", "--budget", "10m"), "--budget"),
        (("--static", "--reference-dtype", "float16"), "--reference-dtype"),
        (("--thorough", "--device", "sharded"), "--device sharded"),
        (("--explain", "--device", "sharded"), "--device sharded"),
        (("--budget", "soon"), "10m"),
        (("--budget", "0"), "10m"),
        (("--budget", "nan"), "10m"),
    ],
)
def test_contradictions_are_refused_in_a_line(more: tuple[str, ...], words: str) -> None:
    known = () if "--from" in more else ("a.gguf", "--reference", "model")
    texts = () if {"--from", "--static"} & set(more) else ("--text", "x.txt")
    done = run_cli("validate", *known, *texts, *more)
    assert done.code == 2
    assert words in done.err
