"""Parts of layers that several kinds of layers are made of: products with biases, norms, activations, heads.

A part is named by the scope that it stands in, and so are its weights: in the scope model.layers.0.self_attn,
`linear("o_proj", x, width)` multiplies by model.layers.0.self_attn.o_proj.weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from converters.onnx.decoder import Decoder
from converters.onnx.graph import GraphBuilder
from converters.onnx.matrices import FloatMatrices, Matrices
from converters.onnx.weights import Change, Plus, Weights
from longrope.errors import UnsupportedError

FLOAT = ir.DataType.FLOAT
# The part of a layer whose biases config.json announces, by what a matrix is called.
BIASED_PARTS: Mapping[str, str] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_proj", "q_a_proj", "kv_a_proj_with_mqa"), "qkv"),
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj", "gate_up_proj"), "mlp"),
    "o_proj": "out",
    "lm_head": "head",
}


class Parts:
    """Builds parts in a graph.

    Args:
        graph: to add to.
        decoder: the model's structure.
        weights: where its tensors are.
        matrices: how large ones are stored.
    """

    def __init__(self, graph: GraphBuilder, decoder: Decoder, weights: Weights, matrices: Matrices) -> None:
        self.graph, self.decoder, self.weights, self.matrices = graph, decoder, weights, matrices
        self.floats = FloatMatrices(graph, weights)

    # -- products

    def linear(self, name: str, value: ir.Value, width: int) -> ir.Value:
        """value × Wᵀ (+ bias, where there is one), [..., width]."""
        weight = self.graph.path(f"{name}.weight")
        stack = self.weights.stack([weight])
        self.weights.entry(weight, (width, stack.columns))
        if not self.has_bias(name):
            return self.matrices.product(name, value, stack, weight)
        return self.biased(name, self.matrices.product(f"{name}.product", value, stack, weight), width)

    def exact_linear(self, name: str, value: ir.Value, width: int, *, bias: bool = False) -> ir.Value:
        """As `linear`, with a matrix that is never quantized: small ones that decide, such as a router's."""
        weight = self.graph.path(f"{name}.weight")
        stack = self.weights.stack([weight])
        self.weights.entry(weight, (width, stack.columns))
        product = self.floats.product(f"{name}.product" if bias else name, value, stack, weight)
        return self.biased(name, product, width) if bias else product

    def joined(self, name: str, value: ir.Value, widths: dict[str, int], *, packed: bool = False) -> list[ir.Value]:
        """Several products with one value as one, then split; worth it where the parts are small, as keys are."""
        g = self.graph
        if packed:
            product = self.linear(name, value, sum(widths.values()))
            return self.split(f"{name}.split", product, widths)
        names = [g.path(f"{part}.weight") for part in widths]
        stack = self.weights.stack(names)
        for weight, width in zip(names, widths.values(), strict=True):
            self.weights.entry(weight, (width, stack.columns))
        product = self.matrices.product(name, value, stack, g.path(f"{name}.weight"))
        has_bias = [self.has_bias(part) for part in widths]
        outputs = [f"{part}.product" if biased else part for part, biased in zip(widths, has_bias, strict=True)]
        parts = self.split(f"{name}.split", product, dict(zip(outputs, widths.values(), strict=True)))
        return [
            self.biased(part, found, widths[part]) if biased else found
            for part, found, biased in zip(widths, parts, has_bias, strict=True)
        ]

    def biased(self, name: str, value: ir.Value, width: int) -> ir.Value:
        return self.graph.op("Add", value, self.vector(self.graph.path(f"{name}.bias"), (width,)), name=name)

    def has_bias(self, name: str) -> bool:
        """Whether a matrix has a bias.

        Raises:
            UnsupportedError: the file holds one that the configuration does not announce; transformers ignores it.
        """
        bias, part = self.graph.path(f"{name}.bias"), BIASED_PARTS.get(name, "")
        if self.decoder.biases.get(part, False):
            return True
        if bias in self.weights:
            rule = self.decoder.bias_keys.get(part)
            mend = f"set {rule} to true in config.json if the model was trained with it" if rule else "remove it"
            raise UnsupportedError(
                f"{self.weights.name}: {bias} is in the weight files, and transformers would ignore it: config.json "
                f"announces no such bias; {mend}"
            )
        return False

    def rows_of(self, name: str) -> int:
        """Height of a matrix."""
        return self.weights.entry(self.graph.path(f"{name}.weight")).shape[0]

    # -- MLP

    def mlp(self, value: ir.Value) -> ir.Value:
        """[..., D] → [..., D], in the scope of an MLP."""
        if self.decoder.block.gated:
            gate, up = self._gate_and_up(value)
            inner = self.gated(gate, up)
        else:
            inner = self.activation(self.linear("up_proj", value, self.rows_of("up_proj")))
        return self.linear("down_proj", inner, self.decoder.hidden_size)

    def gated(self, gate: ir.Value, up: ir.Value) -> ir.Value:
        """The inner vector of an MLP with a gate."""
        return self.graph.op("Mul", self.activation(gate), up, name="gated")

    def _gate_and_up(self, value: ir.Value) -> tuple[ir.Value, ir.Value]:
        if self.decoder.block.packed_mlp:
            width = self.rows_of("gate_up_proj") // 2
            gate, up = self.joined("gate_up_proj", value, {"gate_proj": width, "up_proj": width}, packed=True)
            return gate, up
        gate, up = (self.linear(name, value, self.rows_of(name)) for name in ("gate_proj", "up_proj"))
        return gate, up

    # -- norms

    def norm(self, name: str, value: ir.Value, *, eps: float | None = None) -> ir.Value:
        """Normalization over the last axis, computed in float32."""
        g, block = self.graph, self.decoder.block
        weight = g.path(f"{name}.weight")
        scale = self.vector(weight, self.weights.entry(weight).shape, Plus(float(block.norm_plus_one)))
        epsilon = self.decoder.norm_eps if eps is None else eps
        if block.norm == "rms":
            return g.op("RMSNormalization", value, scale, name=name, axis=-1, epsilon=epsilon)
        shape = self.weights.entry(weight).shape
        bias = [self.vector(g.path(f"{name}.bias"), shape)] if block.norm == "layer" else []
        return g.op("LayerNormalization", value, scale, *bias, name=name, axis=-1, epsilon=epsilon)

    def head_norm(self, name: str, value: ir.Value) -> ir.Value:
        """[B,T,heads × head_dim] normalized for each head, over all heads, or not at all."""
        kind = self.decoder.block.qk_norm
        if kind is None:
            return value
        if kind == "all":
            return self.norm(name, value)
        normed = self.norm(name, self.heads(name, value, self.decoder.head_dim))
        return self.flat(name, normed)

    # -- shapes

    def heads(self, name: str, value: ir.Value, head_dim: int) -> ir.Value:
        """[B,T,heads × head_dim] → [B,T,heads,head_dim]."""
        return self.graph.op("Reshape", value, self.graph.ints(0, 0, -1, head_dim), name=f"{name}.heads")

    def flat(self, name: str, value: ir.Value) -> ir.Value:
        """[B,T,heads,head_dim] → [B,T,heads × head_dim]."""
        return self.graph.op("Reshape", value, self.graph.ints(0, 0, -1), name=f"{name}.flat")

    def split(self, name: str, value: ir.Value, widths: Mapping[str, int]) -> list[ir.Value]:
        """The last axis in parts, named by `widths`."""
        sizes = self.graph.ints(*widths.values())
        return list(self.graph.ops("Split", value, sizes, outputs=list(widths), name=name, axis=-1))

    # -- arithmetic

    def activation(self, value: ir.Value) -> ir.Value:
        """The MLP's activation function."""
        g = self.graph
        functions: dict[str, Callable[[], ir.Value]] = {
            "silu": lambda: self.silu(value),
            "gelu": lambda: g.op("Gelu", value, name="gelu", approximate="none"),
            "gelu_tanh": lambda: g.op("Gelu", value, name="gelu", approximate="tanh"),
            "relu_squared": lambda: self._squared(g.op("Relu", value, name="relu"), "relu_squared"),
            "xielu": lambda: self._xielu(value),
        }
        return functions[self.decoder.activation]()

    def silu(self, value: ir.Value) -> ir.Value:
        return self.graph.op("Mul", value, self.graph.op("Sigmoid", value, name="sigmoid"), name="silu")

    def _squared(self, value: ir.Value, name: str) -> ir.Value:
        return self.graph.op("Mul", value, value, name=name)

    def _xielu(self, value: ir.Value) -> ir.Value:
        """x > 0: a x² + b x; else c (exp(min(x, ε)) - 1 - x) + b x, with trained a and c (arXiv 2411.13010)."""
        g = self.graph
        with g.scope("act_fn"):
            beta, eps = (self.vector(g.path(name), ()) for name in ("beta", "eps"))
            above = g.op("Softplus", self.vector(g.path("alpha_p"), (1,)), name="above")
            below = g.op(
                "Add", g.op("Softplus", self.vector(g.path("alpha_n"), (1,)), name="alpha"), beta, name="below"
            )
            line = g.op("Mul", value, beta, name="line")
            square = g.op("Mul", self._squared(value, "square"), above, name="positive")
            power = g.op("Exp", g.op("Min", value, eps, name="clamped"), name="power")
            rest = g.op("Sub", g.op("Sub", power, g.scalar("one", 1.0), name="expm1"), value, name="rest")
            curve = g.op("Mul", rest, below, name="negative")
            is_positive = g.op("Greater", value, g.scalar("zero", 0.0), name="is_positive")
            return g.op("Add", g.op("Where", is_positive, square, curve, name="curve"), line, name="xielu")

    def times(self, value: ir.Value, factor: float, name: str, dtype: ir.DataType | None = None) -> ir.Value:
        if factor == 1.0:
            return value
        return self.graph.op("Mul", value, self.graph.scalar(f"{name}.value", factor, dtype), name=name)

    def cast(self, value: ir.Value, name: str, dtype: ir.DataType) -> ir.Value:
        """`value` of the graph's type in another one, or back."""
        return value if self.graph.dtype == FLOAT else self.graph.op("Cast", value, name=name, to=dtype)

    def vector(self, name: str, shape: tuple[int, ...], change: Change | None = None) -> ir.Value:
        """A small weight in the graph's type."""
        return self.vector_of(name, shape, change, self.graph.dtype)

    def vector_of(self, name: str, shape: tuple[int, ...], change: Change | None, dtype: ir.DataType) -> ir.Value:
        """A small weight, changed, in a type of its own."""
        self.weights.entry(name, shape)
        return self.graph.weight(name, dtype, shape, self.weights.reader([name], change, dtype.numpy()))
