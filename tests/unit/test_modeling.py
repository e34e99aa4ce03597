"""Built models: the two rotary modules against transformers', pinned sets, and what is asserted after building."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

from longrope import rope
from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.errors import InputError, LongRopeError, MissingRequirementError, UnsupportedError
from longrope.factors import BoundFactors, FactorSet
from longrope.hf_config import extended_config
from longrope.modeling import (
    PinnedRotary,
    RescaledRotary,
    TorchSource,
    assert_frequencies,
    build_config,
    build_model,
    frequency_sets,
    head_logits,
    hidden_states,
    replace_rotary,
    require_device,
    rotary_module,
    use_fastest_attention,
)
from tests.common import TARGET, WINDOW, pico_checkpoint

X = torch.zeros(1, 1, 1)


def positions(first: int, stop: int) -> Tensor:
    return torch.arange(first, stop)[None]


def ids(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 384, length)


def whole(source: TorchSource, tokens: np.ndarray, name: FactorSet, chunk: int = 64) -> Tensor:
    return torch.cat(list(source.logits(tokens, name, chunk)))


def original_rotary(checkpoint: Checkpoint) -> RescaledRotary:
    return RescaledRotary(checkpoint.rope_theta, checkpoint.rotary_dim)


# -- the engine's rotary module


@pytest.mark.parametrize(("name", "length"), [("short", WINDOW), ("long", TARGET)])
def test_rescaled_rotary_is_transformers_own(
    pico: Checkpoint, dual: BoundFactors, name: FactorSet, length: int
) -> None:
    theirs = rotary_module(build_model(pico, dual))
    ours = RescaledRotary.of(dual)
    ours.use(name)
    for actual, expected in zip(ours(X, positions(0, length)), theirs(X, positions(0, length)), strict=True):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=0, atol=3e-5)  # their angles are float32, up to 256 rad


def test_start_tokens_keep_the_original_rotation(dual: BoundFactors) -> None:
    ours = RescaledRotary.of(dataclasses.replace(dual, n_hat=8))
    cos, sin = ours(X.double(), positions(0, 32))
    expected = rope.cos_sin(
        range(32),
        rope.inv_freq(10_000.0, 16, dual.long_factor),
        attention_factor=dual.effective_attention_factor,
        n_hat=8,
        unscaled_frequencies=rope.inv_freq(10_000.0, 16),
    )
    for actual, table in zip((cos, sin), expected, strict=True):
        np.testing.assert_allclose(actual[0].numpy(), np.concatenate((table, table), axis=1), rtol=0, atol=1e-14)


def test_angles_are_float64_even_for_bfloat16_states(dual: BoundFactors) -> None:
    ours = RescaledRotary.of(dual).to(torch.bfloat16)
    far = positions(1_000_000, 1_000_004)
    actual, _ = ours(X.bfloat16(), far)
    exact, _ = ours(X.double(), far)
    assert torch.equal(actual, exact.bfloat16())


def test_gradients_reach_factors_and_attention_factor(pico: Checkpoint, dual: BoundFactors) -> None:
    model = build_model(pico)
    rotary = original_rotary(pico)
    replace_rotary(model, rotary)
    factors = torch.tensor(dual.long_factor, dtype=torch.float64, requires_grad=True)
    attention_factor = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    rotary.set(factors, attention_factor, n_hat=4)
    head_logits(model, hidden_states(model, torch.from_numpy(ids(40))[None])).logsumexp(-1).sum().backward()
    assert factors.grad is not None
    assert attention_factor.grad is not None
    assert (factors.grad != 0).all()
    assert float(attention_factor.grad) != 0


# -- building


def test_factors_are_in_the_model_and_both_sets_switch(pico: Checkpoint, dual: BoundFactors) -> None:
    module = rotary_module(build_model(pico, dual))
    for name, found in frequency_sets(module).items():
        np.testing.assert_allclose(found.numpy(), rope.inv_freq(10_000.0, 16, dual.set(name)), rtol=1e-6)
    module(X, positions(0, WINDOW + 1))
    np.testing.assert_allclose(module.inv_freq.numpy(), rope.inv_freq(10_000.0, 16, dual.long_factor), rtol=1e-6)
    module(X, positions(0, WINDOW))
    np.testing.assert_allclose(module.inv_freq.numpy(), rope.inv_freq(10_000.0, 16, dual.short_factor), rtol=1e-6)


def test_bfloat16_weights_leave_the_frequencies_in_float32(pico: Checkpoint, dual: BoundFactors) -> None:
    model = build_model(pico, dual, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert rotary_module(model).inv_freq.dtype == torch.float32


def test_n_hat_builds_the_engines_own_rotary(pico: Checkpoint, dual: BoundFactors) -> None:
    with_start = dataclasses.replace(dual, n_hat=8)
    model = build_model(pico, with_start)
    assert isinstance(rotary_module(model), RescaledRotary)
    tokens = ids(TARGET)
    plain, start = TorchSource(build_model(pico, dual), dual), TorchSource(model, with_start)
    short = whole(plain, tokens[:8], "long"), whole(start, tokens[:8], "long")
    assert (short[0] - short[1]).abs().max() > 1e-3
    unscaled = dataclasses.replace(dual.as_single(), short_factor=(1.0,) * 8, long_factor=(1.0,) * 8)
    expected = whole(TorchSource(build_model(pico, unscaled), unscaled), tokens[:8], "long")
    torch.testing.assert_close(short[1], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
def test_an_extended_checkpoint_is_built_with_its_own_factors(
    pico: Checkpoint, dual: BoundFactors, tmp_path: Path, spelling: str
) -> None:
    folder = shutil.copytree(pico.path, tmp_path / "model")
    config = extended_config(pico.config, dual)
    del config[spelling]
    (folder / "config.json").write_text(json.dumps(config))
    found = build_model(open_checkpoint(folder))
    tokens = ids(100)
    expected = whole(TorchSource(build_model(pico, dual), dual), tokens, "long")
    assert torch.equal(whole(TorchSource(found, dual), tokens, "long"), expected)


def test_remote_code_is_never_asked_for(pico: Checkpoint, tmp_path: Path) -> None:
    folder = shutil.copytree(pico.path, tmp_path / "model")
    (folder / "evil.py").write_text("raise SystemExit('remote code ran')")
    config = {**pico.config, "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(folder)
    assert not hasattr(build_config(checkpoint, None), "auto_map")
    assert type(build_model(checkpoint)).__name__ == "LlamaForCausalLM"


def test_missing_weights_are_not_made_up(pico: Checkpoint, tmp_path: Path) -> None:
    """A model of three layers on the weights of two: transformers would draw the third at random."""
    folder = shutil.copytree(pico.path, tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({**pico.config, "num_hidden_layers": 3, "layer_types": None}))
    with pytest.raises(InputError, match=r"weights are missing, the first is model\.layers\.2\."):
        build_model(open_checkpoint(folder))


def test_weights_of_another_shape_are_refused(pico: Checkpoint, tmp_path: Path) -> None:
    folder = shutil.copytree(pico.path, tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({**pico.config, "intermediate_size": 96}))
    with pytest.raises(InputError, match=r"6 weights have another shape than config\.json says, the first is .*mlp"):
        build_model(open_checkpoint(folder))


# -- believing a built model


WRONG: dict[str, tuple[Any, str]] = {
    "another long set": (lambda f: dataclasses.replace(f, long_factor=(2.0,) * 8), "long inverse frequencies"),
    "another short set": (lambda f: dataclasses.replace(f, short_factor=(2.0,) * 8), "short inverse frequencies"),
    "one pair": (
        lambda f: dataclasses.replace(f, long_factor=(*f.long_factor[:-1], f.long_factor[-1] * 1.001)),
        "long inverse frequencies",
    ),
    "sets swapped": (
        lambda f: dataclasses.replace(f, short_factor=f.long_factor, long_factor=f.short_factor),
        "inverse frequencies",
    ),
    "attention factor": (lambda f: dataclasses.replace(f, attention_factor=1.0), r"attention factor is 1\.15"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_model_with_other_factors_is_not_believed(pico: Checkpoint, dual: BoundFactors, name: str) -> None:
    change, message = WRONG[name]
    model = build_model(pico, dual)
    assert_frequencies(model, dual)
    with pytest.raises(LongRopeError, match=message):
        assert_frequencies(model, change(dual))


def test_rope_parameters_set_on_a_built_model_are_not_believed(pico: Checkpoint, dual: BoundFactors) -> None:
    """The trap of formats.md: the assignment succeeds and does nothing."""
    factors = dataclasses.replace(dual, attention_factor=1.0)
    model = build_model(pico)
    model.config.rope_parameters = extended_config(pico.config, factors)["rope_parameters"]
    with pytest.raises(LongRopeError, match="is of type 'default', expected 'longrope'"):
        assert_frequencies(model, factors)


def test_a_plain_model_has_not_the_factors(pico: Checkpoint, dual: BoundFactors) -> None:
    model = build_model(pico)
    with pytest.raises(LongRopeError, match="is of type 'default', expected 'longrope'"):
        assert_frequencies(model, dual)


# -- logits with the set given from outside


@pytest.mark.parametrize("name", ["short", "long"])
@pytest.mark.parametrize("n_hat", [0, 8])
def test_a_window_in_chunks_is_the_window_in_one_pass(
    pico: Checkpoint, dual: BoundFactors, name: FactorSet, n_hat: int
) -> None:
    """transformers' own switch would turn the first chunks by the short set."""
    factors = dataclasses.replace(dual, n_hat=n_hat)
    tokens = ids(200)
    one = whole(TorchSource(build_model(pico, factors), factors), tokens, name)
    chunked = whole(TorchSource(build_model(pico, factors), factors, prefill_tokens=32), tokens, name, chunk=16)
    torch.testing.assert_close(chunked, one, rtol=0, atol=1e-4)
    loose = whole(TorchSource(build_model(pico, dual), dual, pinned=False, prefill_tokens=32), tokens, name, chunk=16)
    assert (loose - one).abs().max() > 1e-2


def test_pinned_long_is_transformers_beyond_the_window(pico: Checkpoint, dual: BoundFactors) -> None:
    tokens = ids(100)
    model = build_model(pico, dual)
    expected = model(input_ids=torch.from_numpy(tokens)[None]).logits[0]
    assert torch.equal(whole(TorchSource(build_model(pico, dual), dual), tokens, "long"), expected)


def test_pinned_short_is_transformers_within_the_window(pico: Checkpoint, dual: BoundFactors) -> None:
    tokens = ids(WINDOW)
    expected = build_model(pico, dual)(input_ids=torch.from_numpy(tokens)[None]).logits[0]
    source = TorchSource(build_model(pico, dual), dual)
    whole(source, ids(100), "long")  # what was used before must not matter
    assert torch.equal(whole(source, tokens, "short"), expected)


def test_blocks_have_the_rows_asked_for(pico: Checkpoint) -> None:
    blocks = list(TorchSource(build_model(pico), None).logits(ids(70), "long", 32))
    assert [tuple(block.shape) for block in blocks] == [(32, 384), (32, 384), (6, 384)]
    assert blocks[0].dtype == torch.float32


@pytest.mark.parametrize("pinned", [True, False])
def test_a_model_whose_layers_lie_in_several_places(
    pico: Checkpoint, dual: BoundFactors, tmp_path: Path, pinned: bool
) -> None:
    """accelerate's hooks bring every layer what it needs; here from the disk, on several GPUs from one to the next."""
    from accelerate import dispatch_model

    whole, parts = (build_model(pico, dual) for _ in range(2))
    disk = dict.fromkeys(("model.layers.1", "lm_head"), "disk")
    places = {
        **dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb"), "cpu"),
        **disk,
    }
    parts = dispatch_model(parts, places, main_device="cpu", offload_dir=tmp_path)
    assert parts.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    expected, actual = (TorchSource(model, dual, pinned=pinned) for model in (whole, parts))
    for name, length in (("short", WINDOW), ("long", TARGET)):
        rows = [torch.cat(list(source.logits(ids(length), name, 50))) for source in (expected, actual)]
        assert torch.equal(*rows)
    assert torch.equal(*(source.decode_logits(ids(WINDOW + 8), WINDOW - 8) for source in (expected, actual)))
    assert torch.equal(*(source.tail_logits(ids(TARGET), "long", 200) for source in (expected, actual)))


def test_without_gpus_sharded_is_the_cpu(pico: Checkpoint, dual: BoundFactors) -> None:
    models = [build_model(pico, dual, device=device) for device in ("cpu", "sharded")]
    rows = [torch.cat(list(TorchSource(model, dual).logits(ids(TARGET), "long", 64))) for model in models]
    assert torch.equal(*rows)


def test_sharding_needs_accelerate(pico: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingRequirementError, match=r"pip install 'longrope-export\[sharded\]'"):
        build_model(pico, device="sharded")


def test_only_models_that_are_not_trained_are_sharded() -> None:
    with pytest.raises(InputError, match="expected cpu, cuda, cuda:1 or mps, got 'sharded'"):
        require_device("sharded")


def test_decoding_through_the_cache_is_the_full_pass(pico: Checkpoint, dual: BoundFactors) -> None:
    single = dual.as_single()
    source = TorchSource(build_model(pico, single), single, pinned=False)
    tokens = ids(WINDOW + 8)
    rows = source.decode_logits(tokens, WINDOW - 8)
    torch.testing.assert_close(rows, whole(source, tokens, "long")[WINDOW - 9 :], rtol=0, atol=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "granite"])
def test_head_logits_are_the_models_own(tmp_path: Path, model_type: str) -> None:
    """Granite divides its logits by `logits_scaling`."""
    scaling = {"logits_scaling": 4.0} if model_type == "granite" else {}
    model = build_model(pico_checkpoint(tmp_path / "model", model_type, **scaling))
    tokens = torch.from_numpy(ids(20))[None]
    torch.testing.assert_close(head_logits(model, hidden_states(model, tokens)), model(input_ids=tokens).logits)


# -- putting modules in and taking them out


def test_a_rotary_module_is_replaced_and_put_back(pico: Checkpoint) -> None:
    model, rotary = build_model(pico), original_rotary(pico)
    before, tokens = rotary_module(model), ids(20)
    expected = whole(TorchSource(model, None), tokens, "long")
    assert replace_rotary(model, rotary) is before
    assert rotary_module(model) is rotary
    rotary.set([4.0] * 8)
    assert not torch.equal(whole(TorchSource(model, None), tokens, "long"), expected)
    assert replace_rotary(model, before) is rotary
    assert torch.equal(whole(TorchSource(model, None), tokens, "long"), expected)


def test_a_fresh_rescaled_rotary_is_the_original_rope(pico: Checkpoint) -> None:
    model, tokens = build_model(pico), ids(60)
    expected = whole(TorchSource(model, None), tokens, "long")
    replace_rotary(model, original_rotary(pico))
    torch.testing.assert_close(whole(TorchSource(model, None), tokens, "long"), expected, rtol=0, atol=1e-4)


def test_replace_rotary_returns_what_was_there(pico: Checkpoint, dual: BoundFactors) -> None:
    model = build_model(pico, dual)
    old = rotary_module(model)
    assert replace_rotary(model, PinnedRotary(old)) is old
    assert isinstance(rotary_module(model), PinnedRotary)


@pytest.mark.parametrize("count", [0, 2])
def test_models_without_exactly_one_rotary_are_refused(count: int) -> None:
    model = torch.nn.Module()
    for index in range(count):
        model.add_module(f"block{index}", torch.nn.Module())
        model.get_submodule(f"block{index}").add_module("rotary_emb", torch.nn.Identity())
    with pytest.raises(UnsupportedError, match=f"expected one rotary embedding in Module, found {count}"):
        rotary_module(model)


@pytest.mark.parametrize(
    ("device", "dtype", "installed", "expected"),
    [
        ("cuda:1", "bfloat16", True, ["flash_attention_2"]),
        ("cuda", "float16", True, ["flash_attention_2"]),
        ("cuda", "float32", True, []),
        ("cuda", "bfloat16", False, []),
        ("cpu", "bfloat16", True, []),
    ],
)
def test_flash_attention_serves_on_a_gpu_in_16_bits(
    monkeypatch: pytest.MonkeyPatch, device: str, dtype: str, installed: bool, expected: list[str]
) -> None:
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: installed)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    chosen: list[str] = []
    use_fastest_attention(SimpleNamespace(set_attn_implementation=chosen.append), device, dtype)
    assert chosen == expected


@pytest.mark.parametrize(
    "refusal", [ImportError("needs a GPU of version 8 or later"), ValueError("does not support it")]
)
def test_a_model_or_a_gpu_without_flash_attention_keeps_its_own(
    monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    refusing = Mock(side_effect=refusal)
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: True)
    use_fastest_attention(SimpleNamespace(set_attn_implementation=refusing), "cuda", "float16")
    refusing.assert_called_once_with("flash_attention_2")
