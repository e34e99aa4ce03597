"""`longrope2`: search the real critical dimension, and the slow pairs' factors from there on.

    μ_i = μ_c^(i/c)  for i < c            NTK's form, up to the critical pair c
    μ_i ≥ s, non-decreasing, for i ≥ c    evolved

Pairs from the theoretical critical pair on never complete a turn within L. LongRoPE2's hypothesis is that under-training
puts the real one lower, and that slow pairs want more than s. Candidates for c lie at and below the theoretical one.
Source: LongRoPE2 (arXiv 2502.20082), section 3.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from longrope import rope
from longrope.search.space import SearchSpace
from longrope.search.strategies.evolution import DRAWS, evolve, merge, redraw_between
from longrope.search.strategies.problem import Problem
from longrope.search.trial import Candidate, Float64, Plan, Trial

# How far below the theoretical critical pair the real one is looked for, as a fraction of it.
REACH = 0.5


def longrope2(problem: Problem) -> Plan:
    """Algorithm 1's rounds over (c, tail)."""
    return evolve(problem, lambda schedule: CriticalBreeder(problem.space, problem.rng(), schedule.probability))


class CriticalBreeder:
    """Draws genomes (c, tail).

    Args:
        space: bounds and grid.
        rng: every draw comes from it, in order.
        probability: of c and of each gene of the tail to be redrawn.
    """

    def __init__(self, space: SearchSpace, rng: np.random.Generator, probability: float) -> None:
        self._space, self._rng, self._probability = space, rng, probability
        theoretical = rope.theoretical_critical_dim(space.rotary_dim, space.rope_theta, space.original) // 2
        self.highest = min(max(theoretical, 1), space.num_pairs - 1)
        self.lowest = max(1, round(self.highest * (1 - REACH)))
        self._genomes: dict[Candidate, tuple[int, Float64]] = {}

    def first_population(self, problem: Problem) -> Iterator[Trial]:
        """The starting points to compare with, each critical pair with a flat tail at s, then mutations of those."""
        yield from (problem.known(start) for start in problem.starting_points)
        flat = [self._make(pair, self._flat_tail()) for pair in range(self.highest, self.lowest - 1, -1)]
        for candidate in flat:
            yield problem.full(candidate, f"critical pair {self._genomes[candidate][0]}")
        for candidate in itertools.cycle(flat):
            yield problem.full(self.mutation([candidate]), "mutation")

    def mutation(self, parents: Sequence[Candidate]) -> Candidate:
        """A random parent with c moved by one or two, and its tail's genes redrawn, each with the probability."""
        for _ in range(DRAWS):
            known = len(self._genomes)
            pair, tail = self._genome_of(parents[int(self._rng.integers(len(parents)))])
            if self._rng.random() < self._probability:
                pair += int(self._rng.choice([-2, -1, 1, 2]))
            child = self._make(pair, self._redrawn(tail))
            if len(self._genomes) > known:
                break
        return child

    def crossover(self, parents: Sequence[Candidate]) -> Candidate:
        """c from one of two parents, each gene of the tail from either."""
        for _ in range(DRAWS):
            known = len(self._genomes)
            two = self._rng.choice(len(parents), 2, replace=len(parents) < 2)
            (pair, left), (_, right) = (self._genome_of(parents[i]) for i in two)
            child = self._make(pair, merge([left, right], self._rng))
            if len(self._genomes) > known:
                break
        return child

    def _genome_of(self, parent: Candidate) -> tuple[int, Float64]:
        """(c, [d/2] multipliers); a starting point among the parents stands in as its own tail at the theoretical pair."""
        if parent in self._genomes:
            return self._genomes[parent]
        genes = self._space.on_grid(self._space.multipliers(parent))
        return self.highest, np.maximum(genes, self._scale)

    @property
    def _scale(self) -> float:
        return min(self._space.length_scale, self._space.upper_on_grid)

    def _flat_tail(self) -> Float64:
        return np.full(self._space.num_pairs, self._scale)

    def _redrawn(self, tail: Float64) -> Float64:
        """Genes redrawn within [s, upper]: the grid starts at s instead of 1."""
        chosen = self._rng.random(len(tail)) < self._probability
        lowered = redraw_between(
            tail - self._scale + 1.0, chosen, self._space.upper_on_grid - self._scale + 1.0, self._rng
        )
        return np.asarray(np.round(lowered + self._scale - 1.0, 2))

    def _make(self, pair: int, tail: Float64) -> Candidate:
        """The candidate of (c, tail): below c, its first tail gene to the power i/c."""
        pair = min(max(pair, self.lowest), self.highest)
        multipliers = np.maximum(tail, self._scale)
        multipliers[:pair] = multipliers[pair] ** (np.arange(pair) / pair)
        candidate = self._space.candidate(multipliers)
        self._genomes.setdefault(candidate, (pair, np.maximum(tail, self._scale)))
        return candidate
