"""Which factors, and which of their sets, an artifact gets."""

from __future__ import annotations

from pathlib import Path

from converters.base import Converter
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError
from longrope.factors import RescaleFactors


def known_factors(checkpoint: Checkpoint, file: Path | None) -> RescaleFactors:
    """The factors of a file, bound to the model, or the model's own. Raises InputError when there are neither."""
    if file is not None:
        return checkpoint.bind(RescaleFactors.load(file))
    if checkpoint.factors is None:
        raise InputError(f"{checkpoint.name} has no rescale factors; pass --factors FACTORS.json")
    return checkpoint.factors


def chosen_sets(converter: Converter, factors: RescaleFactors, factor_sets: str) -> RescaleFactors:
    """`auto`: dual where the format prefers it and a short set is there, else single. A given choice is honoured."""
    if factor_sets == "auto":
        return factors if converter.auto_factor_sets == "dual" else factors.as_single()
    return factors.with_sets("dual" if factor_sets == "dual" else "single")
