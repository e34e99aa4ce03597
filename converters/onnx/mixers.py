"""What mixes the tokens of a layer: attention over heads, latent attention, or a gated delta net.

    heads    x ─► q, k, v ─► norms ─► rotation ─► attention ─► (× sigmoid(gate)) ─► o_proj
    latent   x ─► (q_a ─► norm ─►) q_b ─► each head [unrotated | rotated]
             x ─► kv_a ─► [latent | rotated key of all heads];  norm(latent) ─► kv_b ─► each head [unrotated key | value]

The cache of latent attention holds each head's keys and values, not the latents.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converters.onnx.attention import CachedAttention
from converters.onnx.decoder import LATENT_EPSILON, Decoder, Latent, Layer, QueryScale
from converters.onnx.delta_net import DeltaNets
from converters.onnx.parts import Parts
from converters.onnx.rope_graph import local_tables, rotary_tables
from longrope.factors import BoundFactors

DOUBLE = ir.DataType.DOUBLE


class Rotary:
    """The rotation of queries and keys: one table for the extended layers, another for local ones where there are any.

    Args:
        parts: of the graph.
        position_ids: [B, T] int64.
        factors: bound to the model.
    """

    def __init__(self, parts: Parts, position_ids: ir.Value, factors: BoundFactors) -> None:
        self.graph, self.decoder = parts.graph, parts.decoder
        self.tables = {"extended": rotary_tables(parts.graph, position_ids, factors)}
        if self.decoder.local is not None:
            self.tables["local"] = local_tables(parts.graph, position_ids, self.decoder.local)
        scale = self.decoder.query_scale
        self.query_scale = _query_scale(parts, position_ids, scale) if scale else None

    def rotate(self, name: str, value: ir.Value, layer: Layer, num_heads: int, partial: int) -> ir.Value:
        """[B,T,heads × head_dim] rotated by its position: the first `partial` of each head, or all of it if 0."""
        if layer.rotary == "none":
            return value
        return self.graph.op(
            "RotaryEmbedding",
            value,
            *self.tables[layer.rotary],
            name=name,
            num_heads=num_heads,
            rotary_embedding_dim=partial,
            interleaved=int(self.decoder.block.interleaved),
        )

    def scaled(self, query: ir.Value) -> ir.Value:
        """Queries, grown where the model does so."""
        if self.query_scale is None:
            return query
        return self.graph.op("Mul", query, self.query_scale, name="q_scaled")


def _query_scale(parts: Parts, position_ids: ir.Value, scale: QueryScale) -> ir.Value:
    """1 + beta × ln(1 + floor(position / window)), [B,T,1]."""
    g = parts.graph
    with g.scope("query_scale"):
        position = g.op("Cast", position_ids, name="position", to=DOUBLE)
        window = g.constant(g.path("window"), np.float64(scale.window))
        passed = g.op("Floor", g.op("Div", position, window, name="windows"), name="passed")
        one = g.constant(g.path("one"), np.float64(1.0))
        grown = g.op("Log", g.op("Add", passed, one, name="count"), name="log")
        grown = g.op("Mul", grown, g.constant(g.path("beta"), np.float64(scale.beta)), name="growth")
        wide = g.op("Add", grown, one, name="scale_float64")
        return g.op("Unsqueeze", g.op("Cast", wide, name="scale_by_row", to=g.dtype), g.ints(-1), name="scale")


class Mixers:
    """Builds the mixing part of any layer.

    Args:
        parts: of the graph.
        rotary: how queries and keys are rotated.
        attention: over the cache.
        input_ids, mask: the graph's inputs.
    """

    def __init__(
        self, parts: Parts, rotary: Rotary, attention: CachedAttention, input_ids: ir.Value, mask: ir.Value
    ) -> None:
        self.parts, self.rotary, self.attention = parts, rotary, attention
        self.graph = parts.graph
        net = self.decoder.delta_net
        self.delta_nets = DeltaNets(parts, net, input_ids, mask) if net else None

    @property
    def decoder(self) -> Decoder:
        return self.parts.decoder

    def build(self, index: int, layer: Layer, hidden: ir.Value) -> ir.Value:
        """[B,T,D] → [B,T,D], in the scope of layer `index`."""
        if layer.linear and self.delta_nets:
            with self.graph.scope("linear_attn"):
                return self.delta_nets.build(index, hidden)
        with self.graph.scope("self_attn"):
            mixed = self._latent(index, layer, hidden, self.decoder.latent) if self.decoder.latent else None
            mixed = mixed or self._heads(index, layer, hidden)
            return self.parts.linear("o_proj", mixed, self.decoder.hidden_size)

    # -- attention over heads

    def _heads(self, index: int, layer: Layer, hidden: ir.Value) -> ir.Value:
        query, key, value, gate = self._projections(hidden)
        normed_late = self.decoder.block.qk_norm_after_rope
        if not normed_late:
            query, key = self.parts.head_norm("q_norm", query), self.parts.head_norm("k_norm", key)
        partial = self.decoder.rotary_dim if self.decoder.rotary_dim < self.decoder.head_dim else 0
        query = self.rotary.rotate("q_rotary", query, layer, self.decoder.num_heads, partial)
        key = self.rotary.rotate("k_rotary", key, layer, self.decoder.num_kv_heads, partial)
        if normed_late:
            query, key = self.parts.head_norm("q_norm", query), self.parts.head_norm("k_norm", key)
        mixed = self.attention.attend(index, self.rotary.scaled(query), key, value, self._sinks())
        if gate is None:
            return mixed
        return self.graph.op("Mul", mixed, self.graph.op("Sigmoid", gate, name="gate_sigmoid"), name="gated")

    def _projections(self, hidden: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value | None]:
        """q, k and v, each [B,T,heads × head_dim], and the gate, where there is one."""
        decoder, kind = self.decoder, self.decoder.block.qkv
        if kind == "by_head":
            query, key, value = self._by_head(hidden)
            return query, key, value, None
        doubled = 2 if decoder.block.attention_gate else 1
        widths = {"q_proj": doubled * decoder.query_width, "k_proj": decoder.kv_width, "v_proj": decoder.kv_width}
        query, key, value = self.parts.joined("qkv_proj", hidden, widths, packed=kind == "packed")
        if doubled == 1:
            return query, key, value, None
        both = self.parts.heads("q_and_gate", query, 2 * decoder.head_dim)
        query, gate = self.parts.split("q_gate.split", both, {"q": decoder.head_dim, "gate": decoder.head_dim})
        return self.parts.flat("q", query), key, value, self.parts.flat("gate", gate)

    def _by_head(self, hidden: ir.Value) -> list[ir.Value]:
        """q, k and v of a matrix whose rows are each head's query, key and value."""
        decoder = self.decoder
        joined = self.parts.linear("qkv_proj", hidden, 3 * decoder.query_width)
        heads = self.parts.heads("qkv", joined, 3 * decoder.head_dim)
        split = self.parts.split("qkv.split", heads, dict.fromkeys(("q", "k", "v"), decoder.head_dim))
        return [self.parts.flat(name, part) for name, part in zip("qkv", split, strict=True)]

    def _sinks(self) -> ir.Value | None:
        if not self.decoder.block.sinks:
            return None
        return self.parts.vector(self.graph.path("sinks"), (self.decoder.num_heads,))

    # -- latent attention

    def _latent(self, index: int, layer: Layer, hidden: ir.Value, latent: Latent) -> ir.Value:
        query = self._latent_query(layer, hidden, latent)
        key, value = self._latent_key_and_value(layer, hidden, latent)
        return self.attention.attend(index, query, key, value, None)

    def _latent_query(self, layer: Layer, hidden: ir.Value, latent: Latent) -> ir.Value:
        g, parts, decoder = self.graph, self.parts, self.decoder
        name = "q_proj"
        if latent.query_rank is not None:
            hidden = parts.linear("q_a_proj", hidden, latent.query_rank)
            hidden, name = parts.norm("q_a_layernorm", hidden, eps=LATENT_EPSILON), "q_b_proj"
        query = parts.heads("q", parts.linear(name, hidden, decoder.query_width), decoder.head_dim)
        still, rotated = parts.split("q.split", query, {"q_still": latent.unrotated, "q_rotated": latent.rotated})
        rotated = self.rotary.rotate("q_rotary", parts.flat("q_rotated", rotated), layer, decoder.num_heads, 0)
        rotated = parts.heads("q_rotary", rotated, latent.rotated)
        return parts.flat("query", g.op("Concat", still, rotated, name="query", axis=-1))

    def _latent_key_and_value(self, layer: Layer, hidden: ir.Value, latent: Latent) -> tuple[ir.Value, ir.Value]:
        g, parts, heads = self.graph, self.parts, self.decoder.num_heads
        joined = parts.linear("kv_a_proj_with_mqa", hidden, latent.rank + latent.rotated)
        vector, rotated = parts.split("kv_a.split", joined, {"kv_latent": latent.rank, "k_shared": latent.rotated})
        rotated = self.rotary.rotate("k_rotary", rotated, layer, 1, 0)
        rotated = g.op("Unsqueeze", rotated, g.ints(2), name="k_rotary.heads")
        rotated = g.op("Expand", rotated, g.ints(1, 1, heads, 1), name="k_rotary.of_each_head")
        vector = parts.norm("kv_a_layernorm", vector, eps=LATENT_EPSILON)
        both = parts.linear("kv_b_proj", vector, heads * (latent.unrotated + latent.value))
        both = parts.heads("kv", both, latent.unrotated + latent.value)
        still, value = parts.split("kv.split", both, {"k_still": latent.unrotated, "value": latent.value})
        key = g.op("Concat", still, rotated, name="key", axis=-1)
        return parts.flat("key", key), parts.flat("value", value)
