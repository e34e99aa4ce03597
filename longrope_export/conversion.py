"""Which factors an artifact gets: those of a file here or of a repository on the Hub, or the model's own."""

from __future__ import annotations

from pathlib import Path

from longrope.checkpoint import Checkpoint
from longrope.errors import InputError
from longrope.factors import BoundFactors, RescaleFactors
from longrope.hub import hub_id_of, hub_snapshot

# What `publish FACTORS.json` calls the file.
FACTORS_FILE = "factors.json"


def load_factors(file: Path) -> RescaleFactors:
    """A factors.json, or where no such file is here, that of a repository on the Hub, `org/name` or `org/name@revision`.

    Raises:
        InputError: neither is there.
        MissingRequirementError: the Hub cannot be reached.
    """
    hub_id = hub_id_of(str(file))
    if hub_id is None:
        return RescaleFactors.load(file)
    found = hub_snapshot(hub_id, (FACTORS_FILE,)) / FACTORS_FILE
    if not found.is_file():
        raise InputError(
            f"{hub_id}: has no {FACTORS_FILE}; `longrope-export factors import {hub_id} -o {FACTORS_FILE}` takes the "
            "model's own"
        )
    return RescaleFactors.load(found)


def known_factors(checkpoint: Checkpoint, file: Path | None) -> BoundFactors:
    """The factors of a file, bound to the model, or the model's own. Raises InputError when there are neither."""
    if file is not None:
        return checkpoint.bind(load_factors(file))
    if checkpoint.factors is None:
        raise InputError(f"{checkpoint.name} has no rescale factors; pass --factors FACTORS.json")
    return checkpoint.factors
