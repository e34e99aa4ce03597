"""Stages one after the other: factors for the next window, training, and on with the trained model.

    model ──search L1──► factors ──train──► model' ──search L2 on top──► factors' ──train──► model''
          ──search L' on top──► factors''                      a stage without steps: second interpolation

    stages/1-2048/   journal/     every evaluation of the search
                     factors.json what the stage is trained with
                     training/    log.jsonl, checkpoints/, model/

Every arrow is resumable: searches replay their journals, training goes on from its last checkpoint, a finished stage is
opened.
Source: LongRoPE (arXiv 2402.13753), sections 3.3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from longrope.checkpoint import Checkpoint
from longrope.errors import InputError
from longrope.estimates.compute import Rates, duration, forward_seconds
from longrope.estimates.search import SearchEstimate, search_estimate
from longrope.estimates.shape import DecoderShape
from longrope.estimates.training import StageEstimate, stage_estimate
from longrope.factors import BoundFactors, RescaleFactors
from longrope.finetune.data import training_rows
from longrope.finetune.options import TrainOptions
from longrope.finetune.parallel import Parallel
from longrope.finetune.stages import RESCALE, SEARCH, Stage, StagePlan
from longrope.finetune.trainer import Training, finetune, mixture_of
from longrope.progress import Progress
from longrope.search import SearchOptions, SearchResult, search
from longrope.text import Corpus

FACTORS = "factors.json"
LoadTexts = Callable[[Sequence[Path]], Corpus]


@dataclass(frozen=True)
class StageResult:
    """One finished stage.

    Args:
        stage: what was asked.
        factors: for its length; after mixed training both sets.
        search: None where factors were given or rescaled.
        training: None for a stage without steps.
    """

    stage: Stage
    factors: BoundFactors
    search: SearchResult | None
    training: Training | None

    @property
    def name(self) -> str:
        return f"stage factors at {self.stage.length}"

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage.to_json(),
            "factors": self.factors.to_json(),
            "search": self.search and {"perplexity": self.search.perplexity, "evaluations": self.search.evaluations},
            "training": self.training and self.training.to_json(),
        }


@dataclass(frozen=True)
class Progression:
    """All stages of a plan, and the model at their end."""

    checkpoint: Checkpoint
    stages: tuple[StageResult, ...]

    @property
    def factors(self) -> BoundFactors:
        """For the plan's last length."""
        return self.stages[-1].factors


def run_stages(
    checkpoint: Checkpoint,
    plan: StagePlan,
    corpus: Corpus,
    folder: Path,
    *,
    search_options: SearchOptions,
    train_options: TrainOptions,
    load_texts: LoadTexts,
    resume: bool,
    parallel: Parallel,
    progress: Progress,
) -> Progression:
    """Run all stages of a plan. Of several processes the first one searches, and all train; they see the same `folder`.

    Args:
        checkpoint: the model before extension.
        plan: for this model and target, from `read_plan`.
        corpus: texts to search on and to train on, where a stage names none of its own.
        folder: gets a folder for each stage; `resume` goes on with what is there.
        search_options: of every search; a stage's own budget wins.
        train_options: of every training.
        load_texts: texts that a stage names, as this model's tokens.
        parallel, progress: as in `finetune`.

    Raises:
        LongRopeError: what `search` and `finetune` raise, or factors that do not fit a stage.
    """
    results: list[StageResult] = []
    original = checkpoint
    for number, stage in enumerate(plan.stages, start=1):
        here = folder / f"{number}-{stage.length}"
        progress.line(f"Stage {number} of {len(plan.stages)}: {describe(stage)}.")
        last = replace(results[-1].factors, provenance={}) if results else None
        options = replace(search_options, max_evals=stage.max_evals or search_options.max_evals, from_factors=last)
        found = parallel.main_alone(
            partial(_begin, checkpoint, stage, corpus, here, options, last, resume=resume, progress=progress)
        )
        factors, training = checkpoint.bind(RescaleFactors.load(here / FACTORS), target=stage.length), None
        if stage.steps:
            training = finetune(
                checkpoint,
                factors,
                stage,
                load_texts(stage.texts) if stage.texts else corpus,
                here / "training",
                options=train_options,
                resume=resume,
                teacher=original,
                parallel=parallel,
                progress=progress,
            )
            checkpoint, factors = training.checkpoint, training.factors
        results.append(StageResult(stage, factors, found, training))
    return Progression(checkpoint, tuple(results))


def _begin(
    checkpoint: Checkpoint,
    stage: Stage,
    corpus: Corpus,
    folder: Path,
    options: SearchOptions,
    last: BoundFactors | None,
    *,
    resume: bool,
    progress: Progress,
) -> SearchResult | None:
    """Write a stage's factors, searched where they are to be."""
    if stage.factors != SEARCH:
        known_stage_factors(checkpoint, stage, last).save(folder / FACTORS)
        return None
    journal = folder / "journal"
    again = resume and journal.exists()
    found = search(
        checkpoint, corpus, stage.length, options=options, journal_dir=journal, resume=again, progress=progress
    )
    found.factors.save(folder / FACTORS)
    return found


def known_stage_factors(checkpoint: Checkpoint, stage: Stage, last: BoundFactors | None) -> BoundFactors:
    """Factors that a stage does not search: a file's, or the last stage's at this length.

    Raises:
        InputError: there is no last stage, or the file's factors are for another length or model.
    """
    if stage.factors != RESCALE:
        return checkpoint.bind(RescaleFactors.load(Path(stage.factors)), target=stage.length)
    if last is None:
        raise InputError(f"stage at {stage.length}: there are no factors before it to rescale")
    return rescaled(last, stage.length)


def rescaled(factors: BoundFactors, length: int) -> BoundFactors:
    """The same curve at another length scale: λ^(ln s' / ln s). 1 stays 1, s becomes s'; PI and NTK stay what they are.

    An attention factor that was given or searched stays, too; the formula's follows the scale.
    """
    power = math.log(length / factors.original) / math.log(factors.length_scale)
    values = tuple(value**power for value in factors.long_factor)
    return replace(
        factors,
        short_factor=values,
        long_factor=values,
        target_length=length,
        method=f"rescaled from {factors.target}",
        provenance={"rescaled_from": factors.to_json()},
    )


# -- before the start


@dataclass(frozen=True)
class StageCost:
    """What a stage takes: its search and its training, each None where there is none."""

    stage: Stage
    search: SearchEstimate | None
    search_seconds: float
    training: StageEstimate | None

    @property
    def seconds(self) -> float:
        return self.search_seconds + (self.training.seconds if self.training else 0.0)

    def lines(self) -> list[str]:
        """For a person."""
        found = [describe(self.stage)]
        if self.search:
            budget, forward, *_ = self.search.lines()
            found.append(f"  search: {budget}, about {duration(self.search_seconds)} on this device; {forward}")
            found += [f"  search: {caveat}" for caveat in self.search.caveats()]
        if self.training:
            found.append(f"  training: {self.training}")
            if not self.training.memory.fits:
                found.append("  training: may run out of memory")
        return found


@dataclass(frozen=True)
class StagesEstimate:
    """What all stages of a plan take."""

    plan: StagePlan
    stages: tuple[StageCost, ...]

    def lines(self) -> list[str]:
        """For a person."""
        plan, seconds = self.plan, sum(stage.seconds for stage in self.stages)
        lines = [f"plan {plan.name}" + (f" ({plan.source})" if plan.source else "")]
        for number, stage in enumerate(self.stages, start=1):
            first, *others = stage.lines()
            lines += [f"{number}. {first}", *others]
        return [*lines, f"all stages: about {duration(seconds)} on this device"]


def stages_estimate(
    checkpoint: Checkpoint,
    plan: StagePlan,
    search_options: SearchOptions,
    train_options: TrainOptions,
    rates: Rates,
    *,
    world_size: int = 1,
) -> StagesEstimate:
    """Tokens, memory and time of every stage; nothing is loaded."""
    shape = DecoderShape.of(checkpoint.config)

    def cost(stage: Stage) -> StageCost:
        searching, seconds, training = None, 0.0, None
        if stage.factors == SEARCH:
            options = replace(search_options, max_evals=stage.max_evals or search_options.max_evals)
            searching = search_estimate(checkpoint, stage.length, options)
            seconds = forward_seconds(shape, stage.length, searching.tokens, rates)
        if stage.steps:
            training = stage_estimate(checkpoint, stage, train_options, rates, world_size=world_size)
        return StageCost(stage, searching, seconds, training)

    return StagesEstimate(plan, tuple(cost(stage) for stage in plan.stages))


def check_stages(
    checkpoint: Checkpoint, plan: StagePlan, factors: BoundFactors, corpus: Corpus, load_texts: LoadTexts
) -> None:
    """Refuse, before anything is started, files of factors that do not fit a stage and texts too short for its rows.

    Args:
        factors: of any values, for the plan's last length.
        checkpoint, plan, corpus, load_texts: as in `run_stages`.

    Raises:
        InputError: which stage, and what is wrong.
    """
    for stage in plan.stages:
        if stage.factors not in (SEARCH, RESCALE):
            known_stage_factors(checkpoint, stage, None)
        if stage.steps:
            texts = load_texts(stage.texts) if stage.texts else corpus
            training_rows(checkpoint, texts, mixture_of(stage, factors, TrainOptions()))


def describe(stage: Stage) -> str:
    """`16384 tokens, searched factors, 600 steps of 32 rows of 16384, 2e-05 linear, 25 % short, 10 % retrieval`."""
    origin = {SEARCH: "searched factors", RESCALE: "rescaled factors"}.get(stage.factors, f"factors of {stage.factors}")
    if not stage.steps:
        return f"{stage.length} tokens, {origin}, no training"
    short = "short, taught" if stage.distil_short else "short"
    retrieval = (
        f"retrieval among {stage.retrieval_distractors:g} distractors per 1,024"
        if stage.retrieval_distractors
        else "retrieval"
    )
    named = ((short, stage.short_share), (retrieval, stage.retrieval_share))
    shares = "".join(f", {100 * share:g} % {name}" for name, share in named if share)
    return (
        f"{stage.length} tokens, {origin}, {stage.steps} steps of {stage.batch} rows of {stage.row_length}, "
        f"{stage.learning_rate:g} {stage.schedule}{shares}"
    )
