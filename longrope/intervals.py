"""Intervals of 95 % for what is measured on few tokens. No torch here.

Positions count as independent, which makes an interval a little too narrow; it is asked whether a value lies beyond a
limit that is several times what rounding gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NORMAL = 1.959964
# Student's t for 1, 2, … degrees of freedom, two-sided.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)

Interval = tuple[float, float]


def student(freedom: int) -> float:
    """Half the width of an interval of a mean, in standard errors, for so many degrees of freedom (at least 1)."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    return NORMAL + 2.372 / freedom + 2.823 / freedom**2  # Cornish and Fisher


def standard_error(values: Sequence[float] | NDArray[np.float64]) -> float:
    """Of a mean; NaN for a single value."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.std(ddof=1)) / math.sqrt(len(array)) if len(array) > 1 else math.nan


def mean_interval(values: Sequence[float] | NDArray[np.float64], least_error: float = 0.0) -> Interval:
    """The interval of a mean; unbounded for a single value, NaN where one is NaN.

    Args:
        values: that the mean is of.
        least_error: the standard error where that of the values is smaller; a few values say little of their own spread.
    """
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return (mean, mean) if math.isnan(mean) else (-math.inf, math.inf)
    half = student(len(array) - 1) * max(standard_error(array), least_error)
    return mean - half, mean + half


def quantile_low(ascending: NDArray[np.float64], share: float) -> float:
    """The lower end of a quantile's interval: the order statistic whose rank the true quantile exceeds in 97.5 %."""
    count = len(ascending)
    rank = math.floor(count * share - NORMAL * math.sqrt(count * share * (1 - share)))
    return float(ascending[min(max(rank - 1, 0), count - 1)]) if not np.isnan(ascending).any() else math.nan


def wilson(successes: int, total: int) -> Interval:
    """Wilson's interval of a share (JASA 22, 1927); everything from 0 to 1 where there is no trial."""
    if total == 0:
        return 0.0, 1.0
    share, weight = successes / total, NORMAL**2 / total
    middle = (share + weight / 2) / (1 + weight)
    half = NORMAL / (1 + weight) * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    return (middle - half if successes else 0.0), (middle + half if successes < total else 1.0)
