"""Safetensors files: copied byte for byte or cast tensor by tensor, and compared with the reference."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from converters.base import Check
from longrope.checkpoint import DERIVED, SAMPLE, SAMPLE_EVERY, Checkpoint
from longrope.errors import InputError, UnsupportedError
from longrope.files import sync, write_json
from longrope.progress import Progress
from longrope.reading import said_by
from longrope.weights import FLOATS, INDEX, SINGLE, data_start, safetensors_header

DTYPE_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_COPIED_AT_ONCE = 16 << 20
# Files that are copied side by side; a cast holds a whole one in memory.
_COPIES = 4
# Bytes of a tensor that are read at a time: what a processor's cache holds.
_COMPARED_AT_ONCE = 1 << 20


def copy(checkpoint: Checkpoint, folder: Path, outtype: str, progress: Progress) -> None:
    """Write a checkpoint's weight files, and their index where there are several, into `folder`.

    Args:
        checkpoint: where from; names that training tools have left are mended.
        folder: where to.
        outtype: `auto` keeps the tensors' bytes; f32, f16 and bf16 cast them.
        progress: shows a task.
    """

    def write(file: Path) -> None:
        if outtype != "auto":
            _cast(checkpoint, file, folder / file.name, outtype)
        elif all(name == checkpoint.weight_names[name] for name in checkpoint.weight_headers[file]):
            shutil.copyfile(file, folder / file.name)
        else:
            _renamed(checkpoint, file, folder / file.name)
        sync(folder / file.name)  # here, so that one file goes to the disk while the next is read

    workers = _COPIES if outtype == "auto" else 1
    with progress.task("write hf", len(checkpoint.weight_files)) as task, ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(write, checkpoint.weight_files):
            task.advance()
    if (len(checkpoint.weight_files) > 1) or checkpoint.weight_files[0].name != SINGLE:
        _write_index(checkpoint, folder / INDEX)


def _renamed(checkpoint: Checkpoint, source: Path, target: Path) -> None:
    """The same tensors' bytes under the model's names."""
    header = {checkpoint.weight_names[name]: entry for name, entry in checkpoint.weight_headers[source].items()}
    encoded = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    encoded += b" " * (-len(encoded) % 8)
    with source.open("rb") as old, target.open("wb") as new:
        old.seek(data_start(old))
        new.write(len(encoded).to_bytes(8, "little") + encoded)
        shutil.copyfileobj(old, new, _COPIED_AT_ONCE)


def _cast(checkpoint: Checkpoint, source: Path, target: Path, outtype: str) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    dtype, names = getattr(torch, DTYPE_NAMES[outtype]), checkpoint.weight_names
    with said_by("safetensors", str(source)), safe_open(source, "pt") as file:
        cast = {names[name]: _finite(file, source, name).to(dtype) for name in file.keys()}  # noqa: SIM118  not a dict
    if outtype == "f16" and not all(bool(torch.isfinite(tensor).all()) for tensor in cast.values()):
        raise UnsupportedError(f"{source.name}: weights beyond 65504 do not fit f16; use --outtype bf16 or f32")
    target.touch()
    mode = target.stat().st_mode & 0o777  # by the umask; save_file's own file is readable by its owner alone
    save_file(cast, target, metadata={"format": "pt"})
    target.chmod(mode)


def _finite(file: Any, source: Path, name: str) -> Any:
    """A tensor of an open file. Raises InputError where it holds NaN or infinity."""
    tensor = file.get_tensor(name)
    if not bool(tensor.isfinite().all()):
        raise InputError(f"{source}: {name} holds NaN or infinity; take weights that are finite")
    return tensor


def _write_index(checkpoint: Checkpoint, path: Path) -> None:
    """model.safetensors.index.json of the files as they have been written beside it."""
    headers = {file.name: safetensors_header(path.parent / file.name) for file in checkpoint.weight_files}
    spans = [entry["data_offsets"] for header in headers.values() for entry in header.values()]
    table = {name: file for file, header in headers.items() for name in header}
    size = sum(end - start for start, end in spans)
    write_json(path, {"metadata": {"total_size": size}, "weight_map": dict(sorted(table.items()))})


def types(checkpoint: Checkpoint) -> dict[str, int]:
    """How many tensors of a checkpoint have each weight type, by the type's name in safetensors."""
    return dict(Counter(entry["dtype"] for header in checkpoint.weight_headers.values() for entry in header.values()))


def dtypes(checkpoint: Checkpoint) -> set[str]:
    """Names of the weight types in a checkpoint."""
    return set(types(checkpoint))


def check(artifact: Checkpoint, reference: Checkpoint, *, sampled: bool = False) -> Check:
    """Every tensor equal to the reference's, after rounding to the artifact's type.

    Args:
        artifact, reference: the checkpoints.
        sampled: of tensors of the reference's own type, which the system has copied a moment ago, compare both ends and a
            block in every so many bytes.
    """
    id = "hf.weights"
    actual, expected = _index(artifact), _index(reference)
    derived = {name for name in set(actual) ^ set(expected) if DERIVED.fullmatch(name)}
    actual, expected = ({name: each[name] for name in each if name not in derived} for each in (actual, expected))
    if set(actual) != set(expected):
        odd = sorted(set(actual) ^ set(expected))
        return Check(id, "fail", f"{len(expected)} tensors", f"{len(actual)} tensors", f"first difference: {odd[0]}")
    for name in sorted(actual):
        ours, theirs = actual[name], expected[name]
        if ours.shape != theirs.shape:
            return Check(id, "fail", list(theirs.shape), list(ours.shape), f"{name} has another shape")
        if ours.dtype != theirs.dtype and ours.dtype not in FLOATS:
            return Check(id, "fail", theirs.dtype, ours.dtype, f"{name} is packed, and nothing says how")
        if not (_same_bytes(ours, theirs, sampled) if ours.dtype == theirs.dtype else _is_cast(ours, theirs)):
            return Check(id, "fail", "the reference's weights", "others", f"{name} differs")
    how = "equal where sampled" if sampled else "equal"
    return Check(id, "pass", f"{len(expected)} tensors", f"{len(actual)} tensors, {how}")


@dataclass(frozen=True)
class _Stored:
    """A tensor in a file: its name there, its type, its shape, and where its bytes are."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def _index(checkpoint: Checkpoint) -> dict[str, _Stored]:
    """The tensors by their name in the model."""
    return {
        checkpoint.weight_names[name]: stored
        for file, header in checkpoint.weight_headers.items()
        for name, stored in _stored(file, header)
    }


def _stored(file: Path, header: Mapping[str, Any]) -> Iterator[tuple[str, _Stored]]:
    with file.open("rb") as handle:
        data = data_start(handle)
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        yield name, _Stored(file, name, entry["dtype"], tuple(entry["shape"]), data + start, end - start)


def _same_bytes(one: _Stored, other: _Stored, sampled: bool) -> bool:
    """Whether two tensors of one type are the same; some megabytes of each are in memory at a time."""
    if one.size != other.size:
        return False
    with one.file.open("rb") as first, other.file.open("rb") as second:
        return all(
            _read(first, one.start + at, size) == _read(second, other.start + at, size)
            for at, size in _blocks(one.size, sampled)
        )


def _read(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


def _blocks(size: int, sampled: bool) -> Iterator[tuple[int, int]]:
    """Start and length of what is compared of a tensor."""
    step, length = (SAMPLE_EVERY, SAMPLE) if sampled else (_COMPARED_AT_ONCE, _COMPARED_AT_ONCE)
    for at in range(0, size, step):
        yield at, min(length, size - at)
    if sampled and size > length:
        yield size - length, length


def _is_cast(ours: _Stored, theirs: _Stored) -> bool:
    """Whether the first tensor is the second one, rounded to its type."""
    import torch
    from safetensors import safe_open

    with (
        said_by("safetensors", f"{ours.file}, {theirs.file}"),
        safe_open(ours.file, "pt") as artifact,
        safe_open(theirs.file, "pt") as reference,
    ):
        tensor = artifact.get_tensor(ours.name)
        return torch.equal(tensor, reference.get_tensor(theirs.name).to(tensor.dtype))
