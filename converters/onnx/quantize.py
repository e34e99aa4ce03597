"""Weight-only integers in blocks of 32: value ≈ (integer − zero point) × scale.

    row of a matrix:  [ 32 values ][ 32 values ] …     each block: 32 integers, one scale, one zero point

The layout is that of onnxruntime's MatMulNBits operator: 4-bit integers two to a byte, the first in the low half.
`dequantize` gives the matrix such a file really holds, which is what a quantized model is compared with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BLOCK = 32
# Rows are quantized in slabs of so many values, so that a large matrix is never held in several copies.
SLAB_VALUES = 1 << 22
# How far "search" shrinks a block's range, to spend the steps where most values lie.
SHRINKS = (0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79, 0.76, 0.73, 0.7)
Rounding = tuple[Array, Array, Array]


@dataclass(frozen=True)
class Quantized:
    """A matrix [N, K] in blocks of a row.

    Args:
        values: [N, K/32, 32 × bits/8] uint8.
        scales: [N, K/32] float32.
        zero_points: [N, ceil(K/32 × bits/8)] uint8, packed as the values are.
        bits: 4 or 8.
        columns: K.
    """

    values: Array
    scales: Array
    zero_points: Array
    bits: int
    columns: int


def quantize(matrix: Array, bits: int, quantizer: str = "rtn") -> Quantized:
    """Quantize a float32 matrix [N, K]; K is padded with zeros to whole blocks."""
    parts = [_quantize_rows(rows, bits, quantizer) for rows in _slabs(matrix)]
    values, scales, zero_points = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Quantized(values, scales, zero_points, bits, matrix.shape[1])


def dequantize(matrix: Quantized) -> Array:
    """The float32 matrix [N, K] that the integers stand for."""
    num_blocks = matrix.scales.shape[1]
    values = _unpack(matrix.values, matrix.bits).astype(np.float32)
    zero_points = _unpack(matrix.zero_points, matrix.bits)[:, :num_blocks].astype(np.float32)
    rows = (values - zero_points[..., None]) * matrix.scales[..., None]
    return np.asarray(rows.reshape(len(rows), -1)[:, : matrix.columns])


def num_blocks(columns: int) -> int:
    """Blocks in a row of `columns` values, the last one padded."""
    return -(-columns // BLOCK)


def packed_width(count: int, bits: int) -> int:
    """Bytes that `count` integers take."""
    return -(-count * bits // 8)


def _slabs(matrix: Array) -> Iterator[Array]:
    step = max(SLAB_VALUES // matrix.shape[1], 1)
    for start in range(0, len(matrix), step):
        yield matrix[start : start + step]


def _quantize_rows(rows: Array, bits: int, quantizer: str) -> Rounding:
    padding = -rows.shape[1] % BLOCK
    blocks = np.pad(rows, ((0, 0), (0, padding))).reshape(len(rows), -1, BLOCK)
    values, scales, zero_points = _best(blocks, _roundings(blocks, bits, quantizer))
    return _pack(values, bits), scales, _pack(zero_points, bits)


def _roundings(blocks: Array, bits: int, quantizer: str) -> Iterator[Rounding]:
    """What a quantizer tries, rounding to nearest first."""
    yield _round(blocks, bits, 1.0)
    if quantizer == "k_quant":
        yield _k_quant(blocks, bits)
    if quantizer == "search":
        yield from (_round(blocks, bits, shrink) for shrink in SHRINKS)


def _best(blocks: Array, roundings: Iterator[Rounding]) -> Rounding:
    """For each block, the rounding that loses least."""
    best, lowest = next(roundings), None
    for found in roundings:
        lowest = _loss(blocks, *best) if lowest is None else lowest
        loss = _loss(blocks, *found)
        better = loss < lowest
        lowest = np.where(better, loss, lowest)
        values, scales, zero_points = (
            np.where(better[..., None] if old.ndim == 3 else better, new, old)
            for old, new in zip(best, found, strict=True)
        )
        best = values, scales, zero_points
    return best


def _round(blocks: Array, bits: int, shrink: float) -> Rounding:
    """Steps of equal size over each block's range, shrunk around zero; zero is always a step."""
    top = 2**bits - 1
    low, high = np.minimum(blocks.min(-1), 0) * shrink, np.maximum(blocks.max(-1), 0) * shrink
    scales = ((high - low) / top).astype(np.float32)
    scales[scales == 0] = 1.0
    zero_points = np.clip(np.round(-low / scales), 0, top).astype(np.uint8)
    steps = np.round(blocks / scales[..., None]) + zero_points[..., None]
    return np.clip(steps, 0, top).astype(np.uint8), scales, zero_points


def _k_quant(blocks: Array, bits: int) -> Rounding:
    """onnxruntime's own: scale and offset by least squares where large weights count more, the best of twenty tries.

    It loses blocks that lie off zero, whose offset no zero point can hold; rounding to nearest is kept for these.
    """
    from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

    with np.errstate(divide="ignore", invalid="ignore"):  # equal weights have no best scale
        values, scales, zero_points = quant_tensor_k_quant_cpu(blocks, bits, BLOCK)
    by_block = blocks.shape[:-1]
    return (
        values.astype(np.uint8).reshape(blocks.shape),
        scales.astype(np.float32).reshape(by_block),
        zero_points.reshape(by_block),
    )


def _loss(blocks: Array, values: Array, scales: Array, zero_points: Array) -> Array:
    """Squared error of each block."""
    rounded = (values.astype(np.float32) - zero_points[..., None]) * scales[..., None]
    return np.asarray(np.square(rounded - blocks).sum(-1))


def _pack(integers: Array, bits: int) -> Array:
    """The last axis packed into bytes."""
    if bits == 8:
        return integers
    if integers.shape[-1] % 2:
        integers = np.pad(integers, [(0, 0)] * (integers.ndim - 1) + [(0, 1)])
    return np.asarray(integers[..., 0::2] | (integers[..., 1::2] << 4))


def _unpack(packed: Array, bits: int) -> Array:
    if bits == 8:
        return packed
    return np.stack((packed & 15, packed >> 4), axis=-1).reshape(*packed.shape[:-1], -1)
