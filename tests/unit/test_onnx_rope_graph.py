"""The rotary part of the graph, run by itself in onnxruntime, against the engine's float64 tables."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from converters.onnx.graph import GraphBuilder
from converters.onnx.names import TOTAL_LENGTH
from converters.onnx.rope_graph import rotary_tables
from longrope import rope
from longrope.factors import BoundFactors
from tests.common import TARGET, WINDOW, pico_factors

THETA, DIM = 10_000.0, 16


def rope_session(factors: BoundFactors) -> ort.InferenceSession:
    graph = GraphBuilder()
    positions = graph.input("position_ids", ir.DataType.INT64, ["b", "t"])
    for name, value in zip(("cos", "sin"), rotary_tables(graph, positions, factors), strict=True):
        graph.output(value, name, ir.DataType.FLOAT, ["b", "t", DIM // 2])
    proto = ir.to_proto(graph.model("rope"))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(proto.SerializeToString(), options)


def bound(**changes: object) -> BoundFactors:
    return pico_factors(DIM, **changes).bound_to(  # type: ignore[arg-type]
        original=WINDOW, rope_theta=THETA, rotary_dim=DIM, model_type="llama"
    )


def exact(factors: BoundFactors, name: str, positions: np.ndarray) -> np.ndarray:
    return np.stack(
        rope.cos_sin(
            positions,
            rope.inv_freq(THETA, DIM, factors.set(name)),  # type: ignore[arg-type]
            attention_factor=factors.effective_attention_factor,
            n_hat=factors.n_hat,
            unscaled_frequencies=rope.inv_freq(THETA, DIM),
        )
    )


@pytest.mark.parametrize("n_hat", [0, 16])
@pytest.mark.parametrize("dual", [True, False])
def test_tables_are_those_of_the_engine_at_every_position(dual: bool, n_hat: int) -> None:
    factors = bound(dual=dual, n_hat=n_hat)
    session = rope_session(factors)
    for length, name in ((WINDOW, "short"), (WINDOW + 1, "long"), (TARGET, "long")):
        positions = np.arange(length)
        found = np.stack(session.run(None, {"position_ids": positions[None]}))[:, 0]
        assert np.abs(found - exact(factors, name, positions)).max() < 5e-7


def test_angles_stay_exact_at_two_million_tokens() -> None:
    factors = bound(dual=False, target=2_097_152)
    positions = np.arange(2_097_152 - 512, 2_097_152)
    found = np.stack(rope_session(factors).run(None, {"position_ids": positions[None]}))[:, 0]
    error = np.abs(found - exact(factors, "long", positions)).max() / factors.effective_attention_factor
    assert error < 1e-6


def test_total_length_decides_for_a_first_chunk() -> None:
    factors = bound()
    session = rope_session(factors)
    positions = np.arange(8)
    for total, name in ((0, "short"), (WINDOW, "short"), (WINDOW + 1, "long")):
        feeds = {"position_ids": positions[None], TOTAL_LENGTH: np.array([total])}
        found = np.stack(session.run(None, feeds))[:, 0]
        assert np.abs(found - exact(factors, name, positions)).max() < 5e-7


def test_each_row_of_a_batch_chooses_its_own_set() -> None:
    factors = bound()
    short, long = np.arange(8), np.arange(WINDOW, WINDOW + 8)
    found = np.stack(rope_session(factors).run(None, {"position_ids": np.stack((short, long))}))
    assert np.abs(found[:, 0] - exact(factors, "short", short)).max() < 5e-7
    assert np.abs(found[:, 1] - exact(factors, "long", long)).max() < 5e-7


def test_a_single_set_has_no_switch_and_no_input_for_one() -> None:
    session = rope_session(bound(dual=False))
    assert not session.get_overridable_initializers()
