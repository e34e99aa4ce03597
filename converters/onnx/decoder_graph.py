"""The whole graph of a decoder-only transformer, built operator by operator from a checkpoint's facts.

    input_ids ─► embed_tokens ─► layer 0 ─► … ─► layer n-1 ─► norm ─► lm_head ─► logits [B,T,V]
                                   ▲ │
    position_ids ─► cos, sin ──────┤ │
    attention_mask ─► bias ────────┤ └─► present.N.key / present.N.value  [B,kv_heads,S,head_dim]
    past_key_values.N.key/value ───┘

    a layer, norms "pre":      x ─► norm ─► attention ─► + ─► norm ─► MLP ─► +
                   "post":     x ─► attention ─► norm ─► + ─► MLP ─► norm ─► +
                   "sandwich": x ─► norm ─► attention ─► norm ─► + ─► norm ─► MLP ─► norm ─► +
                   "parallel": x ─► norm ─┬► attention ─► +
                                          └► MLP ───────► +      ("parallel_own": with a norm of its own)

B batch, T new tokens, P tokens in the cache, S = P + T. In float types with standard attention only ONNX's own operators
are used, so any runtime of opset 23 can run the graph; linear attention is the exception. The weights keep the
checkpoint's names, or have those of Llama's layout where a type has others.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from converters.onnx.attention import ATTENTIONS
from converters.onnx.decoder import Decoder, Layer
from converters.onnx.experts import Mixture
from converters.onnx.graph import GraphBuilder
from converters.onnx.matrices import BlockMatrices, FloatMatrices, Matrices
from converters.onnx.mixers import Mixers, Rotary
from converters.onnx.names import BATCH, LOGITS_TO_KEEP, SEQUENCE, TOTAL
from converters.onnx.options import OnnxOptions, Precision
from converters.onnx.parts import Parts
from converters.onnx.weights import Weights
from longrope.factors import BoundFactors

INT64 = ir.DataType.INT64
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
    "parallel": ("input_layernorm", None, None, None),
    "parallel_own": ("input_layernorm", None, "post_attention_layernorm", None),
}


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
        self.parts = Parts(self.graph, decoder, weights, self.matrices)

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
        rotary = Rotary(self.parts, position_ids, self.factors)
        attention = ATTENTIONS[self.options.attention](g, decoder, input_ids, mask)
        mixers = Mixers(self.parts, rotary, attention, input_ids, mask)
        hidden = self._embed(input_ids)
        for index, layer in enumerate(decoder.layers):
            with g.scope(f"model.layers.{index}"):
                hidden = self._layer(index, layer, hidden, mixers)
        hidden = self._last(hidden)
        with g.scope("model"):
            hidden = self.parts.norm("norm", hidden)
        g.output(self._head(hidden), "logits", ir.DataType.FLOAT, [BATCH, SEQUENCE, decoder.vocab_size])
        g.outputs.insert(0, g.outputs.pop())  # logits first, as every tool expects
        self.weights.refuse_unused()
        return g

    # -- ends of the graph

    def _embed(self, input_ids: ir.Value) -> ir.Value:
        self.weights.entry(EMBEDDING, (self.decoder.vocab_size, self.decoder.hidden_size))
        with self.graph.scope("model"):
            hidden = self.matrices.rows("embed_tokens", input_ids, EMBEDDING)
            return self.parts.times(hidden, self.decoder.embedding_scale, "embedding_scale")

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
        if self._is_tied():
            logits = self.matrices.tied_product("lm_head", hidden, EMBEDDING)
        else:
            logits = self.parts.linear("lm_head", hidden, decoder.vocab_size)
        if self.graph.dtype != ir.DataType.FLOAT:
            logits = self.graph.op("Cast", logits, name="logits_float32", to=ir.DataType.FLOAT)
        logits = self.parts.times(logits, 1.0 / decoder.logits_divisor, "logits_scale", ir.DataType.FLOAT)
        return self._softcap(logits, decoder.logits_softcap)

    def _is_tied(self) -> bool:
        """Whether the head is the embedding matrix; a head of its own in the file counts, whatever config.json says."""
        return self.decoder.tied and (HEAD not in self.weights or not self.weights.differ(HEAD, EMBEDDING))

    def _softcap(self, logits: ir.Value, cap: float) -> ir.Value:
        """cap × tanh(logits / cap)."""
        if not cap:
            return logits
        g, wide = self.graph, ir.DataType.FLOAT
        with g.scope("logits_softcap"):
            bounded = g.op("Tanh", self.parts.times(logits, 1.0 / cap, "scaled", wide), name="tanh")
            return self.parts.times(bounded, cap, "capped", wide)

    # -- one layer

    def _layer(self, index: int, layer: Layer, hidden: ir.Value, mixers: Mixers) -> ir.Value:
        before, after, before_mlp, after_mlp = NORM_NAMES[self.decoder.block.norms]

        def mix(value: ir.Value) -> ir.Value:
            return mixers.build(index, layer, value)

        def mlp(value: ir.Value) -> ir.Value:
            return self._mlp(layer, value)

        if not self.decoder.block.norms.startswith("parallel"):
            hidden = self._residual(hidden, mix, before, after, "attention_residual")
            return self._residual(hidden, mlp, before_mlp, after_mlp, "mlp_residual")
        normed = self.parts.norm("input_layernorm", hidden)
        both = mix(normed), mlp(self.parts.norm(before_mlp, hidden) if before_mlp else normed)
        return self.graph.op("Add", hidden, self.graph.op("Add", *both, name="both"), name="residual")

    def _residual(
        self, hidden: ir.Value, part: Callable[[ir.Value], ir.Value], before: str | None, after: str | None, name: str
    ) -> ir.Value:
        value = part(self.parts.norm(before, hidden) if before else hidden)
        value = self.parts.norm(after, value) if after else value
        value = self.parts.times(value, self.decoder.residual_scale, f"{name}_scale")
        return self.graph.op("Add", hidden, value, name=name)

    def _mlp(self, layer: Layer, hidden: ir.Value) -> ir.Value:
        block, router = self.decoder.block, self.decoder.router
        with self.graph.scope("mlp"):
            if layer.experts and block.experts and router:
                return Mixture(self.parts, block.experts, router).build(hidden)
            return self.parts.mlp(hidden)
