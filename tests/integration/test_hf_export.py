"""The Hugging Face folder end to end: what transformers loads from it is the model that was asked for, bit by bit."""

from __future__ import annotations

import json
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from converters.base import Export
from converters.hf import HuggingFaceConverter
from longrope import rope
from longrope.architectures import ARCHITECTURES
from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.errors import InputError, UnsupportedError
from longrope.factors import BoundFactors, RescaleFactors
from longrope.family import RopeFamily
from longrope.modeling import TorchSource, build_model, frequency_sets, rotary_module
from longrope.progress import Silent
from tests.common import PICO_CHANGES, TARGET, WINDOW, pico_checkpoint, pico_config, pico_factors, pico_folder, said

SUPPORTED = [name for name, row in ARCHITECTURES.items() if not row.refusal]
CONVERTER = HuggingFaceConverter()


def convert(checkpoint: Checkpoint, factors: RescaleFactors, path: Path, outtype: str | None = None) -> Path:
    checks = CONVERTER.convert(Export(checkpoint, factors, outtype), path, Silent())
    assert {check.status for check in checks} == {"pass"}
    return path


def reloaded(path: Path, **options: Any) -> Any:
    """As a user loads it: nothing but transformers and the folder."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, local_files_only=True, **options).eval()


@torch.no_grad()
def logits(model: Any, length: int) -> Tensor:
    ids = np.random.default_rng(length).integers(0, 384, length)
    found: Tensor = model(input_ids=torch.from_numpy(ids)[None]).logits[0].float()
    return found


def _copy(checkpoint: Checkpoint, path: Path) -> Path:
    return shutil.copytree(checkpoint.path, path)


# -- every type of the table

# Those whose class in transformers rotates by the short set at every length.
ONE_SET = ("phimoe",)


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_a_reload_is_exactly_the_extended_model(tmp_path: Path, model_type: str) -> None:
    checkpoint = pico_checkpoint(tmp_path / "model", model_type, **PICO_CHANGES.get(model_type, {}))
    dual = checkpoint.bind(pico_factors(checkpoint.rotary_dim))
    written = (dual, dual.as_single())
    if model_type in ONE_SET:
        written = (dual.as_single(),)
        with pytest.raises(UnsupportedError, match="use a single factor set"):
            convert(checkpoint, dual, tmp_path / "dual")
    for factors in written:
        path = convert(checkpoint, factors, tmp_path / factors.factor_sets)
        found, expected = reloaded(path), build_model(checkpoint, factors)
        for name, frequencies in frequency_sets(rotary_module(found)).items():
            exact = rope.inv_freq(factors.rope_theta or 0, checkpoint.rotary_dim, factors.set(name))
            np.testing.assert_allclose(frequencies.numpy(), exact, rtol=2e-6)
        for length in (WINDOW // 2, WINDOW, WINDOW + 1, TARGET):
            assert torch.equal(logits(found, length), logits(expected, length)), (factors.factor_sets, length)
        assert CONVERTER.read_factors(path) is not None
        assert CONVERTER.read_factors(path).set("short") == factors.short_factor  # type: ignore[union-attr]
        assert CONVERTER.read_factors(path).set("long") == factors.long_factor  # type: ignore[union-attr]


def test_the_two_sets_are_two_models(pico: Checkpoint, dual: BoundFactors, tmp_path: Path) -> None:
    """The exactness above would be worth nothing if both sets gave the same logits."""
    two = reloaded(convert(pico, dual, tmp_path / "dual"))
    one = reloaded(convert(pico, dual.as_single(), tmp_path / "single"))
    assert torch.equal(logits(two, TARGET), logits(one, TARGET))
    assert (logits(two, WINDOW) - logits(one, WINDOW)).abs().max() > 0.1
    assert (logits(two, TARGET) - logits(build_model(pico), TARGET)).abs().max() > 0.1


# -- weight types


@pytest.mark.parametrize(
    ("outtype", "dtype"), [("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_weights_are_rounded_once_to_the_asked_type(
    pico: Checkpoint, dual: BoundFactors, tmp_path: Path, outtype: str, dtype: torch.dtype
) -> None:
    path = convert(pico, dual, tmp_path / "out", outtype)
    found, source = reloaded(path), build_model(pico)
    assert found.dtype == dtype  # as config.json says
    for (name, ours), (_, theirs) in zip(found.named_parameters(), source.named_parameters(), strict=True):
        assert torch.equal(ours, theirs.to(dtype)), name
    assert rotary_module(found).inv_freq.dtype == torch.float32


def test_the_modes_of_all_files_follow_the_umask(pico: Checkpoint, dual: BoundFactors, tmp_path: Path) -> None:
    before = os.umask(0o026)
    try:
        path = convert(pico, dual, tmp_path / "out", "bf16")
    finally:
        os.umask(before)
    assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {
        file.name: 0o640 for file in path.iterdir()
    }


def test_auto_copies_the_weights_byte_for_byte(pico: Checkpoint, dual: BoundFactors, tmp_path: Path) -> None:
    path = convert(pico, dual, tmp_path / "out")
    assert (path / "model.safetensors").read_bytes() == (pico.path / "model.safetensors").read_bytes()


def test_weights_too_large_for_f16_are_refused(pico: Checkpoint, dual: BoundFactors, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = _copy(pico, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = 1e5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedError, match=r"beyond 65504 do not fit f16; use --outtype bf16 or f32"):
        CONVERTER.convert(Export(open_checkpoint(folder), dual, "f16"), tmp_path / "out", Silent())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_sharded_checkpoint_keeps_its_shards(pico: Checkpoint, dual: BoundFactors, tmp_path: Path) -> None:
    model = build_model(pico)
    model.save_pretrained(tmp_path / "model", max_shard_size="100KB")
    (tmp_path / "model" / "tokenizer.json").write_bytes((pico.path / "tokenizer.json").read_bytes())
    sharded = open_checkpoint(tmp_path / "model")
    assert len(sharded.weight_files) > 1
    found = reloaded(convert(sharded, dual, tmp_path / "out"))
    assert torch.equal(logits(found, TARGET), logits(build_model(pico, dual), TARGET))


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    checkpoint = pico_checkpoint(tmp_path / "model", tie_word_embeddings=True)
    factors = checkpoint.bind(pico_factors())
    found = reloaded(convert(checkpoint, factors, tmp_path / "out"))
    assert found.lm_head.weight is found.model.embed_tokens.weight
    assert torch.equal(logits(found, TARGET), logits(build_model(checkpoint, factors), TARGET))


# -- the rest of the folder


def test_companions_go_along_and_nothing_else(pico: Checkpoint, dual: BoundFactors, tmp_path: Path) -> None:
    folder = _copy(pico, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6}))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "secret.py").write_text("raise SystemExit")
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "model_max_length": WINDOW}))
    path = convert(open_checkpoint(folder), dual, tmp_path / "out")
    assert sorted(file.name for file in path.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "longrope.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert json.loads((path / "tokenizer_config.json").read_text())["model_max_length"] == TARGET
    assert json.loads((path / "generation_config.json").read_text()) == {"temperature": 0.6}


def test_the_tokenizer_gives_the_same_ids(pico: Checkpoint, dual: BoundFactors, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    text = "In 1847 there were 36 houses – and then?"
    tokenizer = AutoTokenizer.from_pretrained(convert(pico, dual, tmp_path / "out"), local_files_only=True)
    assert tokenizer(text)["input_ids"] == pico.encode(text)


def test_generation_runs_past_the_original_window(pico: Checkpoint, dual: BoundFactors, tmp_path: Path) -> None:
    model = reloaded(convert(pico, dual.as_single(), tmp_path / "out"))
    prompt = torch.arange(1, WINDOW)[None]
    grown = model.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert grown.shape == (1, WINDOW + 7)


def test_the_record_is_the_factors_we_were_given(pico: Checkpoint, dual: BoundFactors, tmp_path: Path) -> None:
    assert said(CONVERTER.recorded_factors(convert(pico, dual, tmp_path / "out"))) == said(dual)


def test_an_extended_folder_converts_to_the_same_folder(pico: Checkpoint, dual: BoundFactors, tmp_path: Path) -> None:
    first = convert(pico, dual, tmp_path / "first")
    again = open_checkpoint(first)
    assert again.factors is not None
    second = convert(again, again.factors, tmp_path / "second")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (second / name).read_bytes() == (first / name).read_bytes()


def test_a_given_attention_factor_reaches_the_loaded_model(pico: Checkpoint, tmp_path: Path) -> None:
    factors = pico.bind(pico_factors(attention_factor=1.0))
    assert rotary_module(reloaded(convert(pico, factors, tmp_path / "out"))).attention_scaling == 1.0


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_who_drops_its_cache_where_the_sets_change(dual: RescaleFactors, model_type: str) -> None:
    """transformers' generate does so for Phi-3 alone; every other type keeps keys of the short set."""
    uses = {use.runtime: use for use in CONVERTER.runtime_uses(replace(dual, model_type=model_type))}
    assert uses["transformers"].safe == (model_type == "phi3")
    assert ("drops the cache" in uses["transformers"].uses) == (model_type == "phi3")
    assert bool(uses["transformers"].advice) == (model_type != "phi3")


# -- refusals, before anything is written


def test_what_the_format_cannot_say_is_refused_in_the_plan(pico: Checkpoint, tmp_path: Path) -> None:
    cases: list[tuple[Export, type[Exception], str]] = [
        (Export(pico, pico.bind(pico_factors(n_hat=4))), UnsupportedError, "cannot hold n_hat = 4"),
        (Export(pico, pico.bind(pico_factors()), "q8_0"), UnsupportedError, "expected --outtype auto, f32, f16, bf16"),
        (Export(pico, pico.bind(pico_factors()), None, {"opset": "23"}), InputError, "unknown options opset"),
    ]
    for export, error, message in cases:
        with pytest.raises(error, match=message):
            CONVERTER.convert(export, tmp_path / "out", Silent())
    assert list(tmp_path.iterdir()) == []


def test_logits_of_the_artifact_source_are_a_users(pico: Checkpoint, dual: BoundFactors, tmp_path: Path) -> None:
    """`open_source` must not pin: it measures what transformers does by itself."""
    source = CONVERTER.open_source(convert(pico, dual, tmp_path / "out"), dual, max_length=TARGET, threads=1)
    ids = np.random.default_rng(TARGET).integers(0, 384, TARGET)
    expected = logits(reloaded(tmp_path / "out"), TARGET)
    assert torch.equal(torch.cat(list(source.logits(ids, "long", 64))), expected)
    assert isinstance(source, TorchSource)
    assert source.rule == "per_forward"


# -- a model whose RoPE is rescaled, per layer type, or within a multimodal model

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
QUERY_SCALE = {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
LISTS = {"short_factor": [1.0] * 8, "long_factor": [1.0 + i / 4 for i in range(8)]}
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3": ("llama", LLAMA3),
    "linear": ("llama", {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}),
    "yarn, its own attention factor": ("llama", YARN),
    "yarn that scales queries": ("ministral3", QUERY_SCALE),
    "yarn that scales the softmax": ("deepseek_v2", {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}),
    "dynamic": ("hunyuan_v1_dense", {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 1.0, "alpha": 8.0}),
    "longrope": ("phi3", {"rope_type": "longrope", "rope_theta": 1e4, **LISTS, "original_max_position_embeddings": 16}),
}


@pytest.mark.parametrize("name", BASES)
def test_factors_of_one_leave_the_logits_within_the_window(tmp_path: Path, name: str) -> None:
    model_type, parameters = BASES[name]
    changes = {**PICO_CHANGES.get(model_type, {}), "pad_token_id": 0, "rope_parameters": parameters}
    if "phi3" in model_type:  # its configuration has a number of its own at the top, which wins
        changes["original_max_position_embeddings"] = 16
    checkpoint = pico_checkpoint(tmp_path / "model", model_type, **changes)
    ones = RescaleFactors((1.0,) * 8, (1.0,) * 8, attention_factor=1.0, target_length=TARGET)
    factors = checkpoint.bind(ones)
    assert factors.base == checkpoint.base
    found = reloaded(convert(checkpoint, factors, tmp_path / "hf"))
    for length in (WINDOW // 4, WINDOW):
        expected = logits(build_model(checkpoint), length)
        assert (logits(found, length) - expected).abs().max() <= 1e-5, length
    assert open_checkpoint(tmp_path / "hf").max_position_embeddings == TARGET
    assert CONVERTER.base_rope(tmp_path / "hf") == checkpoint.base


def test_layers_that_slide_keep_their_rotary_parameters_in_both_spellings(tmp_path: Path) -> None:
    checkpoint = pico_checkpoint(tmp_path / "model", "gemma3_text", **PICO_CHANGES["gemma3_text"])
    path = convert(checkpoint, checkpoint.bind(pico_factors(checkpoint.rotary_dim)), tmp_path / "hf")
    config = json.loads((path / "config.json").read_text())
    assert config["rope_parameters"]["sliding_attention"] == {"rope_type": "default", "rope_theta": 10_000.0}
    assert config["rope_scaling"]["rope_type"] == config["rope_parameters"]["full_attention"]["rope_type"] == "longrope"


def test_a_multimodal_model_is_extended_in_its_text_part_alone(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {"model_type": "siglip_vision_model", **sizes, "image_size": 32, "patch_size": 16}
    text = {**pico_config("gemma3_text", **PICO_CHANGES["gemma3_text"]).to_dict(), "head_dim": 16}
    model = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    )
    folder = pico_folder(tmp_path / "model")
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text("{}")
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.model_type, checkpoint.text_name(f"{checkpoint.text_prefix}norm.weight")) == (
        "gemma3_text",
        "model.norm.weight",
    )
    factors = checkpoint.bind(pico_factors(checkpoint.rotary_dim))
    path = convert(checkpoint, factors, tmp_path / "hf")
    before, after = (json.loads((each / "config.json").read_text()) for each in (folder, path))
    assert {**after, "text_config": None} == {**before, "text_config": None}
    assert (path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (path / "preprocessor_config.json").is_file()
    found = AutoModelForImageTextToText.from_pretrained(path, local_files_only=True).eval()
    assert torch.equal(logits(found, TARGET), logits(build_model(checkpoint, factors), TARGET))


# What published configurations of Gemma 3 4B and of Mistral Small 3.1 say of the text model; transformers knows the rest.
GEMMA_3_4B = {"model_type": "gemma3_text", "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 32}
MISTRAL_SMALL = {
    **{"model_type": "mistral", "head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 1e9},
    **{"hidden_act": "silu", "sliding_window": None, "rms_norm_eps": 1e-5, "use_cache": True, "attention_dropout": 0.0},
}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6, "vocab_size": 384}
# Its names of weights, which transformers 5 reads and no longer writes.
OLD_NAMES = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "lm_head.": "language_model.lm_head.",
}


@pytest.mark.parametrize(("wrapper", "text"), [("gemma3", GEMMA_3_4B), ("mistral3", MISTRAL_SMALL)])
def test_wrappers_with_the_configuration_and_the_names_that_are_published(
    tmp_path: Path, wrapper: str, text: dict[str, Any]
) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModelForImageTextToText

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    kind = "siglip_vision_model" if wrapper == "gemma3" else "pixtral"
    vision = {"model_type": kind, **sizes, "image_size": 32, "patch_size": 16}
    said = {**text, **SMALL, "max_position_embeddings": 8 * WINDOW}
    model = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(wrapper, text_config=dict(said), vision_config=vision)
    )
    folder = pico_folder(tmp_path / "model")
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "text_config": said}))
    weights = load_file(folder / "model.safetensors")
    for new, old in OLD_NAMES.items():
        weights = {(old + name.removeprefix(new) if name.startswith(new) else name): weights[name] for name in weights}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(folder)
    assert checkpoint.text_prefix == "language_model.model."
    factors = checkpoint.bind(
        pico_factors(checkpoint.rotary_dim, target=16 * WINDOW, original_max_position_embeddings=None)
    )
    path = convert(checkpoint, factors.as_single(), tmp_path / "hf")
    found = AutoModelForImageTextToText.from_pretrained(path, local_files_only=True).eval()
    assert torch.equal(logits(found, TARGET), logits(build_model(checkpoint, factors.as_single()), TARGET))
    assert torch.equal(logits(build_model(checkpoint), WINDOW), logits(model.eval(), WINDOW))
    before = checkpoint.from_original(
        WINDOW
    )  # Gemma's linear interpolation is taken out, Mistral's window is shortened
    given = pico_factors(checkpoint.rotary_dim, dual=False, original_max_position_embeddings=None)
    assert (before.base.is_plain, before.bind(given).long_factor) == (True, given.long_factor)
    path = convert(checkpoint, before.bind(given), tmp_path / "before")
    found = AutoModelForImageTextToText.from_pretrained(path, local_files_only=True).eval()
    assert torch.equal(logits(found, TARGET), logits(build_model(before, before.bind(given)), TARGET))


BY_TYPE = {
    "gemma3_text": {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0},
    "olmo3": {**YARN, "attention_factor": 1.1},
}


@pytest.mark.parametrize("model_type", BY_TYPE)
def test_the_window_before_a_rescaling_of_full_layers_alone(tmp_path: Path, model_type: str) -> None:
    local = {"rope_type": "default", "rope_theta": 1e4}
    both = {"full_attention": BY_TYPE[model_type], "sliding_attention": local}
    parameters = both if model_type == "gemma3_text" else BY_TYPE[model_type]
    released = pico_checkpoint(tmp_path / "m", model_type, **PICO_CHANGES[model_type], rope_parameters=parameters)
    before = released.from_original(WINDOW // 4)
    given = pico_factors(released.rotary_dim, dual=False, original_max_position_embeddings=None)
    bound = before.bind(given)
    assert (before.base.is_plain, bound.base, bound.long_factor) == (True, before.base, given.long_factor)
    plain = {"rope_type": "default", "rope_theta": BY_TYPE[model_type]["rope_theta"]}
    expected = {"full_attention": plain, "sliding_attention": local} if model_type == "gemma3_text" else plain
    (twin := _copy(released, tmp_path / "plain") / "config.json").write_text(
        json.dumps({**released.config, "rope_scaling": None, "rope_parameters": expected})
    )
    assert torch.equal(logits(build_model(before), WINDOW // 4), logits(reloaded(twin.parent), WINDOW // 4))
    found = reloaded(convert(released, bound, tmp_path / "hf"))
    assert torch.equal(logits(found, TARGET), logits(build_model(before, bound), TARGET))
    ours, theirs = (dict(rotary_module(model).named_buffers()) for model in (found, build_model(released)))
    sliding = [name for name in ours if name.startswith("sliding")]
    assert sliding
    assert all(torch.equal(ours[name], theirs[name]) for name in sliding)


# -- a model that was extended here is extended again

EXTENDED = {
    "llama": ("llama", {}),
    "phi3, both sets": ("phi3", {"pad_token_id": 0}),
    "yarn": ("llama", {}),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
}


@pytest.mark.parametrize("kind", EXTENDED)
def test_an_extended_model_is_extended_again(tmp_path: Path, kind: str) -> None:
    model_type, changes = EXTENDED[kind]
    checkpoint = pico_checkpoint(tmp_path / "m", model_type, **changes)
    given = pico_factors(checkpoint.rotary_dim, dual="both" in kind, original_max_position_embeddings=None)
    if kind == "yarn":
        family = RopeFamily.yarn(4.0, checkpoint.rope_theta)
        values = family.factors(16, original=WINDOW, rope_theta=checkpoint.rope_theta)
        given = RescaleFactors(
            values, values, attention_factor=family.attention_factor, target_length=TARGET, family=family
        )
    first = checkpoint.bind(given)
    again = open_checkpoint(convert(checkpoint, first, tmp_path / "first"))
    longer = pico_factors(16, dual="both" in kind, target=4 * TARGET, original_max_position_embeddings=None)
    second = again.bind(longer)
    assert second.long_factor == pytest.approx(np.multiply(first.long_factor, longer.long_factor), rel=1e-9)
    assert second.short_factor == pytest.approx(np.multiply(first.short_factor, longer.short_factor), rel=1e-9)
    assert (second.target, second.base) == (4 * TARGET, again.base)
    found = reloaded(convert(again, second, tmp_path / "second"))
    for length in (WINDOW, 2 * TARGET):
        assert torch.equal(logits(found, length), logits(build_model(again, second), length)), length
    assert open_checkpoint(tmp_path / "second").bind(second) == second


def test_a_model_whose_layers_all_slide_attends_to_everything(tmp_path: Path) -> None:
    checkpoint = pico_checkpoint(tmp_path / "model", "mistral", sliding_window=WINDOW // 4)
    factors = checkpoint.bind(pico_factors(checkpoint.rotary_dim)).as_single()
    path = convert(checkpoint, factors, tmp_path / "hf")
    full = pico_checkpoint(tmp_path / "full", "mistral", sliding_window=None)
    assert torch.equal(logits(reloaded(path), TARGET), logits(build_model(full, factors), TARGET))
    assert "attend to the last 16 tokens only" in "".join(checkpoint.oddities())
    recorded = CONVERTER.recorded_factors(path)
    assert recorded
    assert "attend to the last 16 tokens" in recorded.provenance["attention"]
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "sliding_window": WINDOW // 4}))
    failed = [check.id for check in CONVERTER.static_checks(path, factors, checkpoint) if check.status == "fail"]
    assert failed == ["hf.config.sliding_window", "hf.config.fields"]
