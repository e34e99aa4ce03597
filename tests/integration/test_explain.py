"""`validate --explain`: the cause of a fault is named, from what was measured; tests/culprits.py has the faults."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch

from converters import registry
from converters.base import Check, Export
from converters.explain.causes import CAUSES, cause_of_check
from converters.explain.naming import Findings, explanation
from longrope.modeling import TorchSource, build_model
from longrope.progress import Silent
from longrope.residual import residual_stream
from longrope_export.validation_schema import validation_schema
from tests.common import FEATURES, junit_faults, pico_checkpoint, pico_factors, pico_text, run_cli
from tests.culprits import CASES, Case, Workshop

# One of each cause that a run can tell, over the formats.
SAMPLE = {
    "hf": (
        "no original length",
        "sets swapped",
        "attention factor of no formula",
        "k of layer 2 scaled",
    ),
    "gguf": ("another theta", "q and k not interleaved", "another norm", "one set only", "too few factors"),
    "onnx": ("n_hat ignored", "caches of two layers swapped", "mask ignored", "one layer not rotated"),
    "gguf:q4_0": ("factors in reverse",),
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("shop"))


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.name in SAMPLE.get(case.kind, ())],
    ids=lambda case: f"{case.kind}-{case.name}",
)
def test_the_cause_is_named(shop: Workshop, case: Case) -> None:
    said = shop.explained(case)
    assert case.is_named_by(said), (said.cause, said.where, said.evidence)
    assert said.evidence
    assert said.advice == CAUSES[case.cause].advice


def test_the_sample_names_cases_that_are_there() -> None:
    there = {(case.kind, case.name) for case in CASES}
    assert {(kind, name) for kind, names in SAMPLE.items() for name in names} <= there
    assert len(CASES) >= 100
    assert {case.cause for case in CASES} <= set(CAUSES)


# -- hidden states


@pytest.mark.parametrize("format_name", ["hf", "gguf", "onnx"])
def test_every_runtime_gives_the_references_residual_stream(shop: Workshop, format_name: str) -> None:
    case = next(case for case in CASES if case.kind == format_name)
    shop.plan(case)
    factors = shop.factors(format_name)
    source = registry.converter(format_name).open_source(shop.path(case), factors, max_length=512, threads=1)
    reference = TorchSource(build_model(shop.model, factors), factors)
    for name in ("short", "long"):
        ids = shop.ids[: 256 if name == "short" else 400]
        ours, theirs = (each.hidden_states(ids, name, 40) for each in (reference, source))
        assert ours.shape == theirs.shape == (5, 40, 64)
        assert float((ours - theirs).abs().max()) < 1e-3 * float(ours.abs().max())
    source.close()


def test_a_graph_with_attention_and_mlp_in_parallel_gives_it_too(tmp_path: Path) -> None:
    model = pico_checkpoint(tmp_path / "model", "phi", **FEATURES["phi"])
    factors = model.bind(pico_factors(model.rotary_dim, dual=False))
    registry.converter("onnx").convert(Export(model, factors), tmp_path / "onnx", Silent())
    source = registry.converter("onnx").open_source(tmp_path / "onnx", factors, max_length=64, threads=1)
    ids = np.arange(20)
    ours, theirs = (
        each.hidden_states(ids, "long", 12)  # type: ignore[attr-defined]
        for each in (TorchSource(build_model(model, factors), factors), source)
    )
    assert float((ours - theirs).abs().max()) < 1e-3


def test_a_layer_that_is_given_a_state_computes_with_it(shop: Workshop) -> None:
    model = build_model(shop.model)
    ids = torch.as_tensor(shop.ids[:16])[None]
    own = residual_stream(model, ids)
    again = residual_stream(model, ids, own.states)
    assert torch.equal(again.states, own.states)
    given = own.states.clone()
    given[2] += 1.0
    changed = residual_stream(model, ids, given)
    same = [torch.equal(changed.states[at], own.states[at]) for at in range(5)]
    assert same == [True, True, True, False, True]


# -- what is said without a run


def test_checks_speak_of_causes() -> None:
    spoken = {
        "hf.rope_parameters.attention_factor": "rope.attention_factor",
        "gguf.rope.scaling.original_context_length": "rope.switch",
        "onnx.switch": "rope.switch",
        "gguf.factors.long": "rope.factors",
        "gguf.rope.freq_base": "rope.theta",
        "gguf.attention.layer_norm_rms_epsilon": "settings",
        "hf.tokenizer": "files",
        "gguf.parity.long.512": "",
        "gguf.rounding.long.512": "",
    }
    assert {id: cause_of_check(Check(id, "fail")) for id in spoken} == spoken
    assert cause_of_check(Check("onnx.weights", "fail", message="rope.inv_freq differs")) == "rope.theta"


def test_an_artifact_that_is_not_run_is_explained_by_its_checks() -> None:
    check = Check("gguf.factors.long", "fail", 8, 4, "they belong to another model")
    said = explanation(Findings([check], notes=["its runtime does not open it: 4 factors"], opened=False))
    assert (said.cause, said.checks) == ("rope.factors", ("gguf.factors.long",))
    assert said.title == "The artifact is not run: the rotary factors are others."
    assert said.evidence[-1] == "its runtime does not open it: 4 factors"


# -- the command


def test_the_command_says_why(tmp_path: Path) -> None:
    model = pico_checkpoint(tmp_path / "model")
    pico_factors(dual=False).save(tmp_path / "factors.json")
    (tmp_path / "text.txt").write_text(pico_text(60), encoding="utf-8")
    factors = ("--factors", tmp_path / "factors.json")
    assert run_cli("convert", model.path, "--to", "hf", *factors, "-o", tmp_path / "hf").code == 0
    known = ("--reference", model.path, *factors, "--text", tmp_path / "text.txt", "--windows", "128", "--threads", 1)
    more = ("--no-crossing", "--windows-per-length", 1, "--explain")
    sound = run_cli("validate", tmp_path / "hf", *known, *more, "--json", tmp_path / "sound.json")
    assert sound.code == 0
    assert json.loads((tmp_path / "sound.json").read_text())["explanation"] is None

    broken = shutil.copytree(tmp_path / "hf", tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    for place in ("rope_scaling", "rope_parameters"):
        config[place]["attention_factor"] = 1.4
    (broken / "config.json").write_text(json.dumps(config))
    reports = ("--json", tmp_path / "result.json", "--junit", tmp_path / "junit.xml")
    done = run_cli("validate", broken, *known, *more, *reports)
    assert done.code == 1
    junit = (tmp_path / "junit.xml").read_text(encoding="utf-8")
    assert junit_faults(junit) == []
    assert "Likeliest cause: The attention factor is another" in junit
    result = json.loads((tmp_path / "result.json").read_text())
    jsonschema.validate(result, validation_schema())
    assert result["explanation"]["cause"] == "rope.attention_factor"
    assert "hf.rope_parameters.attention_factor" in result["explanation"]["checks"]
    assert "fails: The attention factor is another" in done.out + done.err
    assert np.isfinite(result["explanation"]["trials"][0]["kl_mean"])


@pytest.mark.parametrize("beside", [("--static",), ("--from", "result.json")])
def test_nothing_is_explained_without_a_run(tmp_path: Path, beside: tuple[str, ...]) -> None:
    artifact = () if "--from" in beside else (tmp_path, "--reference", tmp_path)
    done = run_cli("validate", *artifact, *beside, "--explain")
    assert done.code == 2
    assert "--explain runs the artifact again" in done.err
