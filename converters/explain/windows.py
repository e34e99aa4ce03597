"""What the artifact's logits say: windows within the original window and beyond it, position by position.

artifact ──logits──► block ─┐
reference ─logits──► block ─┴─► KL and logit difference of every position ──► Shape
                                rows at some positions ──► kept, for the reference's trials
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from converters.explain.causes import Shape
from converters.explain.reference import TrialModel
from converters.explain.rotations import Rotation
from longrope.factors import BoundFactors, FactorSet
from longrope.scoring import CHUNK_TOKENS, LogitSource, divergence, non_finite_row
from longrope.text import TokenIds

# Trials look at so many positions of the first so many tokens, of more where the difference begins later.
TRIAL_POSITIONS, TRIAL_TOKENS = 48, (256, 1024, 4096)
# A difference that lies to this share in the first tokens can be studied there.
_SHARE = 0.1
# A difference at position 0 of more than this share of the mean is none of the rotation.
_AT_START = 0.2
_SHOWN_POSITIONS = 12


@dataclass(eq=False)
class Window:
    """One window of the artifact.

    Args:
        ids: [T] token ids.
        regime: the set that it must use.
        kl, difference: [T] KL(reference || artifact) in nats, and the largest logit difference, of every position.
        rows: the artifact's logits [V] at the positions that trials look at.
        non_finite: the first position with NaN or infinity; None where there is none.
    """

    ids: TokenIds
    regime: FactorSet
    kl: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    difference: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    rows: dict[int, Tensor] = field(default_factory=dict)
    non_finite: int | None = None

    @property
    def kl_mean(self) -> float:
        return float(self.kl.mean())

    def rotation_may_explain(self, floor: float) -> bool:
        """Whether the window is finite, and hardly differs at position 0, where nothing is rotated and one key is seen."""
        return self.non_finite is None and float(self.kl[0]) <= max(floor, _AT_START * self.kl_mean)

    def trial_positions(self) -> NDArray[np.int64]:
        """Where the reference with something changed is compared: at the beginning, if the difference shows there."""
        for tokens in TRIAL_TOKENS:
            if tokens < len(self.ids) and self.kl[:tokens].mean() >= _SHARE * self.kl_mean:
                return spread(tokens)
        return spread(len(self.ids))

    def expected_rows(self, positions: NDArray[np.int64]) -> Tensor:
        """The artifact's logits [n, V]."""
        return torch.stack([self.rows[int(position)] for position in positions])

    def shape(self, floor: float, original: int) -> Shape:
        """What to report of it. `floor`: KL in nats that rounding explains."""
        shown = np.unique(np.geomspace(1, len(self.ids), _SHOWN_POSITIONS).astype(int) - 1)
        return Shape(
            length=len(self.ids),
            regime=self.regime,
            kl_mean=self.kl_mean,
            positions=tuple(map(int, shown)),
            kl=tuple(float(self.kl[at]) for at in shown),
            max_logit_diff=tuple(float(self.difference[at]) for at in shown),
            words=_words(self.kl, self.non_finite, floor, original),
        )


def only_the_cache(decoding: float | None, windows: Sequence[Window], floor: float) -> bool:
    """Whether decoding is not as one pass, which over the first tokens of a window, before any cache, is the reference's."""
    return decoding is not None and decoding > floor and float(windows[0].kl[:CHUNK_TOKENS].mean()) <= floor


def spread(tokens: int) -> NDArray[np.int64]:
    """Positions over a window of so many tokens, its first and last among them."""
    return np.unique(np.linspace(0, tokens - 1, TRIAL_POSITIONS).round().astype(np.int64))


def run_window(source: LogitSource, reference: TrialModel, ids: TokenIds, factors: BoundFactors) -> Window:
    """Run a window in the artifact's runtime and in the reference, both with the set that belongs to it."""
    regime = source.set_for(len(ids))
    window = Window(ids, regime)
    kept = {int(at) for tokens in (*TRIAL_TOKENS, len(ids)) if tokens <= len(ids) for at in spread(tokens)}
    kls, differences, start = list[Tensor](), list[Tensor](), 0
    expected = reference.logits(ids, Rotation.of(factors, regime), CHUNK_TOKENS)
    for wanted, actual in zip(expected, source.logits(ids, regime, CHUNK_TOKENS), strict=True):
        if window.non_finite is None and (row := non_finite_row(actual)) is not None:
            window.non_finite = start + row
        kls.append(divergence(wanted, actual))
        differences.append((wanted - actual).abs().amax(-1).double())
        window.rows |= {start + row: actual[row].clone() for row in range(len(actual)) if start + row in kept}
        start += len(actual)
    window.kl, window.difference = torch.cat(kls).numpy(), torch.cat(differences).numpy()
    return window


def _words(kl: NDArray[np.float64], non_finite: int | None, floor: float, original: int) -> str:
    if non_finite is not None:
        return f"not finite from position {non_finite} on"
    if kl.mean() <= floor:
        return "as the reference"
    if kl[0] > floor:
        return "from position 0 on, where nothing is rotated: weights, norms or embeddings"
    first = int(np.argmax(kl > max(floor, 1e-3 * kl.mean())))
    halves = kl[: len(kl) // 2].mean(), kl[len(kl) // 2 :].mean()
    if original - 8 <= first <= original + 8:
        return f"from position {first} on, where the sets change: the other set, or a cache that keeps its keys"
    if halves[1] > 4 * halves[0]:
        return f"from position {first} on and growing with the position: rotary frequencies or angles"
    return f"from position {first} on, not at position 0: the attention, by its rotation, scale or weights"
