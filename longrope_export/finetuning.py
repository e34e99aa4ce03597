"""Fine-tuning as the command line does it: one stage, then a Hugging Face folder with the factors inside.

model, factors ──finetune──► OUTPUT.training/: log.jsonl, checkpoints/, model/, loss.svg ──hf converter──► OUTPUT
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from converters import registry
from converters.base import Check, Converter, Export
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError, MissingRequirementError
from longrope.estimates.compute import measure_rates
from longrope.estimates.shape import DecoderShape
from longrope.estimates.training import stage_estimate
from longrope.factors import BoundFactors
from longrope.files import refuse_existing, write_atomically
from longrope.finetune.data import training_rows
from longrope.finetune.model import require_extras, require_trainable
from longrope.finetune.options import TrainOptions
from longrope.finetune.parallel import processes
from longrope.finetune.stages import Stage
from longrope.finetune.trainer import Training, finetune, mixture_of, training_factors
from longrope.modeling import set_threads
from longrope.progress import Progress, Silent
from longrope.text import Corpus, load_corpus
from longrope_export.conversion import chosen_sets, known_factors
from longrope_export.models import open_model


@dataclass(frozen=True)
class FinetuneRequest:
    """The arguments of `finetune`.

    Args:
        stage: arguments of `Stage`; `length` and `sequence_length` follow from the factors and `length`.
        teacher: the model before extension, for `distil_short`; None for `model`.
        length: tokens of a training row; None for the factors' target.
    """

    model: str
    texts: Sequence[Path]
    output: Path
    stage: dict[str, Any]
    options: TrainOptions
    factors: Path | None = None
    teacher: str | None = None
    length: int | None = None
    factor_sets: str = "auto"
    resume: bool = False
    overwrite: bool = False

    def stage_for(self, factors: BoundFactors) -> Stage:
        """The one stage: rows of `length`, a window of the factors' target."""
        return Stage(factors.target, sequence_length=self.length, factors="given", **self.stage)


def run_finetune(request: FinetuneRequest, progress: Progress) -> list[Check]:
    """Train and write the folder; returns its read-back checks (empty in processes that do not write).

    Raises:
        LongRopeError: the factors do not fit, texts are too short, the machine lacks something, or the output exists.
    """
    prepared = _prepare(request)
    with processes(request.options) as parallel:
        shown = progress if parallel.is_main else Silent()
        training = finetune(
            prepared.checkpoint,
            prepared.factors,
            prepared.stage,
            prepared.corpus,
            training_folder(request.output),
            options=replace(request.options, device=str(parallel.device)),
            resume=request.resume,
            overwrite=request.overwrite,
            teacher=open_model(request.teacher) if request.teacher else None,
            parallel=parallel,
            progress=shown,
        )
        if not parallel.is_main:
            return []
        draw_training(training, training_folder(request.output) / "loss.svg")
        chosen, converter = prepared.chosen, prepared.converter
        planned = converter.plan(Export(training.checkpoint, chosen))
        checks = planned.save(request.output, shown, overwrite=request.overwrite)
    shown.line(
        f"loss {training.records[0].loss:.4f} → {training.records[-1].loss:.4f} in {len(training.records)} steps, "
        f"{training.tokens / 1e6:.2f}M tokens; {request.output} written ({chosen.factor_sets}), {len(checks)} checks passed"
    )
    return checks


def finetune_plan_lines(request: FinetuneRequest) -> list[str]:
    """What training would take, for a person; no weights are loaded. Raises what a run would refuse."""
    prepared = _prepare(request)
    checkpoint, factors, stage = prepared.checkpoint, prepared.factors, prepared.stage
    set_threads(request.options.threads)
    shape = DecoderShape.of(checkpoint.config)
    rates = measure_rates(shape, request.options.dtype, request.options.device)
    cost = stage_estimate(checkpoint, stage, request.options, rates)
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
    corpus: Corpus
    converter: Converter
    chosen: BoundFactors


def _prepare(request: FinetuneRequest) -> _Prepared:
    """Open, load and check everything before anything is written, in the order of `preflight`.

    Raises:
        LongRopeError: the first thing in this list that cannot be.
    """
    checkpoint = open_model(request.model)
    factors = known_factors(checkpoint, request.factors)
    if request.length is not None and request.length > factors.target:
        raise InputError(f"--length {request.length}: expected at most the factors' target of {factors.target} tokens")
    if request.teacher and not request.stage.get("distil_short"):
        raise InputError(f"--teacher {request.teacher}: expected --distil-short beside it, got rows without a teacher")
    stage = request.stage_for(factors)
    corpus = load_corpus(list(request.texts), checkpoint.encode)
    converter, trained = registry.converter("hf"), training_factors(factors, stage)
    chosen = _sets(converter, trained, stage, request.factor_sets)
    converter.plan(Export(checkpoint, chosen))
    require_extras(request.options)
    require_trainable(checkpoint.config, request.options)
    training_rows(checkpoint, corpus, mixture_of(stage, trained, request.options))
    refuse_existing(request.output, overwrite=request.overwrite)
    return _Prepared(checkpoint, factors, stage, corpus, converter, chosen)


def _sets(converter: Converter, factors: BoundFactors, stage: Stage, factor_sets: str) -> BoundFactors:
    """`auto` keeps both sets of mixed training, for both were trained; else it is the format's."""
    if factor_sets == "auto" and stage.short_share:
        return factors
    return chosen_sets(converter, factors, factor_sets)
