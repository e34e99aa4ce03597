"""`longrope-export finetune`: one stage, then a Hugging Face folder with the factors inside.

model, factors ──finetune──► OUTPUT.training/: log.jsonl, checkpoints/, model/, loss.svg ──hf converter──► OUTPUT
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from converters.base import Check, Converter, Export
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError, MissingRequirementError
from longrope.factors import BoundFactors
from longrope.files import alone_in, refuse_existing, refuse_foreign, write_atomically
from longrope.finetune.options import TrainOptions
from longrope.finetune.stages import GIVEN, Stage, StageTraining
from longrope.locks import refuse_occupied
from longrope.options import ModelName, nested, option
from longrope.progress import Progress, Silent
from longrope_export import options
from longrope_export.conversion import known_factors

if TYPE_CHECKING:
    from longrope.finetune.trainer import Training
    from longrope.text import Corpus


@dataclass(frozen=True, kw_only=True)
class FinetuneRequest:
    """The options of `finetune`."""

    model: ModelName = option(argument=True, help="Model to train: a folder, a Hub id, a GGUF file, or default.")
    texts: tuple[Path, ...] = options.texts(required=True)
    factors: Path | None = option(
        None,
        section="Factors",
        unset="the model's own",
        help="File of the factors to train with, such as factors.json.",
    )
    factor_sets: options.FactorSetsWish = options.factor_sets()
    stage: StageTraining = nested(StageTraining(steps=400), rename={"sequence_length": "length"})
    teacher: ModelName | None = option(
        None, metavar="MODEL", unset="MODEL", help="The model before extension, where MODEL has been trained before."
    )
    training: TrainOptions = nested(TrainOptions())
    output: Path = options.output("Hugging Face folder to write; the run is kept in OUTPUT.training.")
    plan: bool = options.plan("Print the tokens, memory and time that the training takes, and stop.")
    resume: bool = options.resume("Go on with the run in OUTPUT.training.")
    overwrite: bool = options.overwrite()

    def stage_for(self, factors: BoundFactors) -> Stage:
        """The one stage: a window of the factors' target."""
        return Stage(factors.target, factors=GIVEN, **asdict(self.stage))


@options.command(FinetuneRequest)
def command(request: FinetuneRequest) -> int:
    """Train MODEL with its rescale factors and write a Hugging Face folder with the factors inside.

    With torchrun, weights are spread over all processes (FSDP2). Interrupted, it goes on with --resume.
    """
    from longrope_export.console import ConsoleProgress

    if request.plan:
        for line in plan_lines(request):
            click.echo(line)
        return 0
    run_finetune(request, ConsoleProgress())
    return 0


def run_finetune(request: FinetuneRequest, progress: Progress) -> list[Check]:
    """Train and write the folder; returns its read-back checks (empty in processes that do not write).

    Raises:
        LongRopeError: the factors do not fit, texts are too short, the machine lacks something, or the output exists.
    """
    from longrope.finetune.parallel import processes
    from longrope.finetune.trainer import finetune
    from longrope_export.models import open_model

    prepared = _prepare(request)
    run = training_folder(request.output)
    with processes(prepared.training) as parallel, alone_in(run) if parallel.is_main else nullcontext():
        shown = progress if parallel.is_main else Silent()
        training = finetune(
            prepared.checkpoint,
            prepared.factors,
            prepared.stage,
            prepared.corpus,
            run,
            options=replace(prepared.training, device=str(parallel.device)),
            resume=request.resume,
            overwrite=request.overwrite,
            teacher=open_model(request.teacher) if request.teacher else None,
            parallel=parallel,
            progress=shown,
        )
        if not parallel.is_main:
            return []
        draw_training(training, run / "loss.svg")
        chosen = prepared.chosen
        planned = prepared.converter.plan(Export(training.checkpoint, chosen))
        checks = planned.save(request.output, shown, overwrite=request.overwrite)
    shown.line(
        f"loss {training.records[0].loss:.4f} → {training.records[-1].loss:.4f} in {len(training.records)} steps, "
        f"{training.tokens / 1e6:.2f}M tokens; {request.output} written ({chosen.factor_sets}), {len(checks)} checks passed"
    )
    return checks


def plan_lines(request: FinetuneRequest) -> list[str]:
    """What training would take, for a person; no weights are loaded. Raises what a run would refuse."""
    from longrope.estimates.compute import measure_rates
    from longrope.estimates.shape import DecoderShape
    from longrope.estimates.training import stage_estimate
    from longrope.modeling import set_threads

    prepared = _prepare(request)
    checkpoint, factors, stage, training = prepared.checkpoint, prepared.factors, prepared.stage, prepared.training
    set_threads(training.threads)
    shape = DecoderShape.of(checkpoint.config)
    cost = stage_estimate(checkpoint, stage, training, measure_rates(shape, training.dtype, training.device))
    return [
        f"{checkpoint.name}: {shape.parameters / 1e6:.1f}M parameters, window {factors.original} → {factors.target}",
        f"{stage.steps} steps of {stage.batch} rows of {stage.row_length} tokens, {stage.learning_rate:g} {stage.schedule}",
        str(cost),
    ]


def training_folder(output: Path) -> Path:
    """Where the run of an output is kept."""
    return output.with_name(f"{output.name}.training")


def draw_training(training: Training, path: Path) -> None:
    """Loss and learning rate over steps; nothing without matplotlib."""
    from longrope_export import plots

    points = [(record.step, record.loss, record.learning_rate) for record in training.records]
    try:
        write_atomically(path, plots.render(plots.training_figure(points), "svg"))
    except MissingRequirementError:
        return


@dataclass(frozen=True)
class _Prepared:
    """What a run goes on with; `chosen` are the factors that the converter writes."""

    checkpoint: Checkpoint
    factors: BoundFactors
    stage: Stage
    training: TrainOptions
    corpus: Corpus
    converter: Converter
    chosen: BoundFactors


def _prepare(request: FinetuneRequest) -> _Prepared:
    """Open, load and check everything before anything is written, in the order of `preflight`.

    Raises:
        LongRopeError: the first thing in this list that cannot be.
    """
    from converters import registry
    from longrope.finetune.data import training_rows
    from longrope.finetune.model import require_extras, require_trainable
    from longrope.finetune.trainer import mixture_of, training_factors
    from longrope.text import load_corpus
    from longrope_export.models import open_model

    if request.stage.steps < 1:
        raise InputError("--steps 0: expected 1 step or more; convert writes factors into a model without training")
    checkpoint = open_model(request.model)
    checkpoint.require_float_weights()
    factors, length = known_factors(checkpoint, request.factors), request.stage.sequence_length
    if length is not None and length > factors.target:
        raise InputError(f"--length {length}: expected at most the factors' target of {factors.target} tokens")
    if request.teacher and not request.stage.distil_short:
        raise InputError(f"--teacher {request.teacher}: expected --distil-short beside it, got rows without a teacher")
    stage, training = request.stage_for(factors), request.training.on(checkpoint)
    corpus = load_corpus(list(request.texts), checkpoint.encode)
    converter, trained = registry.converter("hf"), training_factors(factors, stage)
    chosen = _sets(converter, trained, stage, request.factor_sets)
    converter.plan(Export(checkpoint, chosen))
    require_extras(training)
    require_trainable(checkpoint, training)
    training_rows(checkpoint, corpus, mixture_of(stage, trained, training))
    refuse_occupied(training_folder(request.output))
    refuse_existing(request.output, overwrite=request.overwrite)
    refuse_foreign(request.output, registry.wrote)
    return _Prepared(checkpoint, factors, stage, training, corpus, converter, chosen)


def _sets(converter: Converter, factors: BoundFactors, stage: Stage, factor_sets: str) -> BoundFactors:
    """`auto` keeps both sets of mixed training, for both were trained; else it is the format's."""
    if factor_sets == "auto" and stage.short_share:
        return factors
    return converter.choose_sets(factors, factor_sets)
