"""One search from beginning to end: windows, strategy, evaluator, journal, progress, result.

options ──► space, objective, starting points ──► strategy ◄──ask/tell──► cache ◄──► evaluator
                                                                  │
                                             journal ◄────────────┴──► progress, result
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longrope import __version__
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError, LongRopeError, MissingRequirementError
from longrope.estimates.compute import slow_seconds
from longrope.estimates.memory import FREE_SHARE
from longrope.estimates.search import SearchEstimate, search_estimate
from longrope.estimates.shape import DecoderShape
from longrope.factors import WHO_READS_ATTENTION, BoundFactors, RescaleFactors
from longrope.hub import hub_id_of
from longrope.journal import Journal
from longrope.metrics import perplexity
from longrope.progress import Progress, Silent, Task
from longrope.search.evaluation_cache import EvaluationCache, HistoryPoint
from longrope.search.evaluators import Evaluator, Recipe, make_evaluator
from longrope.search.objective import Side
from longrope.search.options import SearchOptions
from longrope.search.space import SearchSpace, StartingPoint, make_space
from longrope.search.strategies import ASK_AT_ONCE, check_strategy, make_strategy, own_budget
from longrope.search.strategies.problem import Problem
from longrope.search.trial import GRADIENT_FORWARDS, Candidate, Job, Outcome, Trial
from longrope.search.windows import build_objective, oddities
from longrope.text import Corpus

JOURNAL_NAME = "search.jsonl"
SIDES: tuple[Side, Side] = ("short", "target")


@dataclass(frozen=True)
class Scored:
    """A named point with its loss on the search windows.

    Args:
        name: e.g. `NTK`.
        candidate: the point.
        loss: objective, nats per token.
        target_loss: mean NLL at the target: without the penalty for what it is above the short budget.
        excess: nats that it is above the short budget; 0 without one.
    """

    name: str
    candidate: Candidate
    loss: float
    target_loss: float
    excess: float = 0.0

    @property
    def perplexity(self) -> float:
        """At the target."""
        return perplexity(self.target_loss)


@dataclass(frozen=True)
class ParetoPoint:
    """One point of a two-sided search's front.

    Args:
        candidate: the genome.
        short_loss: mean NLL at the original window, nats per token.
        target_loss: mean NLL at the target length.
        chosen: whether this is the result.
    """

    candidate: Candidate
    short_loss: float
    target_loss: float
    chosen: bool


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        candidate: the best.
        factors: the same as a single set for the target length.
        label: where the best candidate came from, e.g. `crossover`.
        loss: its objective on the search windows, nats per token.
        target_loss: its mean NLL at the target: without the penalty, should it be above the short budget.
        starting_points: the known methods that were measured, on the same windows.
        history: every trial, in order.
        tokens: tokens forwarded, a gradient counted as three forwards.
        evaluations: distinct candidates measured.
        seconds: wall time of this process.
        measuring_seconds: time spent measuring, in all workers and all resumed runs together.
        front: two-sided searches: what is not beaten on both sides, from the least rescaled on; empty otherwise.
        short_cap: two-sided searches: the largest mean NLL allowed at the original window.
    """

    candidate: Candidate
    factors: BoundFactors
    label: str
    loss: float
    target_loss: float
    starting_points: tuple[Scored, ...]
    history: tuple[HistoryPoint, ...]
    tokens: int
    evaluations: int
    seconds: float
    measuring_seconds: float
    front: tuple[ParetoPoint, ...] = ()
    short_cap: float | None = None

    @property
    def perplexity(self) -> float:
        """At the target."""
        return perplexity(self.target_loss)


def search(
    checkpoint: Checkpoint,
    corpus: Corpus,
    target_length: int,
    *,
    options: SearchOptions | None = None,
    journal_dir: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SearchResult:
    """Search rescale factors that extend `checkpoint` to `target_length` tokens.

    Args:
        checkpoint: the model, from `open_checkpoint`.
        corpus: documents of at least `target_length` tokens, from `load_corpus`.
        target_length: L' in tokens.
        options: strategy, budget, objective and machine; None for the defaults.
        journal_dir: where `search.jsonl` is kept, so that a killed run can be continued; None keeps no journal.
        resume: continue the journal that is there.
        overwrite: start it anew, unless `resume` is given.
        progress: where bars and lines go; None shows nothing.

    Returns:
        The best factors with everything that was measured.

    Raises:
        InputError: documents too short, an option out of range, a journal of another run.
        MissingRequirementError: the machine lacks memory, disk or an extra.
    """
    progress = progress or Silent()
    options = (options or SearchOptions()).on(checkpoint)
    space = check_search(checkpoint, target_length, options)
    if options.attention_factor != "formula":
        progress.warn(f"attention factor {options.attention_factor}: {WHO_READS_ATTENTION}")
    objective = build_objective(checkpoint, corpus, target_length, options)
    for oddity in (*oddities(corpus, target_length, options, checkpoint.window), *_dropped(checkpoint, space, options)):
        progress.warn(oddity)
    mild = space.mild_methods() if options.short_budget is not None and options.family == "free" else ()
    starting_points = (*given_starting_points(checkpoint, space, options.start_from), *space.known_methods(), *mild)
    problem = Problem(space, objective, starting_points, options.max_evals, options.seed)
    return solve(
        checkpoint,
        problem,
        options,
        journal_dir=journal_dir,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
    )


def check_search(checkpoint: Checkpoint, target_length: int, options: SearchOptions) -> SearchSpace:
    """The space of a search, and what is refused of its model, target and strategy before any text is read.

    Raises:
        InputError: the target is no longer than what is there, the strategy is unknown or does not search what it should,
            a window share is of no length up to the target, or factors to start from are another model's.
        UnsupportedError: the model attends over fewer tokens than the target.
    """
    check_strategy(options.strategy, n_hat=options.n_hat == "search", attention=options.attention_factor == "search")
    space = make_space(
        checkpoint,
        target_length,
        n_hat=options.n_hat,
        attention_factor=options.attention_factor,
        from_factors=options.from_factors,
        family=options.family,
    )
    for length, _ in options.window_shares:
        if not 2 <= length <= target_length:
            raise InputError(f"a window share of {length} tokens: expected 2 to the target's {target_length}")
    for factors in options.start_from:
        _bound(checkpoint, factors, space)
    return space


def solve(
    checkpoint: Checkpoint,
    problem: Problem,
    options: SearchOptions,
    *,
    journal_dir: Path | None,
    resume: bool,
    progress: Progress,
    overwrite: bool = False,
    about: Mapping[str, Any] | None = None,
) -> SearchResult:
    """Solve a problem; see `search` for what it takes, returns and raises. `about`: what else decides it, as JSON."""
    start = time.perf_counter()
    header = {
        **(about or {}),
        "model": checkpoint.fingerprint,
        "text": problem.objective.fingerprint,
        "settings": {**options.settings(), "target_length": problem.space.target},
    }
    plan = search_estimate(checkpoint, problem.space.target, options)
    notes = {"available_memory": plan.forward.available, "workers": options.workers}
    journal = None
    if journal_dir:
        journal = Journal(journal_dir / JOURNAL_NAME, header, resume=resume, overwrite=overwrite, notes=notes)
    with journal or nullcontext():
        plan = _as_begun(plan, journal, checkpoint, problem, options, progress)
        plan.require()
        problem = replace(problem, workers=_workers_as_begun(journal, options, progress))
        if plan.skips_gradient:
            progress.warn(f"not enough memory for gradient steps, the search goes without: {plan.gradient}")
            problem = replace(problem, gradients=False)
        title, tokens = f"search ({options.strategy})", _budget_tokens(problem, options.strategy)
        with (
            closing(_evaluator(checkpoint, problem, options, plan, progress)) as evaluator,
            progress.task(title, tokens) as task,
        ):
            cache = EvaluationCache(problem.objective, evaluator, journal)
            cache.on_measured = lambda tokens, replayed: _show(task, cache, tokens, replayed)
            problem = _capped(checkpoint, problem, options, cache, progress)
            strategy = make_strategy(options.strategy, problem)
            while trials := strategy.ask():
                strategy.tell(cache.evaluate(trials))
                if plan.needs_gradient and cache.lost_gradients:
                    raise MissingRequirementError(
                        f"strategy {options.strategy} needs gradients, and one did not fit into memory ({plan.gradient}); "
                        "use strategy auto, a smaller dtype, or another machine"
                    )
    for omission in _omissions(problem, cache):
        progress.warn(omission)
    return _result(checkpoint, problem, options, cache, time.perf_counter() - start, progress)


def _omissions(problem: Problem, cache: EvaluationCache) -> Iterator[str]:
    """What a finished search did without, in words."""
    measured = {point.label for point in cache.history}
    if left_out := [start.name for start in problem.starting_points if start.name not in measured]:
        yield f"the budget was too small for these starting points: {', '.join(left_out)}; a larger one measures them"
    if cache.lost_gradients:
        yield f"{cache.lost_gradients} gradients did not fit into memory; the search went on without them"


def _as_begun(
    plan: SearchEstimate,
    journal: Journal | None,
    checkpoint: Checkpoint,
    problem: Problem,
    options: SearchOptions,
    progress: Progress,
) -> SearchEstimate:
    """The plan that a resumed search was begun with: other passes give other last digits, and so other candidates."""
    begun = journal.notes.get("available_memory") if journal else None
    if begun is None or begun == plan.forward.available:
        return plan
    first = search_estimate(checkpoint, problem.space.target, options, available=begun)
    now = plan.forward.available
    needed = max((memory.total for memory in (first.forward, first.gradient) if memory and memory.fits), default=0)
    if now is None or needed <= FREE_SHARE * now:
        return first
    progress.warn(
        f"{now / 2**30:.1f} GiB are free, {begun / 2**30:.1f} GiB were when this search began: it goes on with what "
        "fits now, and may end with other factors than it would have"
    )
    return plan


def _workers_as_begun(journal: Journal | None, options: SearchOptions, progress: Progress) -> int:
    """The number of workers that a resumed search was begun with, which decides what strategies ask for at a time."""
    begun: int = journal.notes.get("workers", 1) if journal else options.workers
    if begun < options.workers and options.strategy in ASK_AT_ONCE:
        progress.warn(
            f"this search began with {begun} workers, there are {options.workers}: it goes on as it began, so that its "
            "journal still holds, and some will wait; a new search uses all of them"
        )
    return begun


def _evaluator(
    checkpoint: Checkpoint, problem: Problem, options: SearchOptions, plan: SearchEstimate, progress: Progress
) -> Evaluator:
    objective, machine = problem.objective, replace(options.machine, available=plan.forward.available)
    shape = DecoderShape.of(checkpoint.config)

    def cost(job: Job) -> float:
        forwards = GRADIENT_FORWARDS if job.gradient else 1
        return forwards * slow_seconds(shape, len(objective.windows[job.window]))

    recipe = Recipe(checkpoint.path, checkpoint.name, objective, machine, problem.space.default_attention)
    return make_evaluator(recipe, executor=options.executor, workers=options.workers, warn=progress.warn, cost=cost)


def _capped(
    checkpoint: Checkpoint, problem: Problem, options: SearchOptions, cache: EvaluationCache, progress: Progress
) -> Problem:
    """The problem with the short side's cap: what the factors before this search score there, and the budget above it.

    An attention factor that breaks the cap without any rescaling is reported at once: no factors are likely to mend that.
    """
    if options.short_budget is None:
        return problem
    base = problem.space.unscaled if options.from_factors is None else checkpoint.bind(options.from_factors)
    before = Candidate.of(base, "short")
    windows, attention = problem.objective.short_windows, problem.space.default_attention
    (outcome,) = cache.evaluate([Trial(before, windows, "before extension")])
    reference = problem.objective.mean("short", windows, outcome.losses)
    if not math.isfinite(reference):
        raise LongRopeError("the factors before this search could not be measured at the original window")
    objective = replace(problem.objective, short_cap=reference + math.log1p(options.short_budget))
    cache.objective = objective
    if not problem.space.search_attention and attention != before.attention_factor:
        alone = Trial(replace(before, attention_factor=attention), windows, "attention factor alone")
        (outcome,) = cache.evaluate([alone])
        rise = math.expm1(objective.mean("short", windows, outcome.losses) - reference)
        if rise > options.short_budget:
            progress.warn(
                f"the attention factor of {attention:.3f} alone raises perplexity at the original window by "
                f"{100 * rise:.1f} %, the short budget is {100 * options.short_budget:g} %; a searched one is "
                "smaller, which some engines ignore, and two factor sets need no budget"
            )
    return replace(problem, objective=objective)


def given_starting_points(
    checkpoint: Checkpoint, space: SearchSpace, given: Sequence[RescaleFactors]
) -> Iterator[StartingPoint]:
    """Factor files as points of the space. Raises InputError when they belong to another model."""
    for number, factors in enumerate(given, start=1):
        yield StartingPoint(f"given {number} ({factors.method})", space.adopt(_bound(checkpoint, factors, space)))


def _bound(checkpoint: Checkpoint, factors: RescaleFactors, space: SearchSpace) -> BoundFactors:
    """Given factors bound to the model; where they do not say what window they are for, it is this search's target."""
    return checkpoint.bind(factors, target=factors.target_length or space.target)


def _dropped(checkpoint: Checkpoint, space: SearchSpace, options: SearchOptions) -> Iterator[str]:
    """What given factor files say that this search does not keep."""
    base, start = "factors to search on top of", "factors to start from"
    given = [(base, options.from_factors)] if options.from_factors else []
    given += [(start, factors) for factors in options.start_from]
    for what, factors in given:
        bound = _bound(checkpoint, factors, space)
        searched = what == start and len(space.n_hats) > 1
        if bound.n_hat not in space.n_hats and not searched:
            yield (
                f"{what}: their n_hat of {bound.n_hat} is not kept, candidates have {space.n_hats[0]}; "
                f"n_hat {bound.n_hat} keeps it{', and so does searching it' if what == start else ''}"
            )
        own = bound.attention_factor
        usual = (space.default_attention, bound.formula_attention_factor)
        if own is not None and not space.search_attention and min(abs(own - value) for value in usual) > 1e-6:
            yield (
                f"{what}: their attention factor of {own:g} is not kept, candidates have {space.default_attention:g}; "
                f"attention factor {own:g} keeps it, and a searched one starts from the formula's"
            )


def _result(
    checkpoint: Checkpoint,
    problem: Problem,
    options: SearchOptions,
    cache: EvaluationCache,
    seconds: float,
    progress: Progress,
) -> SearchResult:
    best = cache.best
    if best is None or not math.isfinite(best.loss):
        raise LongRopeError("no candidate could be measured on all windows; see the warnings above")
    for doubt in _doubts(best, checkpoint.vocab_size):
        progress.warn(doubt)
    found = replace(
        problem.space.to_factors(best.candidate),
        method=best.candidate.family.type if best.candidate.family else options.strategy,
        provenance=_provenance(checkpoint, problem, options, cache, best.loss),
    )
    starts = {point.label: _scored(point, problem) for point in cache.history if point.known}
    return SearchResult(
        candidate=best.candidate,
        factors=found,
        label=best.trial.label,
        loss=best.loss,
        target_loss=problem.objective.mean("target", best.trial.windows, best.losses),
        starting_points=tuple(starts.values()),
        history=tuple(cache.history),
        tokens=cache.tokens,
        evaluations=cache.evaluations,
        seconds=seconds,
        measuring_seconds=cache.seconds,
        front=_front(cache, best.candidate),
        short_cap=cache.objective.short_cap,
    )


def _doubts(best: Outcome, vocab_size: int) -> Iterator[str]:
    """What a user should know of the best candidate, in words."""
    chance = math.log(vocab_size)
    if best.loss > 2 * chance:
        yield (
            f"the best candidate predicts these texts far worse than chance: {best.loss:.1f} nats per token, where guessing "
            f"has {chance:.1f}. Look whether the checkpoint is whole, and try it with eval on its own window"
        )
    if best.excess:
        yield (
            f"no candidate kept the short budget; the best is {100 * math.expm1(best.excess):.2f} % above it at the original "
            "window. Try more evaluations, a larger budget, or both factor sets (recover)"
        )


def _scored(point: HistoryPoint, problem: Problem) -> Scored:
    target = problem.objective.mean("target", point.windows, point.losses)
    excess = problem.objective.excess(point.windows, point.losses)
    return Scored(point.label, point.candidate, point.loss, target, excess)


def _front(cache: EvaluationCache, chosen: Candidate) -> tuple[ParetoPoint, ...]:
    """The candidates that none beats on both sides, by rising loss on the short side."""
    if cache.objective.short_cap is None:
        return ()
    full = set(cache.objective.ranking_windows)
    both = {
        point.candidate: tuple(cache.objective.mean(side, point.windows, point.losses) for side in SIDES)
        for point in cache.history
        if full <= set(point.windows)
    }
    front, lowest = list[ParetoPoint](), math.inf
    for candidate, (short, target) in sorted(both.items(), key=lambda item: item[1]):
        if target < lowest:
            front.append(ParetoPoint(candidate, short, target, candidate == chosen))
            lowest = target
    return tuple(front)


def _provenance(
    checkpoint: Checkpoint, problem: Problem, options: SearchOptions, cache: EvaluationCache, loss: float
) -> dict[str, Any]:
    return {
        "longrope_export": __version__,
        "model": hub_id_of(checkpoint.name) or Path(checkpoint.name).name,  # no path of a machine
        "model_fingerprint": checkpoint.fingerprint,
        "text_fingerprint": replace(problem.objective, short_cap=None).fingerprint,
        "settings": options.settings(),
        "workers": problem.workers,
        "loss": loss,
        "tokens_forwarded": cache.tokens,
        "evaluations": cache.evaluations,
    }


def _budget_tokens(problem: Problem, strategy: str) -> float:
    return float((problem.max_evals or own_budget(strategy, problem.space.target)) * problem.objective.tokens)


def _show(task: Task, cache: EvaluationCache, tokens: int, replayed: bool) -> None:
    best = f"perplexity {perplexity(cache.lowest):.3f}, " if math.isfinite(cache.lowest) else ""
    note = f"{best}{cache.evaluations} evaluations, {cache.measured_tokens / 1e6:.2f}M tokens"
    task.advance(tokens, note, before=replayed)
