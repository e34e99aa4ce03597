"""Random valid factors through every format and back, bit for bit, by the readers that `factors import` uses.

factors ─► factors.json ─► HF ─► GGUF ─────────────► ONNX ─────► HF ─────► GGUF
                           all in float64   sets, attention and θ in float32    the same float32 numbers again

Start tokens, which only factors.json and ONNX can hold, take the way over these two. CSV holds one set, in float64.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from converters import registry
from converters.conversion import convert
from converters.factor_files import export_factors, read_factors
from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.factors import LARGEST, SMALLEST, BoundFactors, RescaleFactors
from tests.common import pico_folder

# Rotary dimensions → what makes a model of one layer with them; of phi3 a part of each head is rotated.
MODELS: Mapping[int, tuple[str, dict[str, Any]]] = {
    2: ("llama", {"head_dim": 2}),
    6: ("phi3", {"hidden_size": 16, "num_attention_heads": 2, "partial_rotary_factor": 0.75, "pad_token_id": 0}),
    16: ("llama", {"head_dim": 16}),
    32: ("phi3", {"hidden_size": 128, "num_attention_heads": 2, "partial_rotary_factor": 0.5, "pad_token_id": 0}),
    80: ("qwen3", {"head_dim": 80}),
    256: ("llama", {"head_dim": 256}),
}
TINY = {
    **{"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32, "vocab_size": 384},
    **{"num_attention_heads": 2, "num_key_value_heads": 2},
}


@dataclass(frozen=True)
class Case:
    """Factors for one of the models, with a window and a θ of their own."""

    rotary_dim: int
    window: int
    rope_theta: float
    factors: RescaleFactors


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dim = draw(st.sampled_from(sorted(MODELS)))
    window = draw(st.integers(2, 2**20))
    target = draw(st.integers(window, 2**31 - 1))
    number = st.one_of(st.floats(0.5, 1024.0), st.floats(SMALLEST, LARGEST), st.sampled_from((1.0, SMALLEST, LARGEST)))
    sets = st.lists(number, min_size=dim // 2, max_size=dim // 2)
    long = draw(sets)
    # Another set, the same, or one that float32 cannot tell from it.
    short = draw(st.one_of(sets, st.just(long), st.just([np.nextafter(each, 1.0) for each in long])))
    factors = RescaleFactors(
        tuple(map(float, short)),
        tuple(long),
        n_hat=draw(st.one_of(st.just(0), st.integers(0, min(256, target)))),
        original_max_position_embeddings=window,
        target_length=target,
        attention_factor=draw(st.one_of(st.none(), st.floats(0.01, 100.0), number)),
    )
    theta = st.one_of(st.sampled_from((1e4, 5e5, 1e6)), st.floats(2.0, 1e9))
    return Case(dim, window, draw(theta), factors)


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case, Path], Checkpoint]:
    """A model for a case, of weights that are made once for a head size."""
    made: dict[int, Path] = {}

    def model(case: Case, room: Path) -> Checkpoint:
        if case.rotary_dim not in made:
            kind, changes = MODELS[case.rotary_dim]
            made[case.rotary_dim] = pico_folder(tmp_path_factory.mktemp("model") / "model", kind, **{**TINY, **changes})
        folder = shutil.copytree(made[case.rotary_dim], room / "model")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config |= {"max_position_embeddings": case.window, "rope_theta": case.rope_theta}
        config["rope_parameters"] |= {"rope_theta": case.rope_theta}
        config.pop("original_max_position_embeddings", None)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return open_checkpoint(folder)

    return model


def said(factors: RescaleFactors, model: Checkpoint) -> dict[str, Any]:
    """What factors mean for a model; how they came to be is left out."""
    bound = model.bind(factors)
    kept = ("short_factor", "long_factor", "n_hat", "original_max_position_embeddings", "target_length")
    numbers = {name: getattr(bound, name) for name in (*kept, "rope_theta", "rotary_dim")}
    return {**numbers, "attention_factor": bound.effective_attention_factor}


def as_float32(factors: BoundFactors) -> BoundFactors:
    """The numbers that a GGUF file holds."""
    short, long = (tuple(np.float32(each).tolist()) for each in (factors.short_factor, factors.long_factor))
    attention = float(np.float32(factors.effective_attention_factor))
    return replace(factors, short_factor=short, long_factor=long, attention_factor=attention)


def through(model: Checkpoint, factors: RescaleFactors, kind: str, room: Path) -> tuple[RescaleFactors, Path]:
    """Factors of an artifact that was made with them, and the artifact."""
    path = room / (f"{len(list(room.iterdir()))}" + registry.converter(kind).suffix)
    convert(model, path, to=kind, factors=factors, factor_sets=factors.factor_sets, outtype="f32")
    return read_factors(path), path


def round_trip(case: Case, model: Checkpoint, room: Path) -> None:
    bound = model.bind(case.factors)
    bound.save(room / "factors.json")
    assert said(read_factors(room / "factors.json"), model) == said(bound, model)
    for name in ("short", "long"):
        export_factors(bound, room / f"{name}.csv", "csv", factor_set=name)
        assert read_factors(room / f"{name}.csv").long_factor == bound.set(name)
    if bound.n_hat:
        assert said(through(model, bound, "onnx", room)[0], model) == said(bound, model)
        return
    export_factors(bound, room / "config.json", "config")
    assert said(read_factors(room / "config.json"), model) == said(bound, model)
    of_hf, folder = through(model, bound, "hf", room)
    assert said(of_hf, model) == said(bound, model)
    assert open_checkpoint(folder).factors is not None
    of_gguf, file = through(open_checkpoint(folder), of_hf, "gguf", room)
    rounded = said(as_float32(bound), model)
    assert said(of_gguf, model) == rounded
    recorded = registry.converter("gguf").recorded_factors(file)
    assert recorded is not None
    assert said(recorded, model) == said(bound, model)
    of_onnx, _ = through(model, of_gguf, "onnx", room)
    assert said(of_onnx, model) == rounded
    of_hf, folder = through(model, of_onnx, "hf", room)
    assert said(of_hf, model) == rounded
    assert said(through(open_checkpoint(folder), of_hf, "gguf", room)[0], model) == rounded
    export_factors(bound, room / "factors.gguf", "gguf")
    assert said(read_factors(room / "factors.gguf"), model) == rounded


def checked(case: Case, model_of: Callable[[Case, Path], Checkpoint]) -> None:
    with tempfile.TemporaryDirectory() as name:
        round_trip(case, model_of(case, Path(name)), Path(name))


# Without shrinking, which takes minutes: an example is small as it is.
COMMON: Any = {
    "deadline": None,
    "database": None,
    "phases": (Phase.generate,),
    "suppress_health_check": list(HealthCheck),
    "report_multiple_bugs": False,
}


@settings(max_examples=30, derandomize=True, **COMMON)
@given(case=cases())
def test_every_round_trip_keeps_every_bit(case: Case, model_of: Callable[[Case, Path], Checkpoint]) -> None:
    checked(case, model_of)


@pytest.mark.slow
@settings(max_examples=1000, **COMMON)
@given(case=cases())
def test_many_more_round_trips(case: Case, model_of: Callable[[Case, Path], Checkpoint]) -> None:
    checked(case, model_of)
