"""The GGUF container, version 3, as it is read, knowing nothing of models. `writing` writes it.

    ┌ magic, version, counts ┬ key/value pairs ┬ tensor infos ┬ pad ┬ tensor ┬ pad ┬ tensor ┬ pad ┐
    └───────────────── head ───────────────────────────────────────┴────── data, each aligned ─────┘

Shapes here are row-major like numpy's; the file stores them the other way round. Constants, kinds of values and types of
tensors are those of the library `gguf`; its `GGUFReader` makes one numpy view per string and takes seconds on a large
vocabulary. This parser takes a tenth of one, checks every bound, and knows where each part lies, so that a file can be
changed by splicing bytes.

Source: the format's specification (ggml, docs/gguf.md).
"""

from __future__ import annotations

import glob
import hashlib
import math
import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from converters.gguf.key_types import check_values
from converters.gguf.native import gguf
from longrope.errors import InputError, UnsupportedError
from longrope.reading import COUNT, refuse_pointer, shown

if TYPE_CHECKING:
    from gguf import GGUFValueType

MAGIC = b"GGUF"
# Which set a part of a split file belongs to; llama.cpp reads over keys that it does not know.
SPLIT_SET = "longrope_export.split.set"
# Bytes of each tensor that a file's fingerprint is made of.
_SAMPLE = 4096

Bytes = NDArray[np.uint8]
Entry = TypeVar("Entry")

# How struct calls the kinds of numbers, by their name in gguf.GGUFValueType.
_FORMATS = {
    "UINT8": "B",
    "INT8": "b",
    "UINT16": "H",
    "INT16": "h",
    "UINT32": "I",
    "INT32": "i",
    "FLOAT32": "f",
    "BOOL": "?",
    "UINT64": "Q",
    "INT64": "q",
    "FLOAT64": "d",
}


@dataclass(frozen=True)
class Value:
    """One typed metadata value; `item` is the kind of an array's elements.

    An array is a tuple: Python's garbage collector forgets tuples of strings and numbers, and would walk a list of a
    hundred thousand tokens again and again.
    """

    kind: GGUFValueType
    data: Any
    item: GGUFValueType | None = None

    @cached_property
    def encoded(self) -> bytes:
        """Its bytes in a file, kept: a vocabulary is written twice, for llama.cpp to check it and then for good."""
        return struct.pack("<I", self.kind) + _encoded_data(self)


def u16(data: int) -> Value:
    """An unsigned 16-bit number."""
    return Value(gguf.GGUFValueType.UINT16, int(data))


def i32(data: int) -> Value:
    """A signed 32-bit number."""
    return Value(gguf.GGUFValueType.INT32, int(data))


def u32(data: int) -> Value:
    """An unsigned 32-bit number. Raises UnsupportedError for one that is none."""
    if not 0 <= data < 1 << 32:
        raise UnsupportedError(f"GGUF holds whole numbers from 0 to {(1 << 32) - 1} here, got {data}")
    return Value(gguf.GGUFValueType.UINT32, int(data))


def f32(data: float) -> Value:
    """A 32-bit float; the number is rounded here, so that it equals what is read back."""
    return Value(gguf.GGUFValueType.FLOAT32, float(np.float32(data)))


def flag(data: bool) -> Value:
    """A truth value."""
    return Value(gguf.GGUFValueType.BOOL, bool(data))


def text(data: str) -> Value:
    """A UTF-8 string."""
    return Value(gguf.GGUFValueType.STRING, data)


def array(item: GGUFValueType, data: Iterable[Any]) -> Value:
    """An array of one kind."""
    return Value(gguf.GGUFValueType.ARRAY, tuple(data), item)


def _encoded_data(value: Value) -> bytes:
    if value.kind is gguf.GGUFValueType.STRING:
        return encode_string(value.data)
    if value.kind is not gguf.GGUFValueType.ARRAY:
        return struct.pack("<" + _FORMATS[value.kind.name], value.data)
    if value.item is None:
        raise ValueError("an array needs the kind of its elements")
    head = struct.pack("<IQ", value.item, len(value.data))
    if value.item is gguf.GGUFValueType.STRING:
        encoded = list(map(str.encode, value.data))
        parts = [b""] * (2 * len(encoded))
        parts[::2], parts[1::2] = map(struct.Struct("<Q").pack, map(len, encoded)), encoded
        return head + b"".join(parts)
    return head + struct.pack(f"<{len(value.data)}{_FORMATS[value.item.name]}", *value.data)


def encode_string(value: str) -> bytes:
    """Length and UTF-8."""
    data = value.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `offset` counts bytes from the start of the data part."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int = 0

    @property
    def nbytes(self) -> int:
        return tensor_bytes(self.shape, self.type)


def alignment_of(values: Mapping[str, Value]) -> int:
    """Bytes that tensors are aligned to in a file with these metadata."""
    key = gguf.Keys.General.ALIGNMENT
    return int(values[key].data) if key in values else int(gguf.GGUF_DEFAULT_ALIGNMENT)


def aligned(offset: int, alignment: int) -> int:
    """The next multiple of `alignment` at or after `offset`."""
    return -(-offset // alignment) * alignment


def tensor_bytes(shape: Sequence[int], type: int) -> int:
    """Size in bytes of a tensor of a ggml type. Raises InputError when its rows are no whole number of blocks."""
    block, size = block_size(type)
    if not shape or shape[-1] % block:
        raise InputError(f"rows of {shape[-1] if shape else 0} elements do not divide into blocks of {block}")
    return math.prod(shape) // block * size


def block_size(type: int) -> tuple[int, int]:
    """Elements and bytes of one block of a ggml type. Raises InputError for a number no type has."""
    sizes = gguf.GGML_QUANT_SIZES
    if type not in sizes:
        raise InputError(f"unknown tensor type {type}")
    elements, size = sizes[type]
    return int(elements), int(size)


def type_name(type: int) -> str:
    """Lower-case name of a ggml type, e.g. `q8_0`."""
    return str(gguf.GGMLQuantizationType(type).name).lower()


@dataclass(frozen=True)
class Region:
    """Bytes of a file that are wanted as they are."""

    path: Path
    start: int
    count: int


# -- reading


class GgufPart:
    """One file whose head has been parsed; tensor bytes are memory-mapped, nothing is copied.

    Attributes:
        values: metadata by key, in the file's order.
        tensors: tensor infos by name, in the file's order.
        data_start: offset in the file where the data part begins.

    Raises:
        InputError: not GGUF, another version or byte order, truncated, or inconsistent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = _map_file(path)
        refuse_pointer(self._map[:128], str(path))
        try:
            self._parse()
        except (struct.error, UnicodeDecodeError, IndexError, ValueError, OverflowError):
            self.close()
            raise InputError(f"{path}: truncated or damaged GGUF: its head cannot be read") from None
        except InputError as error:
            self.close()
            raise InputError(f"{path}: {error}") from None

    def close(self) -> None:
        """Release the mapping, unless an array taken from it is still in use; then it goes with that array."""
        try:
            self._map.close()
        except BufferError:
            return

    @property
    def size(self) -> int:
        return len(self._map)

    def get(self, key: str, default: Any = None) -> Any:
        """The Python value of a key."""
        value = self.values.get(key)
        return default if value is None else value.data

    def raw(self, name: str) -> Bytes:
        """The bytes of a tensor, as a view of the file. Raises InputError when that has become shorter meanwhile."""
        info = self.tensors[name]
        if self._map.size() < self.size:
            raise InputError(f"{self.path}: the file became shorter while it was read")
        return np.frombuffer(self._map, np.uint8, info.nbytes, self.data_start + info.offset)

    def _parse(self) -> None:
        if self._map[:4] != MAGIC:
            raise InputError("not a GGUF file: it does not start with GGUF")
        version, num_tensors, num_values = struct.unpack_from("<IQQ", self._map, 4)
        if version != gguf.GGUF_VERSION:
            raise InputError(f"expected a little-endian GGUF of version {gguf.GGUF_VERSION}, got version {version:#x}")
        if num_tensors + num_values > self.size:
            raise InputError("truncated or damaged GGUF: it claims more entries than it has bytes")
        cursor = _Cursor(self._map, 24)
        self.values = _unique("key", ((cursor.string(), cursor.value()) for _ in range(num_values)))
        self.tensors = _unique("tensor", ((info.name, info) for info in _tensor_infos(cursor, num_tensors)))
        check_values(
            {key: value for key, value in self.values.items() if key == gguf.Keys.General.ALIGNMENT}, "its head"
        )
        self.alignment = alignment_of(self.values)
        if self.alignment & (self.alignment - 1):
            raise InputError(f"{gguf.Keys.General.ALIGNMENT}: expected a power of two, got {self.alignment}")
        self.data_start = aligned(cursor.at, self.alignment)
        self._check_extents()

    def _check_extents(self) -> None:
        end = 0
        for info in sorted(self.tensors.values(), key=lambda info: info.offset):
            if info.offset % self.alignment:
                raise InputError(f"tensor {info.name} starts at {info.offset}, not a multiple of {self.alignment}")
            if info.offset < end:
                raise InputError(f"tensor {info.name} overlaps the one before it")
            end = info.offset + info.nbytes
        if self.data_start + end > self.size:
            raise InputError(f"truncated GGUF: expected {self.data_start + end} bytes, got {self.size}")


class GgufFile:
    """A GGUF model: one file, or all parts of a split one, seen as one.

    Attributes:
        parts: the files; the first has the metadata.
        values: metadata by key, in the file's order.
        tensors: tensor infos by name, in the file's order; offsets count within their part.

    Raises:
        InputError: as `GgufPart`; or a part is missing, or this is not the first one.
    """

    def __init__(self, path: Path) -> None:
        first = GgufPart(first_part(path))
        self.path, self.values = first.path, first.values
        self.parts: tuple[GgufPart, ...] = (first,)
        try:
            check_values(first.values, "its metadata")
            self.parts = (first, *_other_parts(first))
            self._homes = _unique("tensor", ((name, part) for part in self.parts for name in part.tensors))
        except InputError as error:
            self.close()
            raise InputError(f"{path}: {error}") from None
        self.tensors = {name: part.tensors[name] for name, part in self._homes.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the files."""
        for part in self.parts:
            part.close()

    def get(self, key: str, default: Any = None) -> Any:
        """The Python value of a key."""
        value = self.values.get(key)
        return default if value is None else value.data

    @property
    def architecture(self) -> str:
        return str(self.get(gguf.Keys.General.ARCHITECTURE, ""))

    def model_key(self, suffix: str, default: Any = None) -> Any:
        """The value of `{architecture}.{suffix}`."""
        return self.get(f"{self.architecture}.{suffix}", default)

    def required_key(self, suffix: str) -> int:
        """The whole number of `{architecture}.{suffix}`. Raises InputError without."""
        value, kind = self.model_key(suffix), self.get("general.type", "model")
        if value is None and kind != "model":
            raise InputError(f"{self.path}: expected a language model, the file holds something else ({shown(kind)})")
        if not COUNT.fits(value):
            found = "found none" if value is None else f"got {shown(value)}"
            raise InputError(f"{self.path}: {self.architecture}.{suffix}: expected {COUNT.words}, {found}")
        return int(value)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every tensor's name, shape and type, and the first bytes of its data."""
        digest = hashlib.sha256()
        for name, info in self.tensors.items():
            digest.update(f"{name} {info.shape} {info.type}".encode())
            digest.update(self.raw(name)[:_SAMPLE].tobytes())
        return digest.hexdigest()

    def raw(self, name: str) -> Bytes:
        """The bytes of a tensor, as a view of the file."""
        return self._homes[name].raw(name)

    def region(self, name: str) -> Region:
        """Where the bytes of a tensor lie."""
        part = self._homes[name]
        return Region(part.path, part.data_start + part.tensors[name].offset, part.tensors[name].nbytes)

    def rows(self, name: str) -> Bytes:
        """[rows, bytes per row] of a tensor, as a view of the file; a vector is one element a row."""
        shape = self.tensors[name].shape
        return self.raw(name).reshape(math.prod(shape[:-1]) if len(shape) > 1 else shape[0], -1)

    def floats(self, name: str) -> NDArray[np.float32]:
        """A tensor dequantized to float32, in its shape. Raises InputError for a type that cannot be dequantized."""
        return dequantize(self.rows(name), self.tensors[name].type).reshape(self.tensors[name].shape)


def first_part(path: Path) -> Path:
    """`path`, or the first part of a split file that was written under this name."""
    parts = [] if path.exists() else parts_named(path)
    return parts[0] if len(parts) == 1 else path


def parts_named(path: Path) -> list[Path]:
    """First parts of split files that were written under this name."""
    return list(path.parent.glob(f"{glob.escape(path.stem)}-00001-of-*{path.suffix}"))


def part_path(path: Path, index: int, count: int) -> Path:
    """The name that llama.cpp expects of one part of a split file."""
    return path.with_name(f"{path.stem}-{index + 1:05d}-of-{count:05d}{path.suffix}")


def _other_parts(first: GgufPart) -> Iterator[GgufPart]:
    count = int(first.get(gguf.Keys.Split.LLM_KV_SPLIT_COUNT, 1))
    if count <= 1:
        return
    wanted = f"-{1:05d}-of-{count:05d}"
    if not first.path.stem.endswith(wanted):
        raise InputError(f"one of {count} parts; expected the name of the first, which ends in {wanted}")
    whole = first.path.with_name(first.path.stem.removesuffix(wanted) + first.path.suffix)
    found = len(first.tensors)
    for index in range(1, count):
        part = GgufPart(part_path(whole, index, count))
        found += len(part.tensors)
        yield part
        if part.get(SPLIT_SET) != first.get(SPLIT_SET):
            raise InputError(f"{part.path.name} is a part of another set than {first.path.name}: write all parts anew")
    total = first.get(gguf.Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT, found)
    if total != found:
        raise InputError(f"expected {total} tensors in {count} parts, found {found}")


class _Cursor:
    """Reads values one after the other."""

    def __init__(self, buffer: mmap.mmap, at: int) -> None:
        self.buffer, self.at = buffer, at

    def number(self, format: str) -> Any:
        (value,) = struct.unpack_from("<" + format, self.buffer, self.at)
        self.at += struct.calcsize("<" + format)
        return value

    def string(self) -> str:
        length = self.number("Q")
        start, self.at = self.at, self.at + length
        if self.at > len(self.buffer):
            raise InputError("truncated or damaged GGUF: a string reaches beyond its end")
        return self.buffer[start : self.at].decode("utf-8")

    def strings(self, count: int) -> tuple[str, ...]:
        """As `string`, many times; a vocabulary has a hundred thousand."""
        found, at, buffer, length = [], self.at, self.buffer, struct.Struct("<Q").unpack_from
        for _ in range(count):
            start = at + 8
            at = start + length(buffer, at)[0]
            found.append(buffer[start:at].decode("utf-8"))
        if at > len(buffer):
            raise InputError("truncated or damaged GGUF: a string reaches beyond its end")
        self.at = at
        return tuple(found)

    def value(self) -> Value:
        kind = gguf.GGUFValueType(self.number("I"))
        if kind is gguf.GGUFValueType.STRING:
            return Value(kind, self.string())
        if kind is not gguf.GGUFValueType.ARRAY:
            return Value(kind, self.number(_FORMATS[kind.name]))
        item, count = gguf.GGUFValueType(self.number("I")), self.number("Q")
        if item is gguf.GGUFValueType.ARRAY:
            raise InputError("nested metadata arrays are not supported")
        if count > len(self.buffer):
            raise InputError("truncated or damaged GGUF: an array reaches beyond its end")
        if item is gguf.GGUFValueType.STRING:
            return Value(kind, self.strings(count), item)
        format = f"<{count}{_FORMATS[item.name]}"
        numbers = struct.unpack_from(format, self.buffer, self.at)
        self.at += struct.calcsize(format)
        return Value(kind, numbers, item)


def _tensor_infos(cursor: _Cursor, count: int) -> Iterator[TensorInfo]:
    for _ in range(count):
        name, num_dims = cursor.string(), cursor.number("I")
        if not 1 <= num_dims <= 4:
            raise InputError(f"tensor {name}: expected 1 to 4 dimensions, got {num_dims}")
        shape = tuple(cursor.number("Q") for _ in range(num_dims))[::-1]
        if 0 in shape:
            raise InputError(f"tensor {name}: expected a shape of numbers above 0, got {list(shape)}")
        yield TensorInfo(name, shape, cursor.number("I"), cursor.number("Q"))


def _unique(what: str, pairs: Iterable[tuple[str, Entry]]) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for name, entry in pairs:
        if name in found:
            raise InputError(f"damaged GGUF: {what} {name} occurs twice")
        found[name] = entry
    return found


def _map_file(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < 24:
                raise InputError(f"{path}: truncated or not a GGUF file: it has fewer than 24 bytes")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def dequantize(rows: Bytes, type: int) -> NDArray[np.float32]:
    """[rows, bytes per row] of a ggml type as float32 [rows, elements]. Raises InputError when `gguf` cannot."""
    if type == gguf.GGMLQuantizationType.F32:
        return rows.view(np.float32)
    try:
        return np.asarray(gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(type)), dtype=np.float32)
    except NotImplementedError:
        raise InputError(
            f"tensors of type {type_name(type)} cannot be dequantized; use a float or standard quant file"
        ) from None
