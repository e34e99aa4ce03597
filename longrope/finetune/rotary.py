"""The rotary embedding of training: every sequence has its own factor set, two sets may meet in one forward.

    token      0 1 2 … 63 │ 0 1 2 … 4095 │ 0 1 …          position_ids, anew in every sequence
    set        short      │ long         │ short           `assign`: given, never guessed from a position

Sets and factors live outside parameters and buffers: `model.to(dtype)` cannot round them, checkpoints do not see them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from longrope import rope
from longrope.factors import BoundFactors
from longrope.modeling import Layout, text_positions

SHORT, LONG = 0, 1


class SequenceRotary(nn.Module):
    """Float64 angles of two factor sets, by a set index for each token.

    The attention factor applies to both sets, as in every runtime.

    Args:
        factors: both sets.
        layout: of the model that it goes into, from `longrope.modeling.detect_layout`.
    """

    def __init__(self, factors: BoundFactors, layout: Layout | None = None) -> None:
        super().__init__()
        self.layout = layout or Layout()
        self.own = self.layout.own
        base = rope.inv_freq(factors.rope_theta, factors.rotary_dim)
        sets = [base / factors.short_factor, base / factors.long_factor]
        self._base = torch.from_numpy(base)
        self._frequencies = torch.stack([torch.from_numpy(frequencies) for frequencies in sets])
        self._attention_factor = factors.effective_attention_factor
        self._n_hat = factors.n_hat
        self._sets: Tensor | None = None

    def assign(self, sets_BT: Tensor | None) -> None:
        """Set index (`SHORT` or `LONG`) of every token of the coming forwards; None for the long set everywhere."""
        self._sets = sets_BT

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
        """x [B, T, D] (for its device and dtype), position_ids [B, T] → cos, sin [B, T, d] in x's dtype and the layout."""
        if self.layout.keeps_own(layer_type):
            return self.own(x, position_ids, layer_type=layer_type)
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        frequencies = self._frequencies.to(x.device, wide)
        n_BT1 = text_positions(position_ids, x.device, wide)
        chosen = frequencies[LONG] if self._sets is None else frequencies[self._sets.to(x.device)]
        angles = n_BT1 * chosen
        if self._n_hat:
            angles = torch.where(n_BT1 < self._n_hat, n_BT1 * self._base.to(x.device, wide), angles)
        return self.layout.tables(angles, self._attention_factor, x.dtype)
