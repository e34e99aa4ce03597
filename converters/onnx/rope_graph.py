"""The rotary part of the graph: cos and sin of every position, from the factors, in float64 with range reduction.

    position_ids [B,T] ──max+1──┐
    rope_total_length [1] ─(>0)─┴─► length [B,1] ─(> L)─► use_long            dual; single: a constant
                                                             │
    rope.short_factor [d/2] ─┐                               ▼
    rope.long_factor  [d/2] ─┴────────────────────────────► Where ─► factor ─┐
    rope.inv_freq     [d/2] ──────────────────────────────────────────────► Div ─► frequency [B,1,d/2]
                                                                              │
    position_ids ─► float64 [B,T,1] ────────────────────────────────────────► Mul ─► angle
                                       n < n_hat: n × rope.inv_freq ────────► Where
    angle − 2π · round(angle / 2π) ─► float32 ─► Cos, Sin ─► × rope.attention_factor ─► cos, sin [B,T,d/2]

In float64 an angle of two million radians is exact to 1e-9, so the only rounding is that of the reduced angle to
float32: 1.2e-7 rad at any position. The set is chosen for each row of a batch by itself, so a short text gives the same
logits alone and beside a long one.

Models that rotate their sliding layers by a table of their own (Gemma 3, OLMo 3) get a second one, rope.local, without
factors.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import onnx_ir as ir

from converters.onnx.graph import GraphBuilder
from converters.onnx.names import TOTAL_LENGTH
from longrope import rope
from longrope.base_rope import BaseRope
from longrope.factors import BoundFactors

INV_FREQ = "rope.inv_freq"
SHORT, LONG = "rope.short_factor", "rope.long_factor"
ATTENTION_FACTOR = "rope.attention_factor"
ORIGINAL = "rope.original_max_position_embeddings"
N_HAT = "rope.n_hat"
USE_LONG = "rope.use_long"
LOCAL_INV_FREQ = "rope.local.inv_freq"
LOCAL_ATTENTION_FACTOR = "rope.local.attention_factor"
Tensors = Mapping[str, ir.TensorProtocol]


def factor_tensors(factors: BoundFactors) -> dict[str, ir.TensorProtocol]:
    """The initializers that hold the factors, by name: all of the graph's numbers that depend on them."""
    inv_freq = rope.inv_freq(factors.rope_theta, factors.rotary_dim)
    arrays = {
        INV_FREQ: (inv_freq, "radians per position before rescaling"),
        SHORT: (np.array(factors.short_factor), "rescale factors up to the original window"),
        LONG: (np.array(factors.long_factor), "rescale factors beyond the original window"),
        ATTENTION_FACTOR: (np.array(factors.effective_attention_factor), "multiplies cos and sin"),
    }
    if factors.factor_sets == "dual":
        arrays[ORIGINAL] = (np.array(factors.original), "tokens of the window before extension")
    if factors.n_hat:
        arrays[N_HAT] = (np.array(float(factors.n_hat)), "start tokens that are not rescaled")
    return {name: ir.tensor(array, name=name, doc_string=doc) for name, (array, doc) in arrays.items()}


def structure(factors: BoundFactors) -> Hashable:
    """Equal for factors whose graphs have the same nodes and differ in the tensors of `factor_tensors` alone."""
    return factors.factor_sets, factors.original, factors.n_hat > 0


def rotary_tables(graph: GraphBuilder, position_ids: ir.Value, factors: BoundFactors) -> tuple[ir.Value, ir.Value]:
    """Add the rotary part.

    Args:
        graph: to add to; a `dual` set adds the optional input `rope_total_length`.
        position_ids: [B, T] int64.
        factors: theta, both sets, n_hat and attention factor go into the graph.

    Returns:
        cos and sin, [B, T, d/2] in the graph's type.
    """
    tensors = factor_tensors(factors)
    inv_freq = graph.tensor(tensors[INV_FREQ])
    with graph.scope("rope"):
        position = graph.op("Cast", position_ids, name="position_float64", to=ir.DataType.DOUBLE)
        position = graph.op("Unsqueeze", position, graph.ints(-1), name="position")
        angle = graph.op("Mul", position, _frequency(graph, tensors, position_ids, factors), name="scaled_angle")
        if factors.n_hat:
            angle = _keep_start_tokens(graph, position, angle, inv_freq, graph.tensor(tensors[N_HAT]))
        reduced = _reduce(graph, angle)
        attention_factor = graph.tensor(tensors[ATTENTION_FACTOR])
        scale = graph.op("Cast", attention_factor, name="attention_factor_float32", to=ir.DataType.FLOAT)
        return _scaled(graph, "Cos", reduced, scale), _scaled(graph, "Sin", reduced, scale)


def local_tables(graph: GraphBuilder, position_ids: ir.Value, base: BaseRope) -> tuple[ir.Value, ir.Value]:
    """cos and sin of layers that keep the model's own local embedding, [B, T, d/2] in the graph's type."""
    frequencies = rope.inv_freq(base.rope_theta, base.rotary_dim, np.array(base.long_factor))
    inv_freq = graph.constant(LOCAL_INV_FREQ, frequencies, "radians per position in layers that are not extended")
    factor = graph.constant(LOCAL_ATTENTION_FACTOR, np.float32(base.attention_factor))
    with graph.scope("rope.local"):
        position = graph.op("Cast", position_ids, name="position_float64", to=ir.DataType.DOUBLE)
        position = graph.op("Unsqueeze", position, graph.ints(-1), name="position")
        reduced = _reduce(graph, graph.op("Mul", position, inv_freq, name="angle"))
        return _scaled(graph, "Cos", reduced, factor), _scaled(graph, "Sin", reduced, factor)


def _frequency(graph: GraphBuilder, tensors: Tensors, position_ids: ir.Value, factors: BoundFactors) -> ir.Value:
    """Radians per position, [B or 1, 1, d/2]."""
    short, long = graph.tensor(tensors[SHORT]), graph.tensor(tensors[LONG])
    factor = graph.op(
        "Where",
        _use_long(graph, tensors, position_ids, factors),
        long,
        short,
        name="factor",
        doc=f"{factors.factor_sets} factor sets, original window {factors.original} tokens",
    )
    frequency = graph.op("Div", graph.tensor(tensors[INV_FREQ]), factor, name="row_frequency")
    return graph.op("Unsqueeze", frequency, graph.ints(1), name="frequency")


def _use_long(graph: GraphBuilder, tensors: Tensors, position_ids: ir.Value, factors: BoundFactors) -> ir.Value:
    """Whether a row's sequence is longer than the original window, [B or 1, 1] bool; constant for a single set."""
    if factors.factor_sets == "single":
        return graph.constant(USE_LONG, np.array([[True]]), "one set at every length")
    original = graph.tensor(tensors[ORIGINAL])
    total = graph.input(TOTAL_LENGTH, ir.DataType.INT64, [1], default=np.zeros(1, dtype=np.int64))
    last = graph.op("ReduceMax", position_ids, graph.ints(-1), name="last_position", keepdims=1)
    seen = graph.op("Add", last, graph.ints(1), name="length_seen")
    given = graph.op("Greater", total, graph.ints(0), name="total_length_given")
    length = graph.op("Where", given, total, seen, name="length")
    return graph.op("Greater", length, original, name="use_long")


def _keep_start_tokens(
    graph: GraphBuilder, position: ir.Value, angle: ir.Value, inv_freq: ir.Value, n_hat: ir.Value
) -> ir.Value:
    """The first n_hat positions are rotated at the original speed."""
    starts = graph.op("Less", position, n_hat, name="is_start_token")
    unscaled = graph.op("Mul", position, inv_freq, name="unscaled_angle")
    return graph.op("Where", starts, unscaled, angle, name="angle")


def _reduce(graph: GraphBuilder, angle: ir.Value) -> ir.Value:
    """The angle in [-π, π], float32."""
    turn = graph.constant("rope.two_pi", np.float64(2 * np.pi))
    turns = graph.op("Round", graph.op("Div", angle, turn, name="turns"), name="whole_turns")
    rest = graph.op("Sub", angle, graph.op("Mul", turns, turn, name="whole_angle"), name="reduced_angle_float64")
    return graph.op("Cast", rest, name="reduced_angle", to=ir.DataType.FLOAT)


def _scaled(graph: GraphBuilder, function: str, angle: ir.Value, scale: ir.Value) -> ir.Value:
    """cos or sin times the attention factor, in the graph's type."""
    name = function.lower()
    value = graph.op(function, angle, name=f"{name}_unscaled")
    if graph.dtype == ir.DataType.FLOAT:
        return graph.op("Mul", value, scale, name=name)
    value = graph.op("Mul", value, scale, name=f"{name}_float32")
    return graph.op("Cast", value, name=name, to=graph.dtype)
