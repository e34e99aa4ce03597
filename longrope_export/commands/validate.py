"""`longrope-export validate`: one artifact against its reference: what it must carry, then what its runtime gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from longrope.machine import device_option, threads_option
from longrope.options import Lengths, ModelName, option
from longrope_export import options

if TYPE_CHECKING:
    from converters.parity import Validation
    from longrope.progress import Progress


@dataclass(frozen=True, kw_only=True)
class ValidateRequest:
    """The options of `validate`."""

    artifact: str = option(argument=True, help="Artifact to check: a folder, a GGUF file, or a Hub id.")
    reference: ModelName = option(
        section="Input", metavar="MODEL", help="Model that the artifact was made from, extended or not."
    )
    texts: tuple[Path, ...] = options.texts(required=True)
    windows: Lengths = options.windows("Lengths to measure perplexity, KL and top-1 at, in tokens.")
    factors: Path | None = option(
        None, section="Factors", unset="the reference's", help="File of the factors that the artifact must carry."
    )
    factor_sets: options.FactorSetsWish = options.factor_sets()
    json_path: str | None = options.json_file()
    device: str = device_option()
    threads: int | None = threads_option()
    windows_per_length: int = options.windows_per_length()
    crossing: bool = options.crossing()
    isolate: options.Isolate = options.isolate()


@options.command(ValidateRequest)
def command(request: ValidateRequest) -> int:
    """Check ARTIFACT against a reference model: keys, tensors, factors, then perplexity, KL and top-1 in its runtime."""
    from longrope_export.console import ConsoleProgress, write_json
    from longrope_export.tables import print_parity

    result = validate_artifact(request, ConsoleProgress())
    print_parity([result], err=request.json_path == "-")
    write_json(result.to_json(), request.json_path)
    return 0 if result.passed else 1


def validate_artifact(request: ValidateRequest, progress: Progress) -> Validation:
    """Static checks and parity of one artifact. Raises LongRopeError for input that cannot be used."""
    from converters import api, registry
    from longrope.text import load_corpus
    from longrope_export.conversion import load_factors
    from longrope_export.models import artifact_path, open_model

    path = artifact_path(request.artifact)
    registry.recognize(path).check_requirements()
    reference = open_model(request.reference)
    return api.validate(
        path,
        reference,
        load_corpus(request.texts, reference.encode),
        factors=load_factors(request.factors) if request.factors else None,
        factor_sets=request.factor_sets,
        windows=request.windows,
        windows_per_length=request.windows_per_length,
        crossing=request.crossing,
        device=request.device,
        threads=request.threads,
        isolate=request.isolate,
        progress=progress,
    )
