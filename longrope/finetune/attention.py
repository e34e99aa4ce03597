"""Attention inside documents: many documents lie in one row, and each sees only itself.

    row       │ document 0 │ document 1 │      document 2      │      cu_seqlens = (0, n0, n0 + n1, T)
    attention │ causal     │ causal     │ causal               │      n² work and memory traffic a document, no T × T mask

`attend` is a pure function of queries, keys, values and boundaries. `use_document_attention` registers it with
transformers; a forward then passes `cu_seqlens=` down to every layer, or leaves it out for one document a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from longrope.errors import UnsupportedError

NAME = "longrope_documents"


def attend(
    query_BHTd: Tensor,
    key_BKTd: Tensor,
    value_BKTd: Tensor,
    cu_seqlens: Sequence[int],
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Causal attention of every document to itself.

    Args:
        query_BHTd: [B, H, T, d] queries, already rotated.
        key_BKTd, value_BKTd: [B, K, T, d] keys and values; H is a multiple of K.
        cu_seqlens: where documents start, and T: 0, n0, n0 + n1, …, T. The same for all B rows.
        scaling: of the scores; None for 1/√d.
        dropout: share of attention weights that are dropped.

    Returns:
        [B, H, T, d].
    """
    compute = _compute_dtype(query_BHTd)
    if flash_attention_serves(query_BHTd, compute, cu_seqlens):
        query, key, value = (tensor.to(compute) for tensor in (query_BHTd, key_BKTd, value_BKTd))
        return flash_attention(query, key, value, cu_seqlens, scaling, dropout)
    grouped = query_BHTd.shape[1] != key_BKTd.shape[1]

    def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=grouped
        )

    if len(cu_seqlens) == 2:
        return causal(query_BHTd, key_BKTd, value_BKTd)
    lengths = [stop - start for start, stop in pairwise(cu_seqlens)]
    parts = (tensor.split(lengths, dim=2) for tensor in (query_BHTd, key_BKTd, value_BKTd))
    return torch.cat([causal(*document) for document in zip(*parts, strict=True)], dim=2)


def use_document_attention(model: Any) -> None:
    """Let every layer of a transformers model attend inside documents."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, document_attention)
    model.set_attn_implementation(NAME)


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seqlens: Sequence[int] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """`attend` under the signature of transformers' attention functions: [B, H, T, d] in, [B, T, H, d] out.

    Raises:
        UnsupportedError: the layer caps its scores, or looks back fewer tokens than a document has.
    """
    bounds = tuple(cu_seqlens) if cu_seqlens is not None else (0, query.shape[2])
    check_layer(bounds, sliding_window, softcap)
    output_BHTd = attend(query, key, value, bounds, scaling=scaling, dropout=dropout)
    return output_BHTd.transpose(1, 2), None


def check_layer(cu_seqlens: Sequence[int], sliding_window: int | None, softcap: float | None) -> None:
    """Raise UnsupportedError for a layer whose attention is not plainly causal in these documents."""
    if softcap is not None:
        raise UnsupportedError("training in packed documents: this model caps its attention scores (softcap)")
    longest = max(stop - start for start, stop in pairwise(cu_seqlens))
    if sliding_window is not None and sliding_window < longest:
        raise UnsupportedError(
            f"training in packed documents: a layer looks back {sliding_window} tokens, a document has {longest}; "
            "expected layers that see the whole document"
        )


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    """What torch's own attention would compute in: under autocast rotated queries are float32 still."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def flash_attention_serves(query_BHTd: Tensor, compute: torch.dtype, cu_seqlens: Sequence[int]) -> bool:
    """Whether flash-attention is installed and takes several documents of this type on this device."""
    return (
        query_BHTd.is_cuda
        and query_BHTd.shape[0] == 1
        and compute in (torch.bfloat16, torch.float16)
        and len(cu_seqlens) > 2
        and find_spec("flash_attn") is not None
    )


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Sequence[int], scaling: float | None, dropout: float
) -> Tensor:
    """flash-attention's variable-length kernel: all documents in one launch."""
    from flash_attn import flash_attn_varlen_func

    bounds = _on_device(tuple(cu_seqlens), query.device)
    longest = max(stop - start for start, stop in pairwise(cu_seqlens))
    output_THd: Tensor = flash_attn_varlen_func(
        *(tensor[0].transpose(0, 1) for tensor in (query, key, value)),
        cu_seqlens_q=bounds,
        cu_seqlens_k=bounds,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        dropout_p=dropout,
        softmax_scale=scaling if scaling is not None else 1 / math.sqrt(query.shape[-1]),
        causal=True,
    )
    return output_THd.transpose(0, 1)[None]


@lru_cache(maxsize=4)
def _on_device(cu_seqlens: tuple[int, ...], device: torch.device) -> Tensor:
    """The boundaries as flash-attention wants them; copied once per step, not once per layer."""
    return torch.tensor(cu_seqlens, dtype=torch.int32, device=device)
