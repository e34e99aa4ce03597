"""What an extension costs and brings, measured with `validate --quality` on the built-in model and on pico models."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import validate
from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.errors import InputError
from longrope.factors import BoundFactors, RescaleFactors
from longrope.machine import Machine
from longrope.measures import Quality
from longrope.modeling import TorchSource, build_model
from longrope.progress import Silent
from longrope.quality import QualityOptions, measure_quality
from longrope.scoring import nll
from longrope.search.methods import known_candidates
from longrope.text import Corpus, Document, load_corpus
from longrope_export import default_model
from tests.common import TARGET, WINDOW, junit_faults, pico_corpus, pico_factors, run_cli

Json = dict[str, Any]
ONE_THREAD = Machine(threads=1)
L, FURTHER = 256, 512


@pytest.fixture(scope="module")
def built_in() -> Checkpoint:
    return open_checkpoint(default_model.CHECKPOINT)


@pytest.fixture(scope="module")
def speeches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The beginnings of two held-out texts."""
    folder = tmp_path_factory.mktemp("speeches")
    for file in sorted(default_model.TEST_TEXTS.iterdir())[:2]:
        (folder / file.name).write_text(file.read_text(encoding="utf-8")[:6000], encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def result(built_in: Checkpoint, speeches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """validation.json of the built-in model with NTK's factors, as a folder, on two windows of each length."""
    room = tmp_path_factory.mktemp("quality")
    ntk = known_candidates(built_in, FURTHER)["NTK"].factors
    RescaleFactors(ntk, ntk, target_length=FURTHER, attention_factor=1.0).save(room / "ntk.json")
    where = ("--factors", room / "ntk.json", "-o", room / "ntk")
    assert run_cli("convert", "default", "--to", "hf", *where).code == 0
    known = ("--reference", "default", "--factors", room / "ntk.json", "--text", speeches)
    cheap = ("--threads", 1, "--windows-per-length", 2, "--no-crossing")
    done = run_cli("validate", room / "ntk", *known, *cheap, "--quality", "--json", room / "result.json")
    assert done.code == 0, done.err
    assert "The extension of" in done.out
    assert "Passkeys found" in done.out
    return room / "result.json"


def quality_of(path: Path) -> dict[str, Json]:
    checks = json.loads(path.read_text(encoding="utf-8"))["checks"]
    return {each["id"].removeprefix("quality."): each for each in checks if each["id"].startswith("quality.")}


def test_an_extension_is_held_against_the_original_and_against_other_methods(
    result: Path, built_in: Checkpoint, speeches: Path
) -> None:
    """By NLLs of the plain model, measured another way; and NTK against itself differs by nothing."""
    found = quality_of(result)
    methods = {f"beyond.{name}.{FURTHER}" for name in ("original", "PI", "NTK", "YaRN")}
    passkeys = {f"passkey.{length}" for length in (L, FURTHER)}
    controls = {f"control.{name}" for name in ("differs", "same", "reference")}
    assert set(found) == {f"inside.{L}", *methods, *passkeys, *controls}
    plain = TorchSource(build_model(built_in), None)
    corpus = load_corpus([speeches], built_in.encode)
    inside = found[f"inside.{L}"]["actual"]
    assert inside["ppl_original"] == pytest.approx(np.exp(nll(plain, corpus.windows(L, 2), "short")), rel=1e-4)
    assert inside["ppl_rise_percent"] == pytest.approx(100 * (inside["ppl"] / inside["ppl_original"] - 1))
    assert inside["standard_error"] > 0
    assert inside["kl_mean"] > 1e-4
    original = found[f"beyond.original.{FURTHER}"]["actual"]
    expected = np.exp(nll(plain, corpus.windows(FURTHER, 2), "short"))
    assert original["ppl_method"] == pytest.approx(expected, rel=1e-4)
    assert original["ppl_rise_percent"] < -20
    ntk = found[f"beyond.NTK.{FURTHER}"]["actual"]
    assert (ntk["ppl_rise_percent"], ntk["standard_error"]) == (0, 0)
    assert {found[name]["status"] for name in controls} == {"pass"}
    assert found["control.differs"]["actual"]["max_logit_diff"] > 1
    assert found[f"passkey.{L}"]["actual"]["original"] == f"5 of 5 at {L} tokens"


def test_quality_is_judged_again_and_reported(result: Path, tmp_path: Path) -> None:
    policy = tmp_path / "mine.yaml"
    policy.write_text(
        "checks: {'quality.*': error}\nlimits: [{compare: inside, ppl_rise_percent: 0, kl_mean: 1.0e-6}]\n"
    )
    again = ("--json", tmp_path / "again.json", "--markdown", tmp_path / "report.md", "--junit", tmp_path / "junit.xml")
    assert run_cli("validate", "--from", result, "--policy", policy, *again).code == 1
    assert quality_of(tmp_path / "again.json")[f"inside.{L}"]["status"] == "fail"
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f"| {FURTHER} | <code>NTK</code> | 0 %, the same | " in report
    assert f"| {L} | <code>original model</code> | +" in report
    junit = (tmp_path / "junit.xml").read_text(encoding="utf-8")
    assert junit_faults(junit) == []
    assert f'name="quality.beyond.NTK.{FURTHER}"' in junit
    assert run_cli("validate", "--from", tmp_path / "again.json", "--json", tmp_path / "back.json").code == 0
    assert quality_of(tmp_path / "back.json") == quality_of(result)


def test_a_finding_of_a_stranger_is_no_row_of_the_table(result: Path, tmp_path: Path) -> None:
    data = json.loads(result.read_text(encoding="utf-8"))
    data["checks"].append({**data["checks"][0], "id": "quality.inside.7", "actual": "x", "found": "pass"})
    (tmp_path / "odd.json").write_text(json.dumps(data))
    assert run_cli("validate", "--from", tmp_path / "odd.json").code == 0


def measure(checkpoint: Checkpoint, *factors: BoundFactors, corpus: Corpus | None = None, windows: int = 1) -> Any:
    options = QualityOptions(windows_per_length=windows)
    return measure_quality(checkpoint, factors, corpus or pico_corpus(checkpoint), options, ONE_THREAD, Silent())


def test_each_extension_uses_its_own_set_inside(pico: Checkpoint, dual: BoundFactors) -> None:
    both, single = measure(pico, dual, dual.as_single(), windows=2)
    assert both.beyond == single.beyond
    assert both.inside[0].ppl_reference == single.inside[0].ppl_reference
    assert both.inside[0].ppl != single.inside[0].ppl
    assert set(both.left_out) == {"passkey"}


def test_an_extended_reference_is_held_against_the_model_before(
    pico: Checkpoint, dual: BoundFactors, tmp_path: Path
) -> None:
    pico_factors().save(tmp_path / "factors.json")
    folder = tmp_path / "extended"
    wanted = ("--to", "hf", "--factors", tmp_path / "factors.json", "--factor-sets", "dual", "-o", folder)
    assert run_cli("convert", pico.path, *wanted).code == 0
    extended = open_checkpoint(folder)
    assert extended.factors is not None
    (before,), (after,) = measure(pico, dual), measure(extended, extended.factors)
    for ours, theirs in zip(losses(before), losses(after), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


def losses(quality: Quality) -> list[float]:
    inside = [value for score in quality.inside for text in score.texts for value in (text.nll_reference, text.nll)]
    return inside + [
        value for score in quality.beyond for row in (score.extended, *score.methods.values()) for value in row
    ]


def test_factors_that_change_nothing_do_not_differ(pico: Checkpoint) -> None:
    plain = dataclasses.replace(
        pico_factors(dual=False), short_factor=(1.0,) * 8, long_factor=(1.0,) * 8, attention_factor=1.0
    )
    (found,) = measure(pico, pico.bind(plain))
    assert found.controls["differs"].max_logit_diff == 0 == found.controls["same"].max_logit_diff


def test_what_the_texts_are_too_short_for_is_left_out(pico: Checkpoint, dual: BoundFactors) -> None:
    document = Document("short", np.array(pico_corpus(pico, 1).documents[0].ids[: WINDOW + 1]))
    (found,) = measure(pico, dual, corpus=Corpus((document,)))
    assert len(found.inside) == 1
    assert not found.beyond
    assert not found.controls
    assert {f"beyond.{TARGET}", "control", "passkey"} == set(found.left_out)


def test_quality_needs_texts(pico: Checkpoint, dual: BoundFactors, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected texts"):
        validate(pico.path, pico, None, factors=dual, quality=True)
    known = (pico.path, "--reference", pico.path)
    for arguments in (("--from", "r.json"), (*known, "--static"), (*known, "--text", pico.path, "--budget", "1m")):
        done = run_cli("validate", *arguments, "--quality")
        assert done.code == 2
        assert "--quality" in done.err


def test_thorough_measures_quality_where_there_is_no_budget(pico: Checkpoint, dual: BoundFactors) -> None:
    both = [
        validate(pico.path, pico, pico_corpus(pico), factors=dual, effort="thorough", threads=1, budget=budget, **few)
        for few in ({"windows_per_length": 1, "crossing": False, "windows": (WINDOW,)},)
        for budget in (None, 60.0)
    ]
    measured, left_out = ({check.id: check.status for check in each.checks} for each in both)
    assert measured[f"quality.beyond.PI.{TARGET}"] == "pass"
    assert {id for id, status in left_out.items() if id.startswith("quality.") and status == "skip"} == {
        f"quality.{name}" for name in ("inside", "beyond", "passkey", "control")
    }
    with pytest.raises(InputError, match="no budget"):
        validate(pico.path, pico, pico_corpus(pico), factors=dual, quality=True, budget=60.0)
