"""Natural-gradient steps in ln μ: far along pairs whose gradient is steady, hardly at all along those where it is noise.

    u ← rising(u − c / T · m / (v + ε²))        m running mean of the gradient, v its mean square, T tokens of a window

By the theory of maximum likelihood T times the variance of a window's gradient is the Fisher information of a token, and so
about the curvature of the loss: the diagonal of it is the preconditioner. The faster a pair rotates, the more its factor
matters; so v is made to fall from pair to pair. Else a first gradient that is small by chance sends its pair into another
basin, out of which no later step is long enough to bring it back. What competes is the mean of the last half of the iterates.

Several windows make a step better, not longer: m takes their mean, v each one's square, for the curvature is the same.
Sources: Amari, Natural Gradient Works Efficiently in Learning (1998); averaging: Polyak and Juditsky (1992).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from longrope.search.space import SearchSpace
from longrope.search.strategies.monotone import rising
from longrope.search.trial import Candidate, Float64, Outcome

# c, what m keeps from one gradient to the next, ε in nats, and the longest step in ln μ.
RATE, MEMORY, FLOOR, LONGEST = 4.0, 0.8, 1e-3, 0.15
# The longest step in ln attention. Its curvature is some nats, a hundred times a pair's: where the first window's gradient is
# small by chance, the preconditioner alone would send it a tenth away within a few steps, and ten percent of perplexity up.
LONGEST_ATTENTION = 0.01
# Standard deviations beyond which a gradient is cut: those of fast pairs have heavy tails.
OUTLIER = 4.0


class NaturalDescent:
    """The state of a descent.

    Args:
        space: bounds, and whether the attention factor moves.
        start: where it begins.
        tokens: counted in one window, T.
    """

    def __init__(self, space: SearchSpace, start: Candidate, tokens: int) -> None:
        self._space, self._n_hat, self._rate = space, start.n_hat, RATE / tokens
        u = np.log(space.multipliers(start))
        self._u = np.append(u, math.log(space.attention(start))) if space.search_attention else u
        self._mean, self._squares = np.zeros_like(self._u), np.zeros_like(self._u)
        self._longest = np.full_like(self._u, LONGEST)
        self._longest[space.num_pairs :] = LONGEST_ATTENTION
        self._count = 0
        self._trail = [self._u]

    @property
    def candidate(self) -> Candidate:
        return self._decode(self._u)

    def step(self, outcomes: Sequence[Outcome]) -> None:
        """Move by gradients that were measured here, one per window; failed measurements move nothing."""
        slopes = [o.gradient[: len(self._u)] for o in outcomes if o.gradient is not None]
        slopes = [slope for slope in slopes if np.isfinite(slope).all()]
        if not slopes:
            return
        if self._count >= 3:
            limit = OUTLIER * np.sqrt(self._squares / self._count)
            slopes = [np.clip(slope, -limit, limit) for slope in slopes]
        self._count += len(slopes)
        kept = MEMORY ** len(slopes)
        self._mean = kept * self._mean + (1 - kept) * np.mean(slopes, axis=0)
        self._squares = self._squares + np.square(slopes).sum(axis=0)
        mean, square = self._mean / (1 - MEMORY**self._count), self._squares / self._count
        pairs = self._space.num_pairs
        square[:pairs] = np.maximum.accumulate(square[:pairs][::-1])[::-1]
        u = self._u - np.clip(self._rate * mean / (square + FLOOR**2), -self._longest, self._longest)
        u[:pairs] = np.clip(rising(u[:pairs], square[:pairs] + 1e-8), 0.0, math.log(self._space.upper))
        self._u = u
        self._trail.append(u)

    def mean(self) -> Candidate:
        """The mean of the last half of the iterates."""
        return self._decode(np.mean(self._trail[-max(1, round(len(self._trail) / 2)) :], axis=0))

    def _decode(self, u: Float64) -> Candidate:
        pairs = self._space.num_pairs
        attention = round(math.exp(u[-1]), 6) if self._space.search_attention else None
        return self._space.candidate(np.exp(u[:pairs]), self._n_hat, attention)
