"""The search of a family (`longrope.family`): a grid by successive halving, then steps in the logarithms of its parameters.

    grid of ramps or bases ──1 window──► best third ──2 windows──► … ──all──► best so far, or a known method
                                                                                │  ▲
                                            race (`race.race`) ◄── step ◄───────┘  │
                                                └──better: longer steps ───────────┘

YaRN's ramp runs between whole pairs, so only its ends count: where it begins, and whether it is as long as 32/1 makes it or
one pair longer. A step moves the beginning in pairs and all else in logarithms; steps grow where one succeeds and shrink
where it fails (the one-fifth rule; Rechenberg, 1973).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from longrope.family import BETA_FAST, RopeFamily
from longrope.rope import pair_with_rotations
from longrope.search.space import SearchSpace, StartingPoint
from longrope.search.strategies.problem import Problem, TokenBudget
from longrope.search.strategies.race import Outcomes, race
from longrope.search.trial import Candidate, Outcome, Plan, Trial

# Part of the budget that the grid may cost, and points of it that are kept from one round to the next.
GRID_SHARE, KEPT = 0.5, 1 / 3
# θ'/θ and s over the length scale in the grid, and their bounds; s below the length scale shortens vLLM's window.
BASES, SCALES = (1.0, 2.0, 0.5, 4.0), (1.0, 1.25)
BASE_BOUNDS, SCALE_BOUND = (0.25, 4.0), 2.0
ATTENTION_BOUNDS = (0.8, 1.6)
# First standard deviations of a step: ln s, ln θ', the ramp's beginning in sixteenths of the pairs, ln attention.
STEPS = (0.1, 0.3, 1.0, 0.03)
GROWTH, DECAY = 1.5, 1.5**-0.25
# Draws of a step that leads to a point not tried yet.
DRAWS = 50


def parameters(problem: Problem, budget: TokenBudget) -> Plan:
    """See the module's docstring."""
    grid = Grid(problem.space)
    budget.pay(problem.objective.tokens * len(problem.starting_points))
    outcomes = yield [problem.known(start) for start in problem.starting_points]
    best = min(outcomes, key=lambda outcome: outcome.rank)
    best = yield from halve(problem, grid, best, budget)
    yield from race(problem, Steps(problem, grid, best).draw, best, budget)


def halve(problem: Problem, grid: Grid, best: Outcome, budget: TokenBudget) -> Outcomes:
    """The best so far, or of the grid: all of it on one window, the best third on two, and so on."""
    stages = problem.stages
    price = problem.tokens(stages[0]) * (1 + (len(stages) > 1) * 2 * KEPT)
    starts = list(grid.points(int(GRID_SHARE * budget.left / price)))
    paid = 0
    outcomes: Sequence[Outcome] = ()
    for windows in stages if starts else ():
        budget.pay((problem.tokens(windows) - paid) * len(starts))
        paid = problem.tokens(windows)
        outcomes = yield [Trial(start.candidate, windows, start.name) for start in starts]
        order = sorted(range(len(starts)), key=lambda i: outcomes[i].rank)
        starts = [starts[i] for i in order[: math.ceil(KEPT * len(order))]]
    return min((best, *outcomes), key=lambda outcome: outcome.rank)


@dataclass(frozen=True)
class Grid:
    """The points of a family.

    Args:
        space: of the search.
    """

    space: SearchSpace

    def points(self, count: int) -> Iterator[StartingPoint]:
        """About `count` points over the whole family, the likeliest first."""
        found = self._ramps(count) if self.space.family == "yarn" else self._bases()
        yield from map(self._named, itertools.islice(dict.fromkeys(found), count))

    def _bases(self) -> Iterator[RopeFamily]:
        """NTK's base, a part of the way by s and the rest by θ'."""
        s, d = self.space.family_scale, self.space.rotary_dim
        for part in (0.0,) if self.space.one_base else (0.75, 0.5, 0.25, 1.0, 0.0):
            for over in (1.0, 1.25, 1.5):
                base = (s * over) ** (part * d / max(d - 2, 1))
                yield RopeFamily("linear", max(1.0, (s * over) ** (1 - part)), self.space.rope_theta * base)

    def _ramps(self, count: int) -> Iterator[RopeFamily]:
        """Ramps over all pairs on the model's own θ, then the same on others and for larger s."""
        ramps = 2 * self.space.num_pairs
        every = max(1, math.ceil(2 * ramps / max(count, 1)))
        for base in (1.0,) if self.space.one_base else BASES:
            for scale in SCALES:
                theta, factor = self.space.rope_theta * base, self.space.family_scale * scale
                width = ramp_width(self.space.rotary_dim, theta)
                for half in range(-2 * int(width) + 1, 2 * self.space.num_pairs - 2, every):
                    if (family := self._yarn(factor, theta, half / 2)) is not None:
                        yield family

    def _yarn(self, factor: float, theta: float, begin: float, attention: float | None = None) -> RopeFamily | None:
        betas = ramp_betas(self.space.rotary_dim, theta, self.space.original, begin)
        if betas is None:
            return None
        return RopeFamily.yarn(factor, theta, beta_fast=betas[0], beta_slow=betas[1], attention_factor=attention)

    def step(
        self, parent: Candidate, size: float, tried: set[Candidate], rng: np.random.Generator
    ) -> StartingPoint | None:
        """A point near another that was not tried yet; None when none is found."""
        assert parent.family is not None, "a point of a family"
        for _ in range(DRAWS):
            moved = self._moved(parent.family, size, rng)
            if moved is not None and (start := self._named(moved)).candidate not in tried:
                return replace(start, name="step")
        return None

    def _moved(self, family: RopeFamily, size: float, rng: np.random.Generator) -> RopeFamily | None:
        scale, base, begin, attention = size * np.array(STEPS) * rng.normal(size=4) * (rng.random(4) < 0.6)
        space = self.space
        widest = space.rope_theta * (BASE_BOUNDS[1] if family.type == "yarn" else 4 * space.family_scale**2)
        least = space.family_scale if family.type == "yarn" else 1.0
        factor = _clipped(family.factor * math.exp(scale), least, SCALE_BOUND * space.family_scale)
        theta = _clipped(family.rope_theta * math.exp(base), BASE_BOUNDS[0] * space.rope_theta, widest)
        if space.one_base:
            theta = space.rope_theta
        if family.type == "linear":
            return RopeFamily("linear", factor, theta)
        at = (
            pair_with_rotations(space.rotary_dim, theta, space.original, family.beta_fast)
            + begin * space.num_pairs / 16
        )
        given = None
        if space.search_attention:
            given = _clipped(family.attention_factor * math.exp(attention), *ATTENTION_BOUNDS)
        return self._yarn(factor, theta, at, given)

    def _named(self, family: RopeFamily) -> StartingPoint:
        name = f"{family.type}: s {family.factor:.4g}, θ {family.rope_theta:.6g}"
        if family.type == "yarn":
            name += f", betas {family.beta_fast:.3g}/{family.beta_slow:.3g}"
        return StartingPoint(name, self.space.of_family(family))


class Steps:
    """Draws steps from the best so far; one that fails makes the next shorter, one that succeeds makes it longer.

    Args:
        problem: random seed, and how many steps are under way at once.
        grid: the points.
        best: where the first step begins.
    """

    def __init__(self, problem: Problem, grid: Grid, best: Outcome) -> None:
        self._grid, self._best, self._rng = grid, best, problem.rng()
        self._tried, self._size, self._under_way = {best.candidate}, 1.0, problem.workers

    def draw(self, best: Outcome) -> StartingPoint | None:
        """The next step; after the first ones each is drawn when another has ended."""
        if self._under_way:
            self._under_way -= 1
        else:
            self._size *= DECAY if best is self._best else GROWTH
        self._best = best
        start = self._grid.step(best.candidate, self._size, self._tried, self._rng)
        if start is not None:
            self._tried.add(start.candidate)
        return start


def ramp_width(rotary_dim: int, theta: float) -> float:
    """Pairs between 32 rotations and 1, at any window."""
    return rotary_dim * math.log(BETA_FAST) / (2 * math.log(theta))


def ramp_betas(rotary_dim: int, theta: float, original: int, begin: float) -> tuple[float, float] | None:
    """Betas, one 32 times the other, of the ramp that begins at a pair; None for one that is no ramp.

    Between two whole pairs all beginnings are one or two ramps, as the end falls below a whole pair or above it; the
    beginning is put into the middle of its part, so that float32 finds the same whole pairs. L / beta_slow is a whole
    number, which llama.cpp is given for L.
    """
    width = ramp_width(rotary_dim, theta)
    first, rest = math.floor(begin), width % 1.0
    longer = begin - first > 1.0 - rest
    middle = first + (1.0 - rest / 2 if longer else (1.0 - rest) / 2)
    window = round(2 * math.pi * BETA_FAST * math.exp(middle * 2 * math.log(theta) / rotary_dim))
    if window < 1 or math.ceil(middle + width) <= max(first, 0) or first >= rotary_dim // 2 - 1:
        return None
    exact = pair_with_rotations(rotary_dim, theta, window, BETA_FAST)
    if math.floor(exact) != first or math.ceil(exact + width) != math.ceil(middle + width):
        return None  # no whole number of tokens lies in this part
    return BETA_FAST * original / window, original / window


def _clipped(value: float, least: float, most: float) -> float:
    return float(f"{min(max(value, least), most):.5g}")
