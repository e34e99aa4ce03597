"""How much a validation measures: presets, and what of them fits in a time.

EFFORTS[quick | default | thorough] ─lengths, windows per length─► Wish ─┐
a first window ──seconds──► cost of any length, by its FLOPs ────────────┴─ fitted ──► Fit: what is run, what is left out
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from longrope.errors import InputError, choices
from longrope.factors import BoundFactors

# Tokens that the rate is measured on, and the shortest window that quick takes.
FIRST_TOKENS = 512
# A crossing is a pass of every artifact and one or two of the reference up to just beyond the original window.
CROSSING_PASSES = 2
# Windows that are cut to a time are whole multiples of it.
_STEP = 256


@dataclass(frozen=True)
class Effort:
    """What is measured where the caller does not say.

    Args:
        windows_per_length: at most so many windows of each length.
        crossing: decode across the original window through the cache.
        own_weights: compare with a second reference, which holds the artifact's rounded weights.
        twins: run an artifact whose model is the reference's on a few tokens only.
        quality: measure what the extension costs and brings, too, where there is no budget.
        between: measure half of the original window and lengths between it and the target, too.
        seconds: what it is to be done in; None for no limit.
        shorten: take shorter windows where these do not fit in the time; else fewer of them.
    """

    windows_per_length: int = 4
    crossing: bool = True
    own_weights: bool = True
    twins: bool = True
    quality: bool = False
    between: bool = False
    seconds: float | None = None
    shorten: bool = False

    def lengths(self, factors: BoundFactors) -> tuple[int, ...]:
        """Lengths to measure at, in tokens."""
        original, target = factors.original, factors.target
        if not self.between:
            return (original, target)
        doubled = [length for length in (original << step for step in range(1, 64)) if length < target]
        return (max(original // 2, 2), original, *(doubled or [(original + target) // 2]), target)


EFFORTS: Mapping[str, Effort] = {
    "quick": Effort(windows_per_length=1, crossing=False, own_weights=False, seconds=60.0, shorten=True),
    "default": Effort(),
    "thorough": Effort(windows_per_length=8, twins=False, quality=True, between=True),
}


def effort_of(name: str) -> Effort:
    """A preset by its name. Raises InputError."""
    if name not in EFFORTS:
        raise InputError(f"effort {name!r}; {choices(name, EFFORTS)}")
    return EFFORTS[name]


@dataclass(frozen=True)
class Fit:
    """What fits in a time.

    Args:
        windows: length that was asked for → the length that is taken in its place, and how many windows.
        crossing: whether the crossing fits, too.
    """

    windows: Mapping[int, tuple[int, int]]
    crossing: bool


def fitted(
    wanted: Mapping[int, int],
    original: int,
    cost: Callable[[int], float],
    seconds: float,
    *,
    crossing: bool,
    shorten: bool,
) -> Fit:
    """Choose what to measure: one window of every length, then the crossing, then more windows of each length.

    Args:
        wanted: length → number of windows.
        original: L, on the other side of which no window is moved by being shortened.
        cost: seconds that a window of a length takes, growing with the length.
        seconds: what there is.
        crossing: whether the crossing is wanted.
        shorten: cut windows to what fits, the longest one last.
    """
    taken, left = dict[int, int](), seconds
    for length in sorted(wanted):
        shortest = min(length, original + 1 if length > original else FIRST_TOKENS) if shorten else length
        if cost(shortest) <= left:
            taken[length] = shortest
            left -= cost(shortest)
    for length in sorted(taken, reverse=True):
        left += cost(taken[length])
        taken[length] = _longest(taken[length], length, cost, left)
        left -= cost(taken[length])
    crossing = crossing and CROSSING_PASSES * cost(original) <= left
    left -= CROSSING_PASSES * cost(original) if crossing else 0.0
    counts = dict.fromkeys(taken, 1)
    for number in range(2, max(wanted.values(), default=0) + 1):
        for length in sorted(taken):
            if counts[length] == number - 1 and wanted[length] >= number and cost(taken[length]) <= left:
                counts[length] = number
                left -= cost(taken[length])
    return Fit({length: (taken[length], counts[length]) for length in taken}, crossing)


def _longest(shortest: int, length: int, cost: Callable[[int], float], seconds: float) -> int:
    """The longest window that takes no more than so many seconds, which the shortest does."""
    sizes: Sequence[int] = [shortest, *range((shortest // _STEP + 1) * _STEP, length, _STEP)]
    sizes = [*sizes, length] if length > shortest else sizes
    return sizes[max(bisect.bisect_right(sizes, seconds, key=cost) - 1, 0)]


def left_out(wanted: Mapping[int, int], fit: Fit, *, crossing: bool) -> list[str]:
    """In words, what was asked for and does not fit."""
    found = []
    for length, count in sorted(wanted.items()):
        taken, number = fit.windows.get(length, (length, 0))
        if taken < length:
            found.append(f"windows of {length} tokens ({taken} in their place)")
        if number < count:
            found.append(f"{count - number} of {count} windows of {length} tokens")
    return [*found, *(["the crossing"] if crossing and not fit.crossing else ())]
