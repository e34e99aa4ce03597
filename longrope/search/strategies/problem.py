"""What a strategy is given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longrope.search.objective import Objective
from longrope.search.space import SearchSpace, Seed
from longrope.search.trial import Candidate, Trial


@dataclass(frozen=True)
class Problem:
    """Space, windows, budget and starting points of one search.

    Args:
        space: where candidates come from.
        objective: the windows, for their numbers and sizes; strategies never score themselves.
        seeds: the known methods and whatever the user gave to start from.
        max_evals: budget, in full evaluations' worth of tokens; None for the strategy's own.
        seed: of every random draw.
    """

    space: SearchSpace
    objective: Objective
    seeds: tuple[Seed, ...]
    max_evals: int | None = None
    seed: int = 0

    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def budget(self, own: int) -> int:
        """Full evaluations this strategy may spend, `own` being its own number."""
        return own if self.max_evals is None else self.max_evals

    @property
    def num_windows(self) -> int:
        """Forwards of L' tokens that one full evaluation costs, rounded up."""
        return -(-self.objective.tokens // self.space.target)

    def full(self, candidate: Candidate, label: str) -> Trial:
        """A trial on every window."""
        return Trial(candidate, self._all_windows, label)

    def known(self, seed: Seed) -> Trial:
        """A seed on every window."""
        return Trial(seed.candidate, self._all_windows, seed.name, known=True)

    @property
    def _all_windows(self) -> tuple[int, ...]:
        return self.objective.ranking_windows
