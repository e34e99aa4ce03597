"""How matrices are stored and multiplied: as floats, or as integers in blocks.

FloatMatrices   x ─► MatMul (W [in,out]) ─► y                   ids ─► Gather (E) ─► x
BlockMatrices   x ─► MatMulNBits (integers, scales, zero points) ─► y
                ids ─► GatherBlockQuantized (8-bit E) ─► x       a tied head multiplies by the same 8-bit E
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import onnx_ir as ir

from converters.onnx.graph import CONTRIB, GraphBuilder
from converters.onnx.options import OnnxOptions
from converters.onnx.quantize import BLOCK, Array, Quantized, num_blocks, packed_width, quantize
from converters.onnx.weights import Reader, Stack, Transposed, Weights

TRANSPOSED = "transposed from the checkpoint's [out, in]"
FOLDED = "done once, when a session is made"
UINT8, FLOAT = ir.DataType.UINT8, ir.DataType.FLOAT
ACCURACY_LEVELS = {"float32": 1, "int8": 4}  # MatMulNBits' names for the type of its products


class Matrices(Protocol):
    """Products with the checkpoint's matrices, which are [out, in] there."""

    def product(self, name: str, value: ir.Value, stack: Stack, weight: str) -> ir.Value:
        """value [..., in] × Wᵀ → [..., out]; the node is called `name`, the initializer `weight`."""
        ...

    def rows(self, name: str, ids: ir.Value, weight: str) -> ir.Value:
        """Rows `ids` of an embedding matrix."""
        ...

    def tied_product(self, name: str, value: ir.Value, weight: str) -> ir.Value:
        """value × Eᵀ with the embedding matrix that `rows` reads, stored once."""
        ...


class FloatMatrices:
    """Matrices of the graph's type.

    Args:
        graph: to add to.
        weights: where the matrices are.
    """

    def __init__(self, graph: GraphBuilder, weights: Weights) -> None:
        self.graph, self.weights = graph, weights

    def product(self, name: str, value: ir.Value, stack: Stack, weight: str) -> ir.Value:
        read = self.weights.reader(stack.names, Transposed(), self.graph.dtype.numpy())
        matrix = self.graph.weight(weight, self.graph.dtype, (stack.columns, stack.rows), read, TRANSPOSED)
        return self.graph.op("MatMul", value, matrix, name=name)

    def rows(self, name: str, ids: ir.Value, weight: str) -> ir.Value:
        return self.graph.op("Gather", self._table(weight), ids, name=name)

    def tied_product(self, name: str, value: ir.Value, weight: str) -> ir.Value:
        matrix = self.graph.op("Transpose", self._table(weight), name=f"{name}.weight", perm=[1, 0], doc=FOLDED)
        return self.graph.op("MatMul", value, matrix, name=name)

    def _table(self, weight: str) -> ir.Value:
        stack = self.weights.stack([weight])
        read = self.weights.reader([weight], None, self.graph.dtype.numpy())
        return self.graph.weight(weight, self.graph.dtype, (stack.rows, stack.columns), read)


@dataclass(frozen=True)
class BlockPart:
    """The values of one of a quantized matrix's three initializers, made when they are asked for.

    Args:
        matrix: reads it.
        weight: the initializers' common name.
        bits: of its integers.
        columns: of the matrix.
        part: `values`, `scales` or `zero_points`.
        quantized: makes all three.
    """

    matrix: Reader
    weight: str
    bits: int
    columns: int
    part: str
    quantized: Callable[[Reader, int], Quantized]

    def __call__(self) -> Array:
        found: Array = getattr(self.quantized(self.matrix, self.bits), self.part)
        return found


class BlockMatrices:
    """Matrices of 4- or 8-bit integers in blocks of 32; embeddings always of 8.

    Args:
        graph: to add to.
        weights: where the matrices are.
        bits: of the layers' matrices.
        options: quantizer and compute type.
    """

    def __init__(self, graph: GraphBuilder, weights: Weights, bits: int, options: OnnxOptions) -> None:
        self.graph, self.weights, self.bits, self.options = graph, weights, bits, options
        self._floats = FloatMatrices(graph, weights)
        # Integers, scales and zero points are written one after the other: the last matrix is enough.
        self._quantized = lru_cache(maxsize=1)(self._quantize)

    def product(self, name: str, value: ir.Value, stack: Stack, weight: str) -> ir.Value:
        return self._product(name, value, stack, weight, self.bits)

    def rows(self, name: str, ids: ir.Value, weight: str) -> ir.Value:
        stack = self.weights.stack([weight])
        if stack.columns % BLOCK:
            return self._floats.rows(name, ids, weight)  # rows can be gathered only from whole blocks
        values, scales, zero_points = self._parts(stack, weight, 8)
        table = self.graph.op("Reshape", values, self.graph.ints(stack.rows, stack.columns), name=f"{name}.table")
        return self.graph.ops(
            "GatherBlockQuantized",
            *(table, ids, scales, zero_points),
            outputs=[name],
            name=name,
            domain=CONTRIB,
            bits=8,
            block_size=BLOCK,
            gather_axis=0,
            quantize_axis=1,
        )[0]

    def tied_product(self, name: str, value: ir.Value, weight: str) -> ir.Value:
        stack = self.weights.stack([weight])
        if stack.columns % BLOCK:
            return self._floats.tied_product(name, value, weight)
        return self._product(name, value, stack, weight, 8)

    def _product(self, name: str, value: ir.Value, stack: Stack, weight: str, bits: int) -> ir.Value:
        return self.graph.ops(
            "MatMulNBits",
            value,
            *self._parts(stack, weight, bits),
            outputs=[name],
            name=name,
            domain=CONTRIB,
            K=stack.columns,
            N=stack.rows,
            bits=bits,
            block_size=BLOCK,
            accuracy_level=ACCURACY_LEVELS[self.options.compute],
        )[0]

    def _parts(self, stack: Stack, weight: str, bits: int) -> list[ir.Value]:
        """The three initializers of a matrix."""
        blocks = num_blocks(stack.columns)
        shapes = {
            "values": (UINT8, (stack.rows, blocks, packed_width(BLOCK, bits))),
            "scales": (FLOAT, (stack.rows, blocks)),
            "zero_points": (UINT8, (stack.rows, packed_width(blocks, bits))),
        }
        matrix = self.weights.reader(stack.names, None, np.float32)
        return [
            self.graph.weight(
                f"{weight}.{part}",
                dtype,
                shape,
                BlockPart(matrix, weight, bits, stack.columns, part, self._quantized),
                f"int{bits} in blocks",
            )
            for part, (dtype, shape) in shapes.items()
        ]

    def _quantize(self, matrix: Reader, bits: int) -> Quantized:
        return quantize(matrix(), bits, self.options.quantizer)
