"""Writing a blueprint: rounded here or quantized by llama.cpp, in one file or in parts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from converters.gguf.blueprint import Blueprint
from converters.gguf.container import Content, GgufFile, block_size, write_gguf
from converters.gguf.library import gguf_library
from converters.gguf.quantize import quantize, read_importance
from converters.gguf.splits import write_parts
from longrope.progress import Progress


def write_export(blueprint: Blueprint, path: Path, progress: Progress) -> list[Path]:
    """Write a planned export.

    Returns:
        The files: `path`, or the parts of a split file.
    """
    for name in blueprint.vocabulary.unapplied:
        progress.warn(f"llama.cpp does not apply this tokenizer's {name}: normalize text before you pass it on")
    if blueprint.outtype.matrix is None:
        return _write_quantized(blueprint, path, progress)
    _warn_of_odd_widths(blueprint, progress)
    contents = blueprint.contents()
    with progress.task(f"writing {path.name}", _size(contents)) as task:
        return write_parts(
            path,
            blueprint.values(),
            contents,
            blueprint.options.max_part_bytes,
            task.advance,
            threads=blueprint.options.writers,
        )


def _write_quantized(blueprint: Blueprint, path: Path, progress: Progress) -> list[Path]:
    """The floats as they are into a file of their own, then llama.cpp's quantizer, then parts if wanted."""
    options, outtype = blueprint.options, blueprint.outtype
    importance = read_importance(Path(options.imatrix)) if options.imatrix else None
    floats, whole = path.with_name(f"{path.name}.floats"), path.with_name(f"{path.name}.whole")
    contents = blueprint.contents()
    with progress.task(f"writing {path.name}", 2 * _size(contents)) as task:
        write_gguf(floats, blueprint.values(), contents, task.advance, threads=options.writers)
        fell_back = quantize(floats, whole, outtype, importance=importance, threads=options.threads)
        floats.unlink()
        task.advance(_size(contents))
    if fell_back:
        progress.warn(
            f"{fell_back} tensors have rows that do not divide into blocks of 256; llama.cpp gave them other types "
            f"than {outtype.name} has"
        )
    if not options.max_part_bytes:
        return [whole.replace(path)]
    with GgufFile(whole) as file:
        copies = [Content(info, partial(iter, (file.region(name),))) for name, info in file.tensors.items()]
        written = write_parts(path, file.values, copies, options.max_part_bytes, lambda count: None)
    whole.unlink()
    return written


def _warn_of_odd_widths(blueprint: Blueprint, progress: Progress) -> None:
    types = gguf_library().GGMLQuantizationType
    wanted = int(types[blueprint.outtype.matrix])
    block = block_size(wanted)[0]
    odd = [t.info.name for t in blueprint.tensors if len(t.info.shape) > 1 and t.info.shape[-1] % block]
    if odd:
        progress.warn(
            f"{len(odd)} tensors, {odd[0]} the first, have rows that do not divide into blocks of {block}; they are "
            f"written as f16 instead of {blueprint.outtype.name}"
        )


def _size(contents: Sequence[Content]) -> int:
    return sum(content.info.nbytes for content in contents)
