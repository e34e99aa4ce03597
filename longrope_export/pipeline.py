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
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converters import registry
from converters.base import Check, Converter, Export, PlannedExport
from converters.parity import Artifact, ValidateOptions, Validation, validate, windows_by_length
from longrope.checkpoint import Checkpoint, placeholder_factors
from longrope.errors import InputError, MissingRequirementError
from longrope.extend import ExtendOptions, MethodTable, extend, help_to_train
from longrope.factors import BoundFactors
from longrope.files import json_text, refuse_existing, remove_partial, write_json
from longrope.journal import differences
from longrope.modeling import require_device, set_threads
from longrope.progress import Progress, Silent
from longrope.provenance import provenance
from longrope.search import check_search, plan_recovery, plan_search
from longrope.text import Corpus, load_corpus
from longrope_export import default_model
from longrope_export.conversion import chosen_sets
from longrope_export.models import DEFAULT, load_texts, open_model
from longrope_export.report import write_report

SCHEMA_VERSION = 1
STAGES = "stages"
# This process among those that torchrun started.
RANK, WORLD_SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
# Room that a run needs on the disk, as a multiple of the weights it writes.
DISK_MARGIN = 1.2


@dataclass(frozen=True)
class ExtendRequest:
    """The arguments of `extend`.

    Args:
        formats: names, each with an optional weight type: `hf`, `gguf:f16`.
        texts: to search on; empty for the built-in ones. A part is held out unless `test_texts` are given.
        test_texts: held out: methods and artifacts are measured on them.
        windows: lengths to validate; empty for the original window and the target.
        resume: go on with the run in `output`.
    """

    model: str
    output: Path
    options: ExtendOptions
    formats: tuple[str, ...] = ("hf", "gguf", "onnx")
    factor_sets: str = "auto"
    texts: tuple[Path, ...] = ()
    test_texts: tuple[Path, ...] = ()
    windows: tuple[int, ...] = ()
    windows_per_length: int = 4
    crossing: bool = True
    resume: bool = False
    overwrite: bool = False

    @property
    def target_length(self) -> int:
        return self.options.target_length

    @property
    def sets(self) -> str:
        """`factor_sets`; of mixed training, which trains both sets, `auto` exports both."""
        return "dual" if self.factor_sets == "auto" and self.options.mixed else self.factor_sets


@dataclass(frozen=True)
class Output:
    """One artifact of a run: who writes it, where, in which weight type."""

    label: str
    converter: Converter
    outtype: str | None
    path: Path


@dataclass
class Run:
    """What a run knows so far; saved as run.json after every step."""

    folder: Path
    configuration: Mapping[str, Any]
    provenance: Mapping[str, Any]
    state: str = "planned"
    extension: Mapping[str, Any] | None = None
    exports: list[Mapping[str, Any]] = field(default_factory=list)
    passed: bool | None = None

    def save(self) -> None:
        """Write run.json atomically."""
        data = {"schema_version": SCHEMA_VERSION, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}}
        data.pop("folder")
        write_json(self.folder / "run.json", data)


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

    Everything that can be refused is refused before the run's folder is made: the model, the texts' length, each
    format's libraries and what it can express, room on the disk.

    Raises:
        LongRopeError: the input cannot be used, the machine lacks something, or a format cannot express the model.
    """
    _check_processes(request.options)
    checkpoint = open_model(request.model)
    if RANK > 0:
        corpus, _ = _corpora(request, checkpoint, Silent())
        help_to_train(checkpoint, corpus, request.options, stages_dir=request.output / STAGES, resume=request.resume)
        return None
    corpus, held_out = _corpora(request, checkpoint, progress)
    outputs = _outputs(request, checkpoint)
    _check_plan(request, checkpoint, corpus, held_out, outputs)
    run = _open_run(request, checkpoint, corpus, held_out)
    if request.options.stages:
        for line in _plan_lines(request, checkpoint, outputs):
            progress.line(line)
    result = extend(
        checkpoint,
        corpus,
        held_out,
        request.options,
        journal_dir=run.folder / "journal",
        stages_dir=run.folder / STAGES,
        resume=request.resume,
        dual=_wants_dual(request, outputs),
        progress=progress,
    )
    result.factors.save(run.folder / "factors.json")
    for oddity in result.factors.oddities():
        progress.warn(oddity)
    run.extension, run.state = result.to_json(), "searched"
    run.save()
    model = result.checkpoint
    artifacts = [_export(output, model, result.factors, request, run, progress) for output in outputs]
    validations = validate(artifacts, model, result.factors, held_out, _validate_options(request, model), progress)
    outcome = Outcome(result.methods, validations)
    _finish(run, outcome)
    return outcome


# -- planning


def extend_plan_lines(request: ExtendRequest) -> list[str]:
    """What a run would take, for a person; no weights are loaded, nothing is written.

    Raises:
        LongRopeError: what a run would refuse of the model, the target and the search.
    """
    checkpoint = open_model(request.model)
    _check_search(request, checkpoint)
    return _plan_lines(request, checkpoint, _outputs(request, checkpoint))


def _plan_lines(request: ExtendRequest, checkpoint: Checkpoint, outputs: Sequence[Output]) -> list[str]:
    """Searches and training, the short set, the table of methods: tokens, memory and time on this device."""
    from longrope.finetune.cost import duration, forward_seconds, measure_rates
    from longrope.finetune.plan import DecoderShape
    from longrope.finetune.progressive import plan_lines, plan_stages

    options, shape = request.options, DecoderShape.of(checkpoint.config)
    set_threads(options.training.threads)
    rates = measure_rates(shape, options.search.dtype, options.search.device)

    def forwards(length: int, tokens: int) -> str:
        return f"about {duration(forward_seconds(shape, length, tokens, rates))} on this device"

    if options.stages:
        training = measure_rates(shape, options.training.dtype, options.training.device)
        planned = plan_stages(
            checkpoint, options.stages, options.search, options.training, training, world_size=WORLD_SIZE
        )
        lines = plan_lines(options.stages, planned)
    else:
        searching = plan_search(checkpoint, request.target_length, options.search)
        lines = [*searching.lines(), forwards(request.target_length, searching.tokens)]
    if _wants_dual(request, outputs):
        short = plan_recovery(checkpoint, options.short_windows, options.short_search)
        lines.append(f"short set: {short.lines()[0]}, {forwards(checkpoint.window, short.tokens)}")
    lines += [
        f"table of methods at {length}: up to {tokens / 1e6:.2f}M tokens, {forwards(length, tokens)}"
        for length, tokens in options.table_tokens(checkpoint).items()
    ]
    names = ", ".join(output.label for output in outputs)
    return [*lines, f"then {names}: written and validated, on up to {request.windows_per_length} windows a length"]


def _corpora(request: ExtendRequest, checkpoint: Checkpoint, progress: Progress) -> tuple[Corpus, Corpus]:
    """Texts to search on, and held-out ones to measure on."""
    corpus = load_texts(checkpoint, request.texts, default_model.SEARCH_TEXTS, progress)
    if request.test_texts or not request.texts:
        return corpus, load_texts(checkpoint, request.test_texts, default_model.TEST_TEXTS, progress)
    return corpus.split()


def _outputs(request: ExtendRequest, checkpoint: Checkpoint) -> list[Output]:
    """What `--formats` names, each with its path in the run's folder."""
    stem = Path(checkpoint.name).stem if request.model != DEFAULT else "longrope-default"
    outputs: list[Output] = []
    for text in request.formats:
        name, _, outtype = text.partition(":")
        converter = registry.converter(name)
        folder = request.output / name
        weights = outtype or converter.outtypes[0]
        path = folder / f"{stem}-{weights}{converter.suffix}" if converter.suffix else folder
        if any(path == other.path for other in outputs):
            raise InputError(f"--formats {','.join(request.formats)}: {text} is there twice")
        outputs.append(Output(text, converter, outtype or None, path))
    return outputs


def _check_plan(
    request: ExtendRequest, checkpoint: Checkpoint, corpus: Corpus, held_out: Corpus, outputs: Sequence[Output]
) -> None:
    _check_search(request, checkpoint)
    target = request.target_length
    if request.options.search.executor != "ray":  # its actors run elsewhere
        require_device(request.options.search.device)
    corpus.first_windows(target, 1)
    placeholder = placeholder_factors(checkpoint, target, request.options.planned_n_hat)
    windows_by_length(held_out, placeholder, _validate_options(request, checkpoint))
    for output in outputs:
        output.converter.check_requirements()
        sets = "single" if request.sets == "auto" else request.sets
        factors = placeholder if sets == "dual" else placeholder.as_single()
        output.converter.plan(Export(checkpoint, factors, output.outtype))
    _check_stages(request.options, checkpoint, corpus)
    _check_disk(request.output, checkpoint, len(outputs), request.options)


def _check_search(request: ExtendRequest, checkpoint: Checkpoint) -> None:
    """Refuse a model, a target or a search for what they are, before any text is read."""
    target = request.target_length
    if target <= checkpoint.window:
        raise InputError(
            f"--target-length {target}: expected more than the model's window of {checkpoint.window} tokens"
        )
    if checkpoint.factors is not None:
        raise InputError(
            f"{checkpoint.name} is extended already ({checkpoint.factors.original} → {checkpoint.factors.target} tokens); "
            "start from the original model"
        )
    for length in request.options.searched_lengths:
        check_search(checkpoint, length, request.options.search)


def _check_processes(options: ExtendOptions) -> None:
    """Refuse what this many processes could not share."""
    if WORLD_SIZE > 1 and options.stages is None:
        raise InputError("several processes share the training of --stages; a search is shared by --workers")
    size = options.training.sequence_size
    if WORLD_SIZE % size:
        raise InputError(
            f"--sequence-size {size}: expected a divisor of the number of processes ({WORLD_SIZE}); torchrun starts them"
        )
    for stage in options.stages.stages if options.stages else ():
        if stage.steps and (stage.batch % (WORLD_SIZE // size) or stage.row_length % size):
            raise InputError(
                f"stage at {stage.length}: expected a batch that {WORLD_SIZE // size} processes share, and rows that {size} "
                f"share, got {stage.batch} rows of {stage.row_length}"
            )


def _check_stages(options: ExtendOptions, checkpoint: Checkpoint, corpus: Corpus) -> None:
    """Refuse a plan of stages that could not be run to its end."""
    if options.stages is None:
        return
    from longrope.finetune.model import require_extras, require_trainable
    from longrope.finetune.progressive import check_texts

    require_extras(options.training)
    require_trainable(checkpoint.config, options.training)
    check_texts(checkpoint, options.stages, corpus, lambda paths: load_corpus(paths, checkpoint.encode))


def _check_disk(folder: Path, checkpoint: Checkpoint, num_outputs: int, options: ExtendOptions) -> None:
    """Refuse a run whose artifacts would not fit. Weights of 16 bits may be written with 32.

    A trained stage leaves its weights and two checkpoints; a third is written before the first goes.
    """
    weights = sum(file.stat().st_size for file in checkpoint.weight_files)
    needed = DISK_MARGIN * weights * 2 * num_outputs
    trained = sum(stage.steps > 0 for stage in options.stages.stages) if options.stages else 0
    if trained:
        from longrope.finetune.cost import checkpoint_bytes

        needed += DISK_MARGIN * (trained * weights + (2 * trained + 1) * checkpoint_bytes(checkpoint, options.training))
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise MissingRequirementError(
            f"{folder}: {num_outputs} artifacts may need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "free some room or ask for fewer --formats"
        )


def _wants_dual(request: ExtendRequest, outputs: Sequence[Output]) -> bool:
    """Whether a short set has to be found."""
    if request.sets == "auto":
        return any(output.converter.auto_factor_sets == "dual" for output in outputs)
    return request.sets == "dual"


def _validate_options(request: ExtendRequest, checkpoint: Checkpoint) -> ValidateOptions:
    return ValidateOptions(
        windows=request.windows or (checkpoint.window, request.target_length),
        windows_per_length=request.windows_per_length,
        crossing=request.crossing,
        threads=request.options.search.threads,
        device=request.options.search.device,
    )


# -- running


def _open_run(request: ExtendRequest, checkpoint: Checkpoint, corpus: Corpus, held_out: Corpus) -> Run:
    """Make the run's folder, or open the one to go on with."""
    configuration = {
        "model": request.model,
        "model_fingerprint": checkpoint.fingerprint,
        "text_fingerprint": corpus.fingerprint,
        "test_fingerprint": held_out.fingerprint,
        "formats": list(request.formats),
        "factor_sets": request.factor_sets,
        "options": request.options.settings(),
    }
    file = request.output / "run.json"
    if request.resume:
        _check_resumable(file, configuration)
        remove_partial(request.output)
    else:
        _clear(request.output, overwrite=request.overwrite)
    request.output.mkdir(parents=True, exist_ok=True)
    run = Run(request.output, configuration, provenance())
    run.save()
    return run


def _clear(folder: Path, *, overwrite: bool) -> None:
    """Make way for a run. Only a former run is ever removed, never another folder."""
    refuse_existing(folder, overwrite=overwrite)
    if not folder.exists():
        return
    if not (folder / "run.json").is_file():
        raise InputError(f"{folder}: expected a run of extend to overwrite, found no run.json; choose another output")
    shutil.rmtree(folder)


def _check_resumable(file: Path, configuration: Mapping[str, Any]) -> None:
    """Raise InputError unless a run with the same model, texts and options is there."""
    if not file.is_file():
        raise InputError(f"{file}: no such run to resume; leave --resume out to start one")
    stored = json.loads(file.read_text(encoding="utf-8"))["configuration"]
    now = json.loads(json_text(configuration))
    decisive = ("model_fingerprint", "text_fingerprint", "options")
    before, after = ({name: run.get(name) for name in decisive} for run in (stored, now))
    changed = differences(before, after)
    if changed:
        raise InputError(f"{file}: {'; '.join(changed)}; repeat the same options or start anew")


def _export(
    output: Output,
    checkpoint: Checkpoint,
    factors: BoundFactors,
    request: ExtendRequest,
    run: Run,
    progress: Progress,
) -> Artifact:
    """Write one artifact, unless a sound one is there from before."""
    chosen = chosen_sets(output.converter, factors, request.sets)
    planned = output.converter.plan(Export(checkpoint, chosen, output.outtype))
    checks = _sound(output, planned)
    if checks is None:
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


def _sound(output: Output, planned: PlannedExport) -> list[Check] | None:
    """The static checks of an artifact from before, None when there is none or it fails one."""
    if not output.path.exists():
        return None
    try:
        checks = planned.check(output.path)
    except InputError:
        return None
    return checks if all(check.status != "fail" for check in checks) else None


def _finish(run: Run, outcome: Outcome) -> None:
    run.passed, run.state = outcome.passed, "done"
    data = {
        "schema_version": SCHEMA_VERSION,
        "passed": run.passed,
        "artifacts": [validation.to_json() for validation in outcome.validations],
    }
    write_json(run.folder / "validation.json", data)
    run.save()
    write_report(run.folder)
