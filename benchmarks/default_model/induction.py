"""A head start in copying: weights laid out so that a new model has an induction circuit from the first step.

Such circuits (Elhage et al. 2021; Olsson et al. 2022) form by themselves only after far more text than one CPU core
reads in an hour, and without them no passkey is ever recalled. So the first two layers are given one; everything else
starts at random, and training is free to keep, refine or undo it.

    embedding   a part of its own for each token, and one direction u that all tokens share
    layer 0     u turns queries one step back against keys: heads attend to the token before, and write a sketch of it
    layer 1     queries: sketch of this token; keys: that written sketch, in slow pairs, so that distance does not
                matter. Heads find where this token stood before, read the token after it, and write it to the output
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from transformers import LlamaForCausalLM

SHARED: Final = 0.5
"""Length of the shared direction in every embedding; the token's own part has length 1."""
FAST_PAIRS: Final = 4
"""Rotary pairs that tell the previous token from its neighbours: periods of 6 to 35 tokens at theta 10000."""
SLOW_PAIRS: Final = 9
"""Rotary pairs in which the match is made: periods of 350 tokens and more."""
STEP_GAIN: Final = 1.2
MATCH_GAIN: Final = 6.0
WRITE_GAIN: Final = 0.3


@torch.no_grad()
def give_induction(model: LlamaForCausalLM) -> None:
    """Lay out the circuit of this module's picture in the embedding and in the attention of layers 0 and 1."""
    config = model.config
    width, rows = config.hidden_size, config.num_key_value_heads * config.head_dim
    basis = torch.nn.init.orthogonal_(torch.empty(width, width))
    shared, sketches, places, copies = basis.split([1, rows, rows, width - 1 - 2 * rows])
    embedding = model.model.embed_tokens.weight
    embedding.copy_(torch.randn_like(embedding) / math.sqrt(width) + SHARED * shared)
    _attend_to_previous(model, shared[0], sketches.split(config.head_dim), places.split(config.head_dim))
    _attend_to_successor(model, sketches.split(config.head_dim), places.split(config.head_dim), copies)


def _heads(model: LlamaForCausalLM, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views of one layer's projections by head, G groups of R query heads: q (G, R, head_dim, width),
    k and v (G, head_dim, width), o (G, R, width, head_dim)."""
    attention, config = model.model.layers[layer].self_attn, model.config
    groups, head_dim, width = config.num_key_value_heads, config.head_dim, config.hidden_size
    queries = attention.q_proj.weight.view(groups, -1, head_dim, width)
    keys = attention.k_proj.weight.view(groups, head_dim, width)
    values = attention.v_proj.weight.view(groups, head_dim, width)
    outputs = attention.o_proj.weight.view(width, groups, -1, head_dim).permute(1, 2, 0, 3)
    return queries, keys, values, outputs


def _attend_to_previous(
    model: LlamaForCausalLM, shared: torch.Tensor, sketches: Sequence[torch.Tensor], places: Sequence[torch.Tensor]
) -> None:
    """Layer 0, first query head of each group: q = R(−1)·k in the fast pairs, so q·k peaks one position back."""
    queries, keys, values, outputs = _heads(model, layer=0)
    half = model.config.head_dim // 2
    speeds = model.model.rotary_emb.inv_freq[:FAST_PAIRS]
    for group, (sketch, place) in enumerate(zip(sketches, places, strict=True)):
        keys[group, :FAST_PAIRS] += STEP_GAIN * shared
        queries[group, 0, :FAST_PAIRS] += STEP_GAIN * torch.outer(speeds.cos(), shared)
        queries[group, 0, half : half + FAST_PAIRS] -= STEP_GAIN * torch.outer(speeds.sin(), shared)
        values[group] = sketch
        outputs[group, 0] = WRITE_GAIN * place.T


def _attend_to_successor(
    model: LlamaForCausalLM, sketches: Sequence[torch.Tensor], places: Sequence[torch.Tensor], copies: torch.Tensor
) -> None:
    """Layer 1, every head: match this token's sketch with the sketch of the token before each place; copy from there."""
    queries, keys, values, outputs = _heads(model, layer=1)
    head_dim = model.config.head_dim
    slow = torch.arange(head_dim).view(2, -1)[:, -SLOW_PAIRS:].flatten()
    for group, (sketch, place) in enumerate(zip(sketches, places, strict=True)):
        keys[group, slow] += MATCH_GAIN * place[: len(slow)]
        queries[group][:, slow] += MATCH_GAIN * sketch[: len(slow)]
        copy = copies.roll(-group * head_dim, 0)[:head_dim]
        values[group] = copy
        outputs[group] = WRITE_GAIN * copy.T
