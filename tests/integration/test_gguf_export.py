"""GGUF against transformers: parity in both regimes, bit-exact read-back, refusals before any work."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.base import Export
from converters.gguf import GgufConverter
from converters.gguf.container import GgufFile
from converters.gguf.runtime import context_size
from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.errors import InputError, UnsupportedError
from longrope.modeling import build_model
from longrope.progress import Silent
from tests import common
from tests.gguf_files import TARGET, WINDOW, checkpoint, export, factors_for, refused, scores


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"head_dim": 32, "num_key_value_heads": 4},
        {"head_dim": 64, "num_key_value_heads": 1},
        {"head_dim": 128, "tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
    ],
    ids=["gqa", "mha-32", "mqa-64", "tied-128", "bias"],
)
def test_f32_equals_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = checkpoint(tmp_path / "m", **changes)
    factors = factors_for(model)
    for regime, score in scores(model, factors, export(model, factors, "f32", tmp_path / "a.gguf")).items():
        assert abs(score.ppl_delta_percent) <= 0.01, regime
        assert score.kl_mean <= 1e-6, regime
        assert score.max_logit_diff <= 1e-3, regime


@pytest.mark.parametrize(("outtype", "kl"), [("f16", 1e-4), ("bf16", 2e-3), ("q8_0", 1e-2)])
def test_rounded_types_stay_close(tmp_path: Path, outtype: str, kl: float) -> None:
    model = checkpoint(tmp_path / "m")
    factors = factors_for(model)
    for score in scores(model, factors, export(model, factors, outtype, tmp_path / "a.gguf")).values():
        assert score.kl_mean <= kl
        assert abs(score.ppl_delta_percent) <= (0.1 if outtype == "f16" else 1.0)


@pytest.mark.parametrize("dual", [True, False])
def test_factors_come_back_as_float32(tmp_path: Path, dual: bool) -> None:
    model = checkpoint(tmp_path / "m")
    factors = factors_for(model, dual=dual, attention_factor=1.25)
    path = export(model, factors, "f16", tmp_path / "a.gguf")
    found = GgufConverter().read_factors(path)
    assert found is not None
    for name in ("short", "long"):
        assert found.set(name) == tuple(np.float32(factors.set(name)).astype(float))  # type: ignore[arg-type]
    assert (found.original_max_position_embeddings, found.target_length) == (WINDOW, TARGET)
    assert found.attention_factor == 1.25
    assert (found.rotary_dim, found.factor_sets) == (16, "dual" if dual else "single")
    assert common.said(GgufConverter().recorded_factors(path)) == common.said(factors)


@common.needs_published_factors
def test_published_llama2_factors_are_bit_exact(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", head_dim=128, max_position_embeddings=4096)
    published = common.published_llama2_factors()
    path = tmp_path / "a.gguf"
    checks = GgufConverter().convert(Export(model, model.bind(published), "f16"), path, Silent())
    assert [check.id for check in checks if check.status not in ("pass", "skip")] == ["gguf.rope.precision"]
    found = GgufConverter().read_factors(path)
    assert found is not None
    assert found.long_factor == tuple(np.float32(published.long_factor).astype(float))
    assert found.short_factor == tuple(np.float32(published.short_factor).astype(float))


def test_runtime_decodes_through_the_cache_as_it_prefills(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m")
    factors = factors_for(model)
    source = GgufConverter().open_source(export(model, factors, "f32", tmp_path / "a.gguf"), factors, max_length=TARGET)
    ids = np.random.default_rng(1).integers(0, 384, WINDOW + 8)
    rows = source.decode_logits(ids, WINDOW - 4)
    full = [*source.logits(ids, "long", 64)]
    assert rows.shape == (13, 384)
    assert [len(block) for block in full] == [64, 64, 64, 64, 8]
    assert np.allclose(rows[-8:], full[-1], atol=1e-4)


@pytest.mark.parametrize(
    ("tokens", "factor_set", "original", "expected"),
    [
        (100, "short", 256, 256),
        (256, "short", 256, 256),
        (100, "long", 256, 512),
        (1000, "long", 256, 1024),
        (700, "short", 1000, 768),
        (100, "long", 1000, 1024),
        (100, "short", None, 256),
    ],
)
def test_context_sizes(tokens: int, factor_set: Any, original: int | None, expected: int) -> None:
    assert context_size(tokens, factor_set, original) == expected


@pytest.mark.parametrize(("tokens", "original"), [(64, 64), (1000, 1000), (257, 256)])
def test_windows_that_no_short_context_holds(tokens: int, original: int) -> None:
    with pytest.raises(InputError, match="multiple of 256"):
        context_size(tokens, "short", original)


def test_single_set_runs_in_any_context(tmp_path: Path) -> None:
    model = common.pico_checkpoint(tmp_path / "m")
    factors = model.bind(common.pico_factors(dual=False))
    source = GgufConverter().open_source(export(model, factors, "f32", tmp_path / "a.gguf"), factors, max_length=64)
    assert sum(len(block) for block in source.logits(np.arange(64), "short", 32)) == 64


# -- refusals


def test_start_tokens_are_refused(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m")
    refused(UnsupportedError, "n_hat = 4", model, dataclasses.replace(factors_for(model), n_hat=4))


def test_unknown_types_and_options_are_refused(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m")
    refused(UnsupportedError, "'f8'", model, factors_for(model), outtype="f8")
    refused(InputError, "unknown GGUF option colour", model, factors_for(model), options={"colour": 1})


def test_another_activation_is_refused(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", hidden_act="gelu")
    refused(UnsupportedError, "hidden_act", model, factors_for(model))


def test_fp8_weights_are_refused(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    model = checkpoint(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    weights = load_file(file)
    weights["lm_head.weight"] = weights["lm_head.weight"].to(torch.float8_e4m3fn)
    save_file(weights, file)
    refused(UnsupportedError, "F8_E4M3", open_checkpoint(tmp_path / "m"), factors_for(model))


def test_a_missing_weight_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = checkpoint(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file)
    refused(InputError, r"blk\.1\.ffn_up\.weight is missing", open_checkpoint(tmp_path / "m"), factors_for(model))


def test_a_weight_too_large_for_f16_leaves_nothing(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = checkpoint(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    weights = load_file(file)
    weights["lm_head.weight"][0, 0] = 1e6
    save_file(weights, file)
    with pytest.raises(UnsupportedError, match="non-finite in f16"):
        export(open_checkpoint(tmp_path / "m"), factors_for(model), "f16", tmp_path / "out" / "a.gguf")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_tokenizer_that_splits_otherwise_is_refused(tmp_path: Path) -> None:
    """Same structure, but an added token that swallows the space before it, which llama.cpp cannot do."""
    model = checkpoint(tmp_path / "m")
    file = tmp_path / "m" / "tokenizer.json"
    data = json.loads(file.read_text())
    data["added_tokens"][0]["lstrip"] = True
    file.write_text(json.dumps(data))
    refused(UnsupportedError, "split text otherwise", open_checkpoint(tmp_path / "m"), factors_for(model))


# -- the light path


LIGHT = """
import sys
from pathlib import Path
from converters.base import Export
from converters.gguf import GgufConverter
from longrope.checkpoint import open_checkpoint
from longrope.factors import RescaleFactors
from longrope.progress import Silent
model = open_checkpoint(sys.argv[1])
factors = model.bind(RescaleFactors.load(Path(sys.argv[2])))
GgufConverter().convert(Export(model, factors, "q8_0"), Path(sys.argv[3]), Silent())
print(sorted({"torch", "transformers", "click"} & set(sys.modules)))
"""


def test_conversion_needs_neither_torch_nor_transformers(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m")
    factors_for(model).save(tmp_path / "factors.json")
    arguments = [str(tmp_path / name) for name in ("m", "factors.json", "a.gguf")]
    run = subprocess.run([sys.executable, "-c", LIGHT, *arguments], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# -- sharded and half-precision sources


def rewritten(folder: Path, change: Callable[[Any], Any], shards: int = 1) -> Checkpoint:
    """The pico model in another dtype, or in several files."""
    from safetensors.torch import load_file, save_file

    weights = {name: change(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {f"model-{i + 1:05}-of-{shards:05}.safetensors": names[i::shards] for i in range(shards)}
    for file, members in parts.items():
        save_file({name: weights[name] for name in members}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, members in parts.items() for name in members}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return open_checkpoint(folder)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("outtype", ["f32", "bf16", "f16"])
def test_half_precision_and_sharded_sources(tmp_path: Path, dtype: str, outtype: str) -> None:
    import torch

    checkpoint(tmp_path / "m")
    model = rewritten(tmp_path / "m", lambda tensor: tensor.to(getattr(torch, dtype)), shards=3)
    path = export(model, factors_for(model), outtype, tmp_path / "a.gguf")
    with GgufFile(path) as file:
        wanted = build_model(model).state_dict()["model.layers.1.mlp.up_proj.weight"]
        rounded = wanted.to({"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[outtype])
        assert np.array_equal(file.floats("blk.1.ffn_up.weight"), rounded.float().numpy())
