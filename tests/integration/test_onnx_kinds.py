"""Kinds of layers beyond Llama's: through the cache, in batches, in other weight types; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from converters.base import Export
from converters.onnx import OnnxConverter
from converters.onnx.runtime import OnnxSource
from converters.onnx.simulate import round_weights
from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.errors import InputError, UnsupportedError
from longrope.factors import BoundFactors
from longrope.modeling import TorchSource, build_model
from longrope.progress import Silent
from longrope.scoring import compare_windows
from tests.common import FEATURES, TARGET, WINDOW, pico_checkpoint, pico_factors

KINDS = ("gpt_oss", "gemma3_text", "deepseek_v2", "qwen3_next", "gpt_neox")


def model_and_factors(path: Path, model_type: str) -> tuple[Checkpoint, BoundFactors]:
    checkpoint = pico_checkpoint(path, model_type, **FEATURES[model_type])
    return checkpoint, checkpoint.bind(pico_factors(checkpoint.rotary_dim, dual=False))


def tokens(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 384, length)


@pytest.mark.parametrize("model_type", KINDS)
def test_decoding_and_batches_equal_single_passes(tmp_path: Path, model_type: str) -> None:
    """Token by token through the cache, and beside a longer row with padding on the left."""
    checkpoint, factors = model_and_factors(tmp_path / "model", model_type)
    OnnxConverter().convert(Export(checkpoint, factors), tmp_path / "onnx", Silent())
    source = OnnxSource(tmp_path / "onnx", factors, threads=1)
    ids, long = tokens(40), tokens(56, seed=1)
    whole = torch.cat(list(source.logits(ids, "long", 64)))
    decoded = source.decode_logits(ids, 32)
    assert float((whole[31:] - decoded).abs().max()) < 1e-3
    pad = len(long) - len(ids)
    mask = np.stack((np.pad(np.ones_like(ids), (pad, 0)), np.ones_like(long)))
    feeds = {
        "input_ids": np.stack((np.pad(ids, (pad, 0)), long)),
        "attention_mask": mask,
        "position_ids": np.maximum(mask.cumsum(-1) - 1, 0),
    }
    batched = source.session.run(feeds)
    assert np.isfinite(batched).all()
    assert np.abs(batched[0, pad:] - whole.numpy()).max() < 1e-3


@pytest.mark.parametrize("outtype", ["f32", "int8"])
@pytest.mark.parametrize("model_type", ["gpt_oss", "gemma3_text", "qwen3_next"])
def test_grouped_attention_and_integers_equal_the_torch_model_that_they_are(
    tmp_path: Path, model_type: str, outtype: str
) -> None:
    checkpoint, factors = model_and_factors(tmp_path / "model", model_type)
    options = {"attention": "grouped", "compute": "float32"}
    OnnxConverter().convert(Export(checkpoint, factors, outtype, options), tmp_path / "onnx", Silent())
    model = build_model(checkpoint, factors)
    round_weights(model, outtype)
    score = compare_windows(
        TorchSource(model, factors),
        {"onnx": OnnxSource(tmp_path / "onnx", factors, threads=1)},
        [tokens(TARGET)],
        factor_set="long",
        chunk=100,
    )["onnx"]
    assert score.kl_mean <= 1e-7


def test_latent_attention_is_refused_by_the_operator_that_wants_one_size_of_heads(tmp_path: Path) -> None:
    checkpoint, factors = model_and_factors(tmp_path / "model", "deepseek_v2")
    with pytest.raises(UnsupportedError, match="expected attention=standard"):
        OnnxConverter().plan(Export(checkpoint, factors, options={"attention": "grouped"}))


def changed(checkpoint: Checkpoint, folder: Path, config: dict[str, object], **weights: np.ndarray) -> Checkpoint:
    """A copy with other values in config.json and weights added or exchanged."""
    folder.mkdir()
    for file in checkpoint.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    save_file({**load_file(folder / "model.safetensors"), **weights}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**checkpoint.config, **config}))
    return open_checkpoint(folder)


def logit_difference(checkpoint: Checkpoint, factors: BoundFactors, folder: Path) -> float:
    """The largest, of an export from transformers."""
    ids = tokens(WINDOW)
    ours = torch.cat(list(OnnxSource(folder, factors, threads=1).logits(ids, "long", 64)))
    theirs = build_model(checkpoint, factors)(torch.as_tensor(ids)[None]).logits[0]
    return float((ours - theirs).abs().max())


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return pico_checkpoint(tmp_path_factory.mktemp("llama"), num_hidden_layers=1)


def test_a_head_of_its_own_stays_where_config_says_tied(llama: Checkpoint, tmp_path: Path) -> None:
    tied = changed(llama, tmp_path / "tied", {"tie_word_embeddings": True})
    factors = tied.bind(pico_factors(tied.rotary_dim, dual=False))
    OnnxConverter().convert(Export(tied, factors), tmp_path / "onnx", Silent())
    assert logit_difference(tied, factors, tmp_path / "onnx") < 1e-3


def test_an_equal_head_is_stored_once(llama: Checkpoint, tmp_path: Path) -> None:
    embedding = load_file(llama.path / "model.safetensors")["model.embed_tokens.weight"]
    tied = changed(llama, tmp_path / "tied", {"tie_word_embeddings": True}, **{"lm_head.weight": embedding})
    plan = OnnxConverter().plan(Export(tied, tied.bind(pico_factors(tied.rotary_dim))))
    assert "lm_head.weight" not in plan.model.graph.initializers


@pytest.mark.parametrize(
    ("weight", "key"),
    [("self_attn.q_proj.bias", "attention_bias"), ("mlp.down_proj.bias", "mlp_bias")],
)
def test_a_bias_that_config_does_not_announce_is_refused(
    llama: Checkpoint, tmp_path: Path, weight: str, key: str
) -> None:
    bias = np.ones(64, dtype=np.float32)
    odd = changed(llama, tmp_path / "odd", {"bias": True}, **{f"model.layers.0.{weight}": bias})
    with pytest.raises(InputError, match=f"transformers would ignore them. Set {key} to true"):
        OnnxConverter().plan(Export(odd, odd.bind(pico_factors(odd.rotary_dim))))


def test_a_correction_chooses_experts_and_does_not_weigh_them(tmp_path: Path) -> None:
    checkpoint = pico_checkpoint(tmp_path / "model", "glm4_moe", **FEATURES["glm4_moe"])
    bias = np.array([0.9, -0.9, 0.3, 0.0], dtype=np.float32)
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    odd = changed(checkpoint, tmp_path / "odd", {}, **{name: bias})
    factors = odd.bind(pico_factors(odd.rotary_dim, dual=False))
    OnnxConverter().convert(Export(odd, factors), tmp_path / "onnx", Silent())
    assert logit_difference(odd, factors, tmp_path / "onnx") < 1e-3
