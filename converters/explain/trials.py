"""Under which change does the reference give the artifact's logits? Changes are tried, and numbers fitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from converters.explain.causes import Trial
from converters.explain.reference import TrialModel
from converters.explain.rotations import Hypothesis, Rotation, hypotheses, with_theta
from converters.explain.windows import Window
from longrope.factors import BoundFactors, RescaleFactors
from longrope.scoring import divergence

# A change explains a window when it leaves at most this share of the difference.
EXPLAINED = 0.05
# A change that leaves this share explains a window beyond doubt, and no other is tried.
_NOTHING = 1e-4
# Changes that leave up to this many times the smallest difference explain it as well: the first of them counts.
_TIED = 1.5
# Numbers between which an attention factor and a base are looked for, by grids that are then refined.
_ATTENTION, _THETA, _GRID, _REFINEMENTS = (0.25, 4.0), (1e2, 1e8), 25, 16
_GOLDEN = (math.sqrt(5) - 1) / 2
_REPORTED = 3


@dataclass(frozen=True, eq=False)
class Tried:
    """A change and what is left of the difference.

    Args:
        hypothesis: the change.
        kl: KL in nats per token with it.
    """

    hypothesis: Hypothesis
    kl: float


@dataclass(frozen=True, eq=False)
class Verdict:
    """What trials say about one window.

    Args:
        window: it.
        unchanged: KL of the unchanged reference, at the trials' positions.
        tried: the closest changes, the closest first.
        floor: KL that rounding explains.
    """

    window: Window
    unchanged: float
    tried: tuple[Tried, ...]
    floor: float

    @property
    def best(self) -> Hypothesis | None:
        """The change that explains the window; None when none does."""
        if not self.tried or self.tried[0].kl > max(self.floor, EXPLAINED * self.unchanged):
            return None
        return self.tried[0].hypothesis

    def report(self) -> tuple[Trial, ...]:
        """The closest changes."""
        return tuple(
            Trial(each.hypothesis.cause, each.hypothesis.change, len(self.window.ids), each.kl, self.unchanged)
            for each in self.tried[:_REPORTED]
        )


def try_changes(
    reference: TrialModel, window: Window, factors: BoundFactors, stored: RescaleFactors | None, floor: float
) -> Verdict:
    """Try every known way to rotate otherwise, and where none explains the window, fit theta and the attention factor."""
    positions = window.trial_positions()
    artifact = window.expected_rows(positions)

    def kl_of(rotation: Rotation) -> float:
        found = float(divergence(reference.rows(window.ids, rotation, positions), artifact).mean())
        return found if math.isfinite(found) else math.inf

    right = Rotation.of(factors, window.regime)
    unchanged, found = kl_of(right), list[Tried]()
    for each in hypotheses(factors, window.regime, stored):
        found.append(Tried(each, kl_of(each.rotation)))
        if found[-1].kl <= max(_NOTHING * unchanged, floor / 10):
            break  # the first that explains it counts
    tried = _ranked(found, floor)
    if tried[0].kl > max(floor, EXPLAINED * unchanged):
        tried = _ranked([*tried, *_fitted(right, factors, tried[0].hypothesis, kl_of)], floor)
    return Verdict(window, unchanged, tuple(tried), floor)


def _ranked(tried: Sequence[Tried], floor: float) -> list[Tried]:
    """The closest first; of those that come as close as the closest, the one that was named first."""
    closest = min(each.kl for each in tried)
    tied = [each for each in tried if each.kl <= _TIED * closest + floor / 10]
    return [tied[0], *sorted((each for each in tried if each is not tied[0]), key=lambda each: each.kl)]


def _fitted(
    right: Rotation, factors: BoundFactors, closest: Hypothesis, kl_of: Callable[[Rotation], float]
) -> list[Tried]:
    """The best attention factor, with the closest change and without, and the best base."""
    found = []
    for base, words in ((right, ""), (closest.rotation, f"{closest.change}, and ")):
        number, kl = _smallest(lambda number, base=base: kl_of(base.with_attention(number)), _ATTENTION)  # type: ignore[misc]
        cause = "rope.attention_factor" if base is right else closest.cause
        change = f"{words}attention factor {number:.4g} in place of {right.attention_factor:.4g}"
        found.append(Tried(Hypothesis(cause, change, base.with_attention(number)), kl))
    number, kl = _smallest(lambda theta: kl_of(with_theta(right, factors, theta)), _THETA)
    change = f"theta {number:.4g} in place of {factors.rope_theta:g}"
    return [*found, Tried(Hypothesis("rope.theta", change, with_theta(right, factors, number)), kl)]


def _smallest(function: Callable[[float], float], bounds: tuple[float, float]) -> tuple[float, float]:
    """Where a function of a positive number is smallest, and its value: a grid in its logarithm, then golden sections."""
    grid = np.linspace(math.log(bounds[0]), math.log(bounds[1]), _GRID)
    values = [function(math.exp(at)) for at in grid]
    best = int(np.argmin(values))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    inner = [high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)]
    seen = [function(math.exp(at)) for at in inner]
    for _ in range(_REFINEMENTS):
        left = seen[0] <= seen[1]
        low, high = (low, inner[1]) if left else (inner[0], high)
        new = high - _GOLDEN * (high - low) if left else low + _GOLDEN * (high - low)
        inner = [new, inner[0]] if left else [inner[1], new]
        value = function(math.exp(new))
        seen = [value, seen[0]] if left else [seen[1], value]
    at = min((0, 1), key=lambda each: seen[each])
    return math.exp(inner[at]), seen[at]
