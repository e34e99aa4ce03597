"""Broken GGUF files: each fault is caught by a static check of its own, and KL shows what it does to the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.base import Check, Export
from converters.gguf import GgufConverter
from converters.gguf.container import Content, GgufFile, TensorInfo, Value, f32, write_gguf
from longrope.checkpoint import Checkpoint
from longrope.factors import RescaleFactors
from longrope.modeling import TorchSource, build_model
from longrope.progress import Silent
from longrope.scoring import compare_windows
from tests import common

Values = dict[str, Value]
Tensors = dict[str, Content]
Fault = Callable[[Values, Tensors], None]


@dataclasses.dataclass(frozen=True)
class Good:
    path: Path
    model: Checkpoint
    factors: RescaleFactors


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
    folder = tmp_path_factory.mktemp("faults")
    model = common.pico_checkpoint(folder / "m", max_position_embeddings=256)
    factors = model.bind(common.pico_factors(target=1024, original_max_position_embeddings=256))
    GgufConverter().convert(Export(model, factors, "f32"), folder / "good.gguf", Silent())
    return Good(folder / "good.gguf", model, factors)


def holding(info: TensorInfo, data: Any) -> Content:
    return Content(info, lambda: (data,))


def rewrite(source: Path, target: Path, fault: Fault) -> Path:
    """Copy a GGUF file with a fault put in."""
    with GgufFile(source) as file:
        values = dict(file.values)
        tensors = {name: holding(info, np.array(file.raw(name))) for name, info in file.tensors.items()}
        fault(values, tensors)
        write_gguf(target, values, list(tensors.values()))
    return target


def without_factors(values: Values, tensors: Tensors) -> None:
    for name in ("rope_factors_long.weight", "rope_factors_short.weight"):
        del tensors[name]


def wrong_attention_factor(values: Values, tensors: Tensors) -> None:
    values["llama.rope.scaling.attn_factor"] = f32(1.0)


def no_original_length(values: Values, tensors: Tensors) -> None:
    del values["llama.rope.scaling.original_context_length"]


def scaling_factor_written(values: Values, tensors: Tensors) -> None:
    values["llama.rope.scaling.factor"] = f32(4.0)


def unpermuted(values: Values, tensors: Tensors) -> None:
    for name, content in tensors.items():
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            heads = content.info.shape[0] // 16
            rows = next(iter(content.blocks())).view(np.float32).reshape(heads, 8, 2, -1)
            tensors[name] = holding(content.info, np.ascontiguousarray(rows.swapaxes(1, 2)))


CASES = [
    (without_factors, "gguf.factors.long"),
    (wrong_attention_factor, "gguf.rope.scaling.attn_factor"),
    (no_original_length, "gguf.rope.scaling.original_context_length"),
    (scaling_factor_written, "gguf.rope.scaling.factor"),
    (unpermuted, "gguf.weights"),
]


def failures(good: Good, path: Path) -> dict[str, Check]:
    checks = GgufConverter().static_checks(path, good.factors, good.model)
    return {check.id: check for check in checks if check.status == "fail"}


def test_the_good_file_is_not_flagged(good: Good, tmp_path: Path) -> None:
    copy = rewrite(good.path, tmp_path / "same.gguf", lambda values, tensors: None)
    assert copy.read_bytes() == good.path.read_bytes()
    assert failures(good, copy) == {}


@pytest.mark.parametrize(("fault", "id"), CASES, ids=[fault.__name__ for fault, _ in CASES])
def test_static_checks_name_the_fault(good: Good, tmp_path: Path, fault: Fault, id: str) -> None:
    assert id in failures(good, rewrite(good.path, tmp_path / "bad.gguf", fault))


def test_unpermuted_rows_are_told_from_other_weights(good: Good, tmp_path: Path) -> None:
    check = failures(good, rewrite(good.path, tmp_path / "bad.gguf", unpermuted))["gguf.weights"]
    assert "interleaved" in str(check.actual)


@pytest.mark.parametrize("fault", [fault for fault, _ in CASES], ids=[fault.__name__ for fault, _ in CASES])
def test_kl_catches_the_fault(good: Good, tmp_path: Path, fault: Fault) -> None:
    path = rewrite(good.path, tmp_path / "bad.gguf", fault)
    reference = TorchSource(build_model(good.model, good.factors), good.factors)
    source = GgufConverter().open_source(path, good.factors, max_length=1024, threads=1)
    ids = np.random.default_rng(0).integers(0, 384, 700)
    score = compare_windows(reference, {"gguf": source}, [ids], factor_set="long")["gguf"]
    source.close()
    assert score.kl_mean > 1e-4
