"""Float32 to the types of GGUF files, bit for bit as `gguf` rounds.

The types most files have are rounded by llama.cpp's own C code, in a fifth of numpy's time and without holding Python's
lock, so that threads work side by side. Where a number is none, and for all other types, the library does it. The tests
compare both on numbers of every size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from converters.gguf import native
from converters.gguf.container import tensor_bytes
from converters.gguf.library import gguf_library

Floats = NDArray[np.float32]

# Types whose rounding in C gives the library's bits, and numpy's type of that width.
_IN_C: Mapping[str, DTypeLike] = {"F16": np.float16, "BF16": np.uint16, "Q8_0": np.uint8}


def encode(rows: Floats, type: int) -> NDArray[Any]:
    """Float32 rows in a ggml type, as its bytes or as numpy's type of that width. Infinities stand for overflow.

    Args:
        rows: [rows, columns], contiguous.
        type: number of a ggml type.
    """
    kind = gguf_library().GGMLQuantizationType(type)
    if kind.name in _IN_C and not np.isnan(rows.max(initial=0)):
        return _encoded_in_c(rows, type, _IN_C[kind.name])
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(gguf_library().quants.quantize(rows, kind))


def _encoded_in_c(rows: Floats, type: int, dtype: DTypeLike) -> NDArray[Any]:
    out = np.empty((len(rows), tensor_bytes(rows.shape[1:], type)), np.uint8)
    native.ggml().ggml_quantize_chunk(type, rows.ctypes.data, out.ctypes.data, 0, *rows.shape, None)
    return out.view(dtype)
