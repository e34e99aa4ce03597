"""`dim_piece_mono`: the authors' piecewise variant of Algorithm 1.

    μ_i = 1 for i < α        non-decreasing between        μ_i = s for i ≥ β

The genome is (α, β, the genes between); α and β move by mutation as the genes do, each with probability 0.3.
Source: the search of that name in the authors' repository, microsoft/LongRoPE.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from longrope.search.space import SearchSpace, StartingPoint
from longrope.search.strategies.evolution import DRAWS, evolve, redraw_between
from longrope.search.strategies.problem import Problem
from longrope.search.trial import Candidate, Float64, Plan, Trial


def dim_piece_mono(problem: Problem) -> Plan:
    """Algorithm 1 over piecewise genomes."""
    return evolve(problem, lambda schedule: PieceBreeder(problem.space, problem.rng(), schedule.probability))


@dataclass(frozen=True)
class Pieces:
    """α, β and [d/2] multipliers that obey them."""

    first: int
    last: int
    genes: Float64


class PieceBreeder:
    """Draws piecewise genomes.

    Args:
        space: bounds and grid.
        rng: every draw comes from it, in order.
        probability: of α, β and each gene between to be redrawn.
    """

    def __init__(self, space: SearchSpace, rng: np.random.Generator, probability: float) -> None:
        self._space, self._rng, self._probability = space, rng, probability
        self._drawn: dict[Candidate, Pieces] = {}

    def first_population(self, problem: Problem) -> Iterator[Trial]:
        for start in problem.starting_points:
            self._drawn[start.candidate] = self._from_start(start)
            yield problem.known(start)
        for start in itertools.cycle(problem.starting_points):
            yield problem.full(self.mutation([start.candidate]), f"mutation of {start.name}")

    def mutation(self, parents: Sequence[Candidate]) -> Candidate:
        """A random parent with α, β and the genes between redrawn, each with the probability."""
        for _ in range(DRAWS):
            pieces = self._drawn[parents[int(self._rng.integers(len(parents)))]]
            first, last = (self._moved(end) for end in (pieces.first, pieces.last))
            child = self._make(min(first, last), max(first, last), pieces.genes, mutate=True)
            if child not in self._drawn:
                break
        return self._remember(child)

    def crossover(self, parents: Sequence[Candidate]) -> Candidate:
        """α and β from either parent, the genes between from a third choice of the same two."""
        if len(parents) < 2:
            return self.mutation(parents)
        for _ in range(DRAWS):
            pair = [self._drawn[parents[i]] for i in self._rng.choice(len(parents), 2, replace=False)]
            first = pair[int(self._rng.integers(2))].first
            last = max(first, pair[int(self._rng.integers(2))].last)
            child = self._make(first, last, pair[int(self._rng.integers(2))].genes, mutate=False)
            if child not in self._drawn:
                break
        return self._remember(child)

    def _from_start(self, start: StartingPoint) -> Pieces:
        """The pieces nearest to a starting point: 1 up to its last 1, s from its first s."""
        genes = self._space.on_grid(self._space.multipliers(start.candidate))
        return Pieces(int((genes <= 1.0).sum()), int((genes < self._space.length_scale - 1e-9).sum()), genes)

    def _moved(self, end: int) -> int:
        return int(self._rng.integers(self._space.num_pairs + 1)) if self._rng.random() < self._probability else end

    def _make(self, first: int, last: int, genes: Float64, *, mutate: bool) -> Candidate:
        scale = self._space.length_scale
        shaped = np.minimum(self._space.on_grid(genes), scale)
        shaped[:first], shaped[last:] = 1.0, scale
        if mutate:
            chosen = self._rng.random(len(shaped)) < self._probability
            chosen[:first] = chosen[last:] = False
            shaped = redraw_between(shaped, chosen, scale, self._rng)
        candidate = self._space.candidate(shaped)
        self._latest = Pieces(first, last, shaped)
        return candidate

    def _remember(self, child: Candidate) -> Candidate:
        self._drawn.setdefault(child, self._latest)
        return child
