"""Artifacts in transformers whose model is the reference's: run on a probe only, and never one that is another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from converters.base import Export
from converters.hf.converter import HuggingFaceConverter
from converters.measurements import Validation
from converters.twins import same_model
from converters.validation import validate
from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.factors import BoundFactors, FactorSets
from longrope.modeling import TorchSource, build_model
from longrope.progress import Silent
from longrope.text import Corpus, Document
from tests.common import TARGET, WINDOW
from tests.folder_faults import Fault, both, config, rope, weights

WINDOWS = {"windows": (WINDOW, TARGET), "windows_per_length": 4, "threads": 1}


def corpus() -> Corpus:
    rng = np.random.default_rng(0)
    return Corpus(tuple(Document(f"text {i}", rng.integers(1, 384, TARGET)) for i in range(4)))


def measured(path: Path, model: Checkpoint, factors: BoundFactors, **changes: Any) -> Validation:
    return validate(path, model, corpus(), factors=factors, **{**WINDOWS, **changes})


def written(model: Checkpoint, factors: BoundFactors, path: Path, sets: FactorSets, outtype: str | None = None) -> Path:
    converter = HuggingFaceConverter()
    converter.convert(Export(model, converter.choose_sets(factors, sets, model), outtype), path, Silent())
    return path


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the windows that an artifact's own model was run on."""
    lengths, logits = list[int](), TorchSource.logits

    def watched(self: TorchSource, ids: Any, *more: Any) -> Any:
        if self.name == "transformers":
            lengths.append(len(ids))
        return logits(self, ids, *more)

    monkeypatch.setattr(TorchSource, "logits", watched)
    return lengths


@pytest.mark.parametrize("outtype", [None, "bf16"])
@pytest.mark.parametrize("sets", ["single", "dual"])
def test_a_twin_is_run_on_a_probe_and_scored_as_if_it_had_run(
    sets: FactorSets, outtype: str | None, pico: Checkpoint, dual: BoundFactors, tmp_path: Path, tokens: list[int]
) -> None:
    """A cast is the twin of the reference that holds its weights."""
    path = written(pico, dual, tmp_path / "hf", sets, outtype)
    found = measured(path, pico, dual)
    assert tokens == []
    assert [check.status for check in found.checks if check.id == "hf.same_model"] == ["pass"]
    tokens.clear()
    thorough = measured(path, pico, dual, effort="thorough", quality=False)
    assert sorted(tokens) == [WINDOW] * 4 + [TARGET] * 4
    assert "hf.same_model" not in {check.id for check in thorough.checks}
    for name in ("windows", "runtime", "rounding"):
        assert getattr(found, name) == getattr(thorough, name)
    assert found.passed == thorough.passed


def test_a_model_on_another_device_is_no_twin(pico: Checkpoint, dual: BoundFactors) -> None:
    """Artifacts run on the CPU, a reference where there is a GPU; torch compares no tensors of two devices."""
    one, other = build_model(pico, dual), build_model(pico, dual)
    assert same_model(one, other, {"long": "long"})
    assert not same_model(one, other.to("meta"), {"long": "long"})


def one_weight(tensors: dict[str, Any]) -> None:
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] += 1e-3


@pytest.mark.parametrize(
    "fault",
    [
        weights(one_weight),
        config(rms_norm_eps=1e-5),
        config(hidden_act="gelu"),
        rope(lambda data: data.update(attention_factor=1.0)),
        rope(lambda data: data.update(rope_theta=5e5)),
        rope(lambda data: data["long_factor"].__setitem__(3, data["long_factor"][3] * 1.001)),
        rope(lambda data: data["short_factor"].__setitem__(3, data["short_factor"][3] * 1.001)),
        both(
            config(original_max_position_embeddings=TARGET),
            rope(lambda data: data.update(original_max_position_embeddings=TARGET)),
        ),
    ],
    ids=["weight", "epsilon", "activation", "attention factor", "theta", "long", "short", "switch"],
)
def test_another_model_is_run(
    fault: Fault, pico: Checkpoint, dual: BoundFactors, tmp_path: Path, tokens: list[int]
) -> None:
    path = written(pico, dual, tmp_path / "hf", "dual")
    fault(path)
    found = measured(path, pico, dual)
    assert "hf.same_model" not in {check.id for check in found.checks}
    assert tokens.count(TARGET) == 4
    assert any(check.id.startswith("hf.parity.") for check in found.failures)


@pytest.mark.parametrize(
    ("moved", "failing"),
    [
        (range(WINDOW), f"short.{WINDOW}"),
        (range(WINDOW - 1, WINDOW), f"short.{WINDOW}"),
        (range(WINDOW, TARGET), f"long.{TARGET}"),
    ],
    ids=["short", "switch", "long"],
)
def test_a_model_that_computes_otherwise_is_run(
    moved: range, failing: str, pico: Checkpoint, dual: BoundFactors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal to the last bit, but for what its code does in passes whose last position lies in a range."""
    monkeypatch.setattr("converters.twins.PROBE_TOKENS", 16)
    path, open_source = written(pico, dual, tmp_path / "hf", "dual"), HuggingFaceConverter.open_source

    def otherwise(self: HuggingFaceConverter, *given: Any, **named: Any) -> Any:
        source = open_source(self, *given, **named)
        rotary = source.model.model.rotary_emb
        forward = rotary.forward

        def changed(x: torch.Tensor, position_ids: torch.Tensor) -> Any:
            cos, sin = forward(x, position_ids)
            return (cos * (1 + 1e-6), sin) if int(position_ids.max()) in moved else (cos, sin)

        rotary.forward = changed
        return source

    monkeypatch.setattr(HuggingFaceConverter, "open_source", otherwise)
    found = measured(path, pico, dual)
    assert "hf.same_model" not in {check.id for check in found.checks}
    assert f"hf.parity.{failing}" in {check.id for check in found.failures}


def test_a_twin_has_both_sets_wherever_its_windows_lie(
    pico: Checkpoint, dual: BoundFactors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first window of a budget may lie inside the original window, and be all that is measured."""
    monkeypatch.setattr("converters.parity.FIRST_TOKENS", WINDOW // 2)
    path = written(pico, dual, tmp_path / "hf", "dual")
    rope(lambda data: data["short_factor"].__setitem__(3, data["short_factor"][3] * 1.001))(path)
    found = measured(path, pico, dual, windows=(TARGET,), budget=1e-6)
    assert "hf.same_model" not in {check.id for check in found.checks}
    assert f"hf.parity.short.{WINDOW // 2}" in {check.id for check in found.failures}


def test_a_reference_in_another_precision_has_no_twin(pico: Checkpoint, dual: BoundFactors, tmp_path: Path) -> None:
    """Weights that are bfloat16's anyway are equal numbers, and the products of them are not."""
    rounded = written(pico, dual, tmp_path / "rounded", "dual", "bf16")
    one, other = (build_model(open_checkpoint(rounded), dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert all(torch.equal(mine, its) for mine, its in zip(one.parameters(), other.parameters(), strict=True))
    assert same_model(one, one, {"long": "long"})
    assert not same_model(one, other, {"long": "long"})
