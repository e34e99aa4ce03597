"""Broken ONNX exports as data: each fault, and the id of the check that must catch it. The export has two sets and n_hat."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from tests.common import WINDOW
from tests.folder_faults import Fault, config, half, lose, put

Graph = onnx.GraphProto

# -- tools to break things with


def edited(change: Callable[[onnx.ModelProto], None]) -> Fault:
    def fault(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        change(model)
        onnx.save(model, folder / "model.onnx")

    return fault


def on_graph(change: Callable[[Graph], None]) -> Fault:
    return edited(lambda model: change(model.graph))


def node(graph: Graph, name: str) -> onnx.NodeProto:
    return next(item for item in graph.node if item.name == name)


def initializer(graph: Graph, name: str) -> onnx.TensorProto:
    return next(item for item in graph.initializer if item.name == name)


def set_initializer(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    def fault(graph: Graph) -> None:
        old = initializer(graph, name)
        array = numpy_helper.to_array(old)
        old.CopyFrom(numpy_helper.from_array(np.asarray(change(array), dtype=array.dtype), name))

    return on_graph(fault)


def set_input(node_name: str, index: int, value: str) -> Fault:
    return on_graph(lambda graph: node(graph, node_name).input.__setitem__(index, value))


def set_attribute(node_name: str, attribute: str, value: object) -> Fault:
    def fault(graph: Graph) -> None:
        item = node(graph, node_name)
        kept = [a for a in item.attribute if a.name != attribute]
        del item.attribute[:]
        item.attribute.extend([*kept, onnx.helper.make_attribute(attribute, value)])

    return on_graph(fault)


def set_operator(node_name: str, operator: str) -> Fault:
    return on_graph(lambda graph: setattr(node(graph, node_name), "op_type", operator))


def swap_inputs(node_name: str, first: int, second: int) -> Fault:
    def fault(graph: Graph) -> None:
        inputs = node(graph, node_name).input
        inputs[first], inputs[second] = inputs[second], inputs[first]

    return on_graph(fault)


def set_entry(tensor: onnx.TensorProto, key: str, value: str) -> None:
    for entry in tensor.external_data:
        if entry.key == key:
            entry.value = value


def set_external(tensor: str, key: str, value: str) -> Fault:
    return on_graph(lambda graph: set_entry(initializer(graph, tensor), key, value))


def set_locations(place: str) -> Fault:
    """Another file that all external data are said to lie in."""

    def fault(graph: Graph) -> None:
        for tensor in graph.initializer:
            set_entry(tensor, "location", place)

    return on_graph(fault)


def swap_caches(graph: Graph) -> None:
    first, second = node(graph, "model.layers.0.self_attn.attention"), node(graph, "model.layers.1.self_attn.attention")
    first.input[4], second.input[4] = second.input[4], first.input[4]


def swap_present_names(graph: Graph) -> None:
    key, value = (graph.output[i] for i in (1, 2))
    key.name, value.name = value.name, key.name


def swap_weights(graph: Graph) -> None:
    first, second = (initializer(graph, f"model.layers.{i}.self_attn.qkv_proj.weight") for i in (0, 1))
    first.name, second.name = second.name, first.name


def early_float32(graph: Graph) -> None:
    """Angles multiplied in float32, as the usual export does it: wrong by 4e-3 rad at 65,536."""
    node(graph, "rope.position_float64").attribute[0].i = onnx.TensorProto.FLOAT
    for name in ("rope.inv_freq", "rope.long_factor", "rope.short_factor", "rope.two_pi", "rope.n_hat"):
        array = numpy_helper.to_array(initializer(graph, name)).astype(np.float32)
        initializer(graph, name).CopyFrom(numpy_helper.from_array(array, name))


def drop_factors(graph: Graph) -> None:
    """What onnxruntime-genai's builder does to a Llama: plain RoPE, no factors anywhere."""
    node(graph, "rope.row_frequency").op_type = "Identity"
    del node(graph, "rope.row_frequency").input[1:]
    unused = {"rope.long_factor", "rope.short_factor", "rope.use_long", "rope.factor"}
    kept = [item for item in graph.initializer if item.name not in unused]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def drop_total_length(graph: Graph) -> None:
    node(graph, "rope.length").op_type = "Identity"
    node(graph, "rope.length").input[:] = ["rope.length_seen"]


def lose_sin(graph: Graph) -> None:
    """sin is NaN from position 400 on; cos stays right."""
    scaled = node(graph, "rope.sin")
    scaled.output[0] = "sin_before"
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.float64(399), "last_good_position"),
            numpy_helper.from_array(np.float32(np.nan), "nan"),
        ]
    )
    added = [
        onnx.helper.make_node("Greater", ["rope.position", "last_good_position"], ["beyond"]),
        onnx.helper.make_node("Where", ["beyond", "nan", "sin_before"], ["rope.sin"]),
    ]
    place = list(graph.node).index(scaled) + 1
    nodes = [*graph.node[:place], *added, *graph.node[place:]]
    del graph.node[:]
    graph.node.extend(nodes)


def set_opset(version: int) -> Fault:
    def fault(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = version

    return edited(fault)


def set_metadata(model: onnx.ModelProto) -> None:
    entry = next(item for item in model.metadata_props if item.key == "longrope.factors")
    entry.value = json.dumps({**json.loads(entry.value), "n_hat": 8})


def move_data_outside(folder: Path) -> None:
    (folder / "model.onnx_data").rename(folder.parent / "model.onnx_data")
    set_locations("../model.onnx_data")(folder)


def link_data_outside(folder: Path) -> None:
    (folder / "model.onnx_data").rename(folder.parent / "elsewhere")
    (folder / "model.onnx_data").symlink_to(folder.parent / "elsewhere")


def flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "model.onnx_data").read_bytes())
    data[len(data) // 2] ^= 0x40
    (folder / "model.onnx_data").write_bytes(bytes(data))


def unmask(graph: Graph) -> None:
    """Attention over padding: the mask of every row is taken for full."""
    for node in graph.node:
        for index, value in enumerate(node.input):
            if value == "attention_mask":
                node.input[index] = "all_ones"
    shape = onnx.helper.make_node("Shape", ["attention_mask"], ["mask_shape"])
    one = onnx.helper.make_tensor("one", onnx.TensorProto.INT64, [1], [1])
    ones = onnx.helper.make_node("ConstantOfShape", ["mask_shape"], ["all_ones"], value=one)
    nodes = [shape, ones, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def mix_rows(graph: Graph) -> None:
    """Every row of a batch gets the first row's logits."""
    node = next(item for item in graph.node if "logits" in item.output)
    node.output[list(node.output).index("logits")] = "logits_before"
    graph.initializer.append(onnx.helper.make_tensor("first", onnx.TensorProto.INT64, [1], [0]))
    first = onnx.helper.make_node("Gather", ["logits_before", "first"], ["first_row"], axis=0)
    shape = onnx.helper.make_node("Shape", ["logits_before"], ["logits_shape"])
    graph.node.extend([first, shape, onnx.helper.make_node("Expand", ["first_row", "logits_shape"], ["logits"])])


Q_WEIGHT = "model.layers.0.self_attn.qkv_proj.weight"
ATTENTION = "model.layers.0.self_attn.attention"
FAULTS: dict[str, tuple[Fault, str]] = {
    "factors dropped": (on_graph(drop_factors), "onnx.factors.long"),
    "long factors all one": (set_initializer("rope.long_factor", np.ones_like), "onnx.factors.long"),
    "one factor rounded to float32": (
        set_initializer("rope.long_factor", lambda a: a.astype(np.float32)),
        "onnx.factors.long",
    ),
    "short factors scaled": (set_initializer("rope.short_factor", lambda a: a * 1.001), "onnx.factors.short"),
    "short set baked": (set_input("rope.factor", 1, "rope.short_factor"), "onnx.switch"),
    "long set baked": (set_input("rope.factor", 2, "rope.long_factor"), "onnx.switch"),
    "factors present but unused": (set_input("rope.row_frequency", 0, "rope.factor"), "onnx.rope.chain"),
    "switch inverted": (swap_inputs("rope.factor", 1, 2), "onnx.switch"),
    "switch off by one": (set_operator("rope.use_long", "GreaterOrEqual"), "onnx.switch"),
    "original window off by one": (
        set_initializer("rope.original_max_position_embeddings", lambda a: a + 1),
        "onnx.original",
    ),
    "total length ignored": (on_graph(drop_total_length), "onnx.switch"),
    "attention factor missing": (set_initializer("rope.attention_factor", np.ones_like), "onnx.attention_factor"),
    "attention factor on cos only": (set_operator("rope.sin", "Max"), "onnx.rope.chain"),
    "sin is NaN at far positions": (on_graph(lose_sin), "onnx.rope.chain"),
    "cos and sin swapped": (swap_inputs("model.layers.0.self_attn.q_rotary", 1, 2), "onnx.rope.chain"),
    "another theta": (set_initializer("rope.inv_freq", lambda a: a**1.1), "onnx.inv_freq"),
    "n_hat off by one": (set_initializer("rope.n_hat", lambda a: a + 1), "onnx.n_hat"),
    "n_hat ignored": (set_input("rope.angle", 1, "rope.scaled_angle"), "onnx.rope.chain"),
    "angles in float32": (on_graph(early_float32), "onnx.rope.chain"),
    "one layer not rotated": (
        set_input(ATTENTION, 1, "model.layers.0.self_attn.k_proj"),
        "onnx.graph",
    ),
    "pairs interleaved": (set_attribute("model.layers.0.self_attn.q_rotary", "interleaved", 1), "onnx.graph"),
    "attention scale": (set_attribute(ATTENTION, "scale", 1.0), "onnx.graph"),
    "norm epsilon": (set_attribute("model.norm", "epsilon", 0.1), "onnx.graph"),
    "padding not masked": (
        set_input("attention_bias.full", 0, "attention_bias.is_past"),
        "onnx.graph",
    ),
    "caches of two layers swapped": (on_graph(swap_caches), "onnx.cache"),
    "cache names swapped": (on_graph(swap_present_names), "onnx.outputs"),
    "position_ids missing": (on_graph(lambda graph: graph.input.__delitem__(2)), "onnx.inputs"),
    "opset too old": (set_opset(22), "onnx.opset"),
    "opset without native attention": (set_opset(25), "onnx.opset"),
    "external data missing": (lose("model.onnx_data"), "onnx.external_data"),
    "external data truncated": (half("model.onnx_data"), "onnx.external_data"),
    "external data outside the folder": (move_data_outside, "onnx.external_data"),
    "external data linked outside": (link_data_outside, "onnx.external_data"),
    "external data at an absolute path": (set_external(Q_WEIGHT, "location", "/etc/hostname"), "onnx.external_data"),
    "external data of another length": (set_external(Q_WEIGHT, "length", "16"), "onnx.external_data"),
    "external data at another place": (set_external(Q_WEIGHT, "offset", "0"), "onnx.weights"),
    "weights of two layers swapped": (on_graph(swap_weights), "onnx.weights"),
    "one bit of one weight": (flip_a_byte, "onnx.weights"),
    "model file truncated": (half("model.onnx"), "onnx.readable"),
    "model file empty": (put("model.onnx", b""), "onnx.readable"),
    "metadata of another export": (edited(set_metadata), "onnx.metadata"),
    "config without rope_parameters": (config(rope_parameters=None), "onnx.config.rope_parameters"),
    "config with another window": (config(max_position_embeddings=WINDOW), "onnx.config.max_position_embeddings"),
    "config missing": (lose("config.json"), "onnx.config"),
}
