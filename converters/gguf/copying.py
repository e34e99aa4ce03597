"""Conversion from a GGUF source that keeps its weights as they are, quantized or not: nothing becomes a float on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from converters.base import Check, Export
from converters.gguf.container import (
    SPLIT_COUNT,
    SPLIT_NO,
    SPLIT_TENSORS,
    Content,
    GgufFile,
    TensorInfo,
    Value,
    type_name,
)
from converters.gguf.library import gguf_library
from converters.gguf.options import GgufOptions
from converters.gguf.outtypes import outtype_named
from converters.gguf.patch import Splice, plan_splice
from converters.gguf.source import GgufCheckpoint
from converters.gguf.splicechecks import splice_checks
from converters.gguf.splits import write_parts
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError
from longrope.factors import BoundFactors
from longrope.progress import Progress


def keeps_weights(export: Export) -> bool:
    """Whether the source is a GGUF file whose weights are of the wanted type already, or no type was asked for."""
    if not isinstance(export.checkpoint, GgufCheckpoint):
        return False
    if export.outtype is None:
        return True
    wanted = outtype_named(export.outtype)
    with GgufFile(export.checkpoint.source) as file:
        present = {type_name(info.type) for info in file.tensors.values() if len(info.shape) > 1}
    return present == {wanted.name}


def plan_copy(export: Export) -> tuple[Mapping[str, Value], Sequence[TensorInfo]]:
    """Metadata and tensors of the new file. Raises as `plan_splice`."""
    _refuse_useless_options(GgufOptions.of(export.options))
    with GgufFile(_source_of(export)) as file:
        splice = _splice(file, export.factors)
        infos = [content.info for content in _contents(file, splice)]
    return splice.values, infos


def write_copy(export: Export, path: Path, progress: Progress) -> list[Path]:
    """Write the new file, or its parts."""
    options = GgufOptions.of(export.options)
    with GgufFile(_source_of(export)) as file:
        splice = _splice(file, export.factors)
        contents = _contents(file, splice)
        with progress.task(f"writing {path.name}", sum(content.info.nbytes for content in contents)) as task:
            return write_parts(
                path, splice.values, contents, options.max_part_bytes, task.advance, threads=options.writers
            )


def copy_checks(file: GgufFile, expected: BoundFactors, reference: Checkpoint) -> list[Check]:
    """Compare a file with the GGUF source it was copied from, byte for byte; empty when it is no copy."""
    if not isinstance(reference, GgufCheckpoint):
        return []
    with GgufFile(reference.source) as source:
        if not _is_copy(file, source):
            return []
        splice = _splice(source, expected)
        whole = {key: value for key, value in file.values.items() if key not in (SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS)}
        return splice_checks(_Without(file, whole), source, splice.values, splice.arrays, whole=True)


class _Without:
    """A file as if it had other metadata: the keys of a split say nothing of the model."""

    def __init__(self, file: GgufFile, values: Mapping[str, Value]) -> None:
        self.values, self.tensors, self.raw = values, file.tensors, file.raw


def _is_copy(file: GgufFile, source: GgufFile) -> bool:
    """Whether all matrices have the source's type, so that they can be its bytes."""
    return all(name in file.tensors and file.tensors[name].type == info.type for name, info in source.tensors.items())


def _source_of(export: Export) -> Path:
    if not isinstance(export.checkpoint, GgufCheckpoint):
        raise InputError(f"{export.checkpoint.name}: expected a GGUF file")
    return export.checkpoint.source


def _splice(file: GgufFile, factors: BoundFactors) -> Splice:
    planned = plan_splice(file, factors)
    values = {key: value for key, value in planned.values.items() if key not in (SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS)}
    return Splice(planned.factors, values, planned.arrays)


def _contents(file: GgufFile, splice: Splice) -> list[Content]:
    """The source's tensors in their order, new factors behind them."""
    float32 = int(gguf_library().GGMLQuantizationType.F32)
    found = {name: Content(info, partial(iter, (file.region(name),))) for name, info in file.tensors.items()}
    for name, data in splice.arrays.items():
        found[name] = Content(TensorInfo(name, data.shape, float32), partial(iter, (data,)))
    return list(found.values())


def _refuse_useless_options(options: GgufOptions) -> None:
    for name in ("name", "as_llama", "imatrix"):
        if getattr(options, name):
            raise InputError(f"the option {name} has no effect when a GGUF file keeps its weights; give an outtype too")
