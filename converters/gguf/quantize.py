"""K-quants and their kin, by llama.cpp's own quantizer, with an importance matrix where one is given.

floats as in the source ──llama_model_quantize──► mixed types, factors and keys kept as they are
"""

from __future__ import annotations

import ctypes
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.gguf import native
from converters.gguf.container import MAGIC, GgufFile
from converters.gguf.outtypes import OutType
from longrope.errors import InputError

Importance = dict[str, NDArray[np.float32]]
_FELL_BACK = re.compile(r"(\d+) of (\d+) tensor\(s\) required fallback")


def quantize(source: Path, target: Path, outtype: OutType, *, importance: Importance | None, threads: int) -> int:
    """Quantize a GGUF file of floats into another one.

    Args:
        importance: mean squared activation of every column, by tensor name; None without.
        threads: 0 for all there are.

    Returns:
        The number of tensors that llama.cpp gave another type than the mix's, because their rows do not divide into its
        blocks of 256.

    Raises:
        InputError: llama.cpp refuses; says why.
    """
    library = native.llama()
    params = library.llama_model_quantize_default_params()
    params.ftype = getattr(library, f"LLAMA_FTYPE_{outtype.file_type}")
    params.nthread = threads
    if importance:
        table = _native_table(importance)
        params.imatrix = table
    native.clear_log()
    if library.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        raise native.failure(f"llama.cpp cannot quantize to {outtype.name}")
    found = _FELL_BACK.search(native.recent_log())
    return int(found[1]) if found else 0


def _native_table(importance: Importance) -> Any:
    """The importance matrix as a C array that ends with an empty entry; it refers to numpy's memory."""
    entry = native.llama().llama_model_imatrix_data
    rows = [
        entry(name.encode(), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), values.size)
        for name, values in importance.items()
    ]
    return (entry * (len(rows) + 1))(*rows, entry(None, None, 0))


def read_importance(path: Path) -> Importance:
    """An importance matrix of llama-imatrix, in its GGUF form or the older one.

    Raises:
        InputError: no such file, or neither form.
    """
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == MAGIC
        found = _from_gguf(path) if is_gguf else _from_legacy(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path}: not an importance matrix of llama-imatrix ({error})") from None
    if not found:
        raise InputError(f"{path}: the importance matrix is empty")
    return found


def _from_gguf(path: Path) -> Importance:
    """Tensors `NAME.in_sum2` [experts, columns] and `NAME.counts` [experts, 1]; experts never seen get ones."""
    found = {}
    with GgufFile(path) as file:
        for name in file.tensors:
            if not name.endswith(".in_sum2"):
                continue
            base = name.removesuffix(".in_sum2")
            if f"{base}.counts" not in file.tensors:
                raise InputError(f"{path}: importance of {base} without its counts")
            counts = file.floats(f"{base}.counts").reshape(-1, 1)
            sums = file.floats(name).reshape(len(counts), -1)
            means = np.where(counts > 0, sums / np.maximum(counts, 1), np.float32(1))
            found[base] = np.ascontiguousarray(means.ravel(), dtype=np.float32)
    return found


def _from_legacy(data: bytes) -> Importance:
    """int32 entries, each: length and bytes of the name, number of calls, number of values, float32 values."""
    (count,), at, found = struct.unpack_from("<i", data), 4, {}
    for _ in range(count):
        (length,) = struct.unpack_from("<i", data, at)
        name = data[at + 4 : at + 4 + length].decode("utf-8")
        calls, size = struct.unpack_from("<ii", data, at + 4 + length)
        at += 12 + length
        values = np.frombuffer(data, "<f4", size, at) / max(calls, 1)
        found[name] = np.ascontiguousarray(values, dtype=np.float32)
        at += 4 * size
    return found
