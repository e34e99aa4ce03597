"""Read an ONNX artifact without its weights: graph, factors, metadata, and where the external data lies."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import numpy_helper

from converters.onnx import rope_graph
from converters.onnx.export import METADATA_FACTORS, METADATA_OPTIONS, METADATA_OUTTYPE
from converters.onnx.names import MODEL_FILE, locate
from converters.onnx.options import PRECISIONS, OnnxOptions
from longrope.errors import InputError
from longrope.factors import RescaleFactors
from longrope.reading import one_line, parsed_json, refuse_pointer

Array = NDArray[Any]


@dataclass(frozen=True)
class External:
    """The place of an initializer's bytes outside the model file, as the file says it, unchecked."""

    tensor: str
    location: str
    offset: int
    length: int
    expected_length: int


class OnnxFile:
    """A parsed model.onnx.

    Raises:
        InputError: no such file, or not an ONNX model.
    """

    def __init__(self, path: Path) -> None:
        found = locate(path)
        if found is None:
            raise InputError(f"{path}: expected an ONNX model or a folder with {MODEL_FILE}, found none")
        self.path = found
        with found.open("rb") as file:
            refuse_pointer(file.read(128), str(found))
        try:
            self.proto = onnx.load(found, load_external_data=False)
        except Exception as error:  # noqa: BLE001  protobuf's DecodeError, or ValueError from its accelerated decoder
            raise InputError(f"{found}: truncated or not an ONNX model ({one_line(error)})") from None
        if not self.proto.graph.node:
            raise InputError(f"{found}: not an ONNX model: it has no graph")
        if not _strings_are_text(self.proto):
            raise InputError(f"{found}: damaged: a name in it is not UTF-8 text")
        self.places = [self._place(tensor) for tensor in self.proto.graph.initializer if _is_external(tensor)]

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        return list(self.proto.graph.node)

    @cached_property
    def initializers(self) -> dict[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self.proto.graph.initializer}

    @cached_property
    def producers(self) -> dict[str, onnx.NodeProto]:
        """The node that computes each value."""
        return {output: node for node in self.proto.graph.node for output in node.output}

    @cached_property
    def metadata(self) -> dict[str, str]:
        return {entry.key: entry.value for entry in self.proto.metadata_props}

    @property
    def opset(self) -> int | None:
        """The version of ONNX's own operators."""
        return next((item.version for item in self.proto.opset_import if item.domain == ""), None)

    def array(self, name: str) -> Array | None:
        """An initializer that lies in the model file; None when there is none of that name."""
        tensor = self.initializers.get(name)
        if tensor is None or _is_external(tensor):
            return None
        try:
            array: Array = numpy_helper.to_array(tensor)
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.path}: damaged: initializer {name} cannot be read ({error})") from None
        return array

    def _place(self, tensor: onnx.TensorProto) -> External:
        facts = {item.key: item.value for item in tensor.external_data}
        size = math.prod(tensor.dims) * _bits(tensor.data_type) // 8
        try:
            offset, length = int(facts.get("offset", 0)), int(facts.get("length", size))
        except ValueError:
            raise InputError(f"{self.path}: damaged: the place of {tensor.name} is not a number") from None
        return External(tensor.name, facts.get("location", ""), offset, length, size)

    def external_array(self, place: External) -> Array:
        """The values of an initializer outside the model file."""
        tensor = self.initializers[place.tensor]
        with (self.path.parent / place.location).open("rb") as file:
            file.seek(place.offset)
            data = file.read(place.length)
        return np.frombuffer(data, ir.DataType(tensor.data_type).numpy()).reshape(tuple(tensor.dims))

    @property
    def outtype(self) -> str:
        """The weight type it was written with; f32 when the metadata do not say. Raises InputError for an unknown one."""
        name = self.metadata.get(METADATA_OUTTYPE, "f32")
        if name not in PRECISIONS:
            raise InputError(
                f"{self.path}: metadata {METADATA_OUTTYPE}: expected {', '.join(PRECISIONS)}, got {name!r}"
            )
        return name

    @property
    def options(self) -> OnnxOptions:
        """The options it was written with. Raises InputError when the metadata are broken."""
        data = self._json(METADATA_OPTIONS)
        return OnnxOptions.of(data if isinstance(data, dict) else {})

    @cached_property
    def stored_factors(self) -> RescaleFactors | None:
        """The factors that the metadata hold; None without."""
        data = self._json(METADATA_FACTORS)
        return None if data is None else RescaleFactors.from_json(data, source=f"{self.path}: {METADATA_FACTORS}")

    def _json(self, key: str) -> Any:
        text = self.metadata.get(key)
        return None if text is None else parsed_json(text, f"{self.path}: metadata {key}", non_finite=True)

    def factors(self) -> RescaleFactors | None:
        """The factors the graph computes with, and from the metadata only what no initializer says; None if none."""
        sets = {name: self.array(name) for name in (rope_graph.SHORT, rope_graph.LONG)}
        if any(values is None for values in sets.values()):
            return None
        short, long = (tuple(map(float, np.ravel(values))) for values in sets.values() if values is not None)
        stored = self.stored_factors or RescaleFactors(short_factor=short, long_factor=long)
        original = self._number(rope_graph.ORIGINAL)
        return dataclasses.replace(
            stored,
            short_factor=short,
            long_factor=long,
            n_hat=int(self._number(rope_graph.N_HAT) or 0),
            original_max_position_embeddings=stored.original_max_position_embeddings
            if original is None
            else int(original),
            attention_factor=self._attention_factor(stored),
        )

    def _attention_factor(self, stored: RescaleFactors) -> float | None:
        """The graph's number; None where it is the formula's and the metadata leave it to the formula."""
        actual = self._number(rope_graph.ATTENTION_FACTOR)
        by_formula = stored.attention_factor is None and actual == stored.formula_attention_factor
        return None if by_formula else actual

    def _number(self, name: str) -> float | None:
        array = self.array(name)
        return None if array is None else float(array.reshape(-1)[0])


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _strings_are_text(message: Any) -> bool:
    """Protobuf gives bytes where a string field is not UTF-8."""
    for field, value in message.ListFields():
        items = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
        if field.type == field.TYPE_MESSAGE and not all(map(_strings_are_text, items)):
            return False
        if field.type == field.TYPE_STRING and not all(isinstance(item, str) for item in items):
            return False
    return True


def _bits(data_type: int) -> int:
    try:
        return int(ir.DataType(data_type).itemsize * 8)
    except (ValueError, TypeError):  # a type that does not exist, or one of no fixed size
        return 0


def _type_of(tensor: onnx.TensorProto) -> str:
    return str(onnx.TensorProto.DataType.Name(tensor.data_type)).lower()


def describe(file: OnnxFile) -> dict[str, Any]:
    """Facts for `inspect`."""
    proto, places, stored = file.proto, file.places, file.stored_factors
    return {
        "architecture": proto.graph.name,
        "bytes": file.path.stat().st_size + sum(place.length for place in places),
        "producer": f"{proto.producer_name} {proto.producer_version}".strip(),
        "opset": {item.domain or "ai.onnx": item.version for item in proto.opset_import},
        "nodes": len(proto.graph.node),
        "weights": sorted({_type_of(file.initializers[place.tensor]) for place in places}),
        "tensor_types": dict(Counter(_type_of(file.initializers[place.tensor]) for place in places)),
        "weight_bytes": sum(place.length for place in places),
        "files": sorted({file.path.name, *(place.location for place in places)}),
        "inputs": [value.name for value in proto.graph.input if "past_key_values" not in value.name],
        "metadata": {key: value for key, value in file.metadata.items() if key != METADATA_FACTORS},
        "factors_from": {"method": stored.method, **stored.provenance} if stored else {},
    }
