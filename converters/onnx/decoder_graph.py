"""The whole graph of a decoder-only transformer, built operator by operator from a checkpoint's facts.

    input_ids ─► embed_tokens ─► layer 0 ─► … ─► layer n-1 ─► norm ─► lm_head ─► logits [B,T,V]
                                   ▲ │
    position_ids ─► cos, sin ──────┤ │
    attention_mask ─► bias ────────┤ └─► present.N.key / present.N.value  [B,kv_heads,S,head_dim]
    past_key_values.N.key/value ───┘

    a layer, norms "pre":      x ─► norm ─► attention ─► + ─► norm ─► MLP ─► +
                   "post":     x ─► attention ─► norm ─► + ─► MLP ─► norm ─► +
                   "sandwich": x ─► norm ─► attention ─► norm ─► + ─► norm ─► MLP ─► norm ─► +

B batch, T new tokens, P tokens in the cache, S = P + T. Only standard operators of opset 23 are used, so any runtime
that knows them can run the graph. The weights keep the checkpoint's names; matrices are stored [in, out].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from converters.onnx.decoder import Decoder, Layer
from converters.onnx.graph import Dim, GraphBuilder
from converters.onnx.rope_graph import rotary_tables
from converters.onnx.weights import Array, Weights
from longrope.factors import RescaleFactors

INT64 = ir.DataType.INT64
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
TRANSPOSED = "transposed from the checkpoint's [out, in]"
# Names of the dimensions, as optimum and the ONNX models on the Hub have them.
BATCH, SEQUENCE = "batch_size", "sequence_length"
PAST, TOTAL = "past_sequence_length", "total_sequence_length"
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


@dataclass(frozen=True)
class Shared:
    """What every layer reads: cos and sin, and the attention bias for each distance its attention looks back."""

    cos: ir.Value
    sin: ir.Value
    bias: dict[int | None, ir.Value]


class DecoderGraph:
    """Builds the graph of one decoder.

    Args:
        decoder: its structure.
        weights: where its tensors are; all of them are used, or the export is refused.
        factors: bound to the model.
        dtype: of activations and weights.
    """

    def __init__(
        self, decoder: Decoder, weights: Weights, factors: RescaleFactors, dtype: ir.DataType = ir.DataType.FLOAT
    ) -> None:
        self.decoder, self.weights, self.factors = decoder, weights, factors
        self.graph = GraphBuilder(dtype)

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
        cos, sin = rotary_tables(g, position_ids, self.factors)
        shared = Shared(cos, sin, self._biases(input_ids, mask))
        hidden = self._embed(input_ids)
        for index, layer in enumerate(decoder.layers):
            with g.scope(f"model.layers.{index}"):
                hidden = self._layer(index, layer, hidden, shared)
        with g.scope("model"):
            hidden = self._norm("norm", hidden)
        g.output(self._head(hidden), "logits", ir.DataType.FLOAT, [BATCH, SEQUENCE, decoder.vocab_size])
        g.outputs.insert(0, g.outputs.pop())  # logits first, as every tool expects
        self.weights.refuse_unused(but=(HEAD,) if decoder.tied else ())
        return g

    # -- ends of the graph

    def _embed(self, input_ids: ir.Value) -> ir.Value:
        table = self._plain_weight(EMBEDDING, (self.decoder.vocab_size, self.decoder.hidden_size))
        with self.graph.scope("model"):
            hidden = self.graph.op("Gather", table, input_ids, name="embed_tokens")
            return self._times(hidden, self.decoder.embedding_scale, "embedding_scale")

    def _head(self, hidden: ir.Value) -> ir.Value:
        g, decoder = self.graph, self.decoder
        logits = self._tied_head(hidden) if decoder.tied else self._linear("lm_head", hidden, decoder.vocab_size)
        logits = self._times(logits, 1.0 / decoder.logits_divisor, "logits_scale")
        return g.op("Cast", logits, name="logits_float32", to=ir.DataType.FLOAT) if self._is_half else logits

    def _tied_head(self, hidden: ir.Value) -> ir.Value:
        """hidden × embeddingᵀ, so that the embedding matrix is stored once."""
        g, decoder = self.graph, self.decoder
        with g.scope("lm_head"):
            rows = g.op("Reshape", hidden, g.ints(-1, decoder.hidden_size), name="rows")
            logits = g.op("Gemm", rows, g.initializers[EMBEDDING], name="gemm", transB=1)
            batch_and_length = g.op("Shape", hidden, name="batch_and_length", start=0, end=2)
            shape = g.op("Concat", batch_and_length, g.ints(decoder.vocab_size), name="shape", axis=0)
            return g.op("Reshape", logits, shape, name="logits")

    def _biases(self, input_ids: ir.Value, mask: ir.Value) -> dict[int | None, ir.Value]:
        """What is added to attention scores, [B,1,T,S]: 0 where a query sees a key, else the lowest number.

        Keys are compared by their slot in the cache, which is right for any padding; the lowest number is finite, so a
        padding query that sees nothing gives a mean and not NaN.
        """
        g = self.graph
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
            return {window: self._bias(causal, keys, queries, window) for window in self._windows()}

    def _windows(self) -> list[int | None]:
        return list(dict.fromkeys(layer.window for layer in self.decoder.layers))

    def _bias(self, causal: ir.Value, keys: ir.Value, queries: ir.Value, window: int | None) -> ir.Value:
        g = self.graph
        name = f"last_{window}" if window else "full"
        if window:
            oldest = g.op("Sub", queries, g.constant(f"int.{window}", np.int64(window)), name=f"{name}.oldest")
            near = g.op("Greater", keys, oldest, name=f"{name}.is_near")
            causal = g.op("And", causal, near, name=f"{name}.visible")
        lowest = np.finfo(np.float16 if self.graph.dtype == ir.DataType.FLOAT16 else np.float32).min
        with g.scope("value"):
            seen, unseen = g.scalar("seen", 0.0), g.scalar("unseen", float(lowest))
        return g.op("Where", causal, seen, unseen, name=name)

    # -- one layer

    def _layer(self, index: int, layer: Layer, hidden: ir.Value, shared: Shared) -> ir.Value:
        before, after, before_mlp, after_mlp = NORM_NAMES[self.decoder.block.norms]
        hidden = self._residual(
            hidden, lambda x: self._attention(index, layer, x, shared), before, after, "attention_residual"
        )
        return self._residual(hidden, self._mlp, before_mlp, after_mlp, "mlp_residual")

    def _residual(
        self, hidden: ir.Value, part: Callable[[ir.Value], ir.Value], before: str | None, after: str | None, name: str
    ) -> ir.Value:
        value = part(self._norm(before, hidden) if before else hidden)
        value = self._norm(after, value) if after else value
        value = self._times(value, self.decoder.residual_scale, f"{name}_scale")
        return self.graph.op("Add", hidden, value, name=name)

    def _attention(self, index: int, layer: Layer, hidden: ir.Value, shared: Shared) -> ir.Value:
        with self.graph.scope("self_attn"):
            query, key, value = self._projections(hidden)
            query, key = self._qk_norm("q_norm", query), self._qk_norm("k_norm", key)
            if layer.rotary:
                query = self._rotate("q_rotary", query, shared, self.decoder.num_heads)
                key = self._rotate("k_rotary", key, shared, self.decoder.num_kv_heads)
            mixed = self._attend(index, query, key, value, shared.bias[layer.window])
            return self._linear("o_proj", mixed, self.decoder.hidden_size)

    def _projections(self, hidden: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        widths = {"q_proj": self.decoder.query_width, "k_proj": self.decoder.kv_width, "v_proj": self.decoder.kv_width}
        if not self.decoder.block.packed:
            query, key, value = (self._linear(name, hidden, width) for name, width in widths.items())
        else:
            packed = self._linear("qkv_proj", hidden, sum(widths.values()))
            query, key, value = self._split("qkv_split", packed, widths)
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

    def _rotate(self, name: str, value: ir.Value, shared: Shared, num_heads: int) -> ir.Value:
        """[B,T,heads × head_dim] turned by its position; the part beyond rotary_dim is left alone."""
        partial = self.decoder.rotary_dim if self.decoder.rotary_dim < self.decoder.head_dim else 0
        return self.graph.op(
            "RotaryEmbedding",
            value,
            shared.cos,
            shared.sin,
            name=name,
            num_heads=num_heads,
            rotary_embedding_dim=partial,
            interleaved=0,
        )

    def _attend(self, index: int, query: ir.Value, key: ir.Value, value: ir.Value, bias: ir.Value) -> ir.Value:
        g, decoder = self.graph, self.decoder
        past = [self._cache_input(index, kind) for kind in ("key", "value")]
        mixed, *present = g.ops(
            "Attention",
            query,
            key,
            value,
            bias,
            *past,
            outputs=["attention", "present_key", "present_value"],
            name="attention",
            q_num_heads=decoder.num_heads,
            kv_num_heads=decoder.num_kv_heads,
            scale=decoder.attention_scale,
        )
        for kind, cache in zip(("key", "value"), present, strict=True):
            g.output(cache, f"present.{index}.{kind}", g.dtype, self._cache_shape(TOTAL))
        return mixed

    def _cache_input(self, index: int, kind: str) -> ir.Value:
        return self.graph.input(f"past_key_values.{index}.{kind}", self.graph.dtype, self._cache_shape(PAST))

    def _cache_shape(self, length: str) -> list[Dim]:
        return [BATCH, self.decoder.num_kv_heads, length, self.decoder.head_dim]

    def _mlp(self, hidden: ir.Value) -> ir.Value:
        g = self.graph
        with g.scope("mlp"):
            gate, up = self._gate_and_up(hidden)
            product = g.op("Mul", self._activation(gate), up, name="gated")
            return self._linear("down_proj", product, self.decoder.hidden_size)

    def _gate_and_up(self, hidden: ir.Value) -> tuple[ir.Value, ir.Value]:
        if not self.decoder.block.packed:
            width = self._rows_of("gate_proj")
            return self._linear("gate_proj", hidden, width), self._linear("up_proj", hidden, width)
        width = self._rows_of("gate_up_proj")
        packed = self._linear("gate_up_proj", hidden, width)
        gate, up = self._split("gate_up_split", packed, {"gate_proj": width // 2, "up_proj": width // 2})
        return gate, up

    def _rows_of(self, name: str) -> int:
        return self.weights.entry(self.graph.path(f"{name}.weight")).shape[0]

    # -- parts of layers

    def _activation(self, value: ir.Value) -> ir.Value:
        g = self.graph
        if self.decoder.activation == "silu":
            return g.op("Mul", value, g.op("Sigmoid", value, name="sigmoid"), name="silu")
        approximate = "tanh" if self.decoder.activation == "gelu_tanh" else "none"
        return g.op("Gelu", value, name="gelu", approximate=approximate)

    def _linear(self, name: str, value: ir.Value, width: int) -> ir.Value:
        """value × Wᵀ (+ bias, where the checkpoint has one), [..., width]."""
        g = self.graph
        with g.scope(name):
            weight_name, bias_name = g.path("weight"), g.path("bias")
        rows, columns = self.weights.entry(weight_name).shape
        self.weights.entry(weight_name, (width, columns))
        weight = g.weight(weight_name, g.dtype, (columns, rows), self._cast(weight_name, np.transpose), TRANSPOSED)
        if bias_name not in self.weights:
            return g.op("MatMul", value, weight, name=name)
        product = g.op("MatMul", value, weight, name=f"{name}.product")
        return g.op("Add", product, self._plain_weight(bias_name, (width,)), name=name)

    def _norm(self, name: str, value: ir.Value) -> ir.Value:
        """RMS normalization over the last axis, computed in float32."""
        g = self.graph
        weight_name = g.path(f"{name}.weight")
        shape = self.weights.entry(weight_name).shape
        plus = 1.0 if self.decoder.block.norm_plus_one else 0.0
        weight = g.weight(weight_name, g.dtype, shape, self._cast(weight_name, lambda w: w + np.float32(plus)))
        return g.op("RMSNormalization", value, weight, name=name, axis=-1, epsilon=self.decoder.norm_eps)

    def _split(self, name: str, value: ir.Value, widths: dict[str, int]) -> list[ir.Value]:
        sizes = self.graph.ints(*widths.values())
        return list(self.graph.ops("Split", value, sizes, outputs=list(widths), name=name, axis=-1))

    def _times(self, value: ir.Value, factor: float, name: str) -> ir.Value:
        if factor == 1.0:
            return value
        return self.graph.op("Mul", value, self.graph.scalar(f"{name}.value", factor), name=name)

    def _plain_weight(self, name: str, shape: tuple[int, ...]) -> ir.Value:
        self.weights.entry(name, shape)
        return self.graph.weight(name, self.graph.dtype, shape, self._cast(name, lambda w: w))

    def _cast(self, name: str, change: Callable[[Array], Array]) -> Callable[[], Array]:
        dtype = self.graph.dtype.numpy()
        return self.weights.reader(name, lambda w: change(w).astype(dtype))

    @property
    def _is_half(self) -> bool:
        return bool(self.graph.dtype != ir.DataType.FLOAT)
