"""`auto`: the best of known methods and YaRN ramps, then natural-gradient steps, then racing mutants.

    known methods, ramps ──1 window──► best few ──race──► best so far
                                                              │
    ┌─────────────────────────────────────────────────────────┘
    └──► ten gradient steps ──► mean of the last half of all ──all windows──► best so far ──race──► mutants
              ▲                                                   │
              └───────────────── goes on where it was ◄───────────┘

Gradients settle the slow pairs, each on a fresh window. Their noise is what limits them, so it is one descent that goes on,
whose mean takes in more windows with every turn, not many that start anew. In the fast pairs losses are rugged and gradients
point nowhere: those are for mutants, which are measured window by window, and stopped as soon as they are behind the best on
the same windows.

With several workers a step takes as many windows, and there are fewer of them; as many mutants race at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from longrope.search.space import StartingPoint
from longrope.search.strategies.evolution import ATTENTION_BOUNDS
from longrope.search.strategies.gradient import WindowOrder
from longrope.search.strategies.monotone import rising
from longrope.search.strategies.natural import NaturalDescent
from longrope.search.strategies.parameters import parameters
from longrope.search.strategies.problem import Problem, TokenBudget
from longrope.search.strategies.race import Outcomes, race
from longrope.search.trial import Candidate, Outcome, Plan, Trial

# Budget in full evaluations if none is given.
OWN_BUDGET = 32
# YaRN ramps (rotations in L from which pairs keep their frequency, and up to which they are interpolated) beside YaRN's own.
RAMPS = ((16, 1), (8, 1), (32, 0.5), (16, 0.5), (8, 0.5), (64, 1), (4, 0.5), (16, 0.25))
# Seeds that are seldom best wait for the others.
LAST = {"NTK": 1, "PI": 2}
# Starts that are measured on more than one window.
FINALISTS = 3
# Gradients between two confirmations; they may cost this share of what screening left. A small budget has one turn of fewer
# steps, but not of fewer than this, however many windows a step has: a mean of three iterates is no better than the start.
STEPS, STEP_SHARE, FEWEST_STEPS = 10, 0.75, 4
# Height of a mutation, standard deviation in ln λ, and its widths along the pairs, in sixteenths of their number.
HEIGHT, WIDTHS = 0.15, (0.5, 1.0, 2.0)
# The same height for ln attention, and the probability of a new n_hat.
ATTENTION_HEIGHT, N_HAT_PROBABILITY = 0.03, 0.3


def auto(problem: Problem) -> Plan:
    """See the module's docstring; a family of parameters has a search of its own."""
    if problem.space.family != "free":
        yield from parameters(problem, problem.token_budget(OWN_BUDGET))
        return
    budget, mutants = problem.token_budget(OWN_BUDGET), Mutants(problem)
    best = yield from screen(problem, budget)
    if problem.gradients:
        best = yield from descend(problem, best, budget)
    yield from race(problem, lambda best: StartingPoint("mutant", mutants.draw(best.candidate)), best, budget)


def descend(problem: Problem, best: Outcome, budget: TokenBudget) -> Outcomes:
    """Gradient steps from the best so far, whose mean competes after every turn."""
    order = WindowOrder(problem)
    first = problem.objective.parts[0].fresh[0]
    descent = NaturalDescent(problem.space, best.candidate, problem.objective.windows[first].counted)
    full, kept = problem.objective.tokens, (1 - STEP_SHARE) * budget.left
    at_once = _windows_at_once(problem, budget.left - kept - full)
    price = problem.step_tokens(at_once)
    steps = min(max(math.ceil(STEPS / at_once), FEWEST_STEPS), int((budget.left - kept - full) // price))
    while steps >= FEWEST_STEPS and budget.left - kept >= steps * price + full:
        for _ in range(steps):
            budget.pay(price)
            here = descent.candidate
            outcomes = yield [Trial(here, order.next(), "gradient step", gradient=True) for _ in range(at_once)]
            if any(outcome.lost_gradient for outcome in outcomes):
                return best
            descent.step(outcomes)
        budget.pay(full)
        (outcome,) = yield [problem.full(descent.mean(), "gradient mean")]
        best = min(best, outcome, key=lambda o: o.rank)
    return best


def _windows_at_once(problem: Problem, tokens: float) -> int:
    """Windows of a gradient step: one for each worker, where there is text for it and so many tokens allow a turn."""
    most = min(problem.workers, sum(len(part.fresh) for part in problem.objective.parts))
    fitting = (count for count in range(most, 1, -1) if FEWEST_STEPS * problem.step_tokens(count) <= tokens)
    return next(fitting, 1)


def screen(problem: Problem, budget: TokenBudget) -> Outcomes:
    """The best of the starts: all of them on the first window, a few on more."""
    first, full = problem.stages[0], problem.objective.tokens
    price = problem.tokens(first)
    more = full - price
    starts = list(starting_points(problem))[: max(1, (budget.left - more) // price)]
    budget.pay(price * len(starts))
    outcomes = yield [Trial(start.candidate, first, start.name, known=not more) for start in starts]
    ranked = sorted(range(len(starts)), key=lambda i: outcomes[i].rank)
    if not more:
        return outcomes[ranked[0]]
    budget.pay(more)
    (best,) = yield [problem.known(starts[ranked[0]])]
    freest = min(range(len(starts)), key=lambda i: problem.objective.mean("target", first, outcomes[i].losses))
    if problem.objective.short_windows and freest != ranked[0] and budget.pay(more):
        (outcome,) = yield [problem.known(starts[freest])]  # the front's other end: what the cap costs
        best = min(best, outcome, key=lambda o: o.rank)
    finalists = (starts[index] for index in ranked[1:FINALISTS])
    return (yield from race(problem, lambda _: next(finalists, None), best, budget, known=True))


def starting_points(problem: Problem) -> Iterator[StartingPoint]:
    """The starting points, PI at their end, then other ramps, each once: the first ones are for the smallest budgets."""
    ramps = (StartingPoint(f"YaRN {fast:g}/{slow:g}", problem.space.yarn(fast, slow)) for fast, slow in RAMPS)
    seen: set[Candidate] = set()
    for start in (*sorted(problem.starting_points, key=lambda start: LAST.get(start.name, 0)), *ramps):
        if start.candidate not in seen:
            seen.add(start.candidate)
            yield start


class Mutants:
    """Draws candidates near another: a smooth bump on ln λ, on one pair or on several.

    Args:
        problem: space and random seed.
    """

    def __init__(self, problem: Problem) -> None:
        self._space, self._rng = problem.space, problem.rng()
        # A pair slower than half a radian in L rotates so little that its factor hardly matters.
        slowest = math.log(2 * self._space.original) / math.log(self._space.rope_theta) * self._space.num_pairs
        self._last = min(self._space.num_pairs - 1.0, slowest)

    def draw(self, parent: Candidate) -> Candidate:
        """One mutant of `parent`."""
        pairs = self._space.num_pairs
        width = self._rng.choice(WIDTHS) * pairs / 16
        from_centre = np.arange(pairs) - self._rng.uniform(0.0, self._last)
        bump = HEIGHT * self._rng.normal() * np.exp(-0.5 * (from_centre / width) ** 2)
        logs = rising(np.log(self._space.multipliers(parent)) + bump)
        multipliers = np.exp(np.clip(logs, 0.0, math.log(self._space.upper)))
        return self._space.candidate(multipliers, self._n_hat(parent), self._attention(parent))

    def _n_hat(self, parent: Candidate) -> int:
        moves = len(self._space.n_hats) > 1 and self._rng.random() < N_HAT_PROBABILITY
        return int(self._rng.choice(self._space.n_hats)) if moves else parent.n_hat

    def _attention(self, parent: Candidate) -> float | None:
        if not self._space.search_attention:
            return parent.attention_factor
        moved = self._space.attention(parent) * math.exp(ATTENTION_HEIGHT * self._rng.normal())
        return round(float(np.clip(moved, *ATTENTION_BOUNDS)), 4)
