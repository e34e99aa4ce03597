"""YaRN and linear interpolation with other parameters than usual, in every format against transformers' own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.base import Export
from converters.gguf import GgufConverter
from converters.gguf.carriers import COMPUTES_FAMILIES
from converters.gguf.container import GgufFile
from converters.gguf.patch import patch_gguf
from converters.hf.converter import HuggingFaceConverter
from longrope.checkpoint import Checkpoint
from longrope.errors import UnsupportedError
from longrope.factors import BoundFactors, RescaleFactors
from longrope.family import RopeFamily
from longrope.modeling import TorchSource, build_model
from longrope.progress import Silent
from longrope.scoring import compare_windows
from longrope.search.space import make_space
from longrope.search.strategies.parameters import Grid, ramp_betas
from tests.common import FEATURES, YARN, run_cli
from tests.common import WINDOW as TRAINED
from tests.gguf_files import CASES, GELU, TARGET, WINDOW, Tensors, Values, checkpoint, export, rewrite, scores

# Model types whose own architecture loads no factors: name → (model type, fields of config.json).
NATIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3_moe": CASES["qwen3_moe"],
    "smollm3": ("smollm3", {"num_hidden_layers": 4, "tie_word_embeddings": True}),
    "olmo2": ("olmo2", {}),
    "gemma": ("gemma", {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma2": (
        "gemma2",
        {"head_dim": 16, "sliding_window": 128, "query_pre_attn_scalar": 16, "tie_word_embeddings": True},
    ),
    "gemma3_text": (
        "gemma3_text",
        {
            "head_dim": 16,
            "sliding_window": 128,
            "query_pre_attn_scalar": 16,
            "tie_word_embeddings": True,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    **{name: (name, FEATURES[name]) for name in ("olmo3", "glm4", "phi", "gpt_neox", "gpt_oss", "qwen3_5_text")},
    "cohere": ("cohere", {"logit_scale": 0.1, "tie_word_embeddings": True}),
}
OTHERS = ("phi3", "mistral", "mixtral", "ministral3", "gemma4_text")
MODELS = {
    "llama": ("llama", {}),
    **{name: case for name, case in CASES.items() if case[0] not in OTHERS},
    **NATIVES,
}


def yarn(model: Checkpoint, *, attention_factor: float | None = None) -> BoundFactors:
    """Another ramp, scale and, where llama.cpp takes one, base than YaRN's own."""
    theta = (1.0 if model.model_type == "olmo3" else 1.5) * model.rope_theta
    betas = ramp_betas(model.rotary_dim, theta, WINDOW, 0.3)
    assert betas is not None
    fast, slow = betas
    return of(RopeFamily.yarn(4.5, theta, beta_fast=fast, beta_slow=slow, attention_factor=attention_factor), model)


def of(family: RopeFamily, model: Checkpoint) -> BoundFactors:
    factors = family.factors(model.rotary_dim, original=WINDOW, rope_theta=model.rope_theta)
    given = RescaleFactors(factors, factors, attention_factor=family.attention_factor, family=family)
    return model.bind(given, target=TARGET)


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_yarn_in_the_models_own_architecture(tmp_path: Path, name: str) -> None:
    model = checkpoint(tmp_path / "m", MODELS[name][0], **MODELS[name][1])
    factors = yarn(model)
    path = export(model, factors, "f32", tmp_path / "a.gguf")
    assert GgufConverter().describe(path)["architecture"] in COMPUTES_FAMILIES
    for regime, score in scores(model, factors, path).items():
        assert score.max_logit_diff <= (1e-2 if name in GELU else 5e-4), regime
        assert score.kl_mean <= (1e-5 if name in GELU else 1e-8), regime


@pytest.mark.parametrize("kind", ["linear", "attention"])
def test_linear_and_another_attention_factor_too(tmp_path: Path, kind: str) -> None:
    model = checkpoint(tmp_path / "m", "qwen3", head_dim=16)
    linear = of(RopeFamily("linear", 3.0, 2 * model.rope_theta), model)
    factors = linear if kind == "linear" else yarn(model, attention_factor=1.3)
    for score in scores(model, factors, export(model, factors, "f32", tmp_path / "a.gguf")).values():
        assert score.max_logit_diff <= 2e-4


@pytest.mark.parametrize("key", ["scaling.type", "scaling.factor", "scaling.original_context_length", "freq_base"])
def test_a_file_without_one_of_the_keys_fails_its_check(tmp_path: Path, key: str) -> None:
    model = checkpoint(tmp_path / "m", "qwen3", head_dim=16)
    factors = yarn(model)

    def fault(values: Values, tensors: Tensors) -> None:
        del values[f"qwen3.rope.{key}"]

    path = rewrite(export(model, factors, "f32", tmp_path / "a.gguf"), tmp_path / "b.gguf", fault)
    failed = [check.id for check in GgufConverter().static_checks(path, factors, model) if check.status == "fail"]
    assert failed == [f"gguf.rope.{key}"]


def test_a_file_of_any_architecture_is_patched_by_its_keys(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", "qwen3", head_dim=16)
    plain = of(RopeFamily("linear", 1.0, model.rope_theta), model)

    def stock(values: Values, tensors: Tensors) -> None:
        for key in [key for key in values if ".rope.scaling." in key or key.startswith("longrope_export.")]:
            del values[key]
        values["qwen3.context_length"] = dataclasses.replace(values["qwen3.context_length"], data=WINDOW)

    source = rewrite(export(model, plain, "q8_0", tmp_path / "a.gguf"), tmp_path / "stock.gguf", stock)
    factors = yarn(model)
    checks = patch_gguf(source, factors.unbound(), tmp_path / "patched.gguf")
    assert {check.status for check in checks} == {"pass"}
    whole = export(model, factors, "q8_0", tmp_path / "whole.gguf")
    assert scores(model, factors, tmp_path / "patched.gguf") == scores(model, factors, whole)


def test_a_ramp_that_llama_cpp_does_not_compute_is_refused(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", "qwen3", head_dim=16)
    for family in (
        RopeFamily.yarn(4.0, model.rope_theta, beta_fast=12.0, beta_slow=1.0),
        dataclasses.replace(RopeFamily.yarn(4.0, model.rope_theta), truncate=False),
    ):
        with pytest.raises(UnsupportedError, match="another ramp"):
            GgufConverter().plan(Export(model, of(family, model), "f32"))


def test_a_model_that_scales_queries_by_the_original_window_is_refused(tmp_path: Path) -> None:
    """llama.cpp takes the length from the key that moves YaRN's ramp."""
    model = checkpoint(tmp_path / "m", "ministral3", **CASES["ministral3"][1])
    with pytest.raises(UnsupportedError, match=r"no architecture of llama\.cpp"):
        GgufConverter().plan(Export(model, yarn(model), "f32"))


def test_a_folder_is_what_transformers_builds_bit_for_bit(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", "qwen3", head_dim=16)
    factors = yarn(model)
    HuggingFaceConverter().convert(Export(model, factors, "auto"), tmp_path / "hf", Silent())
    config = json.loads((tmp_path / "hf" / "config.json").read_text(encoding="utf-8"))
    assert config["rope_scaling"]["type"] == config["rope_parameters"]["rope_type"] == "yarn"
    rotary = build_model(model, factors).model.rotary_emb
    assert rotary.rope_type == "yarn"


def test_searched_on_the_command_line_and_exported_to_every_format(tmp_path: Path, texts: Path) -> None:
    model = checkpoint(tmp_path / "m", "qwen3", head_dim=16)
    found = tmp_path / "factors.json"
    search = ("search", model.path, "--target-length", "512", "--text", texts, "--documents", "2", "--threads", "1")
    outcome = run_cli(*search, "--family", "yarn", "--max-evals", "6", "-o", found)
    assert outcome.code == 0, outcome.err
    assert "parameters: " in outcome.err
    data = json.loads(found.read_text(encoding="utf-8"))
    assert data["method"] == data["family"]["type"] in ("yarn", "linear")
    for format, outtype in (("hf", "auto"), ("gguf", "f32"), ("onnx", "f32")):
        path = tmp_path / ("model.gguf" if format == "gguf" else format)
        convert = ("convert", model.path, "--to", format, "--outtype", outtype, "--factors", found, "-o", path)
        assert run_cli(*convert).code == 0, format
        checks = ("--windows", "128,512", "--windows-per-length", "1", "--factors", found)
        outcome = run_cli("validate", path, "--reference", model.path, "--text", texts, *checks)
        assert outcome.code == 0, (format, outcome.out, outcome.err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--factor-sets", "dual"), "one set for every length"),
        (("--stages", "default"), "trained with free factors"),
        (("--strategy", "cma"), "has its own search"),
    ],
)
def test_extend_refuses_what_a_family_has_no_place_for(
    tmp_path: Path, texts: Path, options: tuple[str, ...], message: str
) -> None:
    model = checkpoint(tmp_path / "m")
    common = (
        "extend",
        model.path,
        "--target-length",
        "512",
        "--text",
        texts,
        "-o",
        tmp_path / "run",
        "--family",
        "yarn",
    )
    outcome = run_cli(*common, *options)
    assert outcome.code == 2
    assert message in outcome.err


# -- a yarn base, whose place the parameters take

BASED = {
    "gpt_oss": {**FEATURES["gpt_oss"], "rope_parameters": {**YARN, "truncate": False}},
    "llama": {"rope_parameters": YARN},
    "deepseek_v2": {
        **FEATURES["deepseek_v2"],
        "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.7},
        "q_lora_rank": 32,
    },
}


@pytest.mark.parametrize("name", BASED)
def test_parameters_take_the_place_of_a_models_own_yarn(tmp_path: Path, name: str) -> None:
    model = checkpoint(tmp_path / "m", name, max_position_embeddings=TRAINED, **BASED[name])
    space = make_space(model, 4 * TRAINED, family="yarn")
    start = space.known_methods()[0]
    factors = space.to_factors(start.candidate)
    assert start.candidate.family is not None
    assert (space.family_scale, start.candidate.family.factor) == (8.0, 8.0)  # 4 on top of the model's 2
    rope = model.extended_config(factors)["rope_parameters"]
    assert (rope["original_max_position_embeddings"], rope["beta_fast"], rope["beta_slow"]) == (TRAINED // 2, 32.0, 1.0)
    path = export(model, factors, "f32", tmp_path / "a.gguf")
    with GgufFile(path) as file:
        assert file.model_key("rope.scaling.original_context_length") == TRAINED // 2
        assert file.model_key("rope.scaling.factor") == 8.0
    reference = TorchSource(build_model(model, factors), factors)
    ids = np.random.default_rng(0).integers(0, model.vocab_size, 4 * TRAINED)
    source = GgufConverter().open_source(path, factors, max_length=4 * TRAINED, threads=1)
    score = compare_windows(reference, {"gguf": source}, [ids], factor_set="long")["gguf"]
    source.close()
    assert score.max_logit_diff <= 1e-4


def test_its_own_yarn_as_parameters_is_the_model(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", max_position_embeddings=TRAINED, **BASED["llama"])
    same = RopeFamily.yarn(2.0, model.rope_theta, beta_fast=64.0, beta_slow=2.0)
    given = same.factors(model.rotary_dim, original=TRAINED, rope_theta=model.rope_theta)
    assert given == pytest.approx(model.base.long_factor)
    assert same.attention_factor == pytest.approx(model.base.attention_factor)


def test_layers_that_slide_keep_the_models_base(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", "olmo3", **FEATURES["olmo3"])
    family = RopeFamily.yarn(4.0, 2 * model.rope_theta)
    with pytest.raises(UnsupportedError, match="the same base"):
        GgufConverter().plan(Export(model, of(family, model), "f32"))
    for name in ("yarn", "linear"):
        space = make_space(model, TARGET, family=name)  # type: ignore[arg-type]
        points = [*space.known_methods(), *Grid(space).points(60)]
        assert {point.candidate.family.rope_theta for point in points if point.candidate.family} == {model.rope_theta}
