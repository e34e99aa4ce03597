"""Attention over the cache, in two spellings with the same result.

    StandardAttention  q, k, v, bias, past ─► Attention ─► mixed, present          any runtime of opset 23
    GroupedAttention   q, k, v, past, lengths, bias ─► GroupQueryAttention ─► …    onnxruntime; the cache may be one
                                                                                   buffer that is filled in place
    attention_mask [B,S] ─► bias [B,1,T,S]: 0 where a query sees a key, else the lowest number

Keys are compared by their slot in the cache and not by position, which is right for any padding. The lowest number is
finite, so a padding query that sees nothing gives a mean and not NaN.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from converters.onnx.decoder import Decoder
from converters.onnx.graph import CONTRIB, Dim, GraphBuilder
from converters.onnx.names import BATCH, PAST, TOTAL
from longrope.errors import UnsupportedError


class Operands(NamedTuple):
    """What a layer's attention takes: q, k and v [B,T,heads × size], the cache [B,kv_heads,P,size], a bias, sinks [heads]."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    past_key: ir.Value
    past_value: ir.Value
    bias: ir.Value
    sinks: ir.Value | None


class CachedAttention(ABC):
    """Attention of every layer, with its cache as graph inputs and outputs.

    Args:
        graph: to add to.
        decoder: its heads and scale.
        input_ids, mask: the graph's inputs, [B, T] and [B, S].
    """

    def __init__(self, graph: GraphBuilder, decoder: Decoder, input_ids: ir.Value, mask: ir.Value) -> None:
        self.graph, self.decoder = graph, decoder
        windows = dict.fromkeys(layer.window for layer in decoder.layers if not layer.linear)
        self.bias = _biases(graph, input_ids, mask, list(windows))

    def attend(self, index: int, query: ir.Value, key: ir.Value, value: ir.Value, sinks: ir.Value | None) -> ir.Value:
        """Layer `index`: q [B,T,heads × head_dim], k and v [B,T,kv_heads × head_dim], sinks [heads] or none → as q."""
        dtype = self.graph.dtype
        past_key, past_value = (
            self.graph.input(f"past_key_values.{index}.{kind}", dtype, shape)
            for kind, shape in self._cache_shapes(PAST).items()
        )
        bias = self.bias[self.decoder.layers[index].window]
        mixed, *present = self._node(Operands(query, key, value, past_key, past_value, bias, sinks))
        for (kind, shape), cache in zip(self._cache_shapes(TOTAL).items(), present, strict=True):
            self.graph.output(cache, f"present.{index}.{kind}", dtype, shape)
        return mixed

    @abstractmethod
    def _node(self, given: Operands) -> list[ir.Value]:
        """The operator: mixed values, the grown keys and values."""

    def _cache_shapes(self, length: str) -> dict[str, list[Dim]]:
        heads = self.decoder.num_kv_heads
        return {
            "key": [BATCH, heads, length, self.decoder.head_dim],
            "value": [BATCH, heads, length, self.decoder.value_dim],
        }


OUTPUTS = ("attention", "present_key", "present_value")


class StandardAttention(CachedAttention):
    """ONNX's Attention operator.

    It has no sinks; a sink is a key behind all others, of zeros, whose score is its bias, and whose value is zero.
    """

    def _node(self, given: Operands) -> list[ir.Value]:
        if given.sinks is None:
            return self._attention(
                OUTPUTS, given.query, given.key, given.value, given.bias, given.past_key, given.past_value
            )
        present = [
            self._grown("key", given.past_key, given.key),
            self._grown("value", given.past_value, given.value),
        ]
        padded = [self._with_zeros(name, cache) for name, cache in zip(("keys", "values"), present, strict=True)]
        heads = self.graph.op("Reshape", given.query, self._by_head(), name="q_heads")
        heads = self.graph.op("Transpose", heads, name="q_by_head", perm=[0, 2, 1, 3])
        (mixed,) = self._attention(("by_head",), heads, *padded, self._with_sinks(given.bias, given.sinks))
        mixed = self.graph.op("Transpose", mixed, name="by_token", perm=[0, 2, 1, 3])
        return [self.graph.op("Reshape", mixed, self.graph.ints(0, 0, -1), name="mixed"), *present]

    def _attention(self, outputs: tuple[str, ...], *inputs: ir.Value) -> list[ir.Value]:
        heads: dict[str, Any] = {"q_num_heads": self.decoder.num_heads, "kv_num_heads": self.decoder.num_kv_heads}
        if len(outputs) == 1:  # in four dimensions, the operator finds the heads by itself
            heads = {}
        found = self.graph.ops(
            "Attention",
            *inputs,
            outputs=outputs,
            name="attention",
            **heads,
            scale=self.decoder.attention_scale,
            softcap=self.decoder.attention_softcap,
        )
        return list(found)

    def _by_head(self) -> ir.Value:
        return self.graph.ints(0, 0, -1, self.decoder.head_dim)

    def _grown(self, name: str, past: ir.Value, new: ir.Value) -> ir.Value:
        """The cache with new keys or values [B,T,kv_heads × head_dim] behind it."""
        g = self.graph
        heads = g.op("Reshape", new, self._by_head(), name=f"{name}_heads")
        transposed = g.op("Transpose", heads, name=f"{name}_by_head", perm=[0, 2, 1, 3])
        return g.op("Concat", past, transposed, name=f"present_{name}", axis=2)

    def _with_zeros(self, name: str, cache: ir.Value) -> ir.Value:
        return self.graph.op("Pad", cache, self.graph.ints(0, 0, 0, 0, 0, 0, 1, 0), name=f"{name}_and_sink")

    def _with_sinks(self, bias: ir.Value, sinks: ir.Value) -> ir.Value:
        """[B,1,T,S] and [heads] → [B,heads,T,S + 1]."""
        g = self.graph
        column = g.op("Reshape", sinks, g.ints(1, -1, 1, 1), name="sink_column")
        wide = g.op("Expand", bias, g.ints(1, self.decoder.num_heads, 1, 1), name="bias_by_head")
        shape = g.op("Concat", g.op("Shape", wide, name="bias_rows", end=3), g.ints(1), name="sink_shape", axis=0)
        return g.op("Concat", wide, g.op("Expand", column, shape, name="sink_rows"), name="bias_and_sinks", axis=-1)


class GroupedAttention(CachedAttention):
    """onnxruntime's GroupQueryAttention; q and k come rotated, so that one rotary part serves both spellings."""

    def __init__(self, graph: GraphBuilder, decoder: Decoder, input_ids: ir.Value, mask: ir.Value) -> None:
        if decoder.value_dim != decoder.head_dim:
            raise UnsupportedError(
                f"attention=grouped: GroupQueryAttention wants keys and values of one size, and this model's heads have "
                f"{decoder.head_dim} and {decoder.value_dim}; expected attention=standard"
            )
        super().__init__(graph, decoder, input_ids, mask)
        with graph.scope("attention_lengths"):
            total = graph.op("Shape", mask, name="num_keys", start=1, end=2)
            batch = graph.op("Shape", mask, name="batch", start=0, end=1)
            self.total = graph.op(
                "Cast", graph.op("Squeeze", total, name="total_int64"), name="total", to=ir.DataType.INT32
            )
            last = graph.op(
                "Cast", graph.op("Sub", total, graph.ints(1), name="last_key"), name="last", to=ir.DataType.INT32
            )
            self.last = graph.op("Expand", last, batch, name="last_by_row")

    def _node(self, given: Operands) -> list[ir.Value]:
        no_tables = (None, None, None)
        found = self.graph.ops(
            "GroupQueryAttention",
            *(given.query, given.key, given.value, given.past_key, given.past_value),
            *(self.last, self.total, *no_tables, given.bias, given.sinks),
            outputs=OUTPUTS,
            name="attention",
            domain=CONTRIB,
            num_heads=self.decoder.num_heads,
            kv_num_heads=self.decoder.num_kv_heads,
            scale=self.decoder.attention_scale,
            softcap=self.decoder.attention_softcap,
        )
        return list(found)


ATTENTIONS: dict[str, type[CachedAttention]] = {"standard": StandardAttention, "grouped": GroupedAttention}


def _biases(
    g: GraphBuilder, input_ids: ir.Value, mask: ir.Value, windows: list[int | None]
) -> dict[int | None, ir.Value]:
    """The bias for each distance that attention looks back (None: to the start)."""
    with g.scope("attention_bias"):
        new = g.op("Shape", input_ids, name="num_new", start=1, end=2)
        total = g.op("Shape", mask, name="num_keys", start=1, end=2)
        zero, one = (g.constant(f"int.{n}", np.int64(n)) for n in (0, 1))
        end = g.op("Squeeze", total, g.ints(0), name="end")
        keys = g.op("Range", zero, end, one, name="keys")
        first = g.op("Sub", end, g.op("Squeeze", new, g.ints(0), name="length"), name="first_query")
        queries = g.op("Unsqueeze", g.op("Range", first, end, one, name="slots"), g.ints(-1), name="queries")
        valid = g.op("Unsqueeze", g.op("Greater", mask, zero, name="is_token"), g.ints(1, 2), name="valid")
        causal = g.op("And", g.op("LessOrEqual", keys, queries, name="is_past"), valid, name="causal")
        return {window: _bias(g, causal, keys, queries, window) for window in windows}


def _bias(g: GraphBuilder, causal: ir.Value, keys: ir.Value, queries: ir.Value, window: int | None) -> ir.Value:
    name = f"last_{window}" if window else "full"
    if window:
        oldest = g.op("Sub", queries, g.constant(f"int.{window}", np.int64(window)), name=f"{name}.oldest")
        near = g.op("Greater", keys, oldest, name=f"{name}.is_near")
        causal = g.op("And", causal, near, name=f"{name}.visible")
    highest = float(np.finfo(np.float16 if g.dtype == ir.DataType.FLOAT16 else np.float32).max)
    seen = g.op("Cast", causal, name=f"{name}.seen", to=g.dtype)
    unseen = g.op("Sub", seen, g.scalar("one", 1.0), name=f"{name}.unseen")
    return g.op("Mul", unseen, g.scalar("highest", highest), name=name)
