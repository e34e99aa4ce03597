"""Split files, as llama.cpp names and loads them: the first part has all metadata, each part its share of the tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from converters.gguf.container import (
    SPLIT_COUNT,
    SPLIT_NO,
    SPLIT_TENSORS,
    Content,
    Value,
    i32,
    part_path,
    text,
    u16,
    write_gguf,
)

ARCHITECTURE = "general.architecture"


def write_parts(
    path: Path,
    values: Mapping[str, Value],
    contents: Sequence[Content],
    max_size: int | None,
    on_bytes: Callable[[int], None],
    *,
    threads: int = 1,
) -> list[Path]:
    """Write one file, or as many parts as it takes to keep each at `max_size` bytes of tensors; see `write_gguf`.

    Returns:
        What was written: `path`, or parts named after it.
    """
    groups = grouped(contents, max_size) if max_size else [list(contents)]
    if len(groups) == 1:
        write_gguf(path, values, contents, on_bytes, threads=threads)
        return [path]
    written = []
    for index, group in enumerate(groups):
        own = {SPLIT_NO: u16(index), SPLIT_COUNT: u16(len(groups)), SPLIT_TENSORS: i32(len(contents))}
        head = values if index == 0 else {ARCHITECTURE: text(str(values[ARCHITECTURE].data))}
        written.append(part_path(path, index, len(groups)))
        write_gguf(written[-1], {**head, **own}, group, on_bytes, threads=threads)
    return written


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
