"""Which factors an artifact must carry, given what the caller knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from converters.base import Check, Converter
from longrope.checkpoint import Checkpoint
from longrope.errors import FactorError, InputError
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


# -- the record beside the runtime's own fields

# float32's rounding: a set that was read out of an artifact is expected in its precision.
_RECORD_TOLERANCE = 1e-6


def record_check(id: str, read: Callable[[], RescaleFactors | None], expected: BoundFactors) -> Check:
    """The factors that an exporter recorded in an artifact are those that runtimes read there; other tools leave none.

    Args:
        id: of the check.
        read: gives the record; raises InputError where it is damaged.
        expected: what the artifact must carry.
    """
    try:
        record = read()
    except InputError as error:
        return Check(id, "fail", "the factors", "broken", str(error))
    if record is None:
        return Check(id, "skip", message="no record of an exporter's")
    odd = [
        name for name in ("short_factor", "long_factor") if not _alike(getattr(record, name), getattr(expected, name))
    ]
    for name in ("n_hat", "original_max_position_embeddings", "target_length"):
        if getattr(record, name) not in (None, getattr(expected, name)):
            odd.append(name)
    return Check.equal(id, [], odd, "inspect, importers and a validation without other factors would be misled")


def _alike(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and bool(np.allclose(one, other, rtol=_RECORD_TOLERANCE, atol=0))
