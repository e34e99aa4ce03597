"""`longrope-export validate`: one artifact against its reference: what it must carry, then what its runtime gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrope.errors import InputError
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
    texts: tuple[Path, ...] = options.texts(required=False)
    static: bool = option(
        False, section="Input", help="Check keys, tensors, factors and weights, and run nothing; takes no --text."
    )
    windows: Lengths = options.windows("Lengths to measure perplexity, KL and top-1 at, in tokens.")
    factors: Path | None = option(
        None, section="Factors", unset="the reference's", help="File of the factors that the artifact must carry."
    )
    factor_sets: options.FactorSetsWish = options.factor_sets()
    json_path: str | None = options.json_file()
    junit: Path | None = option(None, section="Output", metavar="FILE", help="Write the checks as JUnit XML to a file.")
    markdown: Path | None = option(
        None, section="Output", metavar="FILE", help="Write a report for a comment on a pull request, as Markdown."
    )
    github: bool = option(
        False, section="Output", help="Annotate the run of GitHub Actions, and append the report to its step summary."
    )
    device: str = device_option()
    threads: int | None = threads_option()
    windows_per_length: int = options.windows_per_length()
    crossing: bool = options.crossing()
    isolate: options.Isolate = options.isolate()

    def __post_init__(self) -> None:
        if self.static and (self.texts or self.windows):
            raise InputError("static checks run nothing: expected neither texts nor windows beside --static")
        if not self.static and not self.texts:
            raise InputError("expected texts to measure on: --text, or --static for the checks that need none")


@options.command(ValidateRequest)
def command(request: ValidateRequest) -> int:
    """Check ARTIFACT against a reference model: keys, tensors, factors, then perplexity, KL and top-1 in its runtime."""
    from longrope_export.console import ConsoleProgress, write_json
    from longrope_export.tables import print_parity

    progress = ConsoleProgress()
    result = validate_artifact(request, progress)
    if request.static:
        progress.line(f"{len(result.checks) - 1} static checks; nothing was run")
    print_parity([result], err=request.json_path == "-")
    write_json(result.to_json(), request.json_path)
    write_reports([result.to_json()], request, progress)
    return 0 if result.passed else 1


def write_reports(entries: Sequence[Mapping[str, Any]], request: ValidateRequest, progress: Progress) -> None:
    """Write what a pipeline asked for, of entries of validation.json. Raises InputError for a file that cannot be written."""
    from longrope.files import write_atomically
    from longrope_export.ci import github, junit, markdown
    from longrope_export.ci.suites import suites_of
    from longrope_export.console import say

    suites = suites_of(entries)
    if request.junit is not None:
        write_atomically(request.junit, junit.xml_text(suites))
    if request.markdown is not None:
        write_atomically(request.markdown, markdown.text(suites))
    if request.github:
        for line in github.annotation_lines(suites):
            say(line, err=request.json_path == "-")
        if not github.write_summary(suites):
            progress.warn(f"--github: {github.SUMMARY_VARIABLE} is not set, so there is no step summary to write")


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
        None if request.static else load_corpus(request.texts, reference.encode),
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
