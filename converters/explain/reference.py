"""The reference model for trials: its own weights, and any rotation of q and k."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from converters.explain.rotations import Order, Rotation
from longrope import rope
from longrope.checkpoint import Checkpoint
from longrope.factors import BoundFactors
from longrope.modeling import (
    PREFILL_TOKENS,
    RescaledRotary,
    build_model,
    decoder,
    detect_layout,
    head_logits,
    hidden_blocks,
    replace_rotary,
    text_config,
)
from longrope.residual import Stream, residual_stream
from longrope.text import TokenIds


class TrialModel:
    """A checkpoint in transformers, float32, whose rotary embedding is exchanged for every pass.

    Args:
        checkpoint: the reference.
        factors: that the artifact must carry.
        device: a torch device.
        weights: in place of the checkpoint's, by their name in its files; None for its own.

    Raises:
        LongRopeError: transformers does not read it, or its rotary embedding is in no layout that is known.
    """

    def __init__(
        self, checkpoint: Checkpoint, factors: BoundFactors, device: str, weights: Mapping[str, Any] | None = None
    ) -> None:
        self.model: Any = build_model(checkpoint.attending_to(factors.target), device=device, weights=weights)
        self.rotary = RescaledRotary(
            checkpoint.rope_theta, checkpoint.rotary_dim, detect_layout(self.model, checkpoint.base)
        )
        replace_rotary(self.model, self.rotary)
        self.vocab_size, self.num_layers = checkpoint.vocab_size, int(text_config(self.model).num_hidden_layers)
        self._unscaled = rope.inv_freq(checkpoint.rope_theta, checkpoint.rotary_dim)

    @torch.inference_mode()
    def logits(self, ids: TokenIds, rotation: Rotation, chunk: int) -> Iterator[Tensor]:
        """Logits [chunk, V] of one window, block by block, float32 on the CPU."""
        with self._rotated(rotation):
            for hidden_TD in hidden_blocks(self.model, self._ids(ids), max(PREFILL_TOKENS // chunk, 1) * chunk):
                for block in hidden_TD.split(chunk):
                    yield head_logits(self.model, block).float().cpu()

    @torch.inference_mode()
    def rows(self, ids: TokenIds, rotation: Rotation, positions: NDArray[np.int64]) -> Tensor:
        """Logits [n, V] at some positions of one window; what lies behind the last of them is not read."""
        with self._rotated(rotation):
            blocks = list(hidden_blocks(self.model, self._ids(ids[: int(positions[-1]) + 1]), PREFILL_TOKENS))
            hidden_TD = torch.cat(blocks)
            return head_logits(self.model, hidden_TD[torch.as_tensor(positions)]).float().cpu()

    @torch.inference_mode()
    def stream(self, ids: TokenIds, rotation: Rotation, given: Tensor) -> tuple[Stream, Tensor]:
        """The residual stream of a window whose layers get `given` states, and its logits [T, V]."""
        with self._rotated(rotation):
            found = residual_stream(self.model, self._ids(ids), given)
            return found, head_logits(self.model, found.last).float().cpu()

    def _ids(self, ids: TokenIds) -> Tensor:
        return torch.as_tensor(ids, device=self.model.device)[None]

    @contextmanager
    def _rotated(self, rotation: Rotation) -> Iterator[None]:
        """The model with this rotation."""
        with np.errstate(divide="ignore"):
            factors = self._unscaled / rotation.inv_freq  # infinite for a pair that is not rotated
        self.rotary.set(factors, rotation.attention_factor, rotation.n_hat)
        with ExitStack() as stack:
            if rotation.order != "kept":
                for module in _queries_and_keys(decoder(self.model)):
                    reorder = partial(_reorder, head_dim=self._head_dim, order=rotation.order)
                    stack.callback(module.register_forward_hook(reorder).remove)
            yield

    @property
    def _head_dim(self) -> int:
        return 2 * len(self._unscaled)


def _queries_and_keys(model: nn.Module) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith(("q_proj", "k_proj"))]


def _reorder(_: nn.Module, __: Any, output: Tensor, *, head_dim: int, order: Order) -> Tensor:
    """Queries or keys [B, T, heads × d] with the rows of each head in another order."""
    halves = (head_dim // 2, 2) if order == "apart" else (2, head_dim // 2)
    reordered: Tensor = output.unflatten(-1, (-1, *halves)).transpose(-1, -2).flatten(-3)  # type: ignore[no-untyped-call]
    return reordered
