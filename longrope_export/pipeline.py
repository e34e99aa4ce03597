"""The main job: plan ─► search (or stages) ─► factors ─► export every format ─► validate ─► report, resumable at every arrow.

RUN_DIR/run.json          configuration, provenance, stage results
        journal/          every evaluation of the search
        stages/           with --stages: searches, training runs and trained weights, one folder a stage
        factors.json      what was found
        hf/ gguf/ onnx/   artifacts, each renamed into place when it has been read back
        validation.json   every check and window
        report.html
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converters.base import Check, PlannedExport
from converters.measurements import Validation, together
from converters.parity import Artifact, validate_artifacts
from longrope.checkpoint import Checkpoint
from longrope.errors import LongRopeError
from longrope.estimates.compute import duration, forward_seconds, measure_rates
from longrope.estimates.search import search_estimate
from longrope.estimates.shape import DecoderShape
from longrope.extend import MethodTable, extend, help_to_train, table_tokens
from longrope.factors import BoundFactors
from longrope.files import alone_in, make_folder, remove_all, remove_partial, write_json
from longrope.modeling import set_threads
from longrope.progress import Progress, Silent
from longrope.provenance import provenance
from longrope.search import recovery_estimate
from longrope_export.commands.extend import ExtendRequest
from longrope_export.models import open_model
from longrope_export.options import FactorSetsWish
from longrope_export.preflight import (
    WORLD_SIZE,
    Output,
    Prepared,
    check_processes,
    check_run_folder,
    load_corpora,
    on_checkpoint,
    prepare,
    validate_options,
)
from longrope_export.report import write_report
from longrope_export.run_files import RUN, VALIDATION

# Of run.json.
SCHEMA_VERSION = 1
STAGES = "stages"
# This process among those that torchrun started.
RANK = int(os.environ.get("RANK", "0"))


@dataclass
class Run:
    """What a run knows so far; saved as run.json after every step."""

    folder: Path
    configuration: Mapping[str, Any]
    provenance: Mapping[str, Any]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    state: str = "planned"
    extension: Mapping[str, Any] | None = None
    exports: list[Mapping[str, Any]] = field(default_factory=list)
    passed: bool | None = None

    def save(self) -> None:
        """Write run.json atomically."""
        data = {"schema_version": SCHEMA_VERSION, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}}
        data.pop("folder")
        write_json(self.folder / RUN, data)


@dataclass(frozen=True)
class Outcome:
    """What a finished run has to show."""

    methods: MethodTable
    validations: Sequence[Validation]

    @property
    def passed(self) -> bool:
        return all(validation.passed for validation in self.validations)


def run_extend(request: ExtendRequest, progress: Progress) -> Outcome | None:
    """Do the whole job; see the module's picture.

    Of the processes that torchrun started, the first one does it. The others help to train, and return None.

    Raises:
        LongRopeError: what `preflight.prepare` refuses before the run's folder is made, or the machine fails later.
    """
    if RANK > 0:
        check_processes(request.options)
        checkpoint = open_model(request.model, request.original)
        request = on_checkpoint(request, checkpoint)
        corpus, _ = load_corpora(request, checkpoint, Silent())
        help_to_train(checkpoint, corpus, request.options, stages_dir=request.output / STAGES, resume=request.resume)
        return None
    prepared = prepare(request, progress)
    with alone_in(prepared.request.output):
        check_run_folder(prepared.request, prepared.configuration)
        return _run_alone(prepared, progress)


def _run_alone(prepared: Prepared, progress: Progress) -> Outcome:
    request = prepared.request
    run = _open_run(request, prepared)
    if request.options.stages:
        for line in _plan_lines(request, prepared):
            progress.line(line)
    result = extend(
        prepared.checkpoint,
        prepared.corpus,
        prepared.held_out,
        request.options,
        journal_dir=run.folder / "journal",
        stages_dir=run.folder / STAGES,
        resume=request.resume,
        dual=_wants_dual(request, prepared.checkpoint, prepared.outputs),
        progress=progress,
    )
    result.factors.save(run.folder / "factors.json")
    for oddity in result.factors.oddities():
        progress.warn(oddity)
    run.extension, run.state = result.to_json(), "searched"
    run.save()
    model, sets = result.checkpoint, _sets_found(request, result.factors, progress)
    artifacts = [_export(output, model, result.factors, sets, run, progress) for output in prepared.outputs]
    validations = validate_artifacts(
        artifacts,
        model,
        result.factors,
        prepared.held_out,
        validate_options(request, model),
        progress,
        prepared.policy,
    )
    outcome = Outcome(result.methods, validations)
    _finish(run, outcome)
    return outcome


# -- planning


def extend_plan_lines(request: ExtendRequest, progress: Progress) -> list[str]:
    """What a run would take, for a person; no weights are loaded, nothing is written.

    Raises:
        LongRopeError: what a run would refuse, but for a lack of memory, which the lines report.
    """
    prepared = prepare(request, progress, planning=True)
    return _plan_lines(prepared.request, prepared)


def _plan_lines(request: ExtendRequest, prepared: Prepared) -> list[str]:
    """Searches and training, the short set, the table of methods: tokens, memory and time on this device."""
    from longrope.finetune.progressive import stages_estimate

    checkpoint, options = prepared.checkpoint, request.options
    shape = DecoderShape.of(checkpoint.config)
    set_threads(options.training.threads)
    rates = measure_rates(shape, options.search.dtype, options.search.device)

    def forwards(length: int, tokens: int) -> str:
        return f"about {duration(forward_seconds(shape, length, tokens, rates))} on this device"

    if options.stages:
        training = measure_rates(shape, options.training.dtype, options.training.device)
        lines = stages_estimate(
            checkpoint, options.stages, options.search, options.training, training, world_size=WORLD_SIZE
        ).lines()
    else:
        searching = search_estimate(checkpoint, request.target_length, options.search)
        lines = [*searching.lines(), forwards(request.target_length, searching.tokens)]
    if _wants_dual(request, prepared.checkpoint, prepared.outputs):
        short = recovery_estimate(checkpoint, options.short_windows, options.short_search)
        lines.append(f"short set: {short.lines()[0]}, {forwards(checkpoint.window, short.tokens)}")
    lines += [
        f"table of methods at {length}: up to {tokens / 1e6:.2f}M tokens, {forwards(length, tokens)}"
        for length, tokens in table_tokens(checkpoint, options).items()
    ]
    names = ", ".join(output.label for output in prepared.outputs)
    return [*lines, f"then {names}: written and validated, on up to {request.windows_per_length} windows a length"]


def _wants_dual(request: ExtendRequest, checkpoint: Checkpoint, outputs: Sequence[Output]) -> bool:
    """Whether a short set has to be found."""
    if request.sets == "auto":
        return any(output.converter.preferred_sets(checkpoint) == "dual" for output in outputs)
    return request.sets == "dual"


# -- running


def _sets_found(request: ExtendRequest, factors: BoundFactors, progress: Progress) -> FactorSetsWish:
    """What can be written of what was asked: a search for a short set may find none that is better than the long one."""
    if request.sets != "dual" or factors.factor_sets == "dual":
        return request.sets
    progress.warn(
        "no short set is better than the long one at the original window, so that dual sets would be twice the same; a "
        "single set is written (more --short-evals may find one)"
    )
    return "single"


def _open_run(request: ExtendRequest, prepared: Prepared) -> Run:
    """Make the run's folder, or open the one to go on with."""
    if request.resume:
        remove_partial(request.output)
    elif request.output.exists():
        remove_all(request.output)
    make_folder(request.output)
    run = Run(request.output, prepared.configuration, provenance(), request.recipe)
    run.save()
    return run


def _export(
    output: Output,
    checkpoint: Checkpoint,
    factors: BoundFactors,
    sets: FactorSetsWish,
    run: Run,
    progress: Progress,
) -> Artifact:
    """Write one artifact, unless a sound one is there from before."""
    chosen = output.converter.choose_sets(factors, sets, checkpoint)
    planned = output.with_factors(checkpoint, chosen)
    checks = _sound(output.path, planned)
    if checks is None:
        if output.path.is_dir():  # broken, perhaps beyond recognition
            remove_all(output.path)
        progress.line(f"Writing {output.path} ({chosen.factor_sets} factor set{'s' * (chosen.factor_sets == 'dual')}).")
        checks = planned.save(output.path, progress, overwrite=True)
    run.exports.append(
        {
            "format": output.label,
            "path": str(output.path.relative_to(run.folder)),
            "factor_sets": chosen.factor_sets,
            "checks": len(checks),
            "runtimes": [dataclasses.asdict(use) for use in output.converter.runtime_uses(chosen)],
        }
    )
    run.save()
    return Artifact(output.path, output.converter, planned, name=output.label)


def _sound(path: Path, planned: PlannedExport) -> list[Check] | None:
    """The static checks of an artifact from before, None when there is none or it fails one."""
    if not path.exists():
        return None
    try:
        checks = planned.check(path)
    except LongRopeError:
        return None
    return checks if all(check.status != "fail" for check in checks) else None


def _finish(run: Run, outcome: Outcome) -> None:
    run.passed, run.state = outcome.passed, "done"
    write_json(run.folder / VALIDATION, together([validation.to_json() for validation in outcome.validations]))
    run.save()
    write_report(run.folder)
