"""Sequence parallelism as an attention function of transformers: between two all-to-alls, each process sees whole sequences.

    a process holds              all_to_all            a process holds             all_to_all
    [B, H, T/P, d]          ────────────────────►      [B, H/P, T, d]         ────────────────────►     [B, T/P, H, d]
    every head,                                        some heads,        inner                          every head,
    a part of the sequence                             the whole sequence attention                     a part again

Everything but attention works on single positions and never knows. Attention itself is any function that is registered with
transformers; it is given whole sequences, so it learns of documents packed in a row by what the caller passes for the
*whole* row (`cu_seqlens` and the like), never by this process's position ids. The factor set is no business of this module
either: queries and keys arrive rotated. Source: DeepSpeed-Ulysses (arXiv 2309.14509).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from longrope.errors import UnsupportedError
from longrope.finetune.parallel import Parallel

PREFIX = "ulysses_"


def use_ulysses(model: Any, parallel: Parallel, inner: str) -> None:
    """Make a transformers model attend over sequences that are spread over processes.

    Args:
        model: its attention must go through transformers' registry of attention functions.
        parallel: who shares a sequence with whom; with sequence_parallel 1 the model gets `inner` itself.
        inner: name of the attention function that sees whole sequences, in transformers' registry.

    Raises:
        UnsupportedError: the heads cannot be divided among the processes, or the model does not use the registry.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = inner
    if parallel.sequence_group is not None:
        check_heads(model.config, parallel.sequence_parallel)
        name = PREFIX + inner
        ALL_ATTENTION_FUNCTIONS.register(name, Ulysses(parallel.sequence_group, ALL_ATTENTION_FUNCTIONS[inner]))
    try:
        model.set_attn_implementation(name)
    except ValueError as error:
        raise UnsupportedError(f"{type(model).__name__}: its attention cannot be replaced: {error}") from None


def check_heads(config: Any, sequence_parallel: int) -> None:
    """Raise UnsupportedError unless every process gets the same number of query heads."""
    heads = config.num_attention_heads
    if heads % sequence_parallel:
        options = [size for size in range(1, heads + 1) if heads % size == 0]
        raise UnsupportedError(
            f"{heads} attention heads cannot be shared by {sequence_parallel} processes; expected one of {options}"
        )


class Ulysses:
    """An attention function in transformers' signature that surrounds `inner` with two all-to-alls."""

    def __init__(self, group: dist.ProcessGroup, inner: Any) -> None:
        self._group, self._inner = group, inner
        self._size = dist.get_world_size(group)

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """query [B, H, T/P, d], key and value [B, H_kv, T/P, d] → [B, T/P, H, d]; see the module's docstring."""
        if attention_mask is not None:
            raise UnsupportedError("a mask over sequences that are spread over processes is not supported")
        kwargs.pop("position_ids", None)  # this process's part: it would be taken for a whole sequence
        key, value = (repeated_heads(tensor, self._size) for tensor in (key, value))
        whole = [self._gather_sequence(tensor) for tensor in (query, key, value)]
        here = LocalHeads(module, num_key_value_groups=query.shape[1] // key.shape[1])
        output_BThd, _ = self._inner(here, *whole, None, **kwargs)
        return self._gather_heads(output_BThd), None

    def _gather_sequence(self, x: Tensor) -> Tensor:
        """[B, H, T/P, d] → [B, H/P, T, d]: process j gets the j-th group of heads of every part."""
        batch, heads, part, dim = x.shape
        groups = x.view(batch, self._size, heads // self._size, part, dim).movedim(1, 0)
        parts: Tensor = AllToAll.apply(self._group, groups)
        return parts.permute(1, 2, 0, 3, 4).reshape(batch, heads // self._size, self._size * part, dim)

    def _gather_heads(self, x: Tensor) -> Tensor:
        """[B, T, H/P, d] → [B, T/P, H, d]: process j gets the j-th part of the sequence of every group of heads."""
        batch, length, heads, dim = x.shape
        parts = x.reshape(batch, self._size, length // self._size, heads, dim).movedim(1, 0)
        groups: Tensor = AllToAll.apply(self._group, parts)
        return groups.permute(1, 2, 0, 3, 4).reshape(batch, length // self._size, self._size * heads, dim)


class AllToAll(torch.autograd.Function):
    """[P, …] → [P, …]: slice j goes to process j, slice i comes from process i. Its own transpose."""

    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, x: Tensor) -> Tensor:
        ctx.group = group
        received = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dist.all_to_all_single(received, x.contiguous(), group=group)
        return received

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (gradient,) = gradients
        return None, AllToAll.apply(ctx.group, gradient)


class LocalHeads:
    """An attention module as its heads in this process see it: fewer query heads may share a key head here."""

    def __init__(self, module: nn.Module, num_key_value_groups: int) -> None:
        self._module = module
        self.num_key_value_groups = num_key_value_groups

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def repeated_heads(x: Tensor, sequence_parallel: int) -> Tensor:
    """Repeat key or value heads [B, H_kv, T, d] just so often that the processes can share them.

    With fewer key heads than processes, several processes work with the same one; its gradient is their sum.
    """
    times = sequence_parallel // math.gcd(x.shape[1], sequence_parallel)
    return x if times == 1 else x.repeat_interleave(times, dim=1)
