"""The whole graph of a decoder-only transformer, built operator by operator from a checkpoint's facts.

    input_ids ─► embed_tokens ─► layer 0 ─► … ─► layer n-1 ─► norm ─► lm_head ─► logits [B,T,V]
                                   ▲ │
    position_ids ─► cos, sin ──────┤ │
    attention_mask ─► bias ────────┤ └─► present.N.key / present.N.value  [B,kv_heads,S,head_dim]
    past_key_values.N.key/value ───┘

    a layer, norms "pre":      x ─► norm ─► attention ─► + ─► norm ─► MLP ─► +
                   "post":     x ─► attention ─► norm ─► + ─► MLP ─► norm ─► +
                   "sandwich": x ─► norm ─► attention ─► norm ─► + ─► norm ─► MLP ─► norm ─► +

B batch, T new tokens, P tokens in the cache, S = P + T. In float types with standard attention only ONNX's own operators
are used, so any runtime of opset 23 can run the graph. The weights keep the checkpoint's names.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from converters.onnx.attention import ATTENTIONS, BATCH, SEQUENCE, TOTAL, CachedAttention
from converters.onnx.decoder import Decoder, Layer
from converters.onnx.graph import GraphBuilder
from converters.onnx.matrices import BlockMatrices, FloatMatrices, Matrices
from converters.onnx.options import OnnxOptions, Precision
from converters.onnx.rope_graph import rotary_tables
from converters.onnx.weights import Array, Weights
from longrope.factors import BoundFactors

INT64 = ir.DataType.INT64
LOGITS_TO_KEEP = "num_logits_to_keep"  # transformers.js' name for it
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
NORM_NAMES = {
    "pre": ("input_layernorm", None, "post_attention_layernorm", None),
    "post": (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "sandwich": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
}
Table = tuple[ir.Value, ir.Value]


class DecoderGraph:
    """Builds the graph of one decoder.

    Args:
        decoder: its structure.
        weights: where its tensors are; all of them are used, or the export is refused.
        factors: bound to the model.
        precision: the type of activations and weights.
        options: how attention and quantized matrices are spelled.
    """

    def __init__(
        self, decoder: Decoder, weights: Weights, factors: BoundFactors, precision: Precision, options: OnnxOptions
    ) -> None:
        self.decoder, self.weights, self.factors, self.options = decoder, weights, factors, options
        self.graph = GraphBuilder(ir.DataType[precision.dtype])
        self.matrices: Matrices = (
            BlockMatrices(self.graph, weights, precision.bits, options)
            if precision.bits
            else FloatMatrices(self.graph, weights)
        )

    def build(self) -> GraphBuilder:
        """The finished graph, its weights still unread.

        Raises:
            InputError: a weight is missing or has another shape than the configuration says.
            UnsupportedError: the checkpoint has weights that the graph has no place for.
        """
        g, decoder = self.graph, self.decoder
        input_ids = g.input("input_ids", INT64, [BATCH, SEQUENCE])
        mask = g.input("attention_mask", INT64, [BATCH, TOTAL])
        position_ids = g.input("position_ids", INT64, [BATCH, SEQUENCE])
        table = rotary_tables(g, position_ids, self.factors)
        attention = ATTENTIONS[self.options.attention](g, decoder, input_ids, mask)
        hidden = self._embed(input_ids)
        for index, layer in enumerate(decoder.layers):
            with g.scope(f"model.layers.{index}"):
                hidden = self._layer(index, layer, hidden, table, attention)
        hidden = self._last(hidden)
        with g.scope("model"):
            hidden = self._norm("norm", hidden)
        g.output(self._head(hidden), "logits", ir.DataType.FLOAT, [BATCH, SEQUENCE, decoder.vocab_size])
        g.outputs.insert(0, g.outputs.pop())  # logits first, as every tool expects
        self.weights.refuse_unused(but=(HEAD,) if decoder.tied else ())
        return g

    # -- ends of the graph

    def _embed(self, input_ids: ir.Value) -> ir.Value:
        self.weights.entry(EMBEDDING, (self.decoder.vocab_size, self.decoder.hidden_size))
        with self.graph.scope("model"):
            hidden = self.matrices.rows("embed_tokens", input_ids, EMBEDDING)
            return self._times(hidden, self.decoder.embedding_scale, "embedding_scale")

    def _last(self, hidden: ir.Value) -> ir.Value:
        """The positions whose logits are wanted: all, or as many of the last as the optional input says."""
        g = self.graph
        wanted = g.input(LOGITS_TO_KEEP, INT64, [], default=np.int64(0))
        with g.scope("logits_to_keep"):
            start = g.op("Reshape", g.op("Neg", wanted, name="negative"), g.ints(-1), name="start")
            end = g.constant(g.path("end"), np.array([np.iinfo(np.int64).max]))
            return g.op("Slice", hidden, start, end, g.ints(1), name="hidden")

    def _head(self, hidden: ir.Value) -> ir.Value:
        decoder = self.decoder
        if decoder.tied:
            logits = self.matrices.tied_product("lm_head", hidden, EMBEDDING)
        else:
            logits = self._linear("lm_head", hidden, decoder.vocab_size)
        if self.graph.dtype != ir.DataType.FLOAT:
            logits = self.graph.op("Cast", logits, name="logits_float32", to=ir.DataType.FLOAT)
        logits = self._times(logits, 1.0 / decoder.logits_divisor, "logits_scale", ir.DataType.FLOAT)
        return self._softcap(logits, decoder.logits_softcap)

    def _softcap(self, logits: ir.Value, cap: float) -> ir.Value:
        """cap × tanh(logits / cap)."""
        if not cap:
            return logits
        g, wide = self.graph, ir.DataType.FLOAT
        with g.scope("logits_softcap"):
            bounded = g.op("Tanh", self._times(logits, 1.0 / cap, "scaled", wide), name="tanh")
            return self._times(bounded, cap, "capped", wide)

    # -- one layer

    def _layer(self, index: int, layer: Layer, hidden: ir.Value, table: Table, attention: CachedAttention) -> ir.Value:
        before, after, before_mlp, after_mlp = NORM_NAMES[self.decoder.block.norms]

        def attend(value: ir.Value) -> ir.Value:
            with self.graph.scope("self_attn"):
                query, key, value = self._heads(layer, value, table)
                mixed = attention.attend(index, query, key, value)
                return self._linear("o_proj", mixed, self.decoder.hidden_size)

        hidden = self._residual(hidden, attend, before, after, "attention_residual")
        return self._residual(hidden, self._mlp, before_mlp, after_mlp, "mlp_residual")

    def _residual(
        self, hidden: ir.Value, part: Callable[[ir.Value], ir.Value], before: str | None, after: str | None, name: str
    ) -> ir.Value:
        value = part(self._norm(before, hidden) if before else hidden)
        value = self._norm(after, value) if after else value
        value = self._times(value, self.decoder.residual_scale, f"{name}_scale")
        return self.graph.op("Add", hidden, value, name=name)

    def _heads(self, layer: Layer, hidden: ir.Value, table: Table) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Queries, keys and values, normalized and rotated where the model does so."""
        query, key, value = self._projections(hidden)
        query, key = self._qk_norm("q_norm", query), self._qk_norm("k_norm", key)
        if layer.rotary:
            query = self._rotate("q_rotary", query, table, self.decoder.num_heads)
            key = self._rotate("k_rotary", key, table, self.decoder.num_kv_heads)
        return query, key, value

    def _projections(self, hidden: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        widths = {"q_proj": self.decoder.query_width, "k_proj": self.decoder.kv_width, "v_proj": self.decoder.kv_width}
        query, key, value = self._joined("qkv_proj", hidden, widths)
        return query, key, value

    def _qk_norm(self, name: str, value: ir.Value) -> ir.Value:
        """[B,T,heads × head_dim] normalized for each head, over all heads, or not at all."""
        kind = self.decoder.block.qk_norm
        if kind is None:
            return value
        if kind == "all":
            return self._norm(name, value)
        g = self.graph
        with g.scope(name):
            heads = g.op("Reshape", value, g.ints(0, 0, -1, self.decoder.head_dim), name="heads")
        normed = self._norm(name, heads)
        return g.op("Reshape", normed, g.ints(0, 0, -1), name=f"{name}.flat")

    def _rotate(self, name: str, value: ir.Value, table: Table, num_heads: int) -> ir.Value:
        """[B,T,heads × head_dim] rotated by its position; the part beyond rotary_dim is left alone."""
        partial = self.decoder.rotary_dim if self.decoder.rotary_dim < self.decoder.head_dim else 0
        return self.graph.op(
            "RotaryEmbedding",
            value,
            *table,
            name=name,
            num_heads=num_heads,
            rotary_embedding_dim=partial,
            interleaved=0,
        )

    def _mlp(self, hidden: ir.Value) -> ir.Value:
        g = self.graph
        with g.scope("mlp"):
            if self.decoder.block.gated:
                gate, up = self._gate_and_up(hidden)
                inner = g.op("Mul", self._activation(gate), up, name="gated")
            else:
                inner = self._activation(self._linear("up_proj", hidden, self._rows_of("up_proj")))
            return self._linear("down_proj", inner, self.decoder.hidden_size)

    def _gate_and_up(self, hidden: ir.Value) -> tuple[ir.Value, ir.Value]:
        if self.decoder.block.packed:
            width = self._rows_of("gate_up_proj") // 2
            gate, up = self._joined("gate_up_proj", hidden, {"gate_proj": width, "up_proj": width})
            return gate, up
        gate, up = (self._linear(name, hidden, self._rows_of(name)) for name in ("gate_proj", "up_proj"))
        return gate, up

    def _rows_of(self, name: str) -> int:
        return self.weights.entry(self.graph.path(f"{name}.weight")).shape[0]

    # -- parts of layers

    def _activation(self, value: ir.Value) -> ir.Value:
        g = self.graph
        functions: dict[str, Callable[[], ir.Value]] = {
            "silu": lambda: g.op("Mul", value, g.op("Sigmoid", value, name="sigmoid"), name="silu"),
            "gelu": lambda: g.op("Gelu", value, name="gelu", approximate="none"),
            "gelu_tanh": lambda: g.op("Gelu", value, name="gelu", approximate="tanh"),
            "relu_squared": lambda: self._squared(g.op("Relu", value, name="relu")),
        }
        return functions[self.decoder.activation]()

    def _squared(self, value: ir.Value) -> ir.Value:
        return self.graph.op("Mul", value, value, name="relu_squared")

    def _linear(self, name: str, value: ir.Value, width: int) -> ir.Value:
        """value × Wᵀ (+ bias, where the checkpoint has one), [..., width]."""
        g, weight = self.graph, self.graph.path(f"{name}.weight")
        stack = self.weights.stack([weight])
        self.weights.entry(weight, (width, stack.columns))
        if g.path(f"{name}.bias") not in self.weights:
            return self.matrices.product(name, value, stack, weight)
        return self._biased(name, self.matrices.product(f"{name}.product", value, stack, weight), width)

    def _joined(self, name: str, value: ir.Value, widths: dict[str, int]) -> list[ir.Value]:
        """Several products with one value as one, then split; worth it where the parts are small, as keys are."""
        g = self.graph
        if self.decoder.block.packed:
            product = self._linear(name, value, sum(widths.values()))
            return self._split(f"{name}.split", product, list(widths), widths)
        names = [g.path(f"{part}.weight") for part in widths]
        stack = self.weights.stack(names)
        for weight, width in zip(names, widths.values(), strict=True):
            self.weights.entry(weight, (width, stack.columns))
        product = self.matrices.product(name, value, stack, g.path(f"{name}.weight"))
        has_bias = [g.path(f"{part}.bias") in self.weights for part in widths]
        outputs = [f"{part}.product" if biased else part for part, biased in zip(widths, has_bias, strict=True)]
        parts = self._split(f"{name}.split", product, outputs, widths)
        return [
            self._biased(part, found, widths[part]) if biased else found
            for part, found, biased in zip(widths, parts, has_bias, strict=True)
        ]

    def _biased(self, name: str, value: ir.Value, width: int) -> ir.Value:
        return self.graph.op("Add", value, self._vector(self.graph.path(f"{name}.bias"), (width,)), name=name)

    def _norm(self, name: str, value: ir.Value) -> ir.Value:
        """RMS normalization over the last axis, computed in float32."""
        g = self.graph
        weight = g.path(f"{name}.weight")
        plus = 1.0 if self.decoder.block.norm_plus_one else 0.0
        scale = self._vector(weight, self.weights.entry(weight).shape, lambda array: array + array.dtype.type(plus))
        return g.op("RMSNormalization", value, scale, name=name, axis=-1, epsilon=self.decoder.norm_eps)

    def _split(self, name: str, value: ir.Value, outputs: list[str], widths: dict[str, int]) -> list[ir.Value]:
        sizes = self.graph.ints(*widths.values())
        return list(self.graph.ops("Split", value, sizes, outputs=outputs, name=name, axis=-1))

    def _times(self, value: ir.Value, factor: float, name: str, dtype: ir.DataType | None = None) -> ir.Value:
        if factor == 1.0:
            return value
        return self.graph.op("Mul", value, self.graph.scalar(f"{name}.value", factor, dtype), name=name)

    def _vector(
        self, name: str, shape: tuple[int, ...], change: Callable[[Array], Array] = lambda array: array
    ) -> ir.Value:
        self.weights.entry(name, shape)
        read = self.weights.reader([name], change, self.graph.dtype.numpy())
        return self.graph.weight(name, self.graph.dtype, shape, read)
