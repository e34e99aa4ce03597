"""How matrices are stored and multiplied: as floats, or as integers in blocks.

FloatMatrices   x ─► MatMul (W [in,out]) ─► y                   ids ─► Gather (E) ─► x
BlockMatrices   x ─► MatMulNBits (integers, scales, zero points) ─► y
                ids ─► GatherBlockQuantized (8-bit E) ─► x       a tied head multiplies by the same 8-bit E
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import numpy as np
import onnx_ir as ir

from converters.onnx.graph import CONTRIB, GraphBuilder
from converters.onnx.options import OnnxOptions
from converters.onnx.quantize import BLOCK, Array, Quantized, num_blocks, packed_width, quantize
from converters.onnx.weights import Weights

TRANSPOSED = "transposed from the checkpoint's [out, in]"
UINT8, FLOAT = ir.DataType.UINT8, ir.DataType.FLOAT


class Matrices(Protocol):
    """Products with the checkpoint's matrices, which are [out, in] there."""

    def product(self, name: str, value: ir.Value, weight: str) -> ir.Value:
        """value [..., in] × Wᵀ → [..., out]; the node is called `name`."""
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

    def product(self, name: str, value: ir.Value, weight: str) -> ir.Value:
        rows, columns = self.weights.entry(weight).shape
        matrix = self.graph.weight(
            weight, self.graph.dtype, (columns, rows), self._read(weight, np.transpose), TRANSPOSED
        )
        return self.graph.op("MatMul", value, matrix, name=name)

    def rows(self, name: str, ids: ir.Value, weight: str) -> ir.Value:
        return self.graph.op("Gather", self._table(weight), ids, name=name)

    def tied_product(self, name: str, value: ir.Value, weight: str) -> ir.Value:
        g = self.graph
        num_rows, columns = self.weights.entry(weight).shape
        with g.scope(name):
            rows = g.op("Reshape", value, g.ints(-1, columns), name="rows")
            product = g.op("Gemm", rows, self._table(weight), name="gemm", transB=1)
            batch_and_length = g.op("Shape", value, name="batch_and_length", start=0, end=2)
            shape = g.op("Concat", batch_and_length, g.ints(num_rows), name="shape", axis=0)
            return g.op("Reshape", product, shape, name="product")

    def _table(self, weight: str) -> ir.Value:
        return self.graph.weight(
            weight, self.graph.dtype, self.weights.entry(weight).shape, self._read(weight, lambda array: array)
        )

    def _read(self, weight: str, change: Callable[[Array], Array]) -> Callable[[], Array]:
        return self.weights.reader(weight, change, self.graph.dtype.numpy())


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

    def product(self, name: str, value: ir.Value, weight: str) -> ir.Value:
        return self._product(name, value, weight, self.bits)

    def rows(self, name: str, ids: ir.Value, weight: str) -> ir.Value:
        if not self._fits(weight):
            return self._floats.rows(name, ids, weight)
        values, scales, zero_points = self._parts(weight, 8)
        num_rows, columns = self.weights.entry(weight).shape
        flat = self.graph.op("Reshape", values, self.graph.ints(num_rows, columns), name=f"{name}.table")
        return self.graph.ops(
            "GatherBlockQuantized",
            flat,
            ids,
            scales,
            zero_points,
            outputs=[name],
            name=name,
            domain=CONTRIB,
            bits=8,
            block_size=BLOCK,
            gather_axis=0,
            quantize_axis=1,
        )[0]

    def tied_product(self, name: str, value: ir.Value, weight: str) -> ir.Value:
        if not self._fits(weight):
            return self._floats.tied_product(name, value, weight)
        return self._product(name, value, weight, 8)

    def _product(self, name: str, value: ir.Value, weight: str, bits: int) -> ir.Value:
        rows, columns = self.weights.entry(weight).shape
        return self.graph.ops(
            "MatMulNBits",
            value,
            *self._parts(weight, bits),
            outputs=[name],
            name=name,
            domain=CONTRIB,
            K=columns,
            N=rows,
            bits=bits,
            block_size=BLOCK,
            accuracy_level=4 if self.options.compute == "int8" else 1,
        )[0]

    def _fits(self, weight: str) -> bool:
        """Rows can be gathered only from whole blocks."""
        return self.weights.entry(weight).shape[1] % BLOCK == 0

    def _parts(self, weight: str, bits: int) -> list[ir.Value]:
        """The three initializers of a matrix."""
        rows, columns = self.weights.entry(weight).shape
        blocks = num_blocks(columns)
        shapes = {
            "values": (UINT8, (rows, blocks, packed_width(BLOCK, bits))),
            "scales": (FLOAT, (rows, blocks)),
            "zero_points": (UINT8, (rows, packed_width(blocks, bits))),
        }
        return [
            self.graph.weight(f"{weight}.{part}", dtype, shape, self._part(weight, bits, part), f"int{bits} in blocks")
            for part, (dtype, shape) in shapes.items()
        ]

    def _part(self, weight: str, bits: int, part: str) -> Callable[[], Array]:
        def read() -> Array:
            found: Array = getattr(self._quantized(weight, bits), part)
            return found

        return read

    def _quantize(self, weight: str, bits: int) -> Quantized:
        matrix = self.weights.reader(weight, lambda array: array, np.float32)()
        return quantize(matrix, bits, self.options.quantizer)
