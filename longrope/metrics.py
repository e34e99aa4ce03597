"""Numbers that are derived from a loss. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# exp(709.8) is the largest float64.
_LARGEST_NLL = 700.0


def perplexity(nll: float) -> float:
    """exp of a mean negative log-likelihood in nats per token; infinite where it overflows, NaN where `nll` is NaN."""
    return math.inf if nll > _LARGEST_NLL else math.exp(nll)


def mean_perplexity(losses: Sequence[float]) -> float:
    """The perplexity of windows that predict as many tokens each, from their mean negative log-likelihoods in nats."""
    return perplexity(float(np.mean(losses)))
