"""The numbers that a GGUF file's weights stand for, under the names of the checkpoint: the export's plan, backwards."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.gguf.blueprint import Blueprint
from converters.gguf.container import GgufFile, dequantize
from converters.gguf.weights import Filled, Floats, Piece, Planned, SafetensorsSource, Stored, as_float32
from converters.own_weights import OwnWeights, undone
from longrope.errors import InputError


def own_weights(file: GgufFile, blueprint: Blueprint) -> dict[str, Any]:
    """Every tensor of the checkpoint with the file's numbers.

    Args:
        file: the artifact.
        blueprint: what it must hold.

    Raises:
        InputError: a tensor is missing, has another shape, or is of a type that cannot be dequantized.
        UnsupportedError: the file holds a tied embedding twice, or numbers that were changed past undoing.
    """
    checkpoint = blueprint.model.checkpoint
    own, names = OwnWeights(checkpoint), {checkpoint.text_name(name): name for name in checkpoint.weight_names}
    for planned in blueprint.model.tensors:
        if isinstance(planned.source, SafetensorsSource):
            rows, first = _rows(file, planned), 0
            for piece, stored in zip(planned.pieces, planned.stored, strict=True):
                count = len(piece.rows(stored))
                values = _in_source_order(planned.info.name, piece, stored, rows[first : first + count])
                own.put(names[piece.source], _place(piece, stored), values)
                first += count
    return own.tensors()


def _rows(file: GgufFile, planned: Planned) -> Floats:
    """A tensor in float32, [rows, columns]."""
    info = planned.info
    if info.name not in file.tensors or file.tensors[info.name].shape != info.shape:
        raise InputError(f"{info.name} is missing or has another shape")
    rows = dequantize(np.ascontiguousarray(file.rows(info.name)), file.tensors[info.name].type)
    return rows.reshape(-1, info.shape[-1] if len(info.shape) > 1 else 1)


def _in_source_order(name: str, piece: Piece, stored: Stored | Filled, rows: Floats) -> Floats:
    """A piece's rows with the halves of heads apart again, and its numbers as they were."""
    if piece.heads:
        rows = rows.reshape(piece.heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
    if piece.change is None:
        return rows
    return undone(name, piece.change, as_float32(piece.rows(stored), stored.dtype), rows)


def _place(piece: Piece, stored: Stored | Filled) -> slice | NDArray[np.intp]:
    """Where a piece's numbers lie in the source's tensor."""
    columns = stored.rows.shape[1]
    first, end = piece.first * columns, math.prod(stored.rows.shape)
    if piece.count is not None:
        end = first + piece.count * columns
    if piece.arrange is None:
        return slice(first, end)
    places: NDArray[np.intp] = piece.arrange(np.arange(first, end).reshape(-1, columns)).reshape(-1)
    return places
