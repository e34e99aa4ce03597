"""A thin layer over onnx_ir that keeps graphs readable: nodes, values and weights are named by where they stand.

with graph.scope("model.layers.0"), graph.scope("self_attn"):
    graph.op("MatMul", x, w, name="q_proj")      node and output: model.layers.0.self_attn.q_proj
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir

OPSET = 23  # the first with Attention, RMSNormalization and RotaryEmbedding, which onnxruntime runs natively
CONTRIB = "com.microsoft"
IR_VERSION = 11

Dim = int | str


class GraphBuilder:
    """Nodes, inputs, outputs and initializers of a graph that is being built, in order.

    Args:
        dtype: of activations and weights.
    """

    def __init__(self, dtype: ir.DataType = ir.DataType.FLOAT) -> None:
        self.dtype = dtype
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self._scope: list[str] = []

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix every name inside the block with `name` and a dot."""
        self._scope.append(name)
        try:
            yield
        finally:
            self._scope.pop()

    def path(self, name: str) -> str:
        return ".".join([*self._scope, name])

    def op(self, op_type: str, *inputs: ir.Value | None, name: str, doc: str = "", **attributes: Any) -> ir.Value:
        """Add a node with one output, both called by the scope and `name`."""
        return self.ops(op_type, *inputs, outputs=[name], name=name, doc=doc, **attributes)[0]

    def ops(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        outputs: Sequence[str],
        name: str,
        doc: str = "",
        domain: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Add a node with several outputs, named by the scope and `outputs`."""
        values = [ir.Value(name=self.path(output)) for output in outputs]
        node = ir.node(
            op_type,
            list(inputs),
            attributes or None,
            domain=domain,
            outputs=values,
            name=self.path(name),
            doc_string=doc or None,
        )
        self.nodes.append(node)
        return values

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[Dim], default: Any = None) -> ir.Value:
        """A graph input; with a default it is optional: an initializer of the same name that a caller may override."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        if default is not None:
            value.const_value = ir.tensor(default, name=name)
            self.initializers[name] = value
        self.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> None:
        """Make `value` a graph output under `name`."""
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self.outputs.append(value)

    def constant(self, name: str, array: Any, doc: str = "") -> ir.Value:
        """A small initializer; the same name always means the same array."""
        return self.tensor(ir.tensor(np.asarray(array), name=name, doc_string=doc or None))

    def tensor(self, tensor: ir.TensorProtocol) -> ir.Value:
        """An initializer, called as its tensor is; the first tensor of a name stays."""
        name = str(tensor.name)
        if name not in self.initializers:
            self.initializers[name] = ir.Value(name=name, const_value=tensor)
        return self.initializers[name]

    def ints(self, *values: int) -> ir.Value:
        """An int64 vector, for axes and shapes."""
        return self.constant("ints." + "_".join(map(str, values)), np.array(values, dtype=np.int64))

    def scalar(self, name: str, value: float, dtype: ir.DataType | None = None) -> ir.Value:
        """A scalar, of the graph's type unless another is given."""
        return self.constant(self.path(name), np.array(value, dtype=(dtype or self.dtype).numpy()))

    def weight(
        self,
        name: str,
        dtype: ir.DataType,
        shape: Sequence[int],
        read: Callable[[], np.ndarray[Any, Any]],
        doc: str = "",
    ) -> ir.Value:
        """An initializer that is read only while it is written to disk, and not kept; its `meta` says by what."""
        tensor = ir.LazyTensor(
            lambda: ir.tensor(read(), dtype=dtype, name=name), dtype, ir.Shape(shape), name=name, doc_string=doc
        )
        tensor.meta["origin"] = read
        return self.tensor(tensor)

    def model(self, name: str, **facts: Any) -> ir.Model:
        """The finished model; `facts` go to onnx_ir.Model."""
        graph = ir.Graph(
            self.inputs,
            self.outputs,
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports={"": OPSET, CONTRIB: 1},
            name=name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, **facts)
