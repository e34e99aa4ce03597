"""The numbers that an artifact's weights stand for, put back under the checkpoint's names: every export backwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from converters import registry
from converters.base import Export
from converters.conversion import convert
from converters.own_weights import OwnWeights
from longrope.checkpoint import Checkpoint
from longrope.errors import LongRopeError, UnsupportedError
from longrope.modeling import build_model
from longrope.progress import Silent
from tests.common import FEATURES, pico_checkpoint, pico_factors

# Rows of heads interleaved, fused and split matrices, experts by name and stacked, norms less one, states.
TYPES = (
    "llama",
    "phi3",
    "gemma",
    "mixtral",
    "granitemoe",
    "gpt_oss",
    "gpt_neox",
    "qwen3_5_text",
    "qwen2_moe",
    "minicpm3",
)


def half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half().float()


def written(model: Checkpoint, format_name: str, outtype: str, folder: Path) -> tuple[Path, Export] | None:
    """An artifact and its export; None where the format cannot express the model."""
    converter = registry.converter(format_name)
    path = folder / f"{format_name}{converter.suffix}"
    options = {"compute": "float32"} if outtype.startswith("int") else {}  # exact products
    export = Export(model, model.bind(pico_factors(model.rotary_dim, dual=False)), outtype, options)
    try:
        converter.convert(export, path, Silent())
    except UnsupportedError:
        return None
    return path, export


@pytest.mark.parametrize("format_name", ["hf", "gguf", "onnx"])
def test_half_precision_comes_back_where_it_belongs(format_name: str, tmp_path: Path) -> None:
    """Random numbers, each rounded: one in another place would not be the rounding of what is expected there."""
    known = 0
    for model_type in TYPES:
        model = pico_checkpoint(tmp_path / model_type, model_type, **FEATURES.get(model_type, {}))
        made = written(model, format_name, "f16", tmp_path / model_type)
        if made is None:
            continue
        path, export = made
        converter = registry.converter(format_name)
        own = converter.plan_of(path, export.factors, model).own_weights(path)
        stored = OwnWeights(model).tensors()
        assert set(own) == set(stored), model_type
        rounded = 0
        for name, tensor in own.items():
            original = stored[name].float()
            assert tensor.shape == original.shape, name
            assert torch.allclose(tensor.float(), original, atol=2e-3, rtol=1e-3), (model_type, name)
            if original.ndim > 1 and not torch.equal(tensor.float(), original):
                assert torch.equal(tensor.float(), half(original)), (model_type, name)
                rounded += 1
        matrices = sum(tensor.ndim > 1 for tensor in stored.values())
        assert rounded > 0.7 * matrices, (model_type, rounded, matrices)
        known += 1
    assert known >= 5


@pytest.mark.parametrize(("format_name", "outtype"), [("gguf", "q4_0"), ("onnx", "int4"), ("onnx", "int8")])
def test_quantized_weights_are_the_model_that_the_runtime_runs(format_name: str, outtype: str, tmp_path: Path) -> None:
    """Far from the original, near to the runtime."""
    model = pico_checkpoint(tmp_path / "m")
    made = written(model, format_name, outtype, tmp_path)
    assert made is not None
    path, export = made
    converter, factors = registry.converter(format_name), export.factors
    own = converter.plan_of(path, factors, model).own_weights(path)
    ids = np.random.default_rng(0).integers(0, model.vocab_size, 48)
    source = converter.open_source(path, factors, max_length=64, threads=1)
    actual = torch.cat(list(source.logits(ids, "long", 64)))
    source.close()
    batch = torch.as_tensor(ids)[None]
    with torch.no_grad():
        mine, theirs = (build_model(model, factors, weights=weights)(batch).logits[0] for weights in (own, None))
    assert (actual - mine).square().mean() < 0.2 * (actual - theirs).square().mean()


def test_a_tied_embedding_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    model = pico_checkpoint(tmp_path / "m")
    own = OwnWeights(model)
    first = np.ones((384, 64), np.float32)
    own.put("model.embed_tokens.weight", slice(None), first)
    own.put("model.embed_tokens.weight", slice(None), first)
    with pytest.raises(UnsupportedError, match=r"holds model\.embed_tokens\.weight twice"):
        own.put("model.embed_tokens.weight", slice(None), 2 * first)


def test_a_damaged_artifact_has_no_weights_of_its_own(tmp_path: Path) -> None:
    model = pico_checkpoint(tmp_path / "m")
    path = convert(model, tmp_path / "a.gguf", to="gguf", factors=pico_factors(model.rotary_dim), outtype="q4_0").path
    path.write_bytes(path.read_bytes()[:2000])
    factors = model.bind(pico_factors(model.rotary_dim))
    with pytest.raises(LongRopeError):
        registry.converter("gguf").plan_of(path, factors, model).own_weights(path)
