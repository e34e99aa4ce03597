"""Tensors of a file that are (a part of) a weight in another order, where an architecture wants what no renaming gives.

    experts.gate_up_proj [E, hidden, 2 ff], gate and up in turns ──► ffn_gate_exps, ffn_up_exps [E, ff, hidden]
    query_key_value: q, k, v of a head, then of the next          ──► attn_qkv: all q, all k, all v

Arrangements take the rows of a weight, of one expert where it holds several, [rows, columns] of any type, and the
configuration; they move numbers and change none. Changes take float32 and give float32, element by element.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.gguf.weights import Floats, Rows

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """A tensor of the file.

    Args:
        name: within `blk.N.`, with its suffix.
        arrange: rows of the weight in the order of the file; None for the same.
        change: what its numbers become; None for the same.
        stacked: the weight's first dimension counts experts, each arranged by itself.
    """

    name: str
    arrange: Callable[[Rows, Config], Rows] | None = None
    change: Callable[[Floats, Config], Floats] | None = None
    stacked: bool = False


def one_more(values: Floats, _config: Config) -> Floats:
    """Norms that are stored as offsets from 1."""
    return values + np.float32(1)


def one_more_scaling_queries(values: Floats, config: Config) -> Floats:
    """The norm of queries, with the scale of the attention in it."""
    scalar = config.get("query_pre_attn_scalar") or 256
    return one_more(values, config) * np.float32(1 / math.sqrt(scalar))


def minus_exp(values: Floats, _config: Config) -> Floats:
    """The decay of a state, whose logarithm is stored."""
    return -np.exp(values)


# -- gpt-oss: gate and up in turns, matrices for multiplication from the left


def even_columns_as_rows(rows: Rows, _config: Config) -> Rows:
    """gate of [hidden, 2 ff]."""
    return rows.T[0::2]


def odd_columns_as_rows(rows: Rows, _config: Config) -> Rows:
    """up of [hidden, 2 ff]."""
    return rows.T[1::2]


def columns_as_rows(rows: Rows, _config: Config) -> Rows:
    """down of [ff, hidden]."""
    return rows.T


def even_columns(rows: Rows, _config: Config) -> Rows:
    """Biases of gate, of [experts, 2 ff]."""
    return rows[:, 0::2]


def odd_columns(rows: Rows, _config: Config) -> Rows:
    """Biases of up, of [experts, 2 ff]."""
    return rows[:, 1::2]


# -- GPT-NeoX


def by_kind(rows: Rows, config: Config) -> Rows:
    """q, k and v of each head in turn → all of q, all of k, all of v."""
    heads = int(config["num_attention_heads"])
    return rows.reshape(heads, 3, -1, rows.shape[1]).swapaxes(0, 1).reshape(rows.shape)


# -- gated delta net: transformers groups value heads by their key head, llama.cpp deals them out in turns


def values_in_turns(rows: Rows, config: Config) -> Rows:
    """Rows of value heads: the first of each key head, the second of each, …"""
    keys, values = int(config["linear_num_key_heads"]), int(config["linear_num_value_heads"])
    return rows.reshape(keys, values // keys, -1, rows.shape[1]).swapaxes(0, 1).reshape(rows.shape)


def values_in_turns_behind_keys(rows: Rows, config: Config) -> Rows:
    """Queries and keys stay, values follow in turns."""
    before = 2 * int(config["linear_num_key_heads"]) * int(config["linear_key_head_dim"])
    return np.concatenate((rows[:before], values_in_turns(rows[before:], config)))


def columns_in_turns(rows: Rows, config: Config) -> Rows:
    """Columns that multiply value heads."""
    return values_in_turns(rows.T, config).T
