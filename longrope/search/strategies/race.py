"""Measuring a candidate against the best so far, window by window."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from longrope.search.space import StartingPoint
from longrope.search.strategies.problem import Problem, TokenBudget
from longrope.search.trial import Outcome, Trial

Outcomes = Generator[Sequence[Trial], Sequence[Outcome], Outcome]


def race(
    problem: Problem, start: StartingPoint, best: Outcome, budget: TokenBudget, *, known: bool = False
) -> Outcomes:
    """Measure a candidate on more and more windows until it is behind; the better of it and the best so far."""
    on_best = dict(zip(best.trial.windows, best.losses, strict=True))
    paid = 0
    for windows in problem.stages:
        budget.pay(problem.tokens(windows) - paid)
        paid = problem.tokens(windows)
        last = windows == best.trial.windows
        (outcome,) = yield [Trial(start.candidate, windows, start.name, known=known and last)]
        if outcome.rank >= problem.objective.rank(windows, [on_best[w] for w in windows]):
            return best
    return outcome
