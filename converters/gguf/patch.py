"""Factors into an existing GGUF file by splicing bytes: no weight is read as numbers, quantized or not, split or not.

    ┌ head ┬──────── data ────────┐        ┌ head' ┬──────── data ────────┬ factors ┐
    └──────┴──────────────────────┘   ──►  └───────┴──────────────────────┴─────────┘
     keys                                   keys changed, two tensors more; the data is copied as it is

    patch_gguf  one file, or the first part of a split one, spliced        GgufCopy  the same as an export, in parts if wanted

Of a split file only the first part changes. A file that has factors already gets the new numbers in their place.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from converters.base import Check, Export, FailedReadBackError, PlannedExport
from converters.gguf.blueprint import GgufOptions, write_export
from converters.gguf.carriers import COMPUTES_FAMILIES, LOADS_FREQS, LOADS_SETS, TARGETS, GgufRope
from converters.gguf.checks import checks_of_file
from converters.gguf.container import (
    SPLIT_SET,
    GgufFile,
    GgufPart,
    Region,
    TensorInfo,
    Value,
    aligned,
    f32,
    first_part,
    i32,
    part_path,
    text,
    type_name,
    u32,
)
from converters.gguf.factors import (
    FREQS,
    LONG,
    SHORT,
    factor_arrays,
    factor_info,
    own_record,
    require_expressible,
    scaling_values,
)
from converters.gguf.file_rope import put_on_file
from converters.gguf.native import gguf
from converters.gguf.source import GgufCheckpoint
from converters.gguf.splice_checks import splice_checks
from converters.gguf.weights import outtype_named
from converters.gguf.writing import Content, Output, encode_head, write_gguf
from longrope.errors import InputError, UnsupportedError
from longrope.factors import BoundFactors, RescaleFactors
from longrope.family import RopeFamily
from longrope.files import staged
from longrope.progress import Progress

# What a file says its RoPE by.
_ROPE_KEYS = ("rope.scaling.", "rope.scale_linear")


def patch_gguf(
    source: Path, factors: RescaleFactors, out: Path | None = None, *, in_place: bool = False, overwrite: bool = False
) -> list[Check]:
    """Put factors into a GGUF file of the same base model.

    Args:
        source: the file, or the first part of a split one; quantized or not.
        factors: what they leave open (lengths, theta) is taken from the file.
        out: a new file; parts of a split source are named after it. None with `in_place`.
        in_place: replace `source` by a rename when the new file is complete; a crash leaves the old one whole.
        overwrite: `out` may exist.

    Returns:
        The checks of what was written, all of them without a failure.

    Raises:
        InputError: a broken file, or the factors contradict it.
        UnsupportedError: llama.cpp does not use factors for this architecture, or they cannot be held.
    """
    source = first_part(source)
    if (out is None) != in_place:
        raise InputError("give either an output or in_place, not both")
    with GgufFile(source) as file:
        splice = plan_splice(file, factors)
        target = source if in_place else out
        assert target is not None
        return _write_checked(file, splice, target, in_place=in_place, overwrite=overwrite or in_place)


@dataclass(frozen=True)
class Splice:
    """What becomes of a file.

    Args:
        values: all metadata.
        arrays: factor tensors by name.
    """

    values: Mapping[str, Value]
    arrays: Mapping[str, NDArray[np.float32]]

    def renamed(self, name: str) -> str:
        """What a tensor of the file is called now: the one set of a base RoPE gives its place to the long set.

        A tensor cannot just go, for llama.cpp wants them without gaps.
        """
        return LONG if name == FREQS and FREQS not in self.arrays else name


def plan_splice(file: GgufFile, factors: RescaleFactors) -> Splice:
    """Check that the factors fit the file, and work out its new keys and tensors. Raises as `patch_gguf`."""
    _refuse_other_architectures(file, factors)
    bound = put_on_file(file, factors)
    rope: GgufRope = "freqs" if file.architecture in LOADS_FREQS else "sets"
    require_expressible(bound, file.architecture, rope)
    arrays = factor_arrays(bound, rope)
    for name in (*arrays, FREQS):
        _refuse_misfit_tensor(file, name, bound.num_pairs)
    return Splice(_values(file, bound, rope, arrays), arrays)


def _refuse_other_architectures(file: GgufFile, factors: RescaleFactors) -> None:
    if factors.family is not None:
        _refuse_unknown_to_family(file, factors.family)
    elif file.architecture not in LOADS_SETS | LOADS_FREQS:
        raise UnsupportedError(
            f"{file.path}: llama.cpp's {file.architecture or 'unknown architecture'} uses no rope factors; it does for "
            f"{', '.join(sorted(LOADS_SETS | LOADS_FREQS))}"
        )


def _refuse_unknown_to_family(file: GgufFile, family: RopeFamily) -> None:
    """Parameters are keys: refused where llama.cpp was not compared with transformers, or factors would stay beside."""
    if file.architecture not in COMPUTES_FAMILIES:
        raise UnsupportedError(
            f"{file.path}: whether llama.cpp's {file.architecture or 'unknown architecture'} computes {family.type} as "
            f"transformers does is not known here; it does in {', '.join(sorted(COMPUTES_FAMILIES))}"
        )
    if present := [name for name in (LONG, SHORT, FREQS) if name in file.tensors]:
        raise UnsupportedError(
            f"{file.path}: holds factors already ({present[0]}), which llama.cpp would apply beside {family.type}; give an "
            "outtype, so that the file is written anew"
        )


def _refuse_misfit_tensor(file: GgufFile, name: str, num_pairs: int) -> None:
    """A factor tensor that is there already is overwritten, so it must have the size of the new one."""
    info = file.tensors.get(name)
    if info is not None and (info.shape, info.type) != ((num_pairs,), gguf.GGMLQuantizationType.F32):
        raise InputError(f"{file.path}: expected {name} as {num_pairs} float32 numbers, got another type or shape")
    if info is not None and name not in file.parts[0].tensors:
        raise InputError(f"{file.path}: {name} lies in a later part; expected it in the first")


def _values(
    file: GgufFile, factors: BoundFactors, rope: GgufRope, arrays: Mapping[str, NDArray[np.float32]]
) -> dict[str, Value]:
    prefix = f"{file.architecture}."
    scaling = {"context_length": u32(factors.target), **scaling_values(factors, rope)}
    if factors.family is not None:
        scaling["rope.freq_base"] = f32(factors.written_theta)
    changed = {**{prefix + name: value for name, value in scaling.items()}, **own_record(factors)}
    split = gguf.Keys.Split
    if split.LLM_KV_SPLIT_COUNT in file.values:
        left = set(file.tensors) - {FREQS}
        changed[split.LLM_KV_SPLIT_TENSORS_COUNT] = i32(len(left | set(arrays)))
    rope_keys = tuple(prefix + name for name in _ROPE_KEYS)
    kept = {key: value for key, value in file.values.items() if key in changed or not key.startswith(rope_keys)}
    return {**kept, **changed}


# -- writing


def _write_checked(file: GgufFile, splice: Splice, target: Path, *, in_place: bool, overwrite: bool) -> list[Check]:
    count = len(file.parts)
    final = target if in_place or count == 1 else part_path(target, 0, count)
    with staged(final, overwrite=overwrite) as temporary:
        write_splice(file.parts[0], splice, temporary)
        if in_place:
            shutil.copymode(final, temporary)
        checks = _checked(temporary, file.parts[0], splice)
        for index in range(1, 1 if in_place else count):
            copy_file(file.parts[index].path, temporary.with_name(part_path(target, index, count).name))
    return checks


def _checked(path: Path, before: GgufPart, splice: Splice) -> list[Check]:
    after = GgufPart(path)
    try:
        checks = splice_checks(after, before, splice.values, splice.arrays)
    finally:
        after.close()
    failed = [check for check in checks if check.status == "fail"]
    if failed:
        raise FailedReadBackError(path, failed)
    return checks


def write_splice(part: GgufPart, splice: Splice, path: Path) -> None:
    """Write one file, or the first part of a split one, with its new head and the factors in it."""
    infos, size = _infos(part, splice)
    head = encode_head(splice.values, infos, part.alignment)
    with Output(path) as output:
        output.reserve(len(head) + size)
        output.write(head)
        for start, info in zip([0, *(_end(info) for info in infos)], infos, strict=False):
            output.write(bytes(info.offset - start))
            if info.name in splice.arrays:
                output.write(splice.arrays[info.name])
            else:
                output.write(Region(part.path, part.data_start + info.offset, info.nbytes))
        output.write(bytes(size - _end(infos[-1])))
        output.sync()


def _end(info: TensorInfo) -> int:
    return info.offset + info.nbytes


def _infos(part: GgufPart, splice: Splice) -> tuple[list[TensorInfo], int]:
    """The tensors in their places, new ones behind the old; and the size of the data part."""
    before = sorted(part.tensors.values(), key=lambda info: info.offset)
    infos = [dataclasses.replace(info, name=splice.renamed(info.name)) for info in before]
    end, names = max(map(_end, infos), default=0), {info.name for info in infos}
    for name, data in splice.arrays.items():
        if name not in names:
            infos.append(dataclasses.replace(factor_info(name, data), offset=aligned(end, part.alignment)))
            end = _end(infos[-1])
    return infos, aligned(end, part.alignment)


def copy_file(source: Path, target: Path) -> None:
    """Copy a whole file."""
    with Output(target) as output:
        output.write(Region(source, 0, source.stat().st_size))
        output.sync()


# -- a whole export that keeps the weights of its GGUF source


class GgufCopy(PlannedExport):
    """A GGUF source with other factors, its weights kept as they are: nothing becomes a float on the way.

    Args:
        export: what is written; its checkpoint is `source`.
        source: a GGUF file.

    Raises:
        InputError, UnsupportedError: as `plan_splice`; or an option that has no effect here.
    """

    def __init__(self, export: Export, source: GgufCheckpoint) -> None:
        super().__init__(export)
        self.source = source
        self.options = GgufOptions.of(export.options)
        for name in ("name", "carrier", "as_llama", "imatrix"):
            if getattr(self.options, name) is not None:
                raise InputError(
                    f"the option {name} has no effect when a GGUF file keeps its weights; give an outtype too"
                )
        self._splice = plan_splice(source.file, export.factors)

    @property
    def file_name(self) -> str:
        """A copied file keeps its name."""
        return self.source.file.path.name

    def with_factors(self, factors: BoundFactors) -> Self:
        return type(self)(dataclasses.replace(self.export, factors=factors), self.source)

    def values(self) -> dict[str, Value]:
        """All metadata of the copy as one file."""
        return _whole(self._splice.values)

    def contents(self) -> list[Content]:
        """The source's tensors in their order, new factors behind them."""
        file = self.source.file
        kept = {name: info for name, info in file.tensors.items() if name == self._splice.renamed(name)}
        found = {name: Content(info, partial(iter, (file.region(name),))) for name, info in kept.items()}
        for name, data in self._splice.arrays.items():
            found[name] = Content(factor_info(name, data), partial(iter, (data,)))
        return list(found.values())

    def write(self, path: Path, progress: Progress) -> None:
        write_export(path, self.values(), self.contents(), self.options, self.source.file, progress)

    def check(self, path: Path, *, sampled: bool = False) -> list[Check]:
        """Compare a file with the source it was copied from, byte for byte."""

        def checks(file: GgufFile) -> list[Check]:
            source, arrays = self.source.file, self._splice.arrays
            return splice_checks(_AsOneFile(file), source, self.values(), arrays, whole=True)

        return checks_of_file(path, checks)


def keeps_weights(source: GgufCheckpoint, factors: BoundFactors, outtype: str | None) -> bool:
    """Whether the weights of a GGUF source are of the wanted type already, or no type was asked for, in an architecture that
    holds these factors."""
    if factors.family is None and source.file.architecture not in LOADS_SETS | LOADS_FREQS:
        return False
    if outtype is None:
        return True
    tensors = source.file.tensors.values()
    return {type_name(info.type) for info in tensors if len(info.shape) > 1} == {outtype_named(outtype).name}


def may_be_copy(file: GgufFile, source: GgufFile) -> bool:
    """Whether all matrices have the source's type, so that they can be its bytes."""
    return all(name in file.tensors and file.tensors[name].type == info.type for name, info in source.tensors.items())


class _AsOneFile:
    """A file without the keys of a split, which say nothing of the model."""

    def __init__(self, file: GgufFile) -> None:
        self.values, self.tensors, self.raw = _whole(file.values), file.tensors, file.raw


def _whole(values: Mapping[str, Value]) -> dict[str, Value]:
    split = gguf.Keys.Split
    keys = (split.LLM_KV_SPLIT_NO, split.LLM_KV_SPLIT_COUNT, split.LLM_KV_SPLIT_TENSORS_COUNT, SPLIT_SET)
    return {key: value for key, value in values.items() if key not in keys}


# -- a file of factors alone


def write_factors(path: Path, factors: BoundFactors) -> None:
    """Write a file of factors and nothing else: both sets, under the names that llama.cpp reads, with a model's keys.

    Raises:
        UnsupportedError: start tokens, which GGUF cannot hold.
    """
    rows = TARGETS.get(factors.model_type, ())
    architecture = rows[0].architecture if rows else factors.model_type
    require_expressible(factors, architecture, "sets")
    keys: dict[str, Value] = {
        "context_length": u32(factors.target),
        "rope.freq_base": f32(factors.rope_theta),
        "rope.dimension_count": u32(factors.rotary_dim),
        **scaling_values(factors, "sets"),
    }
    values = {
        gguf.Keys.General.ARCHITECTURE: text(architecture),
        **{f"{architecture}.{key}": value for key, value in keys.items()},
        **own_record(factors),
    }
    arrays = factor_arrays(factors, "sets")
    contents = [Content(factor_info(name, data), partial(list, (data,))) for name, data in arrays.items()]
    write_gguf(path, values, contents)
