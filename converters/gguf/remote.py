"""The head of a GGUF file that lies elsewhere, and its factors, as a file here whose weights are a hole."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Protocol

from converters.gguf.container import GgufPart
from longrope.errors import InputError

# Bytes of the head that are asked for first; a vocabulary takes some megabytes.
FIRST = 4 << 20
FACTORS = "rope_f"  # begins the names of tensors that hold factors or frequencies


class Ranges(Protocol):
    """A file that is read by ranges."""

    size: int

    def read(self, start: int, stop: int) -> bytes:
        """Its bytes from `start` up to `stop`."""
        ...


def hollow_copy(source: Ranges, path: Path, *, first: int | None = None) -> None:
    """Write `path`, a sparse file of the source's size: keys, tensor infos and factors are in it, weights are not.

    Args:
        source: the file that lies elsewhere.
        path: to write.
        first: bytes of the head that are asked for at first; None for `FIRST`.

    Raises:
        InputError: the source is no GGUF file.
    """
    with path.open("wb") as file:
        file.truncate(source.size)
        part = _with_head(source, file, path, first or FIRST)
        for name, info in part.tensors.items():
            if name.startswith(FACTORS):
                _fill(source, file, part.data_start + info.offset, part.data_start + info.offset + info.nbytes)
        part.close()


def _with_head(source: Ranges, file: BinaryIO, path: Path, first: int) -> GgufPart:
    """The file's head, parsed when enough of it is there; what was read from the hole lies behind what was filled."""
    known, wanted = 0, min(first, source.size)
    while True:
        _fill(source, file, known, wanted)
        known = wanted
        try:
            part = GgufPart(path)
            if part.data_start <= known:
                return part
            part.close()
        except InputError:
            if known == source.size:
                raise
        wanted = min(4 * known, source.size)


def _fill(source: Ranges, file: BinaryIO, start: int, stop: int) -> None:
    file.seek(start)
    file.write(source.read(start, stop))
    file.flush()
