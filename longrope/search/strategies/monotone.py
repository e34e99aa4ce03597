"""Multipliers that rise: by construction, as free numbers, for Adam and CMA-ES, and by projection.

    ln μ_i = Σ_{j ≤ i} κ · softplus(x_j)         x ∈ R^(d/2), any values
    ln attention = ln start + x_last              when the attention factor is searched

κ = 0.3 makes a step of 1 in x_j worth about a third of its pair's factor. Multipliers above the bound are cut to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from longrope.search.space import SearchSpace
from longrope.search.trial import Candidate, Float64

KAPPA = 0.3
# Smallest increment of ln μ that a start is given, so that no softplus starts out flat.
MIN_INCREMENT = 1e-3


@dataclass(frozen=True)
class Monotone:
    """The parametrization of one space.

    Args:
        space: bounds, base, attention factor.
        n_hat: start tokens of every candidate.
    """

    space: SearchSpace
    n_hat: int = 0

    @property
    def size(self) -> int:
        """Free numbers: one per pair, and one for the attention factor when that is searched."""
        return self.space.num_pairs + self.space.search_attention

    def encode(self, candidate: Candidate) -> Float64:
        """[size] numbers of a candidate; where it falls, they rise by the smallest increment."""
        logs = np.maximum.accumulate(np.log(np.maximum(self.space.multipliers(candidate), 1.0)))
        increments = np.maximum(np.diff(logs, prepend=0.0), MIN_INCREMENT) / KAPPA
        x = np.log(np.expm1(increments))
        if self.space.search_attention:
            x = np.append(x, math.log(self.space.attention(candidate) / self.space.default_attention))
        return np.asarray(x)

    def decode(self, x: Float64) -> Candidate:
        """The candidate of [size] numbers."""
        multipliers = np.minimum(np.exp(self._logs(x)), self.space.upper)
        attention = self.space.default_attention * math.exp(x[-1]) if self.space.search_attention else None
        return self.space.candidate(multipliers, self.n_hat, round(attention, 6) if attention else None)

    def pull_back(self, x: Float64, gradient: Float64) -> Float64:
        """[size] derivative by x of a loss whose [d/2 + 1] derivative by ln factors and ln attention is given."""
        free = self._logs(x) < math.log(self.space.upper)
        by_log = np.where(free, gradient[:-1], 0.0)
        slopes = KAPPA / (1.0 + np.exp(-x[: self.space.num_pairs]))
        result = np.cumsum(by_log[::-1])[::-1] * slopes
        return np.append(result, gradient[-1]) if self.space.search_attention else np.asarray(result)

    def _logs(self, x: Float64) -> Float64:
        return np.asarray(np.cumsum(KAPPA * np.logaddexp(0.0, x[: self.space.num_pairs])))


def rising(values: Float64, weights: Float64 | None = None) -> Float64:
    """The non-decreasing sequence nearest to `values` in weighted squares (isotonic regression, pool adjacent violators).

    Why not scipy's: see DESIGN.md.
    """
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, np.ones_like(values) if weights is None else weights, strict=True):
        pool = (float(value), float(weight), 1)
        while pools and pools[-1][0] > pool[0]:
            last = pools.pop()
            total = last[1] + pool[1]
            pool = ((last[0] * last[1] + pool[0] * pool[1]) / total, total, last[2] + pool[2])
        pools.append(pool)
    return np.repeat([value for value, _, _ in pools], [count for _, _, count in pools])
