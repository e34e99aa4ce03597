"""Factors into an existing GGUF file by splicing bytes: no weight is read as numbers, quantized or not, split or not.

    ┌ head ┬──────── data ────────┐        ┌ head' ┬──────── data ────────┬ factors ┐
    └──────┴──────────────────────┘   ──►  └───────┴──────────────────────┴─────────┘
     keys                                   keys changed, two tensors more; the data is copied as it is

Of a split file only the first part changes. A file that has factors already gets the new numbers in their place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import longrope
from converters.base import Check, FailedReadBackError
from converters.gguf.container import (
    SPLIT_COUNT,
    SPLIT_TENSORS,
    GgufFile,
    GgufPart,
    TensorInfo,
    Value,
    aligned,
    encode_head,
    f32,
    first_part,
    i32,
    part_path,
    text,
    u32,
)
from converters.gguf.layouts import LOADS_FREQS, LOADS_SETS
from converters.gguf.library import gguf_library
from converters.gguf.output import Output, Region
from converters.gguf.splicechecks import splice_checks
from converters.gguf.target import FACTORS_KEY, FREQS, LONG, OWN_PREFIX, SHORT
from longrope.architectures import ARCHITECTURES
from longrope.errors import InputError, UnsupportedError
from longrope.factors import BoundFactors, RescaleFactors
from longrope.files import staged

# Keys that would rescale the RoPE a second time.
_STALE = ("rope.scaling.factor", "rope.scale_linear", "rope.scaling.finetuned")


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
        factors: what is put in.
        values: all metadata.
        arrays: factor tensors by name.
    """

    factors: BoundFactors
    values: Mapping[str, Value]
    arrays: Mapping[str, NDArray[np.float32]]


def plan_splice(file: GgufFile, factors: RescaleFactors) -> Splice:
    """Check that the factors fit the file, and work out its new keys and tensors. Raises as `patch_gguf`."""
    _refuse_other_scaling(file)
    bound = bound_to_file(file, factors)
    single = file.architecture in LOADS_FREQS
    if bound.n_hat:
        raise UnsupportedError(f"GGUF cannot hold n_hat = {bound.n_hat} start tokens; export to ONNX, which can")
    if single and bound.factor_sets == "dual":
        raise UnsupportedError(
            f"llama.cpp's {file.architecture} takes one factor set for every context; use --factor-sets single"
        )
    sets = {FREQS: bound.long_factor} if single else {LONG: bound.long_factor, SHORT: bound.short_factor}
    arrays = {name: np.array(values, dtype=np.float32) for name, values in sets.items()}
    for name in sets:
        _refuse_odd_tensor(file, name, bound.num_pairs)
    return Splice(bound, _values(file, bound, arrays, single=single), arrays)


def bound_to_file(file: GgufFile, factors: RescaleFactors) -> BoundFactors:
    """The factors with the file's lengths, theta and rotary dimension filled in. Raises InputError on a contradiction."""
    row = ARCHITECTURES.get(factors.model_type or "")
    fits = row is None or file.architecture == row.gguf or (row.gguf_as_llama and file.architecture == "llama")
    if factors.model_type and not fits:
        raise InputError(f"the factors are for {factors.model_type}, the file holds a model of {file.architecture}")
    theta = float(file.model_key("rope.freq_base", 10_000.0))
    if factors.rope_theta is not None and f32(factors.rope_theta).data == theta:
        theta = factors.rope_theta  # the file has it rounded to float32
    return factors.bound_to(
        original=int(file.model_key("rope.scaling.original_context_length") or _required(file, "context_length")),
        rope_theta=theta,
        rotary_dim=rotary_dim(file),
        model_type=factors.model_type or file.architecture,
    )


def rotary_dim(file: GgufFile) -> int:
    """Dimensions of a head that are rotated, as llama.cpp derives them."""
    given = file.model_key("rope.dimension_count") or file.model_key("attention.key_length")
    return int(given or _required(file, "embedding_length") // _required(file, "attention.head_count"))


def _required(file: GgufFile, name: str) -> int:
    value = file.model_key(name)
    if value is None:
        raise InputError(f"{file.path}: expected the key {file.architecture}.{name}, found none")
    return int(value)


def _refuse_other_scaling(file: GgufFile) -> None:
    if file.architecture not in LOADS_SETS | LOADS_FREQS:
        raise UnsupportedError(
            f"{file.path}: llama.cpp's {file.architecture or 'unknown architecture'} uses no rope factors; it does for "
            f"{', '.join(sorted(LOADS_SETS | LOADS_FREQS))}"
        )
    kind = file.model_key("rope.scaling.type", "none")
    if kind not in ("none", "longrope"):
        raise InputError(
            f"{file.path}: its RoPE is already rescaled by {kind}; expected an unscaled or a longrope file"
        )
    if FREQS in file.tensors and file.architecture in LOADS_SETS:
        raise InputError(
            f"{file.path}: its RoPE is already rescaled by {FREQS}; expected an unscaled or a longrope file"
        )


def _refuse_odd_tensor(file: GgufFile, name: str, num_pairs: int) -> None:
    """A factor tensor that is there already is overwritten, so it must have the size of the new one."""
    info = file.tensors.get(name)
    float32 = int(gguf_library().GGMLQuantizationType.F32)
    if info is not None and (info.shape, info.type) != ((num_pairs,), float32):
        raise InputError(f"{file.path}: expected {name} as {num_pairs} float32 numbers, got another type or shape")
    if info is not None and name not in file.parts[0].tensors:
        raise InputError(f"{file.path}: {name} lies in a later part; expected it in the first")


def _values(
    file: GgufFile, factors: BoundFactors, arrays: Mapping[str, NDArray[np.float32]], *, single: bool
) -> dict[str, Value]:
    prefix = f"{file.architecture}."
    changed = {
        prefix + "context_length": u32(factors.target),
        **({} if single else {prefix + "rope.scaling.type": text("longrope")}),
        prefix + "rope.scaling.original_context_length": u32(factors.original),
        prefix + "rope.scaling.attn_factor": f32(factors.effective_attention_factor),
        OWN_PREFIX + "version": text(longrope.__version__),
        FACTORS_KEY: text(json.dumps(factors.to_json(), default=str)),
    }
    if SPLIT_COUNT in file.values:
        added = sum(name not in file.tensors for name in arrays)
        changed[SPLIT_TENSORS] = i32(len(file.tensors) + added)
    kept = {key: value for key, value in file.values.items() if key not in {prefix + name for name in _STALE}}
    return {**kept, **changed}


# -- writing


def _write_checked(file: GgufFile, splice: Splice, target: Path, *, in_place: bool, overwrite: bool) -> list[Check]:
    count = len(file.parts)
    final = target if in_place or count == 1 else part_path(target, 0, count)
    with staged(final, overwrite=overwrite) as temporary:
        write_splice(file.parts[0], splice, temporary)
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
    infos, size = _infos(part, splice.arrays)
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


def _infos(part: GgufPart, arrays: Mapping[str, NDArray[np.float32]]) -> tuple[list[TensorInfo], int]:
    """The tensors in their places, new ones behind the old; and the size of the data part."""
    infos = sorted(part.tensors.values(), key=lambda info: info.offset)
    end = max(map(_end, infos), default=0)
    for name, data in arrays.items():
        if name not in part.tensors:
            float32 = int(gguf_library().GGMLQuantizationType.F32)
            infos.append(TensorInfo(name, data.shape, float32, aligned(end, part.alignment)))
            end = _end(infos[-1])
    return infos, aligned(end, part.alignment)


def copy_file(source: Path, target: Path) -> None:
    """Copy a whole file."""
    with Output(target) as output:
        output.write(Region(source, 0, source.stat().st_size))
        output.sync()
