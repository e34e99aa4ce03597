"""The paper's recipe as one resumable plan: search the long set, recover a short one, measure both on held-out text.

corpus ──search──► long set ──────────────────────────────┬──recover_short──► both sets ──evaluate_methods──► Extension
       └─stages: search ► fine-tune ► search ► … ► long set ┘                               (held-out text)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrope.callable_module import make_callable
from longrope.checkpoint import Checkpoint
from longrope.extend_options import ExtendOptions
from longrope.factors import BoundFactors
from longrope.finetune.stages import StagePlan
from longrope.metrics import perplexity
from longrope.progress import Progress, Silent
from longrope.search import (
    Candidate,
    MethodScore,
    Recovery,
    SearchResult,
    evaluate_methods,
    known_rows,
    recover_short,
    search,
)
from longrope.text import Corpus, load_corpus

if TYPE_CHECKING:
    from longrope.finetune.progressive import StageResult

SEARCHED = "searched"
SEARCHED_SHORT = "searched, short set"


@dataclass(frozen=True)
class MethodTable:
    """Held-out perplexity by method and window.

    Args:
        scores: window length → scores, the known methods first.
    """

    scores: Mapping[int, tuple[MethodScore, ...]]

    @property
    def lengths(self) -> list[int]:
        return sorted(self.scores)

    def perplexity(self, name: str, length: int) -> float:
        """NaN where a method was not measured at a length."""
        return next((score.perplexity for score in self.scores[length] if score.name == name), math.nan)

    @property
    def names(self) -> list[str]:
        """All methods, in the order of the longest window."""
        found = dict.fromkeys(score.name for length in reversed(self.lengths) for score in self.scores[length])
        return list(found)

    def to_json(self) -> dict[str, Any]:
        rows = [
            {"name": n, "perplexities": [self.perplexity(n, length) for length in self.lengths]} for n in self.names
        ]
        return {"lengths": self.lengths, "rows": rows}


@dataclass(frozen=True)
class Found:
    """What search, or stages, gave: factors for the target, and the model that they are for.

    Args:
        checkpoint: the trained model after stages.
        factors: the long set; with both where stages trained both.
        search: the last one; None where the last stage's factors were not searched.
        stages: what fine-tuning gave.
    """

    checkpoint: Checkpoint
    factors: BoundFactors
    search: SearchResult | None
    stages: tuple[StageResult, ...] = ()


@dataclass(frozen=True)
class Extension:
    """What the recipe gave.

    Args:
        checkpoint: the model that the factors are for; the trained one after stages.
        factors: dual when a short set was recovered.
        search: the last one; None where the last stage's factors were not searched.
        methods: known methods on the original model, and what was found.
        stages: what fine-tuning gave.
        recovery: the short set's search; None for a single set.
    """

    checkpoint: Checkpoint
    factors: BoundFactors
    search: SearchResult | None
    methods: MethodTable
    stages: tuple[StageResult, ...] = ()
    recovery: Recovery | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "search": self.search and search_json(self.search),
            "methods": self.methods.to_json(),
            "stages": [stage.to_json() for stage in self.stages],
            "recovery": self.recovery and self.recovery.to_json(),
        }


def search_json(search: SearchResult) -> dict[str, Any]:
    """A search for run.json and the report."""
    history = [
        {"tokens": point.tokens, "perplexity": perplexity(point.best_target)}
        for point in search.history
        if point.best_target is not None
    ]
    front = [
        {"short": perplexity(point.short_loss), "target": perplexity(point.target_loss), "chosen": point.chosen}
        for point in search.front
    ]
    return {
        "perplexity": search.perplexity,
        "origin": search.label,
        "tokens": search.tokens,
        "evaluations": search.evaluations,
        "seconds": search.seconds,
        "measuring_seconds": search.measuring_seconds,
        "seeds": {start.name: start.perplexity for start in search.starting_points},
        "seeds_above_cap": {start.name: start.excess for start in search.starting_points if start.excess},
        "history": history,
        "short_cap": search.short_cap and perplexity(search.short_cap),
        "front": front,
    }


def table_tokens(checkpoint: Checkpoint, options: ExtendOptions) -> dict[int, int]:
    """Tokens that the table of methods reads at each length, at most: the known methods and the sets that were found."""
    known = len(known_rows(checkpoint, options.target_length, options.methods))
    rows = {checkpoint.window: known + 2, options.target_length: known + 1}
    return {length: count * options.test_windows * length for length, count in rows.items()}


def extend(
    checkpoint: Checkpoint,
    corpus: Corpus,
    held_out: Corpus,
    options: ExtendOptions,
    *,
    journal_dir: Path,
    stages_dir: Path | None = None,
    resume: bool = False,
    dual: bool = False,
    progress: Progress | None = None,
) -> Extension:
    """Run the recipe on one model: everything but the artifacts.

    Args:
        checkpoint: the model before extension.
        corpus: texts to search and to train on.
        held_out: texts that neither sees.
        options: target, budgets, stages.
        journal_dir: holds a journal for each search; `resume` goes on with them.
        stages_dir: holds a folder for each stage; None for `stages` in `journal_dir`.
        resume: go on with what is in these folders.
        dual: recover a short set, too.
        progress: where bars and lines go; None shows nothing.

    Returns:
        The factors, the model they are for, and held-out perplexities of known methods and of what was found.

    Raises:
        InputError: documents too short, an option out of range, a journal of another run.
        MissingRequirementError: the machine lacks memory, disk or an extra.
        UnsupportedError: the model cannot be extended.
    """
    progress, stages_dir = progress or Silent(), stages_dir or journal_dir / "stages"
    options = options.on(checkpoint)
    if options.stages is None:
        found = _searched(checkpoint, corpus, options, journal_dir / "long", resume, progress)
    else:
        found = _staged(checkpoint, options.stages, corpus, options, stages_dir, resume, progress)
    recovery = None
    if dual:
        recovery = _recovery(found, corpus, held_out, options, journal_dir / "short", resume, progress)
    elif options.stages is not None:
        progress.line("No short set is recovered, for no format is written with two sets.")
    factors = recovery.factors if recovery else found.factors
    methods = measure_methods(checkpoint, held_out, found, factors, options, progress)
    return Extension(found.checkpoint, factors, found.search, methods, found.stages, recovery)


def help_to_train(
    checkpoint: Checkpoint, corpus: Corpus, options: ExtendOptions, *, stages_dir: Path, resume: bool
) -> None:
    """What the other processes of torchrun do while the first one runs `extend`; arguments as there."""
    options = options.on(checkpoint)
    assert options.stages is not None, "there is nothing to help with without stages"
    _staged(checkpoint, options.stages, corpus, options, stages_dir, resume, Silent())


def _searched(
    checkpoint: Checkpoint, corpus: Corpus, options: ExtendOptions, journal: Path, resume: bool, progress: Progress
) -> Found:
    """Factors of one search, for the model as it is."""
    result = search(
        checkpoint,
        corpus,
        options.target_length,
        options=options.search,
        journal_dir=journal,
        resume=resume and journal.exists(),
        progress=progress,
    )
    return Found(checkpoint, result.factors, result)


def _staged(
    checkpoint: Checkpoint,
    plan: StagePlan,
    corpus: Corpus,
    options: ExtendOptions,
    folder: Path,
    resume: bool,
    progress: Progress,
) -> Found:
    """Factors and model at the end of all stages; all processes that torchrun started call it."""
    from longrope.finetune.parallel import processes  # training's libraries are loaded when there is something to train
    from longrope.finetune.progressive import run_stages

    with processes(options.training) as parallel:
        progression = run_stages(
            checkpoint,
            plan,
            corpus,
            folder,
            search_options=options.search,
            train_options=dataclasses.replace(options.training, device=str(parallel.device)),
            load_texts=lambda paths: load_corpus(paths, checkpoint.encode),
            resume=resume,
            parallel=parallel,
            progress=progress,
        )
    return Found(progression.checkpoint, progression.factors, progression.stages[-1].search, progression.stages)


def _recovery(
    found: Found,
    corpus: Corpus,
    held_out: Corpus,
    options: ExtendOptions,
    journal: Path,
    resume: bool,
    progress: Progress,
) -> Recovery:
    """A short set beside the long one, compared with what stages were trained with."""
    factors = found.factors.as_single()
    trained = {stage.name: stage.factors for stage in found.stages if stage.training is not None}
    return recover_short(
        found.checkpoint,
        corpus,
        factors,
        num_windows=options.short_windows,
        options=dataclasses.replace(options.short_search, n_hat=factors.n_hat),
        journal_dir=journal,
        resume=resume and journal.exists(),
        progress=progress,
        stages=trained,
        held_out=held_out if trained else None,
    )


def measure_methods(
    checkpoint: Checkpoint,
    held_out: Corpus,
    found: Found,
    factors: BoundFactors,
    options: ExtendOptions,
    progress: Progress,
) -> MethodTable:
    """Known methods on the original model and the factors on the found one, on held-out windows of L and L' tokens."""
    searched = {SEARCHED: Candidate.of(factors, "long")}
    dual = {SEARCHED_SHORT: Candidate.of(factors, "short")} if factors.factor_sets == "dual" else {}

    def scores(length: int, named: dict[str, Candidate]) -> Iterator[MethodScore]:
        windows = held_out.windows(length, options.test_windows)
        measure = partial(evaluate_methods, machine=options.search.machine, progress=progress)
        if not found.stages:
            yield from measure(checkpoint, windows, options.target_length, named, methods=options.methods)
            return
        yield from measure(checkpoint, windows, options.target_length, {}, methods=options.methods)
        yield from measure(found.checkpoint, windows, options.target_length, named, methods=())

    lengths = ((checkpoint.window, searched | dual), (options.target_length, searched))
    return MethodTable({length: tuple(scores(length, named)) for length, named in lengths})


make_callable(__name__)
