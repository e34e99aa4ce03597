"""Which factors an artifact must carry, given what the caller knows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from converters.base import Check, Converter
from longrope.checkpoint import Checkpoint
from longrope.errors import FactorError
from longrope.factors import BoundFactors, RescaleFactors


@dataclasses.dataclass(frozen=True)
class Expectation:
    """Expected factors, and what about them could not be verified.

    Args:
        factors: what the artifact must have.
        reference: what the reference model is built with; holds every set of `factors`.
        notes: warnings for the report.
    """

    factors: BoundFactors
    reference: BoundFactors
    notes: tuple[Check, ...] = ()


def expected_factors(
    path: Path,
    converter: Converter,
    reference: Checkpoint,
    given: RescaleFactors | None = None,
    factor_sets: str = "auto",
) -> Expectation | None:
    """Expect the given factors; else what the reference carries; else what the artifact's exporter recorded in it.

    Returns:
        None when none of them knows any factors.
    """
    stored = _stored_factors(path, converter)
    if given is not None:
        known = reference.bind(given)
    elif reference.factors is not None:
        known = reference.factors
    else:
        return _from_artifact(path, converter, reference, stored)
    if factor_sets != "auto":
        return Expectation(known.with_sets(factor_sets), known)
    if stored is None or stored.factor_sets == known.factor_sets:
        return Expectation(known, known)
    if stored.factor_sets == "single":
        return Expectation(known.as_single(), known)
    return _unverified_short(known, stored)


def _stored_factors(path: Path, converter: Converter) -> RescaleFactors | None:
    """What the artifact holds; None, too, where that contradicts itself or its model, for the checks to say so."""
    try:
        return converter.read_factors(path)
    except FactorError:
        return None


def _unverified_short(known: BoundFactors, stored: RescaleFactors) -> Expectation:
    """The reference has one set, the artifact two: its short set can be run, but not verified."""
    wanted = dataclasses.replace(known, short_factor=stored.short_factor)
    message = (
        "the reference has a single set, so the artifact's short set is taken as it is; give the factors to check it"
    )
    return Expectation(wanted, wanted, (Check("factors.short_unverified", "warn", "single", "dual", message),))


def _from_artifact(
    path: Path, converter: Converter, reference: Checkpoint, stored: RescaleFactors | None
) -> Expectation | None:
    """The reference was not extended: take the exporter's record, or the artifact's factors and the formula's attention."""
    known, taken = converter.recorded_factors(path), "the record that its exporter put into the artifact"
    if known is None and stored is not None:
        known, taken = dataclasses.replace(stored, attention_factor=None), "the artifact's own factors"
    if known is None:
        return None
    message = f"the reference carries no factors, so {taken} are expected; give the factors to check them"
    note = Check("factors.unverified", "warn", "factors from outside the artifact", taken, message)
    bound = reference.bind(known.unbound())
    return Expectation(bound, bound, (note,))
