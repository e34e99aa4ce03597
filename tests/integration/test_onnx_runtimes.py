"""Generation past the original window, for real, in every runtime an export is for: same tokens as transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.environments import UnavailableError
from benchmarks.onnx_runtimes import RUNTIMES, generate
from converters.base import Export
from converters.onnx import OnnxConverter
from longrope.modeling import build_model
from longrope.progress import Silent
from tests.common import WINDOW, pico_checkpoint, pico_factors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
NEW_TOKENS = 80
PROMPT = np.random.default_rng(5).integers(1, 384, WINDOW - 20)


@pytest.fixture(scope="module", params=["standard", "grouped"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    room = tmp_path_factory.mktemp("runtimes")
    checkpoint = pico_checkpoint(room / "model")
    factors = checkpoint.bind(pico_factors(checkpoint.rotary_dim, dual=False))
    OnnxConverter().convert(Export(checkpoint, factors, options={"attention": request.param}), room / "onnx", Silent())
    model = build_model(checkpoint, factors)
    model.generation_config.eos_token_id = None
    ids = model.generate(torch.as_tensor(PROMPT)[None], max_new_tokens=NEW_TOKENS, do_sample=False)
    return room / "onnx", ids[0].tolist()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_same_tokens_as_transformers(artifact: tuple[Path, list[int]], runtime: str) -> None:
    folder, expected = artifact
    try:
        assert generate(runtime, folder, PROMPT.tolist(), NEW_TOKENS) == expected
    except UnavailableError as error:
        pytest.skip(str(error))
