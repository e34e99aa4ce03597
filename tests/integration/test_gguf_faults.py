"""Broken GGUF files: each fault is caught by a static check of its own, and KL shows what it does to the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from converters.base import Check, Export
from converters.gguf import GgufConverter
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError
from longrope.factors import RescaleFactors
from longrope.modeling import TorchSource, build_model
from longrope.progress import Silent
from longrope.scoring import compare_windows
from tests import common
from tests.gguf_files import BROKEN, CATALOGUE, GATE, UP, Tensors, Values, holding, rewrite, scale_blocks, swap


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


# Faults that llama.cpp loads silently and that change what it computes; KL shows them.
RUNNING = (
    "no factors",
    "wrong attention factor",
    "no original length",
    "stale scaling factor",
    "q and k not interleaved",
    "sets exchanged",
    "factors in reverse",
    "another theta",
)


def failures(good: Good, path: Path) -> dict[str, Check]:
    checks = GgufConverter().static_checks(path, good.factors, good.model)
    return {check.id: check for check in checks if check.status == "fail"}


def test_the_good_file_is_not_flagged(good: Good, tmp_path: Path) -> None:
    copy = rewrite(good.path, tmp_path / "same.gguf", lambda values, tensors: None)
    assert copy.read_bytes() == good.path.read_bytes()
    assert failures(good, copy) == {}


@pytest.mark.parametrize("name", CATALOGUE)
def test_static_checks_name_the_fault(good: Good, tmp_path: Path, name: str) -> None:
    fault, id = CATALOGUE[name]
    assert id in failures(good, rewrite(good.path, tmp_path / "bad.gguf", fault))


def test_unpermuted_rows_are_distinguished_from_other_weights(good: Good, tmp_path: Path) -> None:
    fault, _ = CATALOGUE["q and k not interleaved"]
    check = failures(good, rewrite(good.path, tmp_path / "bad.gguf", fault))["gguf.weights"]
    assert "interleaved" in str(check.actual)


@pytest.mark.parametrize("name", RUNNING)
def test_kl_catches_the_fault(good: Good, tmp_path: Path, name: str) -> None:
    path = rewrite(good.path, tmp_path / "bad.gguf", CATALOGUE[name][0])
    reference = TorchSource(build_model(good.model, good.factors), good.factors)
    source = GgufConverter().open_source(path, good.factors, max_length=1024, threads=1)
    ids = np.random.default_rng(0).integers(0, 384, 700)
    score = compare_windows(reference, {"gguf": source}, [ids], factor_set="long")["gguf"]
    source.close()
    assert score.kl_mean > 1e-4


# -- quantized files, where weights are compared by rows


@pytest.fixture(scope="module")
def quantized(good: Good, tmp_path_factory: pytest.TempPathFactory) -> Good:
    path = tmp_path_factory.mktemp("quantized") / "q8_0.gguf"
    GgufConverter().convert(Export(good.model, good.factors, "q8_0"), path, Silent())
    return dataclasses.replace(good, path=path)


@pytest.mark.parametrize("pair", [(UP, GATE), ("blk.0.attn_q.weight", "blk.1.attn_q.weight")])
def test_exchanged_quantized_tensors(quantized: Good, tmp_path: Path, pair: tuple[str, str]) -> None:
    assert failures(quantized, quantized.path) == {}
    assert set(failures(quantized, rewrite(quantized.path, tmp_path / "bad.gguf", swap(*pair)))) == {"gguf.weights"}


def test_interleaving_undone_in_a_quantized_file(quantized: Good, tmp_path: Path) -> None:
    def fault(values: Values, tensors: Tensors) -> None:
        content = tensors["blk.0.attn_q.weight"]
        rows = next(iter(content.blocks())).reshape(4, 8, 2, -1).swapaxes(1, 2)
        tensors["blk.0.attn_q.weight"] = holding(content.info, np.ascontiguousarray(rows))

    assert set(failures(quantized, rewrite(quantized.path, tmp_path / "bad.gguf", fault))) == {"gguf.weights"}


@pytest.mark.parametrize("scale", [1.05, 0.95])
def test_one_layer_of_a_4_bit_file_whose_scale_is_off(good: Good, tmp_path: Path, scale: float) -> None:
    """Rounding to four bits hides 5 % in each number, and not in the mean of all."""
    path = tmp_path / "q4_0.gguf"
    GgufConverter().convert(Export(good.model, good.factors, "q4_0"), path, Silent())
    assert failures(good, path) == {}
    fault = scale_blocks(UP, scale, block_bytes=18)
    (found,) = failures(good, rewrite(path, tmp_path / "bad.gguf", fault)).values()
    assert found.id == "gguf.weights"
    assert f"{UP}: its numbers are {1.0 if scale > 1 else 0.9}" in str(found.actual)


# -- broken containers


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_container_is_one_failed_check(good: Good, tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(BROKEN[name](good.path.read_bytes()))
    assert set(failures(good, path)) == {"gguf.readable"}
    with pytest.raises(InputError):
        GgufConverter().read_factors(path)


def test_the_catalogue_is_large_enough() -> None:
    assert len(CATALOGUE) + len(BROKEN) >= 25
