"""Run the rotary part of a graph by itself: numpy only, no weights, whatever its nodes are called.

The part is found from its end: everything that the cos and sin inputs of the rotary operators depend on. Running it at
chosen positions shows what an artifact computes, which no comparison of names and initializers can.
"""

from __future__ import annotations

from collections.abc import Sequence

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


class RopePart:
    """The nodes between position_ids and the rotary operators.

    Raises:
        InputError: there are no rotary operators, they read different tables, or the tables depend on other inputs.
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
        self._evaluator = ReferenceEvaluator(_model(file, nodes, roots, self.outputs))

    def run(self, positions: Sequence[int], total_length: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """cos and sin [T, d/2] of one row whose largest position decides the set, unless `total_length` does."""
        feeds = {POSITIONS: np.array([positions], dtype=np.int64)}
        if self.has_total_length:
            feeds[TOTAL_LENGTH] = np.array([total_length], dtype=np.int64)
        cos, sin = self._evaluator.run(None, feeds)
        return cos[0].astype(np.float64), sin[0].astype(np.float64)


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


def _model(file: OnnxFile, nodes: list[onnx.NodeProto], roots: set[str], outputs: list[str]) -> onnx.ModelProto:
    inputs = [item for item in file.proto.graph.input if item.name in roots]
    constants = [file.initializers[name] for name in sorted(roots) if name in file.initializers]
    results = [helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in outputs]
    graph = helper.make_graph(nodes, "rope", inputs, results, constants)
    return helper.make_model(graph, opset_imports=list(file.proto.opset_import), ir_version=file.proto.ir_version)
