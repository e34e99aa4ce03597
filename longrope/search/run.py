"""One search from beginning to end: windows, strategy, evaluator, journal, progress, result.

options ──► space, objective, seeds ──► strategy ◄──ask/tell──► ledger ◄──► evaluator
                                                                  │
                                             journal ◄────────────┴──► progress, result
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longrope import __version__
from longrope.checkpoint import Checkpoint
from longrope.errors import LongRopeError
from longrope.factors import RescaleFactors
from longrope.journal import Journal
from longrope.progress import Progress, Silent, Task
from longrope.search.evaluators import Evaluator, LocalEvaluator
from longrope.search.ledger import HistoryPoint, Ledger
from longrope.search.objective import Objective, perplexity, whole_windows
from longrope.search.options import SearchOptions
from longrope.search.space import SearchSpace, Seed, make_space
from longrope.search.strategies import make_strategy
from longrope.search.strategies.problem import Problem
from longrope.search.trial import Candidate
from longrope.text import Corpus

JOURNAL_NAME = "search.jsonl"


@dataclass(frozen=True)
class Scored:
    """A named point with its loss on the search windows.

    Args:
        name: e.g. `NTK`.
        factors: the point.
        loss: objective, nats per token.
    """

    name: str
    factors: RescaleFactors
    loss: float

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss)


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        factors: the best, bound to the checkpoint, as a single set.
        label: where the best candidate came from, e.g. `crossover`.
        loss: its objective on the search windows, nats per token.
        seeds: the known methods that were measured, on the same windows.
        history: every trial, in order.
        tokens: tokens forwarded, a gradient counted as three forwards.
        evaluations: distinct candidates measured.
        seconds: wall time of this process.
        measuring_seconds: time spent measuring, in all workers and all resumed runs together.
    """

    factors: RescaleFactors
    label: str
    loss: float
    seeds: tuple[Scored, ...]
    history: tuple[HistoryPoint, ...]
    tokens: int
    evaluations: int
    seconds: float
    measuring_seconds: float

    @property
    def perplexity(self) -> float:
        """exp of the objective; a perplexity when the objective is one-sided."""
        return perplexity(self.loss)

    @property
    def best_seed(self) -> Scored | None:
        """The best of the known methods."""
        return min(self.seeds, key=lambda seed: seed.loss, default=None)


def search(
    checkpoint: Checkpoint,
    corpus: Corpus,
    target_length: int,
    *,
    options: SearchOptions | None = None,
    journal_dir: Path | None = None,
    resume: bool = False,
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
        progress: where bars and lines go; None shows nothing.

    Returns:
        The best factors with everything that was measured.

    Raises:
        InputError: documents too short, an option out of range, a journal of another run.
        MissingRequirementError: the machine lacks memory, disk or an extra.
    """
    options = options or SearchOptions()
    space = make_space(
        checkpoint,
        target_length,
        n_hat=options.n_hat,
        attention_factor=options.attention_factor,
        from_factors=options.from_factors,
    )
    objective = Objective(tuple(whole_windows(corpus, target_length, options.num_documents)))
    seeds = (*space.known_methods(), *given_seeds(checkpoint, space, options.start_from))
    problem = Problem(space, objective, seeds, options.max_evals, options.seed)
    return run_search(
        checkpoint, problem, options, journal_dir=journal_dir, resume=resume, progress=progress or Silent()
    )


def run_search(
    checkpoint: Checkpoint,
    problem: Problem,
    options: SearchOptions,
    *,
    journal_dir: Path | None,
    resume: bool,
    progress: Progress,
) -> SearchResult:
    """Solve a problem; see `search` for what it takes, returns and raises."""
    start = time.perf_counter()
    header = {
        "model": checkpoint.fingerprint,
        "text": problem.objective.fingerprint,
        "settings": {**options.settings(), "target_length": problem.space.target},
    }
    strategy = make_strategy(options.strategy, problem)
    evaluator = LocalEvaluator(checkpoint, problem.objective, options.machine, problem.space.default_attention)
    journal = Journal(journal_dir / JOURNAL_NAME, header, resume=resume) if journal_dir else None
    with journal or nullcontext(), _closing(evaluator):
        ledger = Ledger(problem.objective, evaluator, journal)
        with progress.task(f"search ({options.strategy})", _budget_tokens(problem)) as task:
            ledger.on_measured = lambda tokens: _show(task, ledger, tokens)
            while trials := strategy.ask():
                strategy.tell(ledger.evaluate(trials))
    return _result(checkpoint, problem, options, ledger, time.perf_counter() - start)


def given_seeds(checkpoint: Checkpoint, space: SearchSpace, given: Sequence[RescaleFactors]) -> Iterator[Seed]:
    """Factor files as points of the space.

    Raises:
        InputError: they belong to another model, or fall where the space wants them to rise.
    """
    for factors in given:
        bound = checkpoint.bind(factors)
        attention = bound.attention_factor if space.search_attention else space.attention_factor
        candidate = Candidate(bound.long_factor, bound.n_hat if len(space.n_hats) > 1 else space.n_hats[0], attention)
        yield Seed(f"given ({factors.method})", candidate)


def _result(
    checkpoint: Checkpoint, problem: Problem, options: SearchOptions, ledger: Ledger, seconds: float
) -> SearchResult:
    best = ledger.best
    if best is None or best.loss == float("inf"):
        raise LongRopeError("no candidate could be measured on all windows; see the warnings above")
    found = replace(
        checkpoint.bind(problem.space.to_factors(best.candidate)),
        method=options.strategy,
        provenance=_provenance(checkpoint, problem, options, ledger, best.loss),
    )
    seeds = {
        point.label: Scored(point.label, checkpoint.bind(problem.space.to_factors(point.candidate)), point.loss)
        for point in ledger.history
        if point.known
    }
    return SearchResult(
        factors=found,
        label=best.trial.label,
        loss=best.loss,
        seeds=tuple(seeds.values()),
        history=tuple(ledger.history),
        tokens=ledger.tokens,
        evaluations=ledger.evaluations,
        seconds=seconds,
        measuring_seconds=ledger.seconds,
    )


def _provenance(
    checkpoint: Checkpoint, problem: Problem, options: SearchOptions, ledger: Ledger, loss: float
) -> dict[str, Any]:
    return {
        "longrope_export": __version__,
        "model": checkpoint.name,
        "model_fingerprint": checkpoint.fingerprint,
        "text_fingerprint": problem.objective.fingerprint,
        "settings": options.settings(),
        "loss": loss,
        "tokens_forwarded": ledger.tokens,
        "evaluations": ledger.evaluations,
    }


def _budget_tokens(problem: Problem) -> float:
    from longrope.search.strategies.evolution import Schedule

    evals = Schedule.for_search(problem.space.target, problem.max_evals).evaluations
    return float(evals * problem.objective.tokens)


def _show(task: Task, ledger: Ledger, tokens: int) -> None:
    best = f"perplexity {perplexity(ledger.best.loss):.3f}, " if ledger.best else ""
    task.advance(tokens, f"{best}{ledger.evaluations} evaluations, {ledger.tokens / 1e6:.2f}M tokens")


@contextmanager
def _closing(evaluator: Evaluator) -> Iterator[None]:
    try:
        yield
    finally:
        evaluator.close()
