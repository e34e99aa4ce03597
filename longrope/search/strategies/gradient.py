"""`gradient`: Adam on monotone log-increments of the factors, and on the attention factor if that is searched.

    starts ──one window──► best few ──► steps, a fresh window each ──► mean of the last iterates ──all windows──► best

The weights are frozen, so one backward pass tells about all factors at once: a step costs three forwards of one window.
Windows come from all documents, not only from those that rank candidates: more text generalises better than more steps
on little. Single steps are noisy, so it is the mean over the tail of a run that competes.
Sources: Adam (arXiv 1412.6980); tail averaging after Polyak and Juditsky (1992). The public LongRoPE code has no gradients.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from longrope.search.space import StartingPoint
from longrope.search.strategies.monotone import Monotone
from longrope.search.strategies.problem import Problem, TokenBudget
from longrope.search.trial import Candidate, Float64, Outcome, Plan, Trial

# Adam's rates: of the increments, and of ln attention, a hundred times as curved.
RATE, ATTENTION_RATE = 0.15, 0.015
BETAS = (0.8, 0.95)
# Budget in full evaluations if none is given, and starts that are followed.
OWN_BUDGET = 32
STARTS = 2
TAIL = 0.5

Steps = Generator[Sequence[Trial], Sequence[Outcome], "Descent"]


def gradient(problem: Problem) -> Plan:
    """Screen the starts, follow the best few, confirm the ends of their runs and the best start on all windows."""
    budget = problem.token_budget(OWN_BUDGET)
    starts = yield from screened(problem, budget)
    runs = max(1, min(STARTS, len(starts), budget.left // (20 * problem.step_tokens())))
    while runs and budget.left < (runs + 1) * problem.objective.tokens + runs * problem.step_tokens():
        runs -= 1
    budget.pay((runs + 1) * problem.objective.tokens)
    steps = budget.left // (problem.step_tokens() * max(1, runs))
    order = WindowOrder(problem)
    finalists = [problem.known(starts[0])]
    for start in starts[:runs]:
        descent = yield from descend(Descent.start(problem, start.candidate), order, steps)
        finalists.append(problem.full(descent.mean(), f"gradient from {start.name}"))
    yield finalists


def screened(
    problem: Problem, budget: TokenBudget
) -> Generator[Sequence[Trial], Sequence[Outcome], list[StartingPoint]]:
    """The starting points that the budget allows, the best on the first window in front."""
    first, full = problem.stages[0], problem.objective.tokens
    price = problem.tokens(first)
    starts = list(starting_points(problem))[: max(1, (budget.left - full) // price)]
    if budget.left < full + price:
        return starts
    budget.pay(len(starts) * price)
    outcomes = yield [Trial(s.candidate, first, s.name) for s in starts]
    order = sorted(range(len(starts)), key=lambda i: outcomes[i].rank)
    return [starts[i] for i in order]


def starting_points(problem: Problem) -> Iterator[StartingPoint]:
    """The starting points, shorter YaRN ramps, and the geometric mean of NTK and YaRN with its fastest pairs at 1.2."""
    yield from problem.starting_points
    yield StartingPoint("YaRN 16/1", problem.space.yarn(16, 1))
    yield StartingPoint("YaRN 8/1", problem.space.yarn(8, 1))
    starts = {start.name: problem.space.multipliers(start.candidate) for start in problem.starting_points}
    if {"NTK", "YaRN 32/1"} <= starts.keys():
        mean = np.maximum(np.sqrt(starts["NTK"] * starts["YaRN 32/1"]), 1.2)
        yield StartingPoint("NTK·YaRN", problem.space.candidate(np.minimum(mean, problem.space.upper)))


class WindowOrder:
    """Windows for gradient steps: parts of the objective by their shares, each part's in a random order, then in another."""

    def __init__(self, problem: Problem) -> None:
        self._rng = problem.rng()
        self._parts = problem.objective.parts
        self._left: list[list[int]] = [[] for _ in self._parts]
        self._behind = [0.0 for _ in self._parts]
        self._short = problem.objective.short_windows

    def next(self) -> tuple[int, ...]:
        """One target window, and the short side whole when there is one: the cap must be seen at every step."""
        self._behind = [behind + part.share for behind, part in zip(self._behind, self._parts, strict=True)]
        number = max(range(len(self._parts)), key=self._behind.__getitem__)
        self._behind[number] -= 1.0
        left, windows = self._left[number], self._parts[number].fresh
        if not left:
            left += [windows[i] for i in self._rng.permutation(len(windows))]
        return (left.pop(), *self._short)


@dataclass
class Descent:
    """The state of Adam.

    Args:
        space: the parametrization.
        x: [n] where it is.
        momentum, squares: [n] running means of the gradient and of its square.
        trail: all iterates, the start included.
        rates: [n] Adam's rate of each number.
    """

    space: Monotone
    x: Float64
    momentum: Float64
    squares: Float64
    trail: list[Float64]
    rates: Float64

    @classmethod
    def start(cls, problem: Problem, candidate: Candidate) -> Descent:
        space = Monotone(problem.space, candidate.n_hat)
        x = space.encode(candidate)
        rates = np.full_like(x, RATE)
        rates[problem.space.num_pairs :] = ATTENTION_RATE
        return cls(space, x, np.zeros_like(x), np.zeros_like(x), [x], rates)

    @property
    def candidate(self) -> Candidate:
        return self.space.decode(self.x)

    def step(self, outcome: Outcome, decay: float) -> None:
        """Move by one measured gradient, at so much of the rates; a failed measurement moves nothing."""
        if outcome.gradient is None or not np.isfinite(outcome.gradient).all():
            return
        slope = self.space.pull_back(self.x, outcome.gradient)
        count, (b1, b2) = len(self.trail), BETAS
        self.momentum = b1 * self.momentum + (1 - b1) * slope
        self.squares = b2 * self.squares + (1 - b2) * slope**2
        mean, square = self.momentum / (1 - b1**count), self.squares / (1 - b2**count)
        self.x = self.x - decay * self.rates * mean / (np.sqrt(square) + 1e-8)
        self.trail.append(self.x)

    def mean(self) -> Candidate:
        """The mean of the last iterates, in the free numbers."""
        count = max(1, round(TAIL * len(self.trail)))
        return self.space.decode(np.mean(self.trail[-count:], axis=0))


def descend(descent: Descent, order: WindowOrder, steps: int) -> Steps:
    """A run of so many steps; the rate falls by a cosine to a tenth."""
    for step in range(steps):
        trial = Trial(descent.candidate, order.next(), "gradient step", gradient=True)
        (outcome,) = yield [trial]
        descent.step(outcome, 0.55 + 0.45 * math.cos(math.pi * step / steps))
    return descent
