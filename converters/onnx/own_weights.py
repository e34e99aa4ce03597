"""The numbers that an ONNX artifact's weights stand for, under the names of the checkpoint: the export, backwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from converters.onnx.checks import external_data_check
from converters.onnx.export import OnnxExport
from converters.onnx.matrices import BlockPart
from converters.onnx.quantize import Quantized, dequantize
from converters.onnx.readback import OnnxFile
from converters.onnx.weights import Array, Entry, Reader
from converters.own_weights import OwnWeights, undone
from longrope.errors import InputError


def own_weights(path: Path, planned: OnnxExport) -> dict[str, Any]:
    """Every tensor of the checkpoint with the artifact's numbers.

    Raises:
        InputError: a weight is missing, or lies where it must not.
        UnsupportedError: a tied embedding is there twice, or numbers were changed past undoing.
    """
    file, own = OnnxFile(path), OwnWeights(planned.export.checkpoint)
    if (check := external_data_check(file)).status == "fail":
        raise InputError(check.message)
    for name, value in planned.model.graph.initializers.items():
        origin = value.const_value.meta.get("origin") if value.const_value is not None else None
        if isinstance(origin, Reader):
            _put(own, origin, undone(name, origin.change, origin.original(), _array(file, name).astype(np.float32)))
        elif isinstance(origin, BlockPart) and origin.part == "values":
            _put(own, origin.matrix, dequantize(_quantized(file, origin)))
    return own.tensors()


def _put(own: OwnWeights, origin: Reader, rows: Array) -> None:
    """Give the tensors that an initializer was made of their rows."""
    first = 0
    for entry in origin.entries:
        count = entry.shape[0] if entry.shape else 1
        own.put(entry.name, _place(entry), rows.reshape(-1, *entry.shape[1:])[first : first + count])
        first += count


def _place(entry: Entry) -> Any:
    """Where an entry's numbers lie in the tensor that it is (a part of)."""
    if entry.part is None:
        return slice(None)
    places = np.arange(np.prod(entry.whole)).reshape(entry.whole)[entry.part.index]
    return (places.T if entry.part.transposed else places)[entry.part.rows].reshape(-1)


def _quantized(file: OnnxFile, origin: BlockPart) -> Quantized:
    values, scales, zero_points = (
        _array(file, f"{origin.weight}.{part}") for part in ("values", "scales", "zero_points")
    )
    return Quantized(values, scales, zero_points, origin.bits, origin.columns)


def _array(file: OnnxFile, name: str) -> Array:
    place = next((place for place in file.places if place.tensor == name), None)
    found = file.array(name) if place is None else file.external_array(place)
    if found is None:
        raise InputError(f"the weight {name} is missing")
    return found
