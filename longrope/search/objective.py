"""What is minimised: the mean negative log-likelihood of windows, weighted by their counted tokens.

    loss(λ) = Σ_w weight_w · nll_w(λ) / Σ_w weight_w  +  ρ · max(0, short(λ) − cap)

`nll_w` is a window's mean NLL in nats per counted token, `weight_w` its part of the counted tokens of the windows of its
kind, times that kind's share. The second term is there for two-sided objectives only: `short` is the same mean over windows
of the original length.
Source: LongRoPE (arXiv 2402.13753), section 4.2 (whole windows).
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from longrope.errors import InputError
from longrope.search.trial import Float64, Measurement, Outcome, Trial
from longrope.text import TokenIds

Side = Literal["target", "short"]
# ρ: nats of loss for each nat above the cap on the short side: steep, so that strategies keep to it.
PENALTY = 20.0


@dataclass(frozen=True)
class Window:
    """Token ids and the tokens of them that count.

    Args:
        ids: [T].
        start, stop: the counted tokens are ids[start:stop]; a whole window counts all but the first.
        weight: this window's share, relative to the others of its side.
        side: `target`, or `short` for windows of the original length in a two-sided objective.
        part: which part of the objective it belongs to: windows of one part are alike, those of two may disagree.
        extra: a further window for gradient steps, not among those that rank candidates.
    """

    ids: TokenIds = field(compare=False)
    start: int = 1
    stop: int = 0
    weight: float = 1.0
    side: Side = "target"
    part: int = 0
    extra: bool = False

    def __post_init__(self) -> None:
        if not self.stop:
            object.__setattr__(self, "stop", len(self.ids))
        if not 1 <= self.start < self.stop <= len(self.ids):
            raise InputError(f"expected counted tokens within 1 … {len(self.ids)}, got {self.start} … {self.stop}")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def counted(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Part:
    """The windows of one kind in an objective: whole ones of the target's length, needles, or another length's.

    Args:
        share: of the objective.
        ranking: indices of the windows that rank candidates.
        fresh: indices of those for gradient steps: further ones or, where the text has none, the same.
    """

    share: float
    ranking: tuple[int, ...]
    fresh: tuple[int, ...]


@dataclass(frozen=True)
class Objective:
    """Windows and how their NLLs become one number.

    Args:
        windows: those that rank candidates, the short side's, and extra ones.
        short_cap: largest mean NLL allowed on the short side, nats; None for a one-sided objective.
    """

    windows: tuple[Window, ...]
    short_cap: float | None = None

    @property
    def target_windows(self) -> tuple[int, ...]:
        """Indices of the windows that rank candidates."""
        return tuple(i for i, window in enumerate(self.windows) if window.side == "target" and not window.extra)

    @property
    def short_windows(self) -> tuple[int, ...]:
        return tuple(i for i, window in enumerate(self.windows) if window.side == "short")

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """What the target's side is made of."""
        total = sum(self.windows[i].weight for i in self.target_windows)
        return tuple(
            self._part(number, total) for number in sorted({self.windows[i].part for i in self.target_windows})
        )

    def _part(self, number: int, total: float) -> Part:
        ranking = tuple(i for i in self.target_windows if self.windows[i].part == number)
        fresh = tuple(i for i, window in enumerate(self.windows) if window.extra and window.part == number)
        return Part(sum(self.windows[i].weight for i in ranking) / total, ranking, fresh or ranking)

    @property
    def ranking_windows(self) -> tuple[int, ...]:
        """Indices of all windows of a full evaluation: target and short side."""
        return (*self.target_windows, *self.short_windows)

    @property
    def tokens(self) -> int:
        """Tokens forwarded by one full evaluation: the unit of budgets."""
        return sum(len(self.windows[i]) for i in self.ranking_windows)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every window's ids, counted range, weight and side, and the cap."""
        digest = hashlib.sha256(repr(self.short_cap).encode())
        for window in self.windows:
            about = (window.start, window.stop, window.weight, window.side, window.extra, len(window))
            digest.update(repr(about).encode())
            digest.update(window.ids.astype("<i8").tobytes())
        return digest.hexdigest()

    def mean(self, side: Side, indices: Sequence[int], losses: Sequence[float]) -> float:
        """Weighted mean NLL of those of `indices` that are on `side`; nan when there are none."""
        weights = self._weights(side, indices)
        total = sum(weights)
        return sum(w * nll for w, nll in zip(weights, losses, strict=True) if w) / total if total else math.nan

    def outcome(self, trial: Trial, measured: Sequence[Measurement]) -> Outcome:
        """The outcome of a trial whose windows gave these measurements."""
        losses = tuple(m.nll for m in measured)
        weights = self._derivatives(trial.windows, losses)
        gradient = None
        if trial.gradient and all(m.gradient is not None for m in measured):
            gradient = np.asarray(weights @ np.array([m.gradient for m in measured]), dtype=np.float64)
        return Outcome(trial, self.loss(trial.windows, losses), losses, gradient, self.excess(trial.windows, losses))

    def loss(self, indices: Sequence[int], losses: Sequence[float]) -> float:
        """The number that is minimised, nats per token."""
        target = self.mean("target", indices, losses)
        excess = self.excess(indices, losses)
        return target + PENALTY * excess if excess else target

    def rank(self, indices: Sequence[int], losses: Sequence[float]) -> tuple[bool, float]:
        """What candidates are compared by: the cap first, then the loss."""
        return self.excess(indices, losses) > 0, self.loss(indices, losses)

    def excess(self, indices: Sequence[int], losses: Sequence[float]) -> float:
        """Nats that the short side is above the cap; 0 without one."""
        if self.short_cap is None:
            return 0.0
        short = self.mean("short", indices, losses)
        return max(0.0, short - self.short_cap) if not math.isnan(short) else 0.0

    def _derivatives(self, indices: Sequence[int], losses: Sequence[float]) -> Float64:
        """[W] derivative of the loss by the NLL of each of these windows."""
        over = PENALTY if self.excess(indices, losses) else 0.0
        sides: dict[Side, float] = {"target": 1.0, "short": over}
        slopes = np.zeros(len(indices))
        for side, factor in sides.items():
            weights = np.array(self._weights(side, indices))
            slopes += factor * weights / (weights.sum() or 1.0)
        return slopes

    def _weights(self, side: Side, indices: Sequence[int]) -> list[float]:
        """[W] weight of each window, 0 of the other side's. A part of which only some windows are there keeps its share."""
        there, found = [self.windows[i] for i in indices], defaultdict[int, float](float)
        for window in there:
            found[window.part] += window.weight * (window.side == side)
        return [self.parts[w.part].share * w.weight / found[w.part] if w.side == side else 0.0 for w in there]
