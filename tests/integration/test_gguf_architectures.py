"""Every architecture of the table against transformers: pico models, logits in both regimes within 1e-3."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from converters.gguf import GgufConverter
from longrope.architectures import ARCHITECTURES, architecture_of
from longrope.checkpoint import open_checkpoint
from longrope.errors import UnsupportedError
from tests.gguf_files import CASES, checkpoint, export, factors_for, refused, rewrite, scores

SINGLE = {"arcee", "exaone4"}
AS_LLAMA = {"qwen2", "seed_oss"}


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(tmp_path: Path, name: str) -> None:
    model_type, changes = CASES[name]
    model = checkpoint(tmp_path / "m", model_type, **changes)
    factors = factors_for(model, dual=name not in SINGLE)
    options = {"as_llama": True} if name in AS_LLAMA else {}
    path = export(model, factors, "f32", tmp_path / "a.gguf", **options)
    for regime, score in scores(model, factors, path).items():
        assert score.max_logit_diff <= 1e-3, regime
        assert score.kl_mean <= 1e-6, regime


def test_every_supported_row_is_tested() -> None:
    supported = {row.model_type for row in ARCHITECTURES.values() if row.gguf_rope or row.gguf_as_llama}
    assert supported - {"llama"} == {model_type for model_type, _ in CASES.values()}


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("qwen2", {}, "as_llama"),
        ("qwen3", {"head_dim": 16}, "qwen3 loads no rope factors"),
        ("olmo2", {}, "olmo2 loads no rope factors"),
        ("mistral", {"sliding_window": 512}, "sliding_window"),
        ("minicpm3", {"scale_emb": 10, "head_dim": 16, "qk_rope_head_dim": 16}, "scale_emb"),
        ("exaone4", {"sliding_window": 512}, "sliding_window"),
        ("exaone4", {"sliding_window": None, "layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(
    tmp_path: Path, model_type: str, changes: dict[str, Any], reason: str
) -> None:
    model = checkpoint(tmp_path / "m", model_type, **changes)
    refused(UnsupportedError, reason, model, factors_for(model))


@pytest.mark.parametrize("model_type", ["exaone4", "mistral"])
def test_a_sliding_window_that_config_json_leaves_unsaid_is_transformers_own(tmp_path: Path, model_type: str) -> None:
    model = checkpoint(tmp_path / "m", model_type, **CASES[model_type][1])
    silent = {name: value for name, value in model.config.items() if name != "sliding_window"}
    (model.path / "config.json").write_text(json.dumps(silent))
    model = open_checkpoint(model.path)
    refused(UnsupportedError, "sliding_window.*4096|4096.*sliding_window", model, factors_for(model, target=8192))


def test_a_window_in_some_layers_only_is_one_too(tmp_path: Path) -> None:
    some = {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]}
    model = checkpoint(tmp_path / "m", "qwen2", sliding_window=512, **some)
    refused(UnsupportedError, "last 512 tokens", model, factors_for(model), options={"as_llama": True})


def test_single_set_architectures_refuse_two(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", "arcee")
    refused(UnsupportedError, "--factor-sets single", model, factors_for(model))


def test_as_llama_is_for_llamas_only(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", "granite")
    refused(UnsupportedError, "not Llama's", model, factors_for(model), options={"as_llama": True})


def test_phimoe_says_why_it_cannot_be() -> None:
    with pytest.raises(UnsupportedError, match="sparse mixer"):
        architecture_of({"model_type": "phimoe"})


def test_numbers_of_an_activation_are_checked(tmp_path: Path) -> None:
    model_type, changes = CASES["apertus"]
    model = checkpoint(tmp_path / "m", model_type, **changes)
    factors = factors_for(model)
    path = export(model, factors, "f32", tmp_path / "a.gguf")

    def fault(values: dict[str, Any], tensors: dict[str, Any]) -> None:
        values["xielu.beta"] = dataclasses.replace(values["xielu.beta"], data=[0.25, 0.5])

    checks = GgufConverter().static_checks(rewrite(path, tmp_path / "bad.gguf", fault), factors, model)
    assert [check.id for check in checks if check.status == "fail"] == ["gguf.xielu.beta"]
