"""Writing large files: room taken first, bytes of other files copied as they are, nothing buffered twice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self, TypeVar

from numpy.typing import NDArray

from longrope.errors import InputError

_COPY_BYTES = 1 << 20

Item = TypeVar("Item")


@dataclass(frozen=True)
class Region:
    """Bytes of another file that are wanted as they are."""

    path: Path
    start: int
    count: int


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
