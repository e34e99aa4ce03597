"""Convert one model as the command line does. Imports neither torch nor transformers unless the format needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from converters import registry
from converters.base import Check, Converter, Export
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError
from longrope.factors import BoundFactors, RescaleFactors
from longrope.files import refuse_existing
from longrope.progress import Progress
from longrope_export.models import open_model

Factors = TypeVar("Factors", bound=RescaleFactors)
WORDS = {"true": True, "false": False}


@dataclass(frozen=True)
class ConvertRequest:
    """The arguments of `convert`."""

    model: str
    format: str
    output: Path
    factors: Path | None = None
    factor_sets: str = "auto"
    outtype: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False


def convert(request: ConvertRequest, progress: Progress) -> tuple[Path, list[Check]]:
    """Write one artifact.

    Returns:
        Its path, which a single-file format chooses itself when the output is a folder, and the read-back checks.

    Raises:
        LongRopeError: nothing is left behind.
    """
    converter = registry.converter(request.format)
    into_folder = bool(converter.suffix) and request.output.is_dir()
    if not into_folder:
        refuse_existing(request.output, overwrite=request.overwrite)
    checkpoint = open_model(request.model)
    factors = chosen_sets(converter, known_factors(checkpoint, request.factors), request.factor_sets)
    for oddity in factors.oddities():
        progress.warn(oddity)
    export = Export(checkpoint, factors, request.outtype, request.options)
    converter.check_requirements()
    planned = converter.plan(export)
    path = request.output / planned.file_name if into_folder else request.output
    return path, planned.save(path, progress, overwrite=request.overwrite)


def patch(
    file: Path, factors: Path, output: Path | None, *, in_place: bool, overwrite: bool, factor_sets: str = "auto"
) -> list[Check]:
    """Put a factors.json into an existing GGUF file and return the read-back checks. Raises LongRopeError."""
    converter = registry.converter("gguf")
    converter.check_requirements()
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    if (output is None) != in_place:
        raise InputError("expected either -o OUT.gguf or --in-place")
    from converters.gguf.patch import patch_gguf

    chosen = chosen_sets(converter, RescaleFactors.load(factors), factor_sets)
    return patch_gguf(file, chosen, output, in_place=in_place, overwrite=overwrite)


def known_factors(checkpoint: Checkpoint, file: Path | None) -> BoundFactors:
    """The factors of a file, bound to the model, or the model's own. Raises InputError when there are neither."""
    if file is not None:
        return checkpoint.bind(RescaleFactors.load(file))
    if checkpoint.factors is None:
        raise InputError(f"{checkpoint.name} has no rescale factors; pass --factors FACTORS.json")
    return checkpoint.factors


def chosen_sets(converter: Converter, factors: Factors, factor_sets: str) -> Factors:
    """`auto`: dual where the format prefers it and a short set is there, else single. A given choice is honoured."""
    if factor_sets == "auto":
        return factors if converter.auto_factor_sets == "dual" else factors.as_single()
    return factors.with_sets("dual" if factor_sets == "dual" else "single")


def parse_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` options as a mapping; true, false and whole numbers are taken as such. Raises InputError otherwise."""
    parsed: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise InputError(f"--option {pair}: expected KEY=VALUE")
        parsed[key] = WORDS.get(value.lower(), int(value) if value.isdigit() else value)
    return parsed
