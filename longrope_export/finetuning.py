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
from longrope.factors import BoundFactors
from longrope.files import refuse_existing, write_atomically
from longrope.finetune.cost import measure_rates, stage_cost
from longrope.finetune.options import TrainOptions
from longrope.finetune.parallel import processes
from longrope.finetune.plan import DecoderShape
from longrope.finetune.stages import Stage
from longrope.finetune.trainer import Training, finetune, training_factors
from longrope.modeling import set_threads
from longrope.progress import Progress, Silent
from longrope.text import load_corpus
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
        LongRopeError: the output exists, the factors do not fit, texts are too short, or the machine lacks something.
    """
    refuse_existing(request.output, overwrite=request.overwrite)
    if request.teacher and not request.stage.get("distil_short"):
        raise InputError(f"--teacher {request.teacher}: expected --distil-short beside it, got rows without a teacher")
    checkpoint, factors = _opened(request)
    stage = request.stage_for(factors)
    converter = registry.converter("hf")
    chosen = _sets(converter, training_factors(factors, stage), stage, request.factor_sets)
    converter.plan(Export(checkpoint, chosen))
    corpus = load_corpus(list(request.texts), checkpoint.encode)
    with processes(request.options) as parallel:
        told = progress if parallel.is_main else Silent()
        training = finetune(
            checkpoint,
            factors,
            stage,
            corpus,
            training_folder(request.output),
            options=replace(request.options, device=str(parallel.device)),
            resume=request.resume,
            overwrite=request.overwrite,
            teacher=open_model(request.teacher) if request.teacher else None,
            parallel=parallel,
            progress=told,
        )
        if not parallel.is_main:
            return []
        draw_training(training, training_folder(request.output) / "loss.svg")
        checks = converter.convert(
            Export(training.checkpoint, chosen), request.output, told, overwrite=request.overwrite
        )
    told.line(
        f"loss {training.records[0].loss:.4f} → {training.records[-1].loss:.4f} in {len(training.records)} steps, "
        f"{training.tokens / 1e6:.2f}M tokens; {request.output} written ({chosen.factor_sets}), {len(checks)} checks passed"
    )
    return checks


def plan_lines(request: FinetuneRequest) -> list[str]:
    """What training would take, for a person; no weights are loaded."""
    checkpoint, factors = _opened(request)
    set_threads(request.options.threads)
    stage, shape = request.stage_for(factors), DecoderShape.of(checkpoint.config)
    rates = measure_rates(shape, request.options.dtype, request.options.device)
    cost = stage_cost(checkpoint, stage, request.options, rates)
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


def _opened(request: FinetuneRequest) -> tuple[Checkpoint, BoundFactors]:
    checkpoint = open_model(request.model)
    factors = known_factors(checkpoint, request.factors)
    if request.length is not None and request.length > factors.target:
        raise InputError(f"--length {request.length}: expected at most the factors' target of {factors.target} tokens")
    return checkpoint, factors


def _sets(converter: Converter, factors: BoundFactors, stage: Stage, factor_sets: str) -> BoundFactors:
    """`auto` keeps both sets of mixed training, for both were trained; else it is the format's."""
    if factor_sets == "auto" and stage.short_share:
        return factors
    return chosen_sets(converter, factors, factor_sets)
