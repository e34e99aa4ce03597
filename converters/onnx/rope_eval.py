"""Run the rotary part of a graph by itself: numpy only, no weights, whatever its nodes are called.

The part is found from its end: everything that the cos and sin inputs of the rotary operators depend on. Running it at
chosen positions shows what an artifact computes, which no comparison of names and initializers can. It runs in this
process, so it is bounded: few nodes, of operators that neither loop nor take a size from a number, and small results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from converters.onnx.names import TOTAL_LENGTH
from converters.onnx.readback import OnnxFile
from converters.onnx.rope_graph import LOCAL_INV_FREQ
from longrope.errors import InputError

ROTARY = "RotaryEmbedding"
POSITIONS = "position_ids"
# Operators whose result is as large as their inputs are together by numpy's rules of broadcasting, or smaller.
BROADCASTING = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Mod", "Neg", "Cos", "Sin", "Round", "Floor", "Ceil", "Max", "Min", "Where"),
        *("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal", "And", "Or", "Not"),
    }
)
KEEPING = frozenset({"Cast", "Identity", "ReduceMax", "ReduceMin", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
# The exporter's graph has 24 nodes, and 300 positions of heads of 512 are 77,000 numbers.
MAX_NODES, MAX_NUMBERS = 128, 1 << 22


class RopePart:
    """The nodes between position_ids and the rotary operators.

    Raises:
        InputError: there are no rotary operators, they read different tables, or the tables depend on other inputs, or
            follow from them by operators that no rotary part needs.
    """

    def __init__(self, file: OnnxFile) -> None:
        tables = {tuple(node.input[1:3]) for node in file.nodes if node.op_type == ROTARY and not node.domain}
        if len(tables) > 1:  # layers with a table of their own, which factors do not touch
            tables = {pair for pair in tables if LOCAL_INV_FREQ not in _ancestors(file, pair)[1]}
        if len(tables) != 1:
            what = "no rotary operators" if not tables else f"rotary operators with {len(tables)} different tables"
            raise InputError(
                f"{file.path}: expected every extended layer to rotate by one pair of cos and sin tables, found {what}"
            )
        self.outputs = [_before_rounding(file, name) for name in next(iter(tables))]
        nodes, roots = _ancestors(file, self.outputs)
        unknown = sorted(roots - {POSITIONS, TOTAL_LENGTH} - set(file.initializers))
        if unknown or POSITIONS not in roots:
            raise InputError(
                f"{file.path}: cos and sin must follow from {POSITIONS}, found {', '.join(unknown) or 'constants'}"
            )
        self.has_total_length = TOTAL_LENGTH in roots
        _refuse_foreign(file, nodes)
        self._constants = {name: _constant(file, name) for name in roots & set(file.initializers)}
        self._steps = [(node, ReferenceEvaluator(_model(file, node))) for node in nodes]

    def run(self, positions: Sequence[int], total_length: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """cos and sin [T, d/2] of one row whose largest position decides the set, unless `total_length` does."""
        feeds = {POSITIONS: np.array([positions], dtype=np.int64)}
        if self.has_total_length:
            feeds[TOTAL_LENGTH] = np.array([total_length], dtype=np.int64)
        values = {**self._constants, **feeds}
        for node, evaluator in self._steps:
            _refuse_large(node, values)
            inputs = {name: values[name] for name in node.input if name}
            values |= dict(zip(node.output, evaluator.run(None, inputs), strict=True))
        cos, sin = (values[name] for name in self.outputs)
        return cos[0].astype(np.float64), sin[0].astype(np.float64)


def _refuse_foreign(file: OnnxFile, nodes: Sequence[onnx.NodeProto]) -> None:
    """Raise InputError for operators whose cost is not that of their inputs, and for more nodes than cos and sin take."""
    foreign = sorted({f"{node.domain}.{node.op_type}".strip(".") for node in nodes} - BROADCASTING - KEEPING)
    if foreign:
        raise InputError(f"{file.path}: {foreign[0]} is no operator of a rotary part; it was not run")
    if len(nodes) > MAX_NODES:
        raise InputError(f"{file.path}: expected at most {MAX_NODES} nodes for cos and sin, found {len(nodes)}")


def _refuse_large(node: onnx.NodeProto, values: Mapping[str, NDArray[np.generic]]) -> None:
    """Raise InputError for a node whose result would have more than `MAX_NUMBERS` numbers."""
    shapes = [values[name].shape for name in node.input if name]
    size = math.prod(np.broadcast_shapes(*shapes)) if node.op_type in BROADCASTING else math.prod(shapes[0])
    if size > MAX_NUMBERS:
        raise InputError(f"{node.op_type} in the rotary part would give {size} numbers; it was not run")


def _constant(file: OnnxFile, name: str) -> NDArray[np.generic]:
    array = file.array(name)
    if array is None:
        raise InputError(f"{file.path}: {name} of the rotary part does not lie in the model file")
    return array


def _before_rounding(file: OnnxFile, name: str) -> str:
    """A table as it is before it is rounded to a half-precision graph's type."""
    producer = file.producers.get(name)
    return str(producer.input[0]) if producer is not None and producer.op_type == "Cast" else name


def _ancestors(file: OnnxFile, values: Sequence[str]) -> tuple[list[onnx.NodeProto], set[str]]:
    """Nodes that `values` depend on, in graph order, and the values that no node computes."""
    needed, roots, pending = set(), set(), list(values)
    seen: set[str] = set()
    while pending:
        value = pending.pop()
        if value in seen or not value:
            continue
        seen.add(value)
        producer = file.producers.get(value)
        if producer is None:
            roots.add(value)
        else:
            needed.update(producer.output)
            pending.extend(producer.input)
    return [node for node in file.nodes if node.output[0] in needed], roots


def _model(file: OnnxFile, node: onnx.NodeProto) -> onnx.ModelProto:
    """A model of one node, whose inputs may be anything."""

    def values(names: Sequence[str]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in names if name]

    graph = helper.make_graph([node], "step", values(list(dict.fromkeys(node.input))), values(node.output))
    return helper.make_model(graph, opset_imports=list(file.proto.opset_import), ir_version=file.proto.ir_version)
