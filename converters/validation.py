"""`validate`: artifacts against the model they were made from in one call, what notebooks use and the command line wraps.

artifacts, reference, texts ─validate_all─► Validation …: static checks, then their runtimes against the reference
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec

from converters import registry
from converters.base import Check, Converter
from converters.effort import Effort, effort_of
from converters.expectations import Expectation, expected_factors
from converters.judging import REFERENCE_ARITHMETIC, judged
from converters.measurements import Validation
from converters.policy import Policy, read_policy
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError, choices
from longrope.factors import BoundFactors, RescaleFactors
from longrope.machine import SHARDED, Machine, resolve_device
from longrope.measures import Quality
from longrope.pass_cache import cache_folder
from longrope.progress import Progress, Silent
from longrope.provenance import provenance
from longrope.text import Corpus

if TYPE_CHECKING:
    from converters.isolation import Isolate, Workplace
    from converters.parity import Artifact, ValidateOptions  # imports torch, which writing a file does not need

Options = ParamSpec("Options")


def validate_all(
    artifacts: Sequence[str | Path],
    reference: Checkpoint,
    corpus: Corpus | None,
    *,
    factors: RescaleFactors | None = None,
    factor_sets: str = "auto",
    windows: Sequence[int] = (),
    windows_per_length: int | None = None,
    crossing: bool | None = None,
    effort: str = "default",
    budget: float | None = None,
    device: str = "auto",
    reference_dtype: str = "float32",
    threads: int | None = None,
    isolate: Isolate = "auto",
    cache: bool = True,
    quality: bool | None = None,
    policy: Policy | str = "default",
    explain: bool = False,
    progress: Progress | None = None,
) -> list[Validation]:
    """Check artifacts' keys, tensors, factors and weights, then compare their runtimes' logits with the reference's.

    `validate` takes one artifact and returns its `Validation`; of several, those that must carry the same factors share the
    passes of the reference.

    Args:
        artifacts: Hugging Face folders, `.gguf` files, ONNX folders, of one model.
        reference: the model they were made from, extended or not; it runs in transformers.
        corpus: token ids to compare on; None for the static checks alone, with a skipped check `FORMAT.parity`.
        factors: what an artifact must carry; None for the reference's, or else what its exporter recorded in it.
        factor_sets: `single` or `dual` where an artifact must have that; `auto` takes what it has.
        windows: lengths in tokens; empty for those of the effort: by default the original window and the target.
        windows_per_length: at most so many windows of each length; None for the effort's, by default 4.
        crossing: decode token by token across the original window, too; None for the effort's, by default True.
        effort: `quick`, `default` or `thorough`: what holds for the three above where they are left open. `quick` makes no
            second reference and takes a minute.
        budget: seconds; what does not fit, by the rate of a first window, is left out, and a skipped check says so.
            None for the effort's, by default no limit. It is for all artifacts together.
        device: torch device of the reference; `auto` is the GPU when there is one, and `sharded` all GPUs, layer by layer.
        reference_dtype: what it computes in: `float32`, or `bfloat16` or `float16` with the limits of such arithmetic.
        threads: CPU threads of every runtime; None for their defaults.
        isolate: whether an artifact's runtime gets a process of its own, with limits; `auto`: llama.cpp and onnxruntime do.
        cache: keep the reference's passes in the user's cache folder, and take those of earlier calls with the same model,
            factors, texts, machine and versions.
        quality: measure, too, what the extension costs inside the original window and brings beyond it; None for the
            effort's. Takes no budget.
        policy: `strict`, `default`, `quantized`, the path of a file, or a `Policy`: what counts, and the limits.
        explain: find the likeliest cause of a failure; needs the corpus.
        progress: where bars and warnings go; None for nowhere.

    Returns:
        One for each artifact, in their order: every check with its id, and for each window perplexities (per token),
        KL(reference || artifact) in nats per token, top-1 agreement (0 … 1) and the largest logit difference.

    Raises:
        InputError: no such artifact, a window that no document is long enough for, other vocabularies.
        MissingRequirementError: a library of the format is missing.
    """
    wanted, preset = read_policy(policy) if isinstance(policy, str) else policy, effort_of(effort)
    if reference_dtype not in REFERENCE_ARITHMETIC:
        raise InputError(f"reference_dtype {reference_dtype!r}; {choices(reference_dtype, REFERENCE_ARITHMETIC)}")
    measures_quality = preset.quality if quality is None else quality
    seconds = preset.seconds if budget is None else budget
    if quality and (corpus is None or seconds is not None):
        raise InputError(
            "quality: expected texts to measure it on, and no budget: its passes are not fitted into a time"
        )
    if device == SHARDED and (measures_quality or explain):
        raise InputError(
            "device sharded: quality and explanations are computed on one device; expected neither beside it"
        )
    paths = [Path(each) for each in artifacts]
    found = [registry.recognize(path) for path in paths]
    for converter in found:
        converter.check_requirements()
    with ExitStack() as stack:
        opened: list[Workplace | None] = [
            stack.enter_context(place) if (place := _workplace(converter, path, isolate, corpus)) else None
            for path, converter in zip(paths, found, strict=True)
        ]  # start while torch is being imported
        from converters.parity import ValidateOptions

        known = [
            expected_factors(path, converter, reference, factors, factor_sets)
            for path, converter in zip(paths, found, strict=True)
        ]
        jobs = [_Job(*each) for each in zip(paths, found, opened, known, strict=True)]
        options = ValidateOptions(
            windows=tuple(windows),
            windows_per_length=windows_per_length or preset.windows_per_length,
            crossing=preset.crossing if crossing is None else crossing,
            own_weights=preset.own_weights,
            twins=preset.twins,
            seconds=seconds,
            shorten=preset.shorten,
            threads=threads,
            device=resolve_device(device),
            reference_dtype=reference_dtype,
            cache=cache_folder() if cache else None,
        )
        progress = progress or Silent()
        results = _measured(jobs, reference, corpus, options, preset, progress)
    if measures_quality and corpus and seconds is None:
        results = _with_quality(jobs, results, reference, corpus, options, preset, progress)
    elif measures_quality and corpus:
        results = [replace(result, quality=_NO_TIME) for result in results]
    results = [judged(result, wanted) for result in results]
    if corpus is None or not explain:
        return results
    return [
        _explained(job, result, reference, corpus, options, isolate, progress)
        for job, result in zip(jobs, results, strict=True)
    ]


def _of_one(
    measure: Callable[Concatenate[Sequence[str | Path], Options], list[Validation]],
) -> Callable[Concatenate[str | Path, Options], Validation]:
    """The same of one artifact."""

    @wraps(measure)
    def one(artifact: str | Path, /, *given: Options.args, **options: Options.kwargs) -> Validation:
        (result,) = measure([artifact], *given, **options)
        return result

    one.__name__ = one.__qualname__ = "validate"
    return one


validate = _of_one(validate_all)


_NO_TIME = Quality(
    left_out=dict.fromkeys(("inside", "beyond", "passkey", "control"), "its passes are not fitted into a budget")
)


@dataclass(frozen=True, eq=False)
class _Job:
    """An artifact, who reads it, where it runs, and which factors it must carry."""

    path: Path
    converter: Converter
    workplace: Workplace | None
    expectation: Expectation | None


def _workplace(converter: Converter, path: Path, isolate: Isolate, corpus: Corpus | None) -> Workplace | None:
    if corpus is None:
        return None
    from converters.isolation import workplace_for

    return workplace_for(converter, path, isolate)


def _groups(jobs: Sequence[_Job]) -> list[tuple[BoundFactors, list[_Job]]]:
    """Those whose references have the same factors together; without those that have none."""
    groups: list[tuple[BoundFactors, list[_Job]]] = []
    for job in jobs:
        if job.expectation is None:
            continue
        members = next((members for factors, members in groups if factors == job.expectation.reference), None)
        if members is None:
            groups.append((job.expectation.reference, [job]))
        else:
            members.append(job)
    return groups


def _measured(
    jobs: Sequence[_Job],
    reference: Checkpoint,
    corpus: Corpus | None,
    options: ValidateOptions,
    effort: Effort,
    progress: Progress,
) -> list[Validation]:
    """In the order of the jobs; groups run together."""
    from converters.parity import measured, static_findings

    results = {job: _without_factors(job, reference) for job in jobs if job.expectation is None}
    for factors, members in _groups(jobs):
        subjects = [_artifact(job, reference) for job in members]
        if corpus is None:
            found = [static_findings(subject, reference, None) for subject in subjects]
            for result in found:
                skipped = Check(f"{result.format}.parity", "skip", message="not run: static checks only")
                result.findings.append(skipped)
        else:
            windows = options.windows or effort.lengths(factors)
            found = measured(subjects, reference, factors, corpus, replace(options, windows=windows), progress)
        for job, result in zip(members, found, strict=True):
            notes = job.expectation.notes if job.expectation else ()
            results[job] = replace(result, findings=[*notes, *result.findings])
    return [results[job] for job in jobs]


def _with_quality(
    jobs: Sequence[_Job],
    results: Sequence[Validation],
    reference: Checkpoint,
    corpus: Corpus,
    options: ValidateOptions,
    effort: Effort,
    progress: Progress,
) -> list[Validation]:
    """What each extension costs and brings; artifacts that must carry the same factors share it."""
    from longrope.quality import QualityOptions, measure_quality

    machine = Machine(options.device, threads=options.threads)
    found: dict[_Job, Quality] = {}
    for factors, members in _groups(jobs):
        wanted = QualityOptions(options.windows or effort.lengths(factors), options.windows_per_length)
        extensions = [job.expectation.factors for job in members if job.expectation]
        measured = measure_quality(reference, extensions, corpus, wanted, machine, progress)
        found.update(zip(members, measured, strict=True))
    return [replace(result, quality=found.get(job)) for job, result in zip(jobs, results, strict=True)]


def _explained(
    job: _Job,
    result: Validation,
    reference: Checkpoint,
    corpus: Corpus,
    options: ValidateOptions,
    isolate: Isolate,
    progress: Progress,
) -> Validation:
    """A failure with its likeliest cause, on the shortest window that fails beyond the original one, or on the longest."""
    from converters.explain.run import Suspect, explain
    from converters.isolation import workplace_for

    failures = [check for check in result.failures if not check.id.startswith("quality.")]
    if not failures or job.expectation is None:
        return result
    progress.line(f"looking for why {job.path.name} fails")
    original = job.expectation.factors.original
    failed = [score.length for score in result.windows if score.length > original and result.verdict(score) == "fail"]
    length = min(failed, default=max((score.length for score in result.windows), default=original))
    ids = corpus.windows(length, 1)[0]
    with ExitStack() as stack:
        place = workplace_for(job.converter, job.path, isolate)
        workplace = stack.enter_context(place) if place else None
        planned = job.converter.plan_of(job.path, job.expectation.factors, reference)
        suspect = Suspect(job.path, job.converter, planned, failures, workplace)
        return replace(result, explanation=explain(suspect, ids, device=options.device, threads=options.threads))


def _artifact(job: _Job, reference: Checkpoint) -> Artifact:
    from converters.parity import Artifact

    assert job.expectation is not None
    planned = job.converter.plan_of(job.path, job.expectation.factors, reference)
    return Artifact(job.path, job.converter, planned, workplace=job.workplace)


def _without_factors(job: _Job, reference: Checkpoint) -> Validation:
    message = "neither the artifact nor the reference carries any, and none were given"
    check = Check(f"{job.converter.name}.factors", "fail", "rescale factors", None, message)
    return Validation(str(job.path), job.converter.name, reference.name, findings=[check], provenance=provenance())
