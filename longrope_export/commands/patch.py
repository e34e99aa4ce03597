"""`longrope-export patch`: factors into an existing GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from longrope.errors import InputError
from longrope.locks import refuse_occupied
from longrope.options import option
from longrope_export import options
from longrope_export.conversion import load_factors

if TYPE_CHECKING:
    from converters.base import Check


@dataclass(frozen=True, kw_only=True)
class PatchRequest:
    """The options of `patch`."""

    file: Path = option(argument=True, help="GGUF file to patch.")
    factors: Path = option(section="Factors", help="Factors to put in: a factors.json, or a Hub id with one.")
    factor_sets: options.FactorSetsWish = options.factor_sets()
    output: Path | None = options.output("GGUF file to write.", required=False)
    in_place: bool = option(
        False, section="Output", help="Replace FILE itself, by a rename once the new file is complete."
    )
    overwrite: bool = options.overwrite()


@options.command(PatchRequest)
def command(request: PatchRequest) -> int:
    """Put factors into a GGUF FILE of the same base model, quantized and split ones too; no weights are touched."""
    from longrope_export.console import ConsoleProgress

    checks = patch(request)
    ConsoleProgress().line(f"{request.output or request.file}: written; {len(checks)} read-back checks passed.")
    return 0


def patch(request: PatchRequest) -> list[Check]:
    """Put the factors in and return the read-back checks. Raises LongRopeError."""
    from converters import registry

    converter = registry.converter("gguf")
    converter.check_requirements()
    if not request.file.is_file():
        raise InputError(f"{request.file}: no such file")
    if (request.output is None) != request.in_place:
        raise InputError("expected either -o OUT.gguf or --in-place")
    refuse_occupied(request.output or request.file)
    from converters.gguf.patch import patch_gguf

    chosen = converter.choose_sets(load_factors(request.factors), request.factor_sets)
    return patch_gguf(request.file, chosen, request.output, in_place=request.in_place, overwrite=request.overwrite)
