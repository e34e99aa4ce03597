"""Which factors an artifact gets."""

from __future__ import annotations

from pathlib import Path

from longrope.checkpoint import Checkpoint
from longrope.errors import InputError
from longrope.factors import BoundFactors, RescaleFactors


def known_factors(checkpoint: Checkpoint, file: Path | None) -> BoundFactors:
    """The factors of a file, bound to the model, or the model's own. Raises InputError when there are neither."""
    if file is not None:
        return checkpoint.bind(RescaleFactors.load(file))
    if checkpoint.factors is None:
        raise InputError(f"{checkpoint.name} has no rescale factors; pass --factors FACTORS.json")
    return checkpoint.factors
