"""Static checks of an ONNX artifact: nothing is run but its rotary part, in numpy.

converters/check_table.py lists what each catches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from converters.base import Check
from converters.companion_checks import companion_checks
from converters.folder import config_checks
from converters.onnx import rope_graph
from converters.onnx.export import METADATA_FACTORS, PRODUCER, OnnxExport
from converters.onnx.genai import GENAI_FILE, GENAI_MODEL
from converters.onnx.readback import External, OnnxFile
from converters.onnx.rope_eval import RopePart
from longrope import rope
from longrope.config_fields import check_config
from longrope.errors import InputError
from longrope.factors import BoundFactors, FactorSet, RescaleFactors
from longrope.reading import read_object

OPSETS = (23, 24)
# Largest error of a cos or sin, relative to the attention factor: an angle's error in rad is no smaller.
ANGLE_TOLERANCE = 1e-6
# Relative: the product, the division by 2 pi and its rounding, and 2 pi itself, half of a last bit each.
ANGLE_ROUNDING = 4 * 2.0**-53
# Of genai_config.json: the name of the graph, which has a check of its own, where it runs, and how it samples.
_GENAI_FREE = {
    *(GENAI_MODEL, "session_options", "run_options"),
    *("do_sample", "num_beams", "num_return_sequences", "min_length", "early_stopping", "length_penalty"),
    *("temperature", "top_k", "top_p", "repetition_penalty", "random_seed"),
}


def static_checks(path: Path, planned: OnnxExport) -> list[Check]:
    """All static checks against the planned export; of an unreadable file, one."""
    try:
        file = OnnxFile(path)
        return [Check("onnx.readable", "pass"), *_checks(file, path, planned)]
    except InputError as error:
        return [Check("onnx.readable", "fail", "a sound ONNX model", "a damaged one", str(error))]


def _checks(file: OnnxFile, path: Path, planned: OnnxExport) -> list[Check]:
    expected, model = planned.export.factors, planned.model
    graph = onnx_graph(model)
    return [
        _opset(file),
        *_interface(file, graph),
        external_data_check(file),
        *_factors(file, expected),
        *_rope(file, expected),
        _metadata(file, expected),
        _structure(file, graph),
        _weights(file, model),
        *_folder(path if path.is_dir() else path.parent, planned),
        *_genai(file, planned),
    ]


def own_checks(file: OnnxFile) -> Iterator[Check]:
    """What is wrong with an artifact as far as that shows without its reference; those that hold are left out.

    A graph of ours is held to the factors in it: another tool's has no names to find them by.
    """
    found = [external_data_check(file)]
    stored = file.stored_factors
    if stored is not None and (bound := _bound(stored)):
        found += [_opset(file), *_factors(file, bound), *_rope(file, bound)]
    yield from (check for check in found if check.status not in ("pass", "skip"))


def _bound(stored: RescaleFactors) -> BoundFactors | None:
    """The factors of the metadata, where they leave nothing of the model open; exporters write them so."""
    original, theta, model_type = stored.original_max_position_embeddings, stored.rope_theta, stored.model_type
    if original is None or theta is None or model_type is None or stored.target_length is None:
        return None
    dim = 2 * stored.num_pairs
    return stored.bound_to(original=original, rope_theta=theta, rotary_dim=dim, model_type=model_type)


def _opset(file: OnnxFile) -> Check:
    ok = file.opset in OPSETS
    message = "" if ok else "onnxruntime runs Attention natively at these only; export again"
    return Check("onnx.opset", "pass" if ok else "fail", list(OPSETS), file.opset, message)


# -- the names a runtime looks for


def _interface(file: OnnxFile, graph: onnx.GraphProto) -> Iterator[Check]:
    for id, actual, wanted in (
        ("onnx.inputs", file.proto.graph.input, graph.input),
        ("onnx.outputs", file.proto.graph.output, graph.output),
    ):
        message = "runtimes find inputs, outputs and caches by these names, types and shapes"
        yield Check.equal(id, _signature(wanted), _signature(actual), message)
    yield Check.equal(
        "onnx.cache", _cache_wiring(graph), _cache_wiring(file.proto.graph), "a layer reads or writes another's cache"
    )


def _signature(values: Any) -> list[str]:
    return [f"{value.name}: {_type_name(value.type.tensor_type)}" for value in values]


def _type_name(tensor: onnx.TypeProto.Tensor) -> str:
    shape = ", ".join(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)
    return f"{onnx.TensorProto.DataType.Name(tensor.elem_type).lower()}[{shape}]"


def _cache_wiring(graph: onnx.GraphProto) -> list[list[str]]:
    """For every attention node in order: the caches it reads and writes."""
    names = {value.name for value in [*graph.input, *graph.output]}
    return [
        [name for name in [*node.input, *node.output] if name in names]
        for node in graph.node
        if node.op_type in ("Attention", "GroupQueryAttention")
    ]


# -- external data


def external_data_check(file: OnnxFile) -> Check:
    """Whether every weight outside the model file is where the model file says, and within the folder."""
    places = file.places
    faults = [fault for place in places if (fault := _fault(file, place))]
    if faults:
        return Check("onnx.external_data", "fail", "every weight in its file", f"{len(faults)} are not", faults[0])
    return Check("onnx.external_data", "pass", f"{len(places)} weights", f"{len(places)} weights")


def _fault(file: OnnxFile, place: External) -> str | None:
    """What is wrong with the place of a weight; None when nothing is."""
    folder = file.path.parent.resolve()
    data = folder / place.location
    if not place.location or not data.resolve().is_relative_to(folder):
        return f"{place.tensor} lies outside the folder, at {place.location!r}; it is not read"
    if not data.is_file():
        return f"{place.tensor}: no such file: {place.location}"
    if place.length != place.expected_length:
        return f"{place.tensor}: expected {place.expected_length} bytes, the model says {place.length}"
    if place.offset + place.length > data.stat().st_size:
        return f"{place.tensor}: {place.location} is truncated at {data.stat().st_size} bytes"
    return None


# -- the factors


def _factors(file: OnnxFile, expected: BoundFactors) -> Iterator[Check]:
    yield Check.equal_factors("onnx.factors.long", expected.long_factor, _numbers(file, rope_graph.LONG))
    yield Check.equal_factors("onnx.factors.short", expected.short_factor, _numbers(file, rope_graph.SHORT))
    scalars = {
        "onnx.attention_factor": (rope_graph.ATTENTION_FACTOR, expected.effective_attention_factor),
        "onnx.n_hat": (rope_graph.N_HAT, float(expected.n_hat) if expected.n_hat else None),
        "onnx.original": (rope_graph.ORIGINAL, expected.original if expected.factor_sets == "dual" else None),
    }
    for id, (name, wanted) in scalars.items():
        numbers = _numbers(file, name)
        yield Check.equal(id, wanted, numbers[0] if numbers else None, f"initializer {name} is not the factors'")
    unscaled = rope.inv_freq(expected.rope_theta, expected.rotary_dim)
    yield Check.equal_factors("onnx.inv_freq", tuple(unscaled.tolist()), _numbers(file, rope_graph.INV_FREQ))


def _numbers(file: OnnxFile, name: str) -> list[float] | None:
    array = file.array(name)
    return None if array is None else [float(value) for value in array.reshape(-1)]


def _metadata(file: OnnxFile, expected: BoundFactors) -> Check:
    message = "the metadata hold other factors than the graph; inspect and importers would be misled"
    try:
        stored = file.stored_factors
    except InputError as error:
        return Check("onnx.metadata", "fail", "the factors", "broken", str(error))
    facts = ("short_factor", "long_factor", "n_hat", "original_max_position_embeddings", "target_length", "rope_theta")
    wanted = {name: getattr(expected, name) for name in facts}
    actual = {name: getattr(stored, name) for name in facts} if stored else None
    return Check.equal("onnx.metadata", json.dumps(wanted), json.dumps(actual), message)


# -- what the rotary part computes


def _rope(file: OnnxFile, expected: BoundFactors) -> Iterator[Check]:
    try:
        part = RopePart(file)
        yield _angles(part, expected)
        yield _switch(part, expected)
    except Exception as error:  # noqa: BLE001  a damaged graph fails anywhere in the evaluator
        message = f"the rotary part cannot be followed: {error}"
        yield Check("onnx.rope.chain", "fail", "cos and sin of the factors", "something else", message)


def _angles(part: RopePart, expected: BoundFactors) -> Check:
    """cos and sin over the whole target, at spread positions, against float64."""
    last = expected.target - 1
    spread = np.linspace(0, last, 257).round().astype(np.int64)
    near = np.array([0, 1, expected.n_hat - 1, expected.n_hat, expected.original - 1, expected.original, last])
    positions = np.unique(np.clip(np.concatenate((spread, near)), 0, last))
    error = _error(part, positions, expected, expected.set_for_length(expected.target))
    ok = error <= ANGLE_TOLERANCE
    message = "" if ok else "positions are rotated by other angles than the factors say: another set, scale or n_hat"
    return Check("onnx.rope.chain", "pass" if ok else "fail", f"≤ {ANGLE_TOLERANCE:g}", f"{error:.2g}", message)


def _switch(part: RopePart, expected: BoundFactors) -> Check:
    """Which set is used by a sequence of L - 1, L, L + 1 and L' tokens, and by a first chunk of each."""
    original = expected.original
    lengths = sorted({max(original - 1, 1), original, min(original + 1, expected.target), expected.target})
    actual, wanted = dict[str, str](), dict[str, FactorSet]()
    for length in lengths:
        whole = np.arange(max(length - 16, 0), length)
        wanted[str(length)] = expected.set_for_length(length) if expected.factor_sets == "dual" else "long"
        actual[str(length)] = _set_in_use(part, whole, expected, wanted[str(length)])
        if expected.factor_sets == "dual":
            first_chunk = np.arange(min(expected.n_hat + 16, length))  # the first n_hat are the same under both sets
            wanted[f"chunk of {length}"] = wanted[str(length)]
            actual[f"chunk of {length}"] = _set_in_use(part, first_chunk, expected, wanted[str(length)], length)
    return Check.equal(
        "onnx.switch", wanted, actual, "the graph changes sets at another length than the original window"
    )


def _set_in_use(
    part: RopePart, positions: Any, expected: BoundFactors, wanted: FactorSet, total_length: int = 0
) -> str:
    """The set whose angles these are; the wanted one where both give the same, as they do up to n_hat."""
    names: tuple[FactorSet, ...] = (wanted, "short" if wanted == "long" else "long")
    fitting = (name for name in names if _error(part, positions, expected, name, total_length) <= ANGLE_TOLERANCE)
    return next(fitting, "neither")


def _error(part: RopePart, positions: Any, expected: BoundFactors, name: FactorSet, total_length: int = 0) -> float:
    """Largest difference from the exact cos and sin under a set, relative to the attention factor.

    What float64 itself cannot hold of an angle is no difference: 1e-6 rad of ten thousand million.
    """
    dim, theta = expected.rotary_dim, expected.rope_theta
    frequencies, unscaled = rope.inv_freq(theta, dim, expected.set(name)), rope.inv_freq(theta, dim)
    exact = rope.cos_sin(positions, frequencies, n_hat=expected.n_hat, unscaled_frequencies=unscaled)
    actual = part.run(positions.tolist(), total_length)
    scale = expected.effective_attention_factor
    lost = ANGLE_ROUNDING * np.outer(positions, frequencies)
    if expected.n_hat:
        lost[np.asarray(positions) < expected.n_hat] = 0.0
    errors = [(np.abs(a / scale - e) - lost).max() for a, e in zip(actual, exact, strict=True)]
    return float(np.max([0.0, *errors]))  # keeps a NaN


# -- against the graph that this exporter writes


def _structure(file: OnnxFile, planned: onnx.GraphProto) -> Check:
    """Node by node the graph that an export of the reference gives."""
    id = "onnx.graph"
    if file.proto.producer_name != PRODUCER and METADATA_FACTORS not in file.metadata:
        return Check(id, "skip", PRODUCER, file.proto.producer_name, "written by another tool")
    wanted, actual = ([_node(node) for node in graph.node] for graph in (planned, file.proto.graph))
    different = [pair for pair in zip(wanted, actual, strict=False) if pair[0] != pair[1]]
    if different:
        return Check(id, "fail", *different[0], f"{len(different)} nodes are not those of this model's graph")
    return Check.equal(id, f"{len(wanted)} nodes", f"{len(actual)} nodes", "nodes were added or are missing")


def _node(node: onnx.NodeProto) -> str:
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    settings = ", ".join(f"{name}={attributes[name]!r}" for name in sorted(attributes))
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return f"{', '.join(node.output)} = {operator}({', '.join(node.input)}; {settings})"


def _weights(file: OnnxFile, model: ir.Model) -> Check:
    """Every weight equal to the reference's, after rounding to the artifact's type; one at a time."""
    id = "onnx.weights"
    wanted = {name: value.const_value for name, value in model.graph.initializers.items() if value.const_value}
    if missing := sorted(set(wanted) - set(file.initializers)):
        return Check(id, "fail", f"{len(wanted)} tensors", f"{len(missing)} are missing", f"the first is {missing[0]}")
    if external_data_check(file).status == "fail":
        return Check(id, "fail", f"{len(wanted)} tensors", "unreadable", "see onnx.external_data")
    places = {place.tensor: place for place in file.places}
    for name, tensor in wanted.items():
        if (
            file.initializers[name].data_type != tensor.dtype
            or tuple(file.initializers[name].dims) != tensor.shape.numpy()
        ):
            return Check(id, "fail", f"{tensor.dtype.name}{tensor.shape}", "another type or shape", name)
        actual = file.external_array(places[name]) if name in places else file.array(name)
        expected = tensor.numpy()
        if actual is None or not np.array_equal(actual, expected):
            return Check(id, "fail", "the reference's weights", "others", f"{name} differs")
    return Check(id, "pass", f"{len(wanted)} tensors", f"{len(wanted)} equal tensors")


def _folder(folder: Path, planned: OnnxExport) -> Iterator[Check]:
    """What lies beside the graph."""
    expected, source = planned.export.factors, planned.export.checkpoint
    try:
        config = read_object(folder / "config.json", non_finite=True)
        check_config(config, str(folder))
    except InputError as error:
        yield Check("onnx.config", "fail", "config.json", None, f"tools that load the folder need it ({error})")
        return
    yield from config_checks(config, expected, keys="onnx.config", rope="onnx.config", source=source.config)
    yield from companion_checks("onnx", folder, planned.config, config, source, expected.target)


def _genai(file: OnnxFile, planned: OnnxExport) -> Iterator[Check]:
    """What onnxruntime-genai reads; where it is missing, and another tool wrote the graph, nobody promised it."""
    id = "onnx.genai_config"
    places = [folder / GENAI_FILE for folder in (file.path.parent, file.path.parent.parent)]
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        ok = file.stored_factors is None
        yield Check(
            id, "skip" if ok else "fail", GENAI_FILE, None, "onnxruntime-genai does not open the folder without"
        )
        return
    try:
        found = read_object(place)
    except InputError as error:
        yield Check(id, "fail", GENAI_FILE, "a broken one", str(error))
        return
    odd = _different(planned.genai_config, found)
    graph = (found.get("model") or {}).get("decoder") or {}
    if not isinstance(graph, dict) or graph.get(GENAI_MODEL) not in (file.path.name, f"onnx/{file.path.name}"):
        odd[GENAI_MODEL] = "another file than the graph"
    yield Check.equal(id, {}, odd, "onnxruntime-genai runs another model")


def _different(wanted: Mapping[str, Any], found: Any, place: str = "") -> dict[str, Any]:
    """What genai_config.json says otherwise of the model, by place, or beside what is wanted; where and how to run is free.

    The graph's name changes with the folder's layout.
    """
    odd: dict[str, Any] = {}
    given = found if isinstance(found, dict) else {}
    extra = dict.fromkeys(given) if place.startswith("model.") else {}
    for key, value in {**extra, **wanted}.items():
        if isinstance(value, dict) and key not in _GENAI_FREE:
            odd |= _different(value, given.get(key), f"{place}{key}.")
        elif given.get(key) != value and key not in _GENAI_FREE:
            odd[f"{place}{key}"] = given.get(key)
    return odd


def onnx_graph(model: ir.Model) -> onnx.GraphProto:
    """The graph of a built model, its weights left out."""
    proto = onnx.GraphProto()
    proto.node.extend(ir.to_proto(node) for node in model.graph)
    proto.input.extend(ir.to_proto(value) for value in model.graph.inputs)
    proto.output.extend(ir.to_proto(value) for value in model.graph.outputs)
    return proto
