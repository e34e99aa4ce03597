"""Measuring candidates against the best so far, window by window, as many at a time as there are workers.

    candidate 1 ──window 1──► window 2 ──► … ──► all: the best so far
    candidate 2 ──window 1──► behind: the next candidate takes its place

Candidates that race at once meet the same best, and the one that beats it is the bar for those that are still on their way.
With fewer candidates than workers each is measured on several windows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from longrope.search.space import StartingPoint
from longrope.search.strategies.problem import Problem, TokenBudget
from longrope.search.trial import Outcome, Trial

Outcomes = Generator[Sequence[Trial], Sequence[Outcome], Outcome]
Draw = Callable[[Outcome], StartingPoint | None]
"""The next candidate to race, given the best so far; None when there is none."""


@dataclass
class Racer:
    """A candidate on its way.

    Args:
        start: the candidate and its name.
        stage: sets of windows, of `Problem.stages`, that it has been measured on.
    """

    start: StartingPoint
    stage: int = 0


def race(problem: Problem, draw: Draw, best: Outcome, budget: TokenBudget, *, known: bool = False) -> Outcomes:
    """Race candidates until no more are drawn or the budget has no more full evaluation; the best in the end."""
    stages, full = problem.stages, problem.objective.tokens
    prices = [0, *map(problem.tokens, stages)]
    racers: list[Racer] = []
    while True:
        while len(racers) < problem.workers:
            owed = sum(full - prices[racer.stage] for racer in racers)
            start = draw(best) if budget.left - owed >= full else None
            if start is None:
                break
            racers.append(Racer(start))
        if not racers:
            return best
        stride = max(1, problem.workers // len(racers))
        trials = []
        for racer in racers:
            before, racer.stage = racer.stage, min(racer.stage + stride, len(stages))
            budget.pay(prices[racer.stage] - prices[before])
            last = racer.stage == len(stages)
            trials.append(Trial(racer.start.candidate, stages[racer.stage - 1], racer.start.name, known=known and last))
        outcomes = yield trials
        finished = [o for racer, o in zip(racers, outcomes, strict=True) if racer.stage == len(stages)]
        best = min((best, *finished), key=lambda outcome: outcome.rank)
        racers = [
            racer
            for racer, outcome in zip(racers, outcomes, strict=True)
            if racer.stage < len(stages) and not is_behind(problem, outcome, best)
        ]


def is_behind(problem: Problem, outcome: Outcome, best: Outcome) -> bool:
    """Whether a candidate is no better than the best so far on the windows that it was measured on."""
    on_best = dict(zip(best.trial.windows, best.losses, strict=True))
    windows = outcome.trial.windows
    return outcome.rank >= problem.objective.rank(windows, [on_best[window] for window in windows])
