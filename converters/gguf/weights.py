"""Weights on their way from memory-mapped safetensors to GGUF: renamed, permuted, rounded, in blocks of rows.

    safetensors ──Piece: rows of one source tensor──► float32 block ──encode──► bytes of the GGUF type

Only one block is in memory at a time, whatever the size of a tensor; bytes that need no change are never copied to it.
The types that llama.cpp mixes itself are made by its own quantizer, see `native.quantize`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import mmap
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from converters.gguf import native
from converters.gguf.container import MAGIC, GgufFile, Region, TensorInfo, tensor_bytes
from converters.gguf.native import Importance, gguf
from converters.gguf.writing import Content
from longrope.errors import InputError, UnsupportedError
from longrope.reading import one_line, printable, read_bytes
from longrope.weights import data_start, refuse_non_finite, safetensors_header

# Elements of one block: half a megabyte of float32, so that it and what is made of it stay in a processor's cache.
BLOCK_ELEMENTS = 1 << 17

Rows = NDArray[Any]
Floats = NDArray[np.float32]
_HALF_INFINITY = 0x7C00

# Source types by their name, the same in safetensors and ggml: numpy's type of that width. BF16 has none of its own.
_NUMPY_TYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
# The float types by their names in ggml, finest first.
FLOATS = ("f32", "f16", "bf16")


# -- the types a user can ask for, one row each


@dataclass(frozen=True)
class OutType:
    """A weight type.

    Args:
        name: what users call it.
        file_type: name of `general.file_type`, and of llama.cpp's LLAMA_FTYPE constant.
        matrix: ggml type of matrices where they are rounded in Python; None where llama.cpp's own quantizer does it,
            which mixes several types.
        needs_imatrix: llama.cpp refuses to quantize to it without an importance matrix.
    """

    name: str
    file_type: str
    matrix: str | None = None
    needs_imatrix: bool = False


def _rounded(name: str, file_type: str | None = None) -> OutType:
    return OutType(name, file_type or f"MOSTLY_{name.upper()}", matrix=name.upper())


def _mixed(name: str, *, needs_imatrix: bool = False) -> OutType:
    return OutType(name, f"MOSTLY_{name.upper()}", needs_imatrix=needs_imatrix)


_ROWS = (
    _rounded("f16"),
    _rounded("f32", "ALL_F32"),
    _rounded("bf16"),
    _rounded("q8_0"),
    _rounded("q5_1"),
    _rounded("q5_0"),
    _rounded("q4_1"),
    _rounded("q4_0"),
    _rounded("tq2_0"),
    _rounded("tq1_0"),
    _mixed("q6_k"),
    _mixed("q5_k_m"),
    _mixed("q5_k_s"),
    _mixed("q4_k_m"),
    _mixed("q4_k_s"),
    _mixed("q3_k_l"),
    _mixed("q3_k_m"),
    _mixed("q3_k_s"),
    _mixed("q2_k"),
    _mixed("q2_k_s", needs_imatrix=True),
    _mixed("iq4_nl"),
    _mixed("iq4_xs"),
    _mixed("iq3_m"),
    _mixed("iq3_s"),
    _mixed("iq3_xs", needs_imatrix=True),
    _mixed("iq3_xxs", needs_imatrix=True),
    _mixed("iq2_m", needs_imatrix=True),
    _mixed("iq2_s", needs_imatrix=True),
    _mixed("iq2_xs", needs_imatrix=True),
    _mixed("iq2_xxs", needs_imatrix=True),
    _mixed("iq1_m", needs_imatrix=True),
    _mixed("iq1_s", needs_imatrix=True),
)
OUTTYPES: Mapping[str, OutType] = {row.name: row for row in _ROWS}
DEFAULT = "f16"


def outtype_named(name: str | None) -> OutType:
    """The row of a name, the default's for None. Raises UnsupportedError for an unknown one."""
    wanted = (name or DEFAULT).lower()
    if wanted not in OUTTYPES:
        near = difflib.get_close_matches(wanted, OUTTYPES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UnsupportedError(f"GGUF cannot be written as {name!r}: {hint}expected one of {', '.join(OUTTYPES)}")
    return OUTTYPES[wanted]


# -- the source


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file: its type, shape, bytes, and where they lie."""

    dtype: str
    shape: tuple[int, ...]
    bytes: NDArray[np.uint8]
    region: Region

    @property
    def rows(self) -> Rows:
        """[rows, columns] in the stored type; a vector is one element a row."""
        columns = self.shape[-1] if len(self.shape) > 1 else 1
        flat: Rows = self.bytes.view(_NUMPY_TYPES[self.dtype])
        return flat.reshape(-1, columns)

    @property
    def scalar(self) -> float:
        """The only number of a tensor of one element."""
        return float(as_float32(self.rows, self.dtype).reshape(()))


class SafetensorsSource:
    """All tensors of a sharded checkpoint by name, memory-mapped.

    Args:
        files: safetensors files.
        renamed: what a stored tensor is called here; None leaves it out.

    Raises:
        InputError: a file is not whole.
        UnsupportedError: a tensor is of a type that is no plain float, such as fp8.
    """

    def __init__(self, files: Sequence[Path], renamed: Callable[[str], str | None] = str) -> None:
        self.tensors: dict[str, Stored] = {}
        for file in files:
            self.tensors.update(_map_tensors(file, renamed))

    def __getitem__(self, name: str) -> Stored:
        return self.tensors[name]


@dataclass(frozen=True)
class Filled:
    """A tensor that no file has: one number throughout; it takes no memory."""

    number: float
    shape: tuple[int, ...]
    dtype: str = "F32"

    @property
    def rows(self) -> Rows:
        """[rows, columns], as `Stored.rows`."""
        columns = self.shape[-1] if len(self.shape) > 1 else 1
        return np.broadcast_to(np.float32(self.number), (math.prod(self.shape) // columns, columns))


class Constants:
    """Tensors of one number each, by name: (number, shape)."""

    def __init__(self, tensors: Mapping[str, tuple[float, tuple[int, ...]]]) -> None:
        self._tensors = {name: Filled(*content) for name, content in tensors.items()}

    def __getitem__(self, name: str) -> Filled:
        return self._tensors[name]


def _map_tensors(file: Path, renamed: Callable[[str], str | None]) -> Iterator[tuple[str, Stored]]:
    header = {new: entry for name, entry in safetensors_header(file).items() if (new := renamed(name))}
    with file.open("rb") as handle:
        start = data_start(handle)
        mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    for name, entry in header.items():
        dtype, (begin, end) = entry["dtype"], entry["data_offsets"]
        if dtype not in _NUMPY_TYPES:
            raise UnsupportedError(
                f"{file.name}: tensor {name} is {dtype}; expected one of {', '.join(_NUMPY_TYPES)}. "
                "If it is a quantized weight, dequantize the checkpoint first, or take the original model"
            )
        shape = tuple(entry["shape"])
        if end - begin != math.prod(shape) * _NUMPY_TYPES[dtype].itemsize:
            raise InputError(f"{file}: tensor {name} has {end - begin} bytes, which do not fit its shape {shape}")
        data = np.frombuffer(mapped, np.uint8, end - begin, start + begin)
        yield name, Stored(dtype, shape, data, Region(file, start + begin, end - begin))


@dataclass(frozen=True)
class Piece:
    """Rows of one source tensor.

    Args:
        source: its name in the checkpoint.
        first, count: the rows taken; count None takes all from `first` on.
        heads: where > 0, the rows are that many attention heads, and in each the two halves are interleaved: llama.cpp
            rotates neighbouring rows of a head together where transformers rotates row i with row i + d/2.
        arrange: the rows in another order or shape; None for their own.
        change: what the numbers become, as float32; None where they stay.
    """

    source: str
    first: int = 0
    count: int | None = None
    heads: int = 0
    arrange: Callable[[Rows], Rows] | None = None
    change: Callable[[Floats], Floats] | None = None

    def rows(self, stored: Stored | Filled) -> Rows:
        """Its rows before the halves of heads are interleaved."""
        end = None if self.count is None else self.first + self.count
        rows = stored.rows[self.first : end]
        return self.arrange(rows) if self.arrange else rows

    def blocks(self, stored: Stored | Filled) -> Iterator[Rows]:
        """Its rows in their final order, a block at a time, in the stored type."""
        rows = self.rows(stored)
        columns = rows.shape[1]
        if not self.heads:
            step = max(BLOCK_ELEMENTS // columns, 1)
            yield from (rows[at : at + step] for at in range(0, len(rows), step))
            return
        by_head = rows.reshape(self.heads, 2, -1, columns).swapaxes(1, 2)
        step = max(BLOCK_ELEMENTS // by_head[0].size, 1)
        for at in range(0, self.heads, step):
            yield by_head[at : at + step].reshape(-1, columns)

    def picked(self, stored: Stored | Filled, positions: NDArray[np.intp]) -> Rows:
        """Single rows, by their place in the final order."""
        rows = self.rows(stored)
        if self.heads:
            in_head = len(rows) // self.heads
            head, place = np.divmod(positions, in_head)
            positions = head * in_head + place % 2 * (in_head // 2) + place // 2
        return rows[positions]


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written: where it goes and what it is made of, pieces below one another."""

    info: TensorInfo
    pieces: tuple[Piece, ...]
    source: SafetensorsSource | Constants

    @cached_property
    def stored(self) -> tuple[Stored | Filled, ...]:
        return tuple(self.source[piece.source] for piece in self.pieces)

    def content(self) -> Content:
        return Content(self.info, self._copied if self._is_copy else self._finite)

    @property
    def _is_copy(self) -> bool:
        """Whether its bytes are those of the source: same type, same order of rows."""
        name = gguf.GGMLQuantizationType(self.info.type).name
        plain = all(piece == Piece(piece.source) for piece in self.pieces)
        return plain and all(isinstance(stored, Stored) and stored.dtype == name for stored in self.stored)

    def _copied(self) -> Iterator[Region]:
        yield from (stored.region for stored in self.stored if isinstance(stored, Stored))

    def retyped(self, type: int) -> Planned:
        """The same tensor in another ggml type."""
        return dataclasses.replace(self, info=dataclasses.replace(self.info, type=type))

    def unpermuted(self) -> Planned:
        """The same tensor with its rows in the source's order."""
        return dataclasses.replace(self, pieces=tuple(dataclasses.replace(piece, heads=0) for piece in self.pieces))

    def blocks(self) -> Iterator[tuple[Rows, str]]:
        """Its rows from first to last, a block at a time: (rows in the stored type, that type)."""
        for piece, stored in zip(self.pieces, self.stored, strict=True):
            for block in piece.blocks(stored):
                if piece.change:
                    yield piece.change(as_float32(block, stored.dtype)), "F32"
                else:
                    yield block, stored.dtype

    def picked(self, positions: NDArray[np.intp]) -> Iterator[NDArray[np.float32]]:
        """Single rows as float32, by ascending place: one array for each piece that has some of them."""
        first = 0
        for piece, stored in zip(self.pieces, self.stored, strict=True):
            count = len(piece.rows(stored))
            own = positions[(positions >= first) & (positions < first + count)] - first
            if len(own):
                rows = as_float32(piece.picked(stored, own), stored.dtype)
                yield piece.change(rows) if piece.change else rows
            first += count

    def encoded(self) -> Iterator[NDArray[Any]]:
        """Its bytes in the type of `info`, a block at a time."""
        name = gguf.GGMLQuantizationType(self.info.type).name
        for block, dtype in self.blocks():
            if dtype == name:
                yield np.ascontiguousarray(block)
                continue
            floats = as_float32(block, dtype)
            refuse_non_finite(floats, "F32", self.info.name)
            yield encode(floats, self.info.type, finite=True)

    def _finite(self) -> Iterator[NDArray[Any]]:
        """`encoded`, refusing weights that float16 cannot hold; the bits are looked at, for numpy is slow on halves."""
        for block in self.encoded():
            if block.dtype == np.float16 and (block.view(np.uint16) & 0x7FFF).max(initial=0) >= _HALF_INFINITY:
                raise UnsupportedError(
                    f"{self.info.name} has weights that are non-finite in f16 (beyond 65504); use bf16, f32 or q8_0"
                )
            yield block


def as_float32(block: Rows, dtype: str) -> NDArray[np.float32]:
    """A block of a source type as float32, exactly."""
    if dtype == "BF16":
        return (block.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(block, dtype=np.float32)


def same_numbers(one: Stored, other: Stored) -> bool:
    """Whether two tensors hold the same numbers, whatever their types."""
    if one.shape != other.shape:
        return False
    whole = Piece("")
    blocks = zip(whole.blocks(one), whole.blocks(other), strict=True)
    return all(np.array_equal(as_float32(a, one.dtype), as_float32(b, other.dtype)) for a, b in blocks)


# -- rounding


# The types most files have, rounded by llama.cpp's own C code to the bits of `gguf`, in a fifth of numpy's time and without
# holding Python's lock, so that threads work side by side; and numpy's type of that width. The tests compare both.
_IN_C: Mapping[str, DTypeLike] = {"F16": np.float16, "BF16": np.uint16, "Q8_0": np.uint8}


def encode(rows: Floats, type: int, *, finite: bool = False) -> NDArray[Any]:
    """Float32 rows in a ggml type, as its bytes or as numpy's type of that width. Infinities stand for overflow.

    Args:
        rows: [rows, columns], contiguous.
        type: number of a ggml type.
        finite: the rows are known to hold no NaN.
    """
    kind = gguf.GGMLQuantizationType(type)
    # C code rounds NaN otherwise than the library.
    if kind.name in _IN_C and (finite or not np.isnan(rows.max(initial=0))):
        return _encoded_in_c(rows, type, _IN_C[kind.name])
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(gguf.quants.quantize(rows, kind))


def _encoded_in_c(rows: Floats, type: int, dtype: DTypeLike) -> NDArray[Any]:
    out = np.empty((len(rows), tensor_bytes(rows.shape[1:], type)), np.uint8)
    native.ggml().ggml_quantize_chunk(type, rows.ctypes.data, out.ctypes.data, 0, *rows.shape, None)
    return out.view(dtype)


# -- importance matrices


def read_importance(path: Path) -> Importance:
    """An importance matrix of llama-imatrix, in its GGUF form or the older one.

    Raises:
        InputError: no such file, or neither form.
    """
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == MAGIC
        found = _from_gguf(path) if is_gguf else _from_legacy(read_bytes(path, str(path)))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path}: not an importance matrix of llama-imatrix ({one_line(error)})") from None
    if not found:
        raise InputError(f"{path}: the importance matrix is empty")
    for name, values in found.items():
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise InputError(f"{path}: {printable(name)}: expected finite numbers of 0 or more")
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
