"""Σ weight · NLL of a linear head, with its gradients, where logits exist for one chunk of rows at a time.

    hidden [N, D] ──chunk of rows──► logits [n, V] ──► Σ weight · NLL                              float32
                                        │
                                        └─ (softmax − one-hot) · weight ──► gradients, in the forward already

`chunked_loss` is ours: it takes tokens of any weight, rounds nothing below float32 and costs no arithmetic more than the
plain loss. `fused_sum` names the library's kernel that takes its place where one is better; this is the only place that
decides. What serves where, by measurement (benchmarks/training.md):

    float32           torch's linear_cross_entropy, from torch 2.13 on
    GPU               Liger's fused linear cross-entropy, where liger-kernel is installed
    everything else   ours; so in bfloat16 on a CPU, where torch's has a third of the speed and rounds each token's loss
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from longrope.finetune.batch import IGNORED

# Logits held at a time: 32M numbers, 128 MB in float32. With fewer rows the head's gradient would be moved too often.
LOGITS_AT_ONCE = 1 << 25
MIN_ROWS, MAX_ROWS = 256, 8192

FusedSum = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]
"""hidden [N, D], head [V, D], bias [V] or None, labels [N] with IGNORED → the sum of all tokens' NLL, nats."""


def weighted_loss(
    hidden_ND: Tensor, head_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor, weights_N: Tensor
) -> Tensor:
    """Σ weight · NLL over tokens, nats, float32; tokens labelled IGNORED count nothing.

    A library's kernel takes the tokens that count once; the few that count more, answers of passkeys, are ours.
    """
    fused = fused_sum(hidden_ND)
    if fused is None:
        return chunked_loss(hidden_ND, head_VD, bias_V, labels_N, weights_N)
    apart_N = (weights_N != 1) & (labels_N != IGNORED)
    total = fused(hidden_ND, head_VD, bias_V, labels_N.masked_fill(apart_N, IGNORED))
    if apart_N.any():
        total = total + chunked_loss(hidden_ND[apart_N], head_VD, bias_V, labels_N[apart_N], weights_N[apart_N])
    return total


def fused_sum(hidden_ND: Tensor) -> FusedSum | None:
    """The library's kernel that serves hidden states of this type and device best; None where ours does."""
    if hidden_ND.is_cuda and find_spec("liger_kernel") is not None:
        return liger_sum
    if hidden_ND.dtype == torch.float32 and hasattr(nn, "LinearCrossEntropyOptions"):
        return torch_sum
    return None


def torch_sum(hidden_ND: Tensor, head_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor) -> Tensor:
    """torch's linear_cross_entropy (2.13), in chunks; without its `options` it would hold all logits."""
    chunks = nn.LinearCrossEntropyOptions(chunking_method=None, batch_chunk_size=chunk_rows(head_VD.shape[0]))
    total: Tensor = nn.functional.linear_cross_entropy(
        hidden_ND, head_VD, labels_N, linear_bias=bias_V, reduction="sum", ignore_index=IGNORED, options=chunks
    )
    return total


def liger_sum(hidden_ND: Tensor, head_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor) -> Tensor:
    """Liger's fused linear cross-entropy, which sums losses and the head's gradient in float32."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORED, reduction="sum", accum_dtype=torch.float32)
    total: Tensor = loss(head_VD, hidden_ND, labels_N, bias_V)
    return total.float()


def chunked_loss(
    hidden_ND: Tensor, head_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor, weights_N: Tensor
) -> Tensor:
    """The loss of `weighted_loss`, in plain torch.

    Args:
        hidden_ND: last hidden states.
        head_VD, bias_V: of the head, in the same type.
        labels_N: token ids; IGNORED counts nothing.
        weights_N: what each token's NLL counts.
    """
    total: Tensor = _ChunkedLoss.apply(hidden_ND, head_VD, bias_V, labels_N, weights_N)
    return total


def chunk_rows(vocab_size: int) -> int:
    """Rows of a chunk, enough that the head's gradient is not moved more often than it is computed."""
    rows = 1 << (LOGITS_AT_ONCE // vocab_size).bit_length() - 1 if vocab_size < LOGITS_AT_ONCE else MIN_ROWS
    return min(max(rows, MIN_ROWS), MAX_ROWS)


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradients of each chunk while its logits are there; backward only scales them."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor, weights_N: Tensor
    ) -> Tensor:
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        counts_N = torch.where(labels_N == IGNORED, 0.0, weights_N).to(wide)
        total = torch.zeros((), dtype=wide, device=hidden_ND.device)
        asked_hidden, asked_head, asked_bias, *_ = ctx.needs_input_grad
        d_hidden_ND = torch.zeros_like(hidden_ND) if asked_hidden else None
        d_head_VD = torch.zeros_like(head_VD, dtype=wide) if asked_head else None
        d_bias_V = torch.zeros_like(bias_V, dtype=wide) if asked_bias and bias_V is not None else None
        rows = chunk_rows(head_VD.shape[0])
        for start in range(0, len(hidden_ND), rows):
            part = slice(start, start + rows)
            logits_nV, labels_n1 = linear(hidden_ND[part], head_VD, bias_V).to(wide), labels_N[part, None].clamp_min(0)
            highest_n1, told_n1 = logits_nV.amax(-1, keepdim=True), logits_nV.gather(1, labels_n1)
            exp_nV = logits_nV.sub_(highest_n1).exp_()  # in place: logsumexp would hold two chunks more
            sum_n1, counts_n1 = exp_nV.sum(-1, keepdim=True), counts_N[part, None]
            total += ((sum_n1.log() + highest_n1 - told_n1) * counts_n1).sum()
            if not any(ctx.needs_input_grad):
                continue
            d_logits_nV = exp_nV.mul_(counts_n1 / sum_n1).scatter_add_(1, labels_n1, -counts_n1).to(hidden_ND.dtype)
            if d_hidden_ND is not None:
                torch.mm(d_logits_nV, head_VD, out=d_hidden_ND[part])
            if d_head_VD is not None:
                d_head_VD += d_logits_nV.T @ hidden_ND[part]
            if d_bias_V is not None:
                d_bias_V += d_logits_nV.sum(0, dtype=wide)
            del logits_nV, exp_nV, d_logits_nV  # before there are those of the next chunk
        ctx.save_for_backward(d_hidden_ND, d_head_VD, d_bias_V)
        ctx.types = head_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_hidden_ND, d_head_VD, d_bias_V = ctx.saved_tensors
        d_hidden_ND = None if d_hidden_ND is None else d_hidden_ND * slope
        head, bias = (None if d is None else d.mul_(slope).to(ctx.types) for d in (d_head_VD, d_bias_V))
        return d_hidden_ND, head, bias, None, None
