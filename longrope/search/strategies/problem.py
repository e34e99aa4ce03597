"""What a strategy is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longrope.search.objective import Objective
from longrope.search.space import SearchSpace, StartingPoint
from longrope.search.trial import GRADIENT_FORWARDS, Candidate, Trial


@dataclass
class TokenBudget:
    """What may still be spent, in tokens forwarded."""

    left: int

    def pay(self, tokens: int) -> bool:
        """Take so many if they are there."""
        if tokens > self.left:
            return False
        self.left -= tokens
        return True


@dataclass(frozen=True)
class Problem:
    """Space, windows, budget and starting points of one search.

    Args:
        space: where candidates come from.
        objective: the windows, for their numbers and sizes; strategies never score themselves.
        starting_points: the known methods and whatever the user gave to start from.
        max_evals: budget, in full evaluations' worth of tokens; None for the strategy's own.
        seed: of every random draw.
        gradients: whether the machine has the memory for derivatives.
        workers: measurements that run at once. Strategies may ask for more of them at a time, so that it decides the result.
    """

    space: SearchSpace
    objective: Objective
    starting_points: tuple[StartingPoint, ...]
    max_evals: int | None = None
    seed: int = 0
    gradients: bool = True
    workers: int = 1

    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def budget(self, own: int) -> int:
        """Full evaluations this strategy may spend, `own` being its own number."""
        return own if self.max_evals is None else self.max_evals

    def token_budget(self, own: int) -> TokenBudget:
        """The budget in tokens, `own` being the strategy's own number of full evaluations."""
        return TokenBudget(self.budget(own) * self.objective.tokens)

    def tokens(self, windows: Sequence[int]) -> int:
        """Tokens of one forward over these windows."""
        return sum(len(self.objective.windows[index]) for index in windows)

    def step_tokens(self, windows: int = 1) -> int:
        """Tokens of one gradient step: so many windows, the short side if there is one, three forwards each."""
        longest = max(len(self.objective.windows[i]) for part in self.objective.parts for i in part.fresh)
        return GRADIENT_FORWARDS * (windows * longest + self.tokens(self.objective.short_windows))

    @property
    def stages(self) -> list[tuple[int, ...]]:
        """Growing sets of windows: one of each part of the objective more each time, and the whole short side from the first
        on. The last one holds them all."""
        parts, short = self.objective.parts, self.objective.short_windows
        rounds = max(len(part.ranking) for part in parts)
        return [(*(i for part in parts for i in part.ranking[:n]), *short) for n in range(1, rounds + 1)]

    def full(self, candidate: Candidate, label: str) -> Trial:
        """A trial on every window."""
        return Trial(candidate, self._all_windows, label)

    def known(self, start: StartingPoint) -> Trial:
        """A starting point on every window."""
        return Trial(start.candidate, self._all_windows, start.name, known=True)

    @property
    def _all_windows(self) -> tuple[int, ...]:
        return self.objective.ranking_windows
