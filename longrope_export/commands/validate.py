"""`longrope-export validate`: artifacts against their reference: what they must carry, then what their runtimes give.

ARTIFACT … ──validate_all───► Validation ─┐
--from RESULT.json ──measured_of────────┴─ judge(…, policy, baseline) ──► tables, JSON, reports, exit code
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from longrope.errors import InputError
from longrope.machine import SHARDED, device_option, threads_option
from longrope.options import Lengths, ModelName, Seconds, declared, option
from longrope_export import options

if TYPE_CHECKING:
    from converters.measurements import Validation
    from longrope.progress import Progress


_REPORTS = frozenset({"policy", "json_path", "junit", "markdown", "github"})
# Options that fit --from, and --static.
_TO_JUDGE = _REPORTS | {"result", "baseline"}
_STATICALLY = _REPORTS | {"artifacts", "reference", "factors", "factor_sets", "static"}
# They change how fast something is measured, and where.
_OF_MACHINE = frozenset({"device", "threads", "isolate", "cache"})


@dataclass(frozen=True, kw_only=True)
class ValidateRequest:
    """The options of `validate`."""

    artifacts: tuple[str, ...] = option(
        (), name="artifact", argument=True, help="Artifacts to check: folders, GGUF files, or Hub ids, of one model."
    )
    reference: ModelName | None = option(
        None, section="Input", metavar="MODEL", help="Model that the artifacts were made from, extended or not."
    )
    texts: tuple[Path, ...] = options.texts(required=False)
    static: bool = option(
        False, section="Input", help="Check keys, tensors, factors and weights, and run nothing; takes no --text."
    )
    windows: Lengths = options.windows("Lengths to measure perplexity, KL and top-1 at, in tokens.")
    quick: bool = option(
        False,
        section="Input",
        help="Static checks and a window at the original length and at the target, cut to what fits in a minute.",
    )
    thorough: bool = option(
        False,
        section="Input",
        help="Measure more windows of each length, lengths between original and target, and --quality.",
    )
    budget: Seconds | None = option(
        None,
        section="Input",
        unset="none; with --quick 60s",
        help="Measure what fits in this time, like 10m; what is left out is a skipped check.",
    )
    result: Path | None = option(
        None,
        name="from",
        section="Input",
        metavar="RESULT.json",
        help="Judge again what an earlier call measured and wrote with --json, and run nothing.",
    )
    policy: options.PolicyName = options.policy("Input")
    baseline: Path | None = option(
        None,
        section="Input",
        metavar="RESULT.json",
        help="Compare with an earlier release, measured on the same texts: what got worse, and whether that is noise.",
    )
    factors: Path | None = option(
        None, section="Factors", unset="the reference's", help="File of the factors that the artifact must carry."
    )
    factor_sets: options.FactorSetsWish = options.factor_sets()
    explain: bool = option(
        False,
        section="Output",
        help="Find the likeliest cause of a failure: where logits leave the reference's, over positions and layers.",
    )
    json_path: str | None = options.json_file()
    junit: Path | None = option(None, section="Output", metavar="FILE", help="Write the checks as JUnit XML to a file.")
    markdown: Path | None = option(
        None, section="Output", metavar="FILE", help="Write a report for a comment on a pull request, as Markdown."
    )
    github: bool = option(
        False, section="Output", help="Annotate the run of GitHub Actions, and append the report to its step summary."
    )
    device: str = device_option(
        "Torch device of the reference: auto (the GPU when there is one), cpu, cuda, cuda:1, mps, or sharded (its layers "
        "over all GPUs)."
    )
    reference_dtype: Literal["float32", "bfloat16", "float16"] = option(
        "float32",
        section="Machine",
        help="What the reference computes in; in 16 bits it takes half the memory and no longer shows the smallest faults.",
    )
    threads: int | None = threads_option()
    windows_per_length: int | None = options.windows_per_length(None, unset="4; quick 1, thorough 8")
    crossing: bool | None = options.crossing(None, unset="crossing; not with quick")
    isolate: options.Isolate = options.isolate()
    cache: bool = option(
        True,
        section="Machine",
        help="Keep the reference's passes in the user's cache folder, and take what earlier calls kept there.",
    )
    quality: bool | None = option(
        None,
        section="Input",
        unset="no; with --thorough yes",
        help="Also measure what the extension costs inside the original window and brings beyond it, next to PI, NTK and "
        "YaRN, and passkeys: five passes of the reference over the longest windows.",
    )

    def __post_init__(self) -> None:
        if self.explain and (self.static or self.result is not None):
            raise InputError("--explain runs the artifact again: expected neither --static nor --from")
        if self.result is not None:
            self._refuse_beside_from()
        else:
            self._check_measuring()

    def _refuse_beside_from(self) -> None:
        if given := self._given_beside(_TO_JUDGE):
            raise InputError(
                "--from judges what was measured: expected no artifact, and nothing about what is measured, beside it; got "
                f"{given}"
            )

    def _check_measuring(self) -> None:
        if not self.artifacts or self.reference is None:
            raise InputError("expected an artifact and its --reference, or --from RESULT.json")
        if self.quick and self.thorough:
            raise InputError("--quick and --thorough contradict each other; expected one of them")
        if self.static:
            self._refuse_beside_static()
        elif not self.texts:
            raise InputError("expected texts to measure on: --text, or --static for the checks that need none")
        if self.device == SHARDED and (self.explain or (self.thorough if self.quality is None else self.quality)):
            raise InputError(
                "--quality, which --thorough brings, and --explain compute on one device: expected neither beside --device "
                "sharded"
            )
        if self.quality and (self.quick or self.budget is not None):
            raise InputError(
                "passes of --quality are not fitted into a time: expected neither --quick nor --budget beside it"
            )

    def _refuse_beside_static(self) -> None:
        if given := self._given_beside(_STATICALLY):
            raise InputError(
                "static checks measure nothing: expected nothing about what is measured, such as texts, beside --static; got "
                f"{given}"
            )

    def _given_beside(self, fitting: frozenset[str]) -> str:
        """Options that were given beside those that fit, and those of the machine, which change nothing."""
        return ", ".join(
            "an artifact" if each.about.argument else f"--{each.key}"
            for each in declared(type(self))
            for name in each.paths[0]
            if name not in fitting | _OF_MACHINE and getattr(self, name) != each.default
        )

    @property
    def effort(self) -> str:
        """The preset's name."""
        return "quick" if self.quick else "thorough" if self.thorough else "default"


@options.command(ValidateRequest)
def command(request: ValidateRequest) -> int:
    """Check ARTIFACTs against a reference model: keys, tensors, factors, then perplexity, KL and top-1 in their runtimes."""
    from converters.measurements import together
    from longrope_export.console import ConsoleProgress, write_json
    from longrope_export.tables import print_parity, print_quality

    progress = ConsoleProgress()
    results = judge_results(request, progress)
    if request.static:
        count = sum(len(result.checks) - 1 for result in results)
        progress.line(f"{count} static checks; nothing was run")
    print_parity(results, err=request.json_path == "-")
    print_quality(results, err=request.json_path == "-")
    entries = [result.to_json() for result in results]
    write_json(entries[0] if len(entries) == 1 else together(entries), request.json_path)
    write_reports(entries, request, progress)
    return 0 if all(result.passed for result in results) else 1


def judge_results(request: ValidateRequest, progress: Progress) -> list[Validation]:
    """What was measured, now or before, under the policy. Raises LongRopeError for input that cannot be used."""
    from converters.baseline import Subject, baseline_of
    from converters.judging import judged
    from converters.policy import read_policy

    refuse_outputs(request)
    policy = read_policy(request.policy)
    earlier = None if request.baseline is None else read_results(request.baseline)
    results = validate_artifacts(request, progress, earlier) if request.result is None else read_results(request.result)
    if earlier is None:
        return [judged(result, policy) for result in results]
    before = baseline_of([Subject.of(result) for result in results], earlier, str(request.baseline))
    return [judged(result, policy, old) for result, old in zip(results, before, strict=True)]


def refuse_outputs(request: ValidateRequest) -> None:
    """Refuse, before anything is measured, files that could not be written afterwards, and two in one. Raises InputError."""
    from longrope.files import refuse_folder

    json_path = None if request.json_path in (None, "-") else Path(str(request.json_path))
    files = [path for path in (json_path, request.junit, request.markdown) if path is not None]
    for path in files:
        refuse_folder(path)
    if len({path.absolute() for path in files}) < len(files):
        raise InputError("--json, --junit and --markdown: expected a file for each, got the same one twice")


def read_results(path: Path) -> list[Validation]:
    """What a validation.json says was found and measured. Raises InputError."""
    from converters.measurements import measured_of
    from longrope_export.run_files import read_validation

    entries = read_validation(path)
    if not entries:
        raise InputError(f"{path}: artifacts: expected one or more, got an empty list")
    return [measured_of(entry, str(path)) for entry in entries]


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


def validate_artifacts(
    request: ValidateRequest, progress: Progress, earlier: Sequence[Validation] | None = None
) -> list[Validation]:
    """Static checks and parity of artifacts. Raises LongRopeError for input that cannot be used, an earlier result, too."""
    from converters import registry
    from converters.baseline import Subject, baseline_of
    from converters.validation import validate_all
    from longrope.text import load_corpus
    from longrope_export.conversion import load_factors
    from longrope_export.models import artifact_path, open_model

    paths = [artifact_path(artifact) for artifact in request.artifacts]
    converters = [registry.recognize(path) for path in paths]
    for converter in converters:
        converter.check_requirements()
    reference = open_model(request.reference or "")
    corpus = None if request.static else load_corpus(request.texts, reference.encode)
    if earlier is not None and corpus is not None:
        subjects = zip(paths, converters, strict=True)
        made = [Subject(str(path), converter.name, corpus.fingerprint) for path, converter in subjects]
        baseline_of(made, earlier, str(request.baseline))
    return validate_all(
        paths,
        reference,
        corpus,
        factors=load_factors(request.factors) if request.factors else None,
        factor_sets=request.factor_sets,
        windows=request.windows,
        windows_per_length=request.windows_per_length,
        crossing=request.crossing,
        effort=request.effort,
        budget=request.budget,
        device=request.device,
        reference_dtype=request.reference_dtype,
        threads=request.threads,
        isolate=request.isolate,
        cache=request.cache,
        policy=request.policy,
        quality=request.quality,
        explain=request.explain,
        progress=progress,
    )
