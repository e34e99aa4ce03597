"""Weights on their way from memory-mapped safetensors to GGUF: renamed, permuted, rounded, in blocks of rows.

    safetensors ──Piece: rows of one source tensor──► float32 block ──encode──► bytes of the GGUF type

Only one block is in memory at a time, whatever the size of a tensor; bytes that need no change are never copied to it.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.gguf.container import Content, TensorInfo
from converters.gguf.library import gguf_library
from converters.gguf.output import Region
from converters.gguf.rounding import encode
from longrope.checkpoint import safetensors_header
from longrope.errors import InputError, UnsupportedError

# Elements of one block: half a megabyte of float32, so that it and what is made of it stay in a processor's cache.
BLOCK_ELEMENTS = 1 << 17

Rows = NDArray[Any]
_HALF_INFINITY = 0x7C00

# Source types by their name, the same in safetensors and ggml: numpy's type of that width. BF16 has none of its own.
_NUMPY_TYPES: Mapping[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


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

    Raises:
        InputError: a file is not whole.
        UnsupportedError: a tensor is of a type that is no plain float, such as fp8.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.tensors: dict[str, Stored] = {}
        for file in files:
            self.tensors.update(_map_tensors(file))

    def __getitem__(self, name: str) -> Stored:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors


def _map_tensors(file: Path) -> Iterator[tuple[str, Stored]]:
    header = safetensors_header(file)
    with file.open("rb") as handle:
        start = 8 + int.from_bytes(handle.read(8), "little")
        mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    for name, entry in header.items():
        dtype, (begin, end) = entry["dtype"], entry["data_offsets"]
        if dtype not in _NUMPY_TYPES:
            raise UnsupportedError(
                f"{file.name}: tensor {name} is {dtype}; expected one of {', '.join(_NUMPY_TYPES)}. "
                "Dequantize the checkpoint first (transformers: from_pretrained(..., dtype='bfloat16') and save_pretrained)"
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
            turns neighbouring rows of a head together where transformers turns row i with row i + d/2.
    """

    source: str
    first: int = 0
    count: int | None = None
    heads: int = 0

    def rows(self, stored: Stored) -> Rows:
        """Its rows before any permutation."""
        end = None if self.count is None else self.first + self.count
        return stored.rows[self.first : end]

    def blocks(self, stored: Stored) -> Iterator[Rows]:
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

    def picked(self, stored: Stored, positions: NDArray[np.intp]) -> Rows:
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
    source: SafetensorsSource

    @cached_property
    def stored(self) -> tuple[Stored, ...]:
        return tuple(self.source[piece.source] for piece in self.pieces)

    def content(self) -> Content:
        return Content(self.info, self._copied if self._is_copy else self._finite)

    @property
    def _is_copy(self) -> bool:
        """Whether its bytes are those of the source: same type, same order of rows."""
        name = gguf_library().GGMLQuantizationType(self.info.type).name
        plain = all(piece == Piece(piece.source) for piece in self.pieces)
        return plain and all(stored.dtype == name for stored in self.stored)

    def _copied(self) -> Iterator[Region]:
        yield from (stored.region for stored in self.stored)

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
                yield block, stored.dtype

    def picked(self, positions: NDArray[np.intp]) -> Iterator[NDArray[np.float32]]:
        """Single rows as float32, by ascending place: one array for each piece that has some of them."""
        first = 0
        for piece, stored in zip(self.pieces, self.stored, strict=True):
            count = len(piece.rows(stored))
            own = positions[(positions >= first) & (positions < first + count)] - first
            if len(own):
                yield as_float32(piece.picked(stored, own), stored.dtype)
            first += count

    def encoded(self) -> Iterator[NDArray[Any]]:
        """Its bytes in the type of `info`, a block at a time."""
        name = gguf_library().GGMLQuantizationType(self.info.type).name
        for block, dtype in self.blocks():
            if dtype == name:
                yield np.ascontiguousarray(block)
            else:
                yield encode(as_float32(block, dtype), self.info.type)

    def _finite(self) -> Iterator[NDArray[Any]]:
        """`encoded`, refusing weights that float16 cannot hold; the bits are looked at, for numpy is slow on halves."""
        for block in self.encoded():
            if block.dtype == np.float16 and (block.view(np.uint16) & 0x7FFF).max(initial=0) >= _HALF_INFINITY:
                raise UnsupportedError(
                    f"{self.info.name} has weights that are not finite in f16 (beyond 65504); use bf16, f32 or q8_0"
                )
            yield block


def as_float32(block: Rows, dtype: str) -> NDArray[np.float32]:
    """A block of a source type as float32, exactly."""
    if dtype == "BF16":
        return (block.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(block, dtype=np.float32)
