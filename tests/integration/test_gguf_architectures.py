"""Every architecture of the table against transformers: pico models, logits in both regimes within 1e-3."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest

from converters.base import Export
from converters.gguf import GgufConverter
from converters.gguf.carriers import TARGETS
from converters.gguf.container import GgufFile, array, u32
from converters.gguf.factors import FACTORS_KEY
from longrope.checkpoint import open_checkpoint
from longrope.errors import UnsupportedError
from longrope.factors import RescaleFactors
from longrope.family import RopeFamily
from longrope.modeling import TorchSource, build_model
from longrope.scoring import compare_windows
from tests import common
from tests.gguf_files import CASES, GELU, TARGET, WINDOW, checkpoint, export, factors_for, refused, rewrite, scores


def dual(model_type: str) -> bool:
    return GgufConverter().preferred_sets(SimpleNamespace(model_type=model_type)) == "dual"  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(tmp_path: Path, name: str) -> None:
    model_type, changes = CASES[name]
    model = checkpoint(tmp_path / "m", model_type, **changes)
    factors = factors_for(model, dual=dual(model_type))
    path = export(model, factors, "f32", tmp_path / "a.gguf")
    for regime, score in scores(model, factors, path).items():
        assert score.max_logit_diff <= (1e-2 if model_type in GELU else 1e-3), regime
        assert score.kl_mean <= (1e-5 if model_type in GELU else 1e-9), regime


def test_gemma_3_in_gemma4_computes_alike_with_the_cache_that_users_have(tmp_path: Path) -> None:
    """Its values are scaled on the way through gemma4's norm, far enough above the smallest numbers of float16."""
    model_type, changes = CASES["gemma3_text"]
    model = checkpoint(
        tmp_path / "m", model_type, **{**changes, "query_pre_attn_scalar": 16}
    )  # all that gemma3 computes
    single, family = factors_for(model).as_single(), RopeFamily.yarn(4.0, model.rope_theta)
    values = family.factors(model.rotary_dim, original=WINDOW, rope_theta=model.rope_theta)
    yarn = model.bind(RescaleFactors(values, values, attention_factor=family.attention_factor, family=family), TARGET)
    worst = {}
    for name, factors in (("carried", single), ("native", yarn)):
        path = export(model, factors, "f16", tmp_path / f"{name}.gguf")
        source = GgufConverter().open_source(path, factors, max_length=TARGET, threads=1, kv="f16")
        ids = np.random.default_rng(0).integers(0, model.vocab_size, TARGET)
        reference = TorchSource(build_model(model, factors), factors)
        worst[name] = compare_windows(reference, {"gguf": source}, [ids], factor_set="long")["gguf"].kl_mean
        source.close()
    assert worst["carried"] <= 2 * worst["native"]


@pytest.mark.parametrize("name", ["gemma", "gemma3_text", "gemma4_text"])
def test_factors_come_back_from_gemma4(tmp_path: Path, name: str) -> None:
    """It has no key for an attention factor: YaRN's scale, which need not be whole, stands for that."""
    model_type, changes = CASES[name]
    model = checkpoint(tmp_path / "m", model_type, **changes)
    factors = dataclasses.replace(factors_for(model).as_single(), attention_factor=1.1234)
    path = export(model, factors, "f16", tmp_path / "a.gguf")
    found = GgufConverter().read_factors(path)
    assert found is not None
    assert found.attention_factor == pytest.approx(1.1234, rel=1e-6)
    assert found.long_factor == pytest.approx(factors.long_factor, rel=1e-6)
    assert (done := common.run_cli("inspect", path)).code == 0, done.err


def test_every_supported_row_is_tested() -> None:
    assert set(TARGETS) - {"llama"} == {model_type for model_type, _ in CASES.values()}


# -- carriers

CARRIED = [("qwen2", "llama", "qwen2"), ("qwen3", "exaone-moe", "qwen3"), ("smollm3", "granite_swa", "smollm3")]


@pytest.mark.parametrize(("name", "architecture", "own"), CARRIED)
def test_a_carrier_is_named_everywhere(tmp_path: Path, name: str, architecture: str, own: str) -> None:
    model_type, changes = CASES[name]
    folder = common.pico_folder(tmp_path / "m", model_type, max_position_embeddings=WINDOW, **changes)
    factors = tmp_path / "factors.json"
    factors_for(open_checkpoint(folder)).save(factors)
    done = common.run_cli("convert", folder, "--to", "gguf", "--factors", factors, "-o", tmp_path / "a.gguf")
    assert done.code == 0
    assert f"written as architecture {architecture}, which computes the same network" in done.err
    with GgufFile(tmp_path / "a.gguf") as file:
        assert file.architecture == architecture
        assert f"llama.cpp's own {own} loads no rope factors" in file.get("general.description")
    shown = common.run_cli("inspect", tmp_path / "a.gguf").out
    assert f"architecture: {architecture}" in shown
    assert f"carried_architecture: {own}" in shown


def test_both_sets_of_qwen3_take_another_carrier(tmp_path: Path) -> None:
    model_type, changes = CASES["qwen3"]
    model = checkpoint(tmp_path / "m", model_type, **changes)
    factors = factors_for(model)
    path = export(model, factors, "f32", tmp_path / "a.gguf")
    with GgufFile(path) as file:
        assert (file.architecture, file.model_key("block_count")) == ("step35", 3)
    for regime, score in scores(model, factors, path).items():
        assert score.max_logit_diff <= 2e-4, regime
    checks = GgufConverter().static_checks(path, factors, model)
    assert {check.status for check in checks} == {"pass"}


def test_a_carrier_can_be_asked_for(tmp_path: Path) -> None:
    model_type, changes = CASES["qwen3"]
    model = checkpoint(tmp_path / "m", model_type, **changes)
    single = factors_for(model).as_single()
    path = export(model, single, "q8_0", tmp_path / "a.gguf", carrier="step35")
    with GgufFile(path) as file:
        assert file.architecture == "step35"
    refused(UnsupportedError, "one factor set", model, factors_for(model), options={"carrier": "exaone-moe"})
    refused(
        UnsupportedError, "written as llama; expected exaone-moe, step35", model, single, options={"carrier": "llama"}
    )


def test_the_layer_of_zeros_behind_a_carried_model_is_what_it_must_be(tmp_path: Path) -> None:
    """Quantized by llama.cpp, with rows that its types want."""
    wide = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 16, "num_key_value_heads": 4}
    model_type, changes = CASES["qwen3"]
    model = checkpoint(tmp_path / "m", model_type, **{**changes, **wide})
    with GgufFile(export(model, factors_for(model), "q6_k", tmp_path / "a.gguf")) as file:
        assert file.architecture == "step35"
        assert not file.floats("blk.2.attn_q.weight").any()


def test_the_size_of_a_carried_model_is_its_own(tmp_path: Path) -> None:
    model_type, changes = CASES["qwen3"]
    model = checkpoint(tmp_path / "m", model_type, **changes)
    names = [
        GgufConverter().plan(Export(model, factors)).values()["general.size_label"].data
        for factors in (factors_for(model), factors_for(model).as_single())
    ]
    assert names[0] == names[1] == gguf.size_label(model.num_parameters, model.num_parameters, 0, 0)


@pytest.mark.parametrize("key", ["attention.sliding_window", "attention.sliding_window_pattern"])
def test_a_carriers_keys_are_checked(tmp_path: Path, key: str) -> None:
    model_type, changes = CASES["qwen3"]
    model = checkpoint(tmp_path / "m", model_type, **changes)
    factors = factors_for(model).as_single()
    path = export(model, factors, "f16", tmp_path / "a.gguf")

    def fault(values: dict[str, Any], tensors: dict[str, Any]) -> None:
        wrong = u32(16) if key.endswith("window") else array(gguf.GGUFValueType.BOOL, [True, False])
        values[f"exaone-moe.{key}"] = wrong

    checks = GgufConverter().static_checks(rewrite(path, tmp_path / "bad.gguf", fault), factors, model)
    assert [check.id for check in checks if check.status == "fail"] == [f"gguf.{key}"]


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("qwen3_moe", {"head_dim": 16, "num_experts": 4, "decoder_sparse_step": 2}, "decoder_sparse_step"),
        ("olmo2", {}, "for olmo2: llama.cpp has no architecture that computes this network"),
        ("minicpm3", {"scale_emb": 10, "head_dim": 16, "qk_rope_head_dim": 16}, "scale_emb"),
        ("qwen2", {"layer_types": ["chunked_attention", "full_attention"]}, "layer_types"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(
    tmp_path: Path, model_type: str, changes: dict[str, Any], reason: str
) -> None:
    model = checkpoint(tmp_path / "m", model_type, **changes)
    refused(UnsupportedError, reason, model, factors_for(model))


def test_a_sliding_window_of_all_layers_is_widened_even_where_config_json_leaves_it_unsaid(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", "mistral", **CASES["mistral"][1])
    silent = {name: value for name, value in model.config.items() if name != "sliding_window"}
    (model.path / "config.json").write_text(json.dumps(silent))
    model = open_checkpoint(model.path)
    factors = factors_for(model, target=8192)
    assert model.extended_config(factors)["sliding_window"] is None
    assert "sliding_window" not in model.extended_config(factors_for(model, target=4096))
    values = GgufConverter().plan(Export(model, factors)).values()
    assert values["general.architecture"].data == "llama"
    assert "attend to the last 4096 tokens" in str(values[FACTORS_KEY].data)


def test_a_window_in_some_layers_only_is_one_too(tmp_path: Path) -> None:
    some = {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]}
    model = checkpoint(tmp_path / "m", "qwen2", sliding_window=512, **some)
    refused(UnsupportedError, "last 512 tokens", model, factors_for(model))


def test_single_set_architectures_refuse_two(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", "arcee")
    refused(UnsupportedError, "--factor-sets single", model, factors_for(model))


def test_llama_can_be_forced_and_forbidden(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", "granite")
    refused(
        UnsupportedError, "written as llama; expected granite", model, factors_for(model), options={"as_llama": True}
    )
    model = checkpoint(tmp_path / "q", "qwen2")
    refused(UnsupportedError, "as anything but llama", model, factors_for(model), options={"as_llama": False})


def test_numbers_of_an_activation_are_checked(tmp_path: Path) -> None:
    model_type, changes = CASES["apertus"]
    model = checkpoint(tmp_path / "m", model_type, **changes)
    factors = factors_for(model)
    path = export(model, factors, "f32", tmp_path / "a.gguf")

    def fault(values: dict[str, Any], tensors: dict[str, Any]) -> None:
        values["xielu.beta"] = dataclasses.replace(values["xielu.beta"], data=[0.25, 0.5])

    checks = GgufConverter().static_checks(rewrite(path, tmp_path / "bad.gguf", fault), factors, model)
    assert [check.id for check in checks if check.status == "fail"] == ["gguf.xielu.beta"]
