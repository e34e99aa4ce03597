"""Safetensors files: copied byte for byte or cast tensor by tensor, and compared with the reference."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from converters.base import Check
from longrope.checkpoint import Checkpoint, safetensors_header
from longrope.errors import UnsupportedError

DTYPE_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def copy(source: Path, target: Path, outtype: str) -> None:
    """Write `source`'s tensors to `target`: as they are for `auto`, else cast to `outtype` (f32, f16, bf16)."""
    if outtype == "auto":
        shutil.copyfile(source, target)
        return
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    dtype = getattr(torch, DTYPE_NAMES[outtype])
    with safe_open(source, "pt") as file:
        cast = {name: file.get_tensor(name).to(dtype) for name in file.keys()}  # noqa: SIM118  not a dict
    if outtype == "f16" and not all(bool(torch.isfinite(tensor).all()) for tensor in cast.values()):
        raise UnsupportedError(f"{source.name}: weights beyond 65504 do not fit f16; use --outtype bf16 or f32")
    target.touch()
    mode = target.stat().st_mode & 0o777  # by the umask; save_file's own file is readable by its owner alone
    save_file(cast, target, metadata={"format": "pt"})
    target.chmod(mode)


def dtypes(checkpoint: Checkpoint) -> set[str]:
    """Names of the weight types in a checkpoint."""
    return {entry["dtype"] for file in checkpoint.weight_files for entry in safetensors_header(file).values()}


def check(artifact: Checkpoint, reference: Checkpoint) -> Check:
    """Every tensor equal to the reference's, after rounding to the artifact's type."""
    import torch

    id = "hf.weights"
    actual, expected = _index(artifact), _index(reference)
    if set(actual) != set(expected):
        odd = sorted(set(actual) ^ set(expected))
        return Check(id, "fail", f"{len(expected)} tensors", f"{len(actual)} tensors", f"first difference: {odd[0]}")
    for name in sorted(actual):
        ours, theirs = _tensor(actual[name], name), _tensor(expected[name], name)
        if ours.shape != theirs.shape:
            return Check(id, "fail", list(theirs.shape), list(ours.shape), f"{name} has another shape")
        if not torch.equal(ours, theirs.to(ours.dtype)):
            return Check(id, "fail", "the reference's weights", "others", f"{name} differs")
    return Check(id, "pass", f"{len(expected)} tensors", f"{len(actual)} equal tensors")


def _index(checkpoint: Checkpoint) -> dict[str, Path]:
    return {name: file for file in checkpoint.weight_files for name in safetensors_header(file)}


def _tensor(file: Path, name: str) -> Any:
    from safetensors import safe_open

    with safe_open(file, "pt") as handle:
        return handle.get_tensor(name)
