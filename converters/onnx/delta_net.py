"""Linear attention of Qwen 3.5 and Qwen3-Next: a causal convolution, then a gated delta rule with a state of fixed size.

    x ─► q, k, v ─► convolution over the last taps, SiLU ─► q, k of length 1 ─┐
    x ─► b ─► sigmoid ──────────────────────────────► β ──────────────────────┼─► LinearAttention ─► norm ─► × SiLU(z)
    x ─► a ─► −exp(A_log) × softplus(a + dt_bias) ──► decay ──────────────────┘                              ─► out_proj

    S ← exp(decay) S + k ⊗ β (v − exp(decay) Sᵀk),   out = Sᵀ q / √d

past_conv.N [B,channels,taps − 1] and past_recurrent.N [B,heads,d_k,d_v] hold what a layer remembers. The operators are
onnxruntime's own (CausalConvWithState, LinearAttention). The state is float32 in every graph. Padding on the left is
multiplied by 0 before the layer, as transformers does.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converters.onnx.decoder import DeltaNet
from converters.onnx.graph import CONTRIB, Dim
from converters.onnx.names import BATCH
from converters.onnx.parts import FLOAT, Parts
from converters.onnx.weights import Array

LENGTH_EPSILON = 1e-6


class DeltaNets:
    """Builds gated delta nets.

    Args:
        parts: of the graph.
        net: sizes.
        input_ids, mask: the graph's inputs, [B,T] and [B,S].
    """

    def __init__(self, parts: Parts, net: DeltaNet, input_ids: ir.Value, mask: ir.Value) -> None:
        self.parts, self.net, self.graph = parts, net, parts.graph
        g = self.graph
        with g.scope("new_tokens"):
            count = g.op("Neg", g.op("Shape", input_ids, name="count", start=1, end=2), name="start")
            end = g.constant(g.path("end"), np.array([np.iinfo(np.int64).max]))
            new = g.op("Slice", mask, count, end, g.ints(1), name="mask")
            self.is_token = g.op("Unsqueeze", g.op("Cast", new, name="is_token", to=g.dtype), g.ints(-1), name="column")

    def build(self, index: int, hidden: ir.Value) -> ir.Value:
        """[B,T,D] → [B,T,D], in the scope of a layer's linear attention."""
        g, parts, net = self.graph, self.parts, self.net
        hidden = g.op("Mul", hidden, self.is_token, name="without_padding")
        mixed, gate, beta, alpha = self._projections(hidden)
        query, key, value = parts.split("conv.split", self._convolved(index, mixed), self._widths())
        found = self._attended(index, self._directions("q", query), self._directions("k", key), value, beta, alpha)
        with g.scope("norm"):
            scale = parts.vector(g.path("weight"), (net.value_dim,))
            heads = parts.heads("mixed", found, net.value_dim)
            normed = g.op("RMSNormalization", heads, scale, name="normed", axis=-1, epsilon=parts.decoder.norm_eps)
            gated = g.op("Mul", parts.flat("normed", normed), parts.silu(gate), name="gated")
        return parts.linear("out_proj", gated, parts.decoder.hidden_size)

    # -- projections

    def _widths(self) -> dict[str, int]:
        return {"query": self.net.key_width, "key": self.net.key_width, "value": self.net.value_width}

    def _projections(self, hidden: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
        """q, k, v in one; gate z; b; a."""
        if self.parts.decoder.block.linear_attention == "joined":
            return self._joined_projections(hidden)
        parts, net = self.parts, self.net
        mixed = parts.linear("in_proj_qkv", hidden, net.channels)
        gate = parts.linear("in_proj_z", hidden, net.value_width)
        beta, alpha = (parts.exact_linear(name, hidden, net.value_heads) for name in ("in_proj_b", "in_proj_a"))
        return mixed, gate, beta, alpha

    def _joined_projections(self, hidden: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
        """The same of matrices whose rows are each key head's q, k, its value heads' v, z, and b, a."""
        g, parts, net = self.graph, self.parts, self.net
        group = net.value_heads // net.key_heads
        widths = {"q": net.key_dim, "k": net.key_dim, "v": group * net.value_dim, "z": group * net.value_dim}
        joined = parts.linear("in_proj_qkvz", hidden, sum(widths.values()) * net.key_heads)
        split = parts.split("qkvz.split", parts.heads("qkvz", joined, sum(widths.values())), widths)
        *qkv, gate = (parts.flat(name, part) for name, part in zip(widths, split, strict=True))
        joined = parts.exact_linear("in_proj_ba", hidden, 2 * net.value_heads)
        split = parts.split("ba.split", parts.heads("ba", joined, 2 * group), {"b": group, "a": group})
        beta, alpha = (parts.flat(name, part) for name, part in zip("ba", split, strict=True))
        return g.op("Concat", *qkv, name="qkv", axis=-1), gate, beta, alpha

    # -- the convolution

    def _convolved(self, index: int, mixed: ir.Value) -> ir.Value:
        """[B,T,channels] after the convolution and SiLU."""
        g, net = self.graph, self.net
        past = g.input(f"past_conv.{index}", g.dtype, [BATCH, net.channels, net.kernel - 1])
        weight = self.parts.vector(g.path("conv1d.weight"), (net.channels, 1, net.kernel))
        transposed = g.op("Transpose", mixed, name="by_channel", perm=[0, 2, 1])
        found, present = g.ops(
            "CausalConvWithState",
            *(transposed, weight, None, past),
            outputs=["conv1d", "present_conv"],
            name="conv1d",
            domain=CONTRIB,
            activation="silu",
        )
        g.output(present, f"present_conv.{index}", g.dtype, [BATCH, net.channels, net.kernel - 1])
        return g.op("Transpose", found, name="by_token", perm=[0, 2, 1])

    # -- the delta rule

    def _directions(self, name: str, value: ir.Value) -> ir.Value:
        """[B,T,key heads × d] → [B,T,value heads × d] float32: each head's vector of length 1, once for every value head."""
        g, net, parts = self.graph, self.net, self.parts
        heads = parts.heads(name, parts.cast(value, f"{name}.float32", FLOAT), net.key_dim)
        square = g.op("ReduceSum", g.op("Mul", heads, heads, name=f"{name}.square"), g.ints(-1), name=f"{name}.sum")
        square = g.op("Add", square, g.scalar("eps", LENGTH_EPSILON, FLOAT), name=f"{name}.sum_eps")
        length = g.op("Sqrt", square, name=f"{name}.length")
        unit = g.op("Div", heads, length, name=f"{name}.unit")
        group = net.value_heads // net.key_heads
        if group > 1:
            unit = g.op("Unsqueeze", unit, g.ints(3), name=f"{name}.column")
            unit = g.op("Expand", unit, g.ints(1, 1, 1, group, 1), name=f"{name}.of_each_head")
        return parts.flat(f"{name}.unit", unit)

    def _attended(
        self, index: int, query: ir.Value, key: ir.Value, value: ir.Value, beta: ir.Value, alpha: ir.Value
    ) -> ir.Value:
        g, net, parts = self.graph, self.net, self.parts
        shape: list[Dim] = [BATCH, net.value_heads, net.key_dim, net.value_dim]
        past = g.input(f"past_recurrent.{index}", FLOAT, shape)
        rate = g.op("Sigmoid", parts.cast(beta, "b_float32", FLOAT), name="beta")
        found, present = g.ops(
            "LinearAttention",
            *(query, key, parts.cast(value, "value_float32", FLOAT), past, self._decay(alpha), rate),
            outputs=["mixed", "present_recurrent"],
            name="delta_rule",
            domain=CONTRIB,
            update_rule="gated_delta",
            q_num_heads=net.value_heads,
            kv_num_heads=net.value_heads,
            scale=net.key_dim**-0.5,
        )
        g.output(present, f"present_recurrent.{index}", FLOAT, shape)
        return parts.cast(found, "mixed_rounded", g.dtype)

    def _decay(self, alpha: ir.Value) -> ir.Value:
        """−exp(A_log) × softplus(a + dt_bias), [B,T,value heads] float32."""
        g, parts, shape = self.graph, self.parts, (self.net.value_heads,)
        speed = parts.vector_of(g.path("A_log"), shape, _negative_exp, FLOAT)
        bias = parts.vector_of(g.path("dt_bias"), shape, None, FLOAT)
        step = g.op("Softplus", g.op("Add", parts.cast(alpha, "a_float32", FLOAT), bias, name="a_biased"), name="step")
        return g.op("Mul", step, speed, name="decay")


def _negative_exp(array: Array) -> Array:
    return np.asarray(-np.exp(array))
