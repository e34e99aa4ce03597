"""`convert`: an extended model into one format in one call, what notebooks use and the command line wraps.

checkpoint, factors ──convert──► artifact, read back
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters import registry
from converters.base import Check, Export
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError
from longrope.factors import RescaleFactors
from longrope.progress import Progress, Silent


@dataclass(frozen=True)
class Conversion:
    """What `convert` wrote.

    Args:
        path: the artifact, of a split one its first part; a single-file format names it itself in a folder.
        checks: the read-back checks, none of them failed.
        files: the artifact's folder or its files, all parts of a split one.
    """

    path: Path
    checks: Sequence[Check]
    files: tuple[Path, ...]


def convert(
    checkpoint: Checkpoint,
    output: str | Path,
    *,
    to: str,
    factors: RescaleFactors | None = None,
    factor_sets: str = "auto",
    outtype: str | None = None,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Write one artifact with its factors inside, read everything back, and only then give it its name.

    Args:
        checkpoint: the source model.
        output: file or folder to write; a folder that exists takes a single-file format's own name.
        to: `hf`, `gguf`, `onnx`, or a format that another distribution registered.
        factors: rotary_dim / 2 factors a set; None for the checkpoint's own.
        factor_sets: `single`, `dual`, or `auto` for the format's preference.
        outtype: weight type, a name the format knows; None for its default.
        options: the format's own options.
        overwrite: replace what is at `output`.
        progress: where bars and warnings go; None for nowhere.

    Raises:
        InputError: there are no factors, they contradict the model, or the output exists.
        MissingRequirementError: a library of the format is missing.
        UnsupportedError: the format cannot express the model or the factors.
        FailedReadBackError: what was written is not what was asked; nothing is left behind.
    """
    progress, output = progress or Silent(), Path(output)
    converter = registry.converter(to)
    known = checkpoint.bind(factors) if factors is not None else checkpoint.factors
    if known is None:
        raise InputError(f"{checkpoint.name} has no rescale factors of its own, and none were given")
    chosen = converter.choose_sets(known, factor_sets, checkpoint)
    converter.check_requirements()
    planned = converter.plan(Export(checkpoint, chosen, outtype, options or {}))
    for oddity in (*checkpoint.oddities(), *planned.oddities, *chosen.oddities()):
        progress.warn(oddity)
    path = output / planned.file_name if converter.suffix and output.is_dir() else output
    checks = planned.save(path, progress, overwrite=overwrite)
    files = converter.files_of(path)
    return Conversion(files[0], checks, files)
