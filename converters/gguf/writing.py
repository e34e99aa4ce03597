"""Writing GGUF files: room taken first, bytes of other files copied as they are, tensors made side by side, in one file
or in parts as llama.cpp names and loads them (the first part has all metadata, each part its share of the tensors).
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self, TypeVar

from numpy.typing import NDArray

from converters.gguf.container import (
    MAGIC,
    SPLIT_SET,
    Region,
    TensorInfo,
    Value,
    aligned,
    alignment_of,
    encode_string,
    i32,
    part_path,
    text,
    u16,
)
from converters.gguf.native import gguf
from longrope.errors import InputError

_COPY_BYTES = 1 << 20

Item = TypeVar("Item")
Block = NDArray[Any] | Region | bytes


class Output:
    """A file that is written from start to end, or by several threads at places that are known beforehand."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._sources: dict[Path, int] = {}
        self._opening = Lock()
        self.at = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for descriptor in (*self._sources.values(), self._descriptor):
            os.close(descriptor)

    def reserve(self, size: int) -> None:
        """Take the room on the disk, so that a full one shows at once; a no-op where it cannot be asked."""
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._descriptor, 0, size)

    def write(self, block: Block) -> int:
        """Append a block; returns its size in bytes."""
        count = self.write_at(self.at, block)
        self.at += count
        return count

    def write_at(self, at: int, block: Block) -> int:
        """Write a block at byte `at`; returns its size in bytes. Threads may call this at the same time."""
        if isinstance(block, Region):
            copy_range(self._source(block.path), block.start, self._descriptor, at, block.count)
            return block.count
        data = memoryview(block) if isinstance(block, bytes) else block.data
        return self._write_all(at, data.cast("B"))

    def sync(self) -> None:
        """Wait until the disk has it."""
        os.fsync(self._descriptor)

    def _source(self, path: Path) -> int:
        with self._opening:
            if path not in self._sources:
                self._sources[path] = os.open(path, os.O_RDONLY)
            return self._sources[path]

    def _write_all(self, at: int, data: memoryview) -> int:
        done = 0
        while done < len(data):
            done += os.pwrite(self._descriptor, data[done:], at + done)
        return done


def in_threads(work: Callable[[Item], object], items: Iterable[Item], threads: int) -> None:
    """Call `work` for every item, several at a time. What has not begun is dropped when one fails or Ctrl-C comes."""
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        try:
            for done in as_completed([pool.submit(work, item) for item in items]):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def copy_range(source: int, start: int, target: int, at: int, count: int) -> None:
    """Copy `count` bytes between open files, through a buffer that stays in the processor's cache.

    Tensors start at odd places of a page, where this takes three quarters of copy_file_range's time.
    """
    buffer = memoryview(bytearray(min(count, _COPY_BYTES)))
    while count > 0:
        moved = os.preadv(source, [buffer[: min(count, _COPY_BYTES)]], start)
        if not moved:
            raise InputError("the file became shorter while it was copied")
        moved = os.pwrite(target, buffer[:moved], at)
        start, at, count = start + moved, at + moved, count - moved


# -- whole files


@dataclass(frozen=True)
class Content:
    """A tensor to be written: its info (the offset is filled in) and its bytes, in blocks."""

    info: TensorInfo
    blocks: Callable[[], Iterable[Block]]


def write_gguf(
    path: Path,
    values: Mapping[str, Value],
    contents: Sequence[Content],
    on_bytes: Callable[[int], None] = lambda _count: None,
    *,
    threads: int = 1,
) -> None:
    """Write a whole file, block by block; its room on the disk is taken first.

    Args:
        path: a new file.
        values: metadata; `general.alignment` is honoured.
        contents: tensors in the order of the file.
        on_bytes: called with the number of bytes written since the last call, by one thread at a time.
        threads: how many tensors are made at the same time, each at its own place in the file.
    """
    alignment, reporting = alignment_of(values), Lock()
    infos = laid_out([content.info for content in contents], alignment)
    head = encode_head(values, infos, alignment)

    def write_tensor(pair: tuple[TensorInfo, Content]) -> None:
        at = len(head) + pair[0].offset
        for block in pair[1].blocks():
            count = output.write_at(at, block)
            at += count
            with reporting:
                on_bytes(count)
        output.write_at(at, bytes(-pair[0].nbytes % alignment))

    with Output(path) as output:
        output.reserve(len(head) + sum(aligned(info.nbytes, alignment) for info in infos))
        output.write_at(0, head)
        in_threads(write_tensor, zip(infos, contents, strict=True), threads)


def write_skeleton(path: Path, values: Mapping[str, Value], infos: Sequence[TensorInfo]) -> None:
    """The same file with a hole where the tensors would be: it has the full size and takes no room on the disk."""
    alignment = alignment_of(values)
    placed = laid_out(infos, alignment)
    head = encode_head(values, placed, alignment)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + sum(aligned(info.nbytes, alignment) for info in placed))


def laid_out(infos: Iterable[TensorInfo], alignment: int) -> list[TensorInfo]:
    """The infos with offsets, one after the other, each aligned."""
    placed, offset = [], 0
    for info in infos:
        placed.append(TensorInfo(info.name, info.shape, info.type, offset))
        offset += aligned(info.nbytes, alignment)
    return placed


def encode_head(values: Mapping[str, Value], infos: Sequence[TensorInfo], alignment: int) -> bytes:
    """Everything before the data part, padded."""
    head = MAGIC + struct.pack("<IQQ", gguf.GGUF_VERSION, len(infos), len(values))
    head += b"".join(encode_pair(key, value) for key, value in values.items())
    head += b"".join(map(encode_info, infos))
    return head + bytes(-len(head) % alignment)


def encode_pair(key: str, value: Value) -> bytes:
    """One key/value pair."""
    return encode_string(key) + value.encoded


def encode_info(info: TensorInfo) -> bytes:
    """One tensor info."""
    dims = struct.pack(f"<I{len(info.shape)}Q", len(info.shape), *reversed(info.shape))
    return encode_string(info.name) + dims + struct.pack("<IQ", info.type, info.offset)


# -- split files


def total_bytes(contents: Iterable[Content]) -> int:
    """Bytes of all tensors."""
    return sum(content.info.nbytes for content in contents)


def write_parts(
    path: Path,
    values: Mapping[str, Value],
    contents: Sequence[Content],
    max_size: int | None,
    on_bytes: Callable[[int], None] = lambda _count: None,
    *,
    origin: str = "",
    threads: int = 1,
) -> list[Path]:
    """Write one file, or as many parts as it takes to keep each at `max_size` bytes of tensors; see `write_gguf`.

    Args:
        origin: a fingerprint of where the tensors come from. With it and all metadata every part says which set it belongs
            to, so that parts of two exports under the same names are told apart.

    Returns:
        What was written: `path`, or parts named after it.
    """
    groups = grouped(contents, max_size) if max_size else [list(contents)]
    if len(groups) == 1:
        write_gguf(path, values, contents, on_bytes, threads=threads)
        return [path]
    written, keys, set_name = [], gguf.Keys, _set_name(origin, values, groups)
    for index, group in enumerate(groups):
        own = {
            keys.Split.LLM_KV_SPLIT_NO: u16(index),
            keys.Split.LLM_KV_SPLIT_COUNT: u16(len(groups)),
            keys.Split.LLM_KV_SPLIT_TENSORS_COUNT: i32(len(contents)),
            SPLIT_SET: text(set_name),
        }
        head = values if index == 0 else {keys.General.ARCHITECTURE: values[keys.General.ARCHITECTURE]}
        written.append(part_path(path, index, len(groups)))
        write_gguf(written[-1], {**head, **own}, group, on_bytes, threads=threads)
    return written


def _set_name(origin: str, values: Mapping[str, Value], groups: Sequence[Sequence[Content]]) -> str:
    digest = hashlib.sha256(origin.encode())
    for key, value in values.items():
        digest.update(encode_pair(key, value))
    for group in groups:
        digest.update(b"".join(encode_info(content.info) for content in group) + b"/")
    return digest.hexdigest()[:32]


def grouped(contents: Sequence[Content], max_size: int) -> list[list[Content]]:
    """Tensors in order, in groups of at most `max_size` bytes; a tensor larger than that gets a group of its own."""
    groups: list[list[Content]] = [[]]
    size = 0
    for content in contents:
        if groups[-1] and size + content.info.nbytes > max_size:
            groups.append([])
            size = 0
        groups[-1].append(content)
        size += content.info.nbytes
    return groups
