"""`cma`: CMA-ES on monotone log-increments, warm-started from the best starting point.

    x ∈ R^n ──softplus, cumulated──► λ         n = d/2, or 16 knots between which ln-increments are shared evenly

The library is `cmaes` (CyberAgent, MIT). Source: Hansen, The CMA Evolution Strategy (arXiv 1604.00772).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from longrope.search.strategies.monotone import Monotone
from longrope.search.strategies.problem import Problem
from longrope.search.trial import Candidate, Float64, Outcome, Plan, Trial

OWN_BUDGET = 90
SIGMA = 0.5
# More free numbers than this make the covariance slower to learn than the search lasts.
MAX_KNOTS = 16
# Generations of fewer points than this say nothing; small budgets get small generations.
SMALLEST = 4


def cma(problem: Problem) -> Plan:
    """The known methods first, then generations around the best of them until the budget is spent."""
    budget = problem.budget(OWN_BUDGET)
    first = yield [problem.known(start) for start in problem.starting_points[:budget]]
    best = min(first, key=lambda outcome: outcome.rank)
    yield from polish(problem, best.candidate, budget - len(first), SIGMA)


def polish(
    problem: Problem, start: Candidate, evals: int, sigma: float
) -> Generator[Sequence[Trial], Sequence[Outcome], None]:
    """CMA-ES from one point with so many full evaluations."""
    knots = Knots(Monotone(problem.space, start.n_hat), start)
    population = min(4 + int(3 * math.log(knots.size)), max(SMALLEST, evals // 3))
    optimizer = make_optimizer(knots.size, sigma, problem.seed, population)
    for _ in range(evals // population):
        points = [np.asarray(optimizer.ask()) for _ in range(population)]
        outcomes = yield [problem.full(knots.decode(point), "cma") for point in points]
        worst = max((o.loss for o in outcomes if np.isfinite(o.loss)), default=1e6)
        optimizer.tell([(p, min(o.loss, worst + 1.0)) for p, o in zip(points, outcomes, strict=True)])


def make_optimizer(size: int, sigma: float, seed: int, population: int) -> Any:
    """A CMA-ES around the origin of `size` numbers."""
    from cmaes import CMA

    return CMA(mean=np.zeros(size), sigma=sigma, seed=seed, population_size=population)


class Knots:
    """Offsets to a start's free numbers, linear between at most `MAX_KNOTS` knots along the pairs.

    Args:
        space: the parametrization.
        start: what the origin decodes to.
    """

    def __init__(self, space: Monotone, start: Candidate) -> None:
        self._space = space
        self._origin = space.encode(start)
        pairs = space.space.num_pairs
        self._places = np.linspace(0, pairs - 1, min(pairs, MAX_KNOTS))

    @property
    def size(self) -> int:
        """Numbers to optimize: one per knot, and one for the attention factor when that is searched."""
        return len(self._places) + self._space.space.search_attention

    def decode(self, offsets: Float64) -> Candidate:
        """The candidate at [size] offsets; the attention factor's are a tenth of theirs."""
        pairs = self._space.space.num_pairs
        x = self._origin.copy()
        x[:pairs] += np.interp(np.arange(pairs), self._places, offsets[: len(self._places)])
        if self._space.space.search_attention:
            x[-1] += 0.1 * offsets[-1]
        return self._space.decode(x)
