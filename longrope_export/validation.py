"""Validate one artifact as the command line does: find its format, decide what it must carry, measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from converters import registry
from converters.base import Check
from converters.parity import Artifact, ValidateOptions, Validation, validate
from longrope.progress import Progress
from longrope.provenance import provenance
from longrope.text import load_corpus
from longrope_export.expectations import expected_factors
from longrope_export.models import open_model


@dataclass(frozen=True)
class ValidateRequest:
    """The arguments of `validate`.

    Args:
        windows: lengths in tokens; empty for the original window and the target.
        factors: a factors.json that the artifact must carry; None takes them from the reference.
    """

    artifact: Path
    reference: str
    texts: Sequence[Path]
    windows: tuple[int, ...] = ()
    windows_per_length: int = 4
    factors: Path | None = None
    factor_sets: str = "auto"
    crossing: bool = True
    threads: int | None = None
    device: str = "cpu"


def validate_artifact(request: ValidateRequest, progress: Progress) -> Validation:
    """Static checks and parity of one artifact. Raises LongRopeError for input that cannot be used."""
    converter = registry.recognize(request.artifact)
    converter.check_requirements()
    reference = open_model(request.reference)
    expectation = expected_factors(request.artifact, converter, reference, request.factors, request.factor_sets)
    if expectation is None:
        return _without_factors(request, converter.name)
    corpus = load_corpus(list(request.texts), reference.encode)
    options = ValidateOptions(
        windows=request.windows or (expectation.factors.original, expectation.factors.target),
        windows_per_length=request.windows_per_length,
        crossing=request.crossing,
        threads=request.threads,
        device=request.device,
    )
    planned = converter.plan_of(request.artifact, expectation.factors, reference)
    artifact = Artifact(request.artifact, converter, planned)
    (result,) = validate([artifact], reference, expectation.reference, corpus, options, progress)
    result.checks = [*expectation.notes, *result.checks]
    return result


def _without_factors(request: ValidateRequest, format_name: str) -> Validation:
    """Nobody knows any factors: the artifact is not an extended model."""
    message = "neither the artifact nor the reference carries any; pass --factors to say what the artifact should have"
    check = Check(f"{format_name}.factors", "fail", "rescale factors", None, message)
    return Validation(str(request.artifact), format_name, request.reference, [check], provenance=provenance())
