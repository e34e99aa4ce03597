"""Growing past the original window with a filled cache: what goes wrong with `dual`, and what the helper does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from converters.base import Export
from converters.onnx import OnnxConverter
from converters.onnx.crossing import RefillingDecoder
from converters.onnx.runtime import OnnxSource
from longrope.checkpoint import Checkpoint
from longrope.factors import RescaleFactors
from longrope.modeling import TorchSource, build_model
from longrope.progress import Silent
from longrope.scoring import compare_rows, crossing_rows
from tests.common import WINDOW, pico_checkpoint, pico_factors

PREFILL = WINDOW - 8
IDS = np.random.default_rng(3).integers(0, 384, WINDOW + 8)
Artifact = tuple[Checkpoint, RescaleFactors, Path]


@pytest.fixture(scope="module", params=["dual", "single"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    room = tmp_path_factory.mktemp("crossing")
    checkpoint = pico_checkpoint(room / "model")
    factors = checkpoint.bind(pico_factors(checkpoint.rotary_dim, dual=request.param == "dual"))
    OnnxConverter().convert(Export(checkpoint, factors), room / "onnx", Silent())
    return checkpoint, factors, room / "onnx"


def expected_rows(artifact: Artifact) -> torch.Tensor:
    checkpoint, factors, _ = artifact
    reference = TorchSource(build_model(checkpoint, factors), factors)
    return crossing_rows(reference, IDS, WINDOW, prefill=PREFILL, rule="per_forward")


def test_a_plain_cache_is_right_only_with_a_single_set(artifact: Artifact) -> None:
    _, factors, path = artifact
    decoded = OnnxSource(path, factors, threads=1).decode_logits(IDS, PREFILL)
    score = compare_rows(expected_rows(artifact), decoded[:-1], IDS, prefill=PREFILL)
    assert (score.kl_mean < 1e-7) == (factors.factor_sets == "single")


def test_the_helper_is_right_with_both(artifact: Artifact) -> None:
    _, factors, path = artifact
    decoder = RefillingDecoder(path, threads=1)
    rows = [decoder.append(IDS[:PREFILL]), *(decoder.append(IDS[i : i + 1]) for i in range(PREFILL, len(IDS) - 1))]
    assert float((torch.stack(rows) - expected_rows(artifact)).abs().max()) < 1e-3
    assert decoder.refills == (1 if factors.factor_sets == "dual" else 0)


def test_the_helper_generates(artifact: Artifact) -> None:
    decoder = RefillingDecoder(artifact[2], threads=1)
    first = list(decoder.generate(IDS[:PREFILL], 20))
    decoder.reset()
    assert first == list(decoder.generate(IDS[:PREFILL], 20))
    assert len(first) == 20
