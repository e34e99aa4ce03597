"""Verdicts: what is non-finite always fails, and an artifact that is too damaged to be planned is still reported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from converters.base import Export
from converters.measurements import Validation
from converters.onnx import OnnxConverter
from converters.onnx.runtime import OnnxSource
from converters.parity import Artifact, ValidateOptions, validate_artifacts
from longrope.checkpoint import Checkpoint
from longrope.factors import BoundFactors, FactorSet
from longrope.progress import Silent
from longrope.text import Corpus, Document, TokenIds
from tests.common import TARGET, WINDOW, pico_checkpoint, pico_factors


class NonFiniteDecoding(OnnxSource):
    """A runtime whose every decoding step gives NaN; whole windows are right."""

    def decode_logits(self, ids: TokenIds, prefill: int) -> Tensor:
        return torch.full_like(super().decode_logits(ids, prefill), torch.nan)


class OtherDecoding(OnnxSource):
    """A runtime whose decoding is another model's; whole windows are right."""

    def decode_logits(self, ids: TokenIds, prefill: int) -> Tensor:
        return 1.5 * super().decode_logits(ids, prefill)


class OneSetPerContext(OnnxSource):
    """A runtime that says it keeps one set in a context, as llama.cpp does, and changes it in the middle."""

    def __init__(self, path: Path, factors: BoundFactors | None, *, threads: int | None = None) -> None:
        super().__init__(path, factors, threads=threads)
        self.rule = "per_context"


class NonFiniteWindows(OnnxSource):
    """A runtime that gives one NaN a window; decoding is right."""

    def logits(self, ids: TokenIds, factor_set: FactorSet, chunk: int) -> Iterator[Tensor]:
        for block in super().logits(ids, factor_set, chunk):
            block[0, 0] = torch.nan
            yield block


class OtherRuntime(OnnxConverter):
    """The ONNX format with another source of logits."""

    def __init__(self, source: type[OnnxSource]) -> None:
        self.source = source

    def open_source(
        self, path: Path, factors: BoundFactors | None, *, max_length: int, threads: int | None = None
    ) -> OnnxSource:
        return self.source(path, factors, threads=threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return pico_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=[True, False], ids=["dual", "single"])
def artifact(
    request: pytest.FixtureRequest, model: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, BoundFactors]:
    factors = model.bind(pico_factors(model.rotary_dim, dual=request.param))
    path = tmp_path_factory.mktemp("out") / "onnx"
    OnnxConverter().convert(Export(model, factors), path, Silent())
    return path, factors


def validated(model: Checkpoint, path: Path, factors: BoundFactors, converter: OnnxConverter) -> Validation:
    ids = np.random.default_rng(0).integers(1, 384, TARGET)
    corpus = Corpus((Document("text", ids),))
    options = ValidateOptions(windows=(WINDOW, TARGET), windows_per_length=1, threads=1)
    planned = converter.plan_of(path, factors, model)
    (result,) = validate_artifacts([Artifact(path, converter, planned)], model, factors, corpus, options, Silent())
    return result


def statuses(result: Validation) -> dict[str, str]:
    return {check.id: check.status for check in result.checks}


CROSSING = f"onnx.parity.crossing.{WINDOW + 8}"


def test_a_crossing_whose_steps_are_non_finite_fails(model: Checkpoint, artifact: tuple[Path, BoundFactors]) -> None:
    result = validated(model, *artifact, OtherRuntime(NonFiniteDecoding))
    failed = {check.id: check.message for check in result.failures}
    assert list(failed) == [CROSSING]
    assert "the artifact's logits are non-finite from prediction" in failed[CROSSING]


def test_a_finite_crossing_warns_where_the_cache_keeps_the_short_set(
    model: Checkpoint, artifact: tuple[Path, BoundFactors]
) -> None:
    result = validated(model, *artifact, OnnxConverter())
    assert result.passed
    assert statuses(result)[CROSSING] == ("warn" if artifact[1].factor_sets == "dual" else "pass")


@pytest.mark.parametrize("source", [OtherDecoding, OneSetPerContext])
def test_a_crossing_that_no_stale_cache_explains_fails(
    model: Checkpoint, artifact: tuple[Path, BoundFactors], source: type[OnnxSource]
) -> None:
    if source is OneSetPerContext and artifact[1].factor_sets == "single":
        pytest.skip("an artifact with a single factor set has nothing to switch")
    found = statuses(validated(model, *artifact, OtherRuntime(source)))
    assert [id for id, status in found.items() if status in ("fail", "warn")] == [CROSSING]
    assert found[CROSSING] == "fail"


def test_a_window_with_one_non_finite_logit_fails(model: Checkpoint, artifact: tuple[Path, BoundFactors]) -> None:
    found = statuses(validated(model, *artifact, OtherRuntime(NonFiniteWindows)))
    assert found[f"onnx.parity.short.{WINDOW}"] == found[f"onnx.parity.long.{TARGET}"] == "fail"


def test_an_artifact_that_does_not_say_its_plan_is_reported(
    model: Checkpoint, artifact: tuple[Path, BoundFactors], tmp_path: Path
) -> None:
    """Its runtime opens it all the same, and its windows are judged."""
    path, factors = artifact
    broken = tmp_path / "onnx"
    broken.mkdir()
    for file in path.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    proto = onnx.load(broken / "model.onnx", load_external_data=False)
    next(item for item in proto.metadata_props if item.key == "longrope.outtype").value = "f99"
    onnx.save(proto, broken / "model.onnx")
    result = validated(model, broken, factors, OnnxConverter())
    assert [check.id for check in result.failures] == ["onnx.readable"]
    assert "got 'f99'" in result.failures[0].message
    assert statuses(result)["onnx.loads"] == "pass"
    assert len(result.windows) == 3


def test_an_artifact_that_no_runtime_opens_is_reported(
    model: Checkpoint, artifact: tuple[Path, BoundFactors], tmp_path: Path
) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(artifact[0].joinpath("model.onnx").read_bytes()[:1000])
    result = validated(model, tmp_path / "onnx", artifact[1], OnnxConverter())
    assert [check.id for check in result.failures] == ["onnx.readable", "onnx.loads"]
    assert result.windows == []
