"""`evolution`: the paper's Algorithm 1, with its own numbers.

    P = 64 ──► measure ──► best 32 ──► 16 mutations + 16 crossovers ──► measure ──► … 40 rounds

    genome      λ on the grid of 0.01 within [1, 1.25 s], non-decreasing; n_hat when it is searched
    first       PI, NTK, YaRN and mutations of them
    mutation    each gene with probability 0.3
    beyond 512k P and both counts are halved

Uniform proposals that are rejected unless non-decreasing are drawn here in closed form (ties aside): the genes of a run
between two kept ones a and b are as many uniform draws on the grid [a, b], sorted.
Source: LongRoPE (arXiv 2402.13753), section 4.2 and table 4.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from longrope.search.space import STEP, SearchSpace
from longrope.search.strategies.problem import Problem
from longrope.search.trial import Candidate, Float64, Outcome, Plan, Trial

HALVED_BEYOND = 512 * 1024
# Where the attention factor is looked for when it is searched, which the paper does not do.
ATTENTION_BOUNDS = (0.8, 1.5)
# Draws for a child that is new, before a known one is accepted (it costs nothing: it is in the cache).
DRAWS = 50


@dataclass(frozen=True)
class Schedule:
    """How many of what. The paper's numbers are the defaults: 64 + 40 × (16 + 16) = 1,344 evaluations."""

    population: int = 64
    rounds: int = 40
    parents: int = 32
    mutations: int = 16
    crossovers: int = 16
    probability: float = 0.3

    @property
    def evaluations(self) -> int:
        return self.population + self.rounds * (self.mutations + self.crossovers)

    @classmethod
    def for_search(cls, target: int, max_evals: int | None) -> Schedule:
        """The paper's schedule; of its proportions for a smaller budget, and with more rounds for a larger one."""
        share = 2 if target > HALVED_BEYOND else 1
        paper = cls(64 // share, 40, 32 // share, 16 // share, 16 // share)
        if max_evals is None:
            return paper
        if max_evals >= paper.evaluations:
            return replace(paper, rounds=(max_evals - paper.population) // (paper.mutations + paper.crossovers))
        quarter = max(1, round(paper.population / 4 * math.sqrt(max_evals / paper.evaluations)))
        while quarter > 1 and 6 * quarter > max_evals:
            quarter -= 1
        population = min(4 * quarter, max_evals)
        return cls(population, (max_evals - population) // (2 * quarter), 2 * quarter, quarter, quarter)


class Breed(Protocol):
    """Draws genomes of one form; known ones as rarely as it can."""

    def first_population(self, problem: Problem) -> Iterator[Trial]:
        """Starting points, without end."""
        ...

    def mutation(self, parents: Sequence[Candidate]) -> Candidate: ...

    def crossover(self, parents: Sequence[Candidate]) -> Candidate: ...


def evolution(problem: Problem) -> Plan:
    """Algorithm 1 of the paper (the authors' `dim_mono_n`); a budget scales population and rounds in proportion."""
    return evolve(problem, lambda schedule: Breeder(problem.space, problem.rng(), schedule.probability))


def dim_mono(problem: Problem) -> Plan:
    """As the authors' variant of that name: n_hat stays at the space's first choice."""
    space = replace(problem.space, n_hats=problem.space.n_hats[:1])
    return evolution(replace(problem, space=space))


def evolve(problem: Problem, make_breed: Callable[[Schedule], Breed]) -> Plan:
    """The rounds of Algorithm 1, whatever the genome's form."""
    schedule = Schedule.for_search(problem.space.target, problem.max_evals)
    breeder = make_breed(schedule)
    first = list(itertools.islice(breeder.first_population(problem), schedule.population))
    best = keep(schedule.parents, (yield first))
    for _ in range(schedule.rounds):
        parents = [outcome.candidate for outcome in best]
        children = [problem.full(breeder.mutation(parents), "mutation") for _ in range(schedule.mutations)]
        children += [problem.full(breeder.crossover(parents), "crossover") for _ in range(schedule.crossovers)]
        best = keep(schedule.parents, [*best, *(yield children)])


def keep(count: int, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The best so many of different candidates; the one met first wins a tie."""
    different = {outcome.candidate: outcome for outcome in outcomes}
    return sorted(different.values(), key=lambda outcome: outcome.rank)[:count]


class Breeder:
    """Draws genomes that were never drawn before.

    Args:
        space: bounds, grid, base, start-token counts.
        rng: every draw comes from it, in order.
        probability: of each gene to be mutated.
    """

    def __init__(self, space: SearchSpace, rng: np.random.Generator, probability: float = 0.3) -> None:
        self._space, self._rng, self._probability = space, rng, probability
        self._drawn: set[Candidate] = set()

    def first_population(self, problem: Problem) -> Iterator[Trial]:
        """The starting points as they are, then mutations of them in turn, without end."""
        for start in problem.starting_points:
            self._drawn.add(start.candidate)
            yield problem.known(start)
        for start in itertools.cycle(problem.starting_points):
            yield problem.full(self.mutation([start.candidate]), f"mutation of {start.name}")

    def mutation(self, parents: Sequence[Candidate]) -> Candidate:
        """A random parent with each gene redrawn with the probability, λ staying non-decreasing."""
        return self._new(lambda: self._mutated(parents[int(self._rng.integers(len(parents)))]))

    def crossover(self, parents: Sequence[Candidate]) -> Candidate:
        """Each gene from one of two random parents, from the other one where it would fall."""
        if len(parents) < 2:
            return self.mutation(parents)
        return self._new(lambda: self._crossed(*(parents[i] for i in self._rng.choice(len(parents), 2, replace=False))))

    def _new(self, draw: Callable[[], Candidate]) -> Candidate:
        child = draw()
        for _ in range(DRAWS):
            if child not in self._drawn:
                break
            child = draw()
        self._drawn.add(child)
        return child

    def _mutated(self, parent: Candidate) -> Candidate:
        genes = redraw_between(
            self._genes(parent),
            self._rng.random(self._space.num_pairs) < self._probability,
            self._space.upper_on_grid,
            self._rng,
        )
        n_hat = parent.n_hat
        if len(self._space.n_hats) > 1 and self._rng.random() < self._probability:
            n_hat = int(self._rng.choice(self._space.n_hats))
        return self._space.candidate(genes, n_hat, self._redrawn_attention(parent))

    def _redrawn_attention(self, parent: Candidate) -> float | None:
        """One more gene when the attention factor is searched: uniform on its grid."""
        if not self._space.search_attention or self._rng.random() >= self._probability:
            return parent.attention_factor
        low, high = (round(bound / STEP) for bound in ATTENTION_BOUNDS)
        return round(int(self._rng.integers(low, high + 1)) * STEP, 2)

    def _crossed(self, *pair: Candidate) -> Candidate:
        genes = merge([self._genes(parent) for parent in pair], self._rng)
        donor = pair[int(self._rng.integers(2))]
        return self._space.candidate(genes, donor.n_hat, donor.attention_factor)

    def _genes(self, parent: Candidate) -> Float64:
        """The multipliers, on the grid and non-decreasing even where a given one is not."""
        return self._space.on_grid(self._space.multipliers(parent))


def redraw_between(
    genes: Float64, chosen: np.ndarray[tuple[int], np.dtype[np.bool_]], upper: float, rng: np.random.Generator
) -> Float64:
    """Redraw the chosen genes so that the genome stays non-decreasing; the others are kept.

    Args:
        genes: [d/2] non-decreasing.
        chosen: [d/2] which to redraw.
        upper: bound of the last gene; 1 is that of the first.
        rng: source of draws.

    Returns:
        [d/2] new genes on the grid where redrawn.
    """
    result = genes.copy()
    for is_chosen, run in itertools.groupby(range(len(genes)), key=lambda i: bool(chosen[i])):
        where = list(run)
        if is_chosen:
            low = genes[where[0] - 1] if where[0] else 1.0
            high = genes[where[-1] + 1] if where[-1] + 1 < len(genes) else max(upper, low)
            steps = rng.integers(0, round((high - low) / STEP) + 1, len(where))
            result[where] = np.minimum(np.round(low + np.sort(steps) * STEP, 6), high)
    return result


def merge(parents: Sequence[Float64], rng: np.random.Generator) -> Float64:
    """Each gene from one of two non-decreasing parents at random; from the other where it would fall.

    The parent that gave the last gene can always give the next, so the child is non-decreasing too.
    """
    child = np.empty_like(parents[0])
    floor = -math.inf
    for index, choice in enumerate(rng.integers(2, size=len(child))):
        value = parents[choice][index]
        child[index] = floor = value if value >= floor else parents[1 - choice][index]
    return child
