"""Every architecture of the table, exported and scored in onnxruntime against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from converters.base import Export
from converters.onnx import OnnxConverter
from converters.onnx.blocks import BLOCKS
from converters.onnx.options import OnnxOptions
from converters.onnx.runtime import OnnxSource
from converters.onnx.simulate import round_weights
from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.errors import MissingRequirementError, UnsupportedError
from longrope.factors import RescaleFactors
from longrope.modeling import RescaledRotary, TorchSource, build_model, replace_rotary
from longrope.progress import Silent
from longrope.scoring import compare_windows
from tests.common import FEATURES, TARGET, WINDOW, pico_checkpoint, pico_factors, pico_folder, said

TESTED = sorted(BLOCKS)
# Two sets are the same code in every type: those with tables, switches or scales of their own, and the oldest ones.
DUAL = (
    *("arcee", "gemma", "gemma2", "gemma3_text", "gpt_oss", "granite", "llama", "minicpm3", "mistral", "olmo2", "phi3"),
    *("qwen2", "qwen3", "qwen3_next", "seed_oss", "smollm3"),
)


def export(
    folder: Path, checkpoint: Checkpoint, factors: RescaleFactors, outtype: str | None = None, **options: str
) -> Path:
    OnnxConverter().convert(Export(checkpoint, factors, outtype, options), folder, Silent())
    return folder


def tokens(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 384, length)


@pytest.mark.parametrize(
    ("model_type", "dual"),
    [*((name, False) for name in TESTED), *((name, True) for name in DUAL)],
    ids=[*(f"{name}-single" for name in TESTED), *(f"{name}-dual" for name in DUAL)],
)
def test_logits_equal_transformers_in_both_regimes(tmp_path: Path, model_type: str, dual: bool) -> None:
    checkpoint = pico_checkpoint(tmp_path / "model", model_type, **FEATURES.get(model_type, {}))
    factors = checkpoint.bind(pico_factors(checkpoint.rotary_dim, dual=dual))
    path = export(tmp_path / "onnx", checkpoint, factors)
    reference = TorchSource(build_model(checkpoint, factors), factors)
    source = OnnxSource(path, factors, threads=1)
    for length, factor_set in ((WINDOW, "short"), (TARGET, "long")):
        score = compare_windows(
            reference,
            {"onnx": source},
            [tokens(length)],
            factor_set=factor_set,  # type: ignore[arg-type]
            chunk=48,
        )["onnx"]
        assert abs(score.ppl_delta_percent) <= 0.01
        assert score.kl_mean <= 1e-7
        assert score.max_logit_diff <= 1e-3
    assert said(OnnxConverter().read_factors(path)) == said(factors)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, RescaleFactors, Path]:
    room = tmp_path_factory.mktemp("onnx")
    checkpoint = pico_checkpoint(room / "model")
    factors = checkpoint.bind(pico_factors(checkpoint.rotary_dim))
    return checkpoint, factors, export(room / "onnx", checkpoint, factors)


def test_n_hat_equals_the_engines_rotary_module(tmp_path: Path) -> None:
    checkpoint = pico_checkpoint(tmp_path / "model")
    factors = checkpoint.bind(pico_factors(checkpoint.rotary_dim, dual=False, n_hat=16))
    path = export(tmp_path / "onnx", checkpoint, factors)
    model = build_model(checkpoint)
    ours = RescaledRotary(checkpoint.rope_theta, checkpoint.rotary_dim)
    ours.set(np.array(factors.long_factor), factors.effective_attention_factor, n_hat=16)
    replace_rotary(model, ours)
    ids = tokens(TARGET)
    expected = model(torch.as_tensor(ids)[None]).logits[0].detach()
    actual = torch.cat(list(OnnxSource(path, factors, threads=1).logits(ids, "long", 100)))
    assert float((expected - actual).abs().max()) < 1e-3
    assert said(OnnxConverter().read_factors(path)) == said(factors)


def test_decoding_through_the_cache_equals_transformers(llama: tuple[Checkpoint, RescaleFactors, Path]) -> None:
    checkpoint, factors, path = llama
    ids = tokens(WINDOW)
    expected = TorchSource(build_model(checkpoint, factors), factors, pinned=False).decode_logits(ids, WINDOW - 8)
    actual = OnnxSource(path, factors, threads=1).decode_logits(ids, WINDOW - 8)
    assert actual.shape == expected.shape
    assert float((expected - actual).abs().max()) < 1e-3


@pytest.mark.parametrize("outtype", ["f16", "int8", "int4"])
@pytest.mark.parametrize("attention", ["standard", "grouped"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_other_weight_types_equal_the_torch_model_that_they_are(
    tmp_path: Path, outtype: str, attention: str, tied: bool
) -> None:
    checkpoint = pico_checkpoint(tmp_path / "model", tie_word_embeddings=tied)
    factors = checkpoint.bind(pico_factors(checkpoint.rotary_dim))
    path = export(tmp_path / "onnx", checkpoint, factors, outtype, attention=attention, compute="float32")
    model = build_model(checkpoint, factors)
    round_weights(model, outtype)
    score = compare_windows(
        TorchSource(model, factors),
        {"onnx": OnnxSource(path, factors, threads=1)},
        [tokens(TARGET)],
        factor_set="long",
        chunk=100,
    )["onnx"]
    assert score.kl_mean <= (1e-4 if outtype == "f16" else 1e-7)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_fewer_logits_are_the_last_of_all(tmp_path: Path, tied: bool) -> None:
    checkpoint = pico_checkpoint(tmp_path / "model", tie_word_embeddings=tied)
    factors = checkpoint.bind(pico_factors(checkpoint.rotary_dim))
    session = OnnxSource(export(tmp_path / "onnx", checkpoint, factors), factors, threads=1).session
    every, cache = session.forward(tokens(20), 0, session.empty_cache())
    assert every.shape == (20, checkpoint.vocab_size)
    for wanted in (1, 3, 20):
        some, _ = session.forward(tokens(20), 0, session.empty_cache(), logits_to_keep=wanted)
        assert some.shape == (wanted, checkpoint.vocab_size)
        assert float(np.abs(some - every[-wanted:]).max()) < 1e-4
    after_one, _ = session.forward(tokens(4), 20, cache, logits_to_keep=1)
    after_all, _ = session.forward(tokens(4), 20, cache)
    assert float(np.abs(after_one - after_all[-1:]).max()) < 1e-4


def test_an_onnxruntime_that_computes_attention_wrongly_is_refused(
    llama: tuple[Checkpoint, RescaleFactors, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.23.2")
    with pytest.raises(MissingRequirementError, match=r"pip install 'onnxruntime>=1\.28'"):
        OnnxSource(llama[2], llama[1], threads=1)


def test_bfloat16_is_written_and_says_that_the_cpu_cannot_run_it(tmp_path: Path) -> None:
    checkpoint = pico_checkpoint(tmp_path / "model")
    factors = checkpoint.bind(pico_factors(checkpoint.rotary_dim))
    path = export(tmp_path / "onnx", checkpoint, factors, "bf16")
    with pytest.raises(MissingRequirementError, match="has no kernels for this weight type"):
        OnnxSource(path, factors, threads=1)


@pytest.mark.parametrize("quantizer", ["rtn", "search", "k_quant"])
def test_rounding_activations_too_stays_near(tmp_path: Path, quantizer: str) -> None:
    checkpoint = pico_checkpoint(tmp_path / "model")
    factors = checkpoint.bind(pico_factors(checkpoint.rotary_dim))
    path = export(tmp_path / "onnx", checkpoint, factors, "int4", compute="int8", quantizer=quantizer)
    model = build_model(checkpoint, factors)
    round_weights(model, "int4", OnnxOptions(quantizer=quantizer))  # type: ignore[arg-type]
    source = OnnxSource(path, factors, threads=1)
    score = compare_windows(
        TorchSource(model, factors), {"onnx": source}, [tokens(TARGET)], factor_set="long", chunk=100
    )["onnx"]
    assert 0 < score.kl_mean < 1e-2


def test_weights_too_large_for_half_precision_are_refused(tmp_path: Path) -> None:
    folder = pico_folder(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 1e6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(folder)
    factors = checkpoint.bind(pico_factors(checkpoint.rotary_dim))
    with pytest.raises(UnsupportedError, match=r"model\.norm\.weight has weights beyond what float16 holds"):
        export(tmp_path / "onnx", checkpoint, factors, "f16")
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize("attention", ["standard", "grouped"])
@pytest.mark.parametrize("pad_side", ["left", "right"])
def test_padding_does_not_change_a_row(
    llama: tuple[Checkpoint, RescaleFactors, Path], tmp_path: Path, pad_side: str, attention: str
) -> None:
    """A short row gives the same logits alone and in a batch with a row beyond the original window."""
    checkpoint, factors, _ = llama
    path = export(tmp_path / "onnx", checkpoint, factors, attention=attention)
    source = OnnxSource(path, factors, threads=1)
    short, long = tokens(20, seed=1), tokens(WINDOW + 20, seed=2)
    pad = len(long) - len(short)
    room = (pad, 0) if pad_side == "left" else (0, pad)
    real = slice(pad, None) if pad_side == "left" else slice(0, len(short))
    mask = np.stack((np.pad(np.ones_like(short), room), np.ones_like(long)))
    feeds = {
        "input_ids": np.stack((np.pad(short, room), long)),
        "attention_mask": mask,
        "position_ids": np.maximum(mask.cumsum(-1) - 1, 0),
    }
    batched = source.session.run(feeds)
    assert np.isfinite(batched).all()
    alone = torch.cat(list(source.logits(short, "short", 64))).numpy()
    assert np.abs(batched[0, real] - alone).max() < 1e-4


def test_the_process_keeps_its_models(llama: tuple[Checkpoint, RescaleFactors, Path], tmp_path: Path) -> None:
    checkpoint, factors, _ = llama
    model = build_model(checkpoint, factors)
    ids = torch.as_tensor(tokens(TARGET))[None]
    before = model(ids).logits
    export(tmp_path / "onnx", checkpoint, factors)
    assert torch.equal(before, model(ids).logits)
