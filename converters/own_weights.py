"""The numbers that an artifact's weights stand for, under the names of the checkpoint that it was made from.

    artifact ──dequantized──► matrix, vector … ──OwnWeights.put──► the checkpoint's tensors ──build_model──► its own reference

What such a model and the artifact's runtime differ in is a fault of the runtime or of the graph: both have the same
weights. What it and the original differ in is what rounding the weights costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrope.checkpoint import Checkpoint
from longrope.errors import UnsupportedError
from longrope.reading import said_by

Array = NDArray[Any]


@dataclass(frozen=True)
class WeightKind:
    """What an artifact's weight type does.

    Args:
        name: the coarsest type of its weights, as the format calls it.
        rounded: whether its weights are other numbers than the reference's.
        arithmetic: what its runtime computes products in: "same" is the reference's own runtime and type.
    """

    name: str
    rounded: bool
    arithmetic: str


class OwnWeights:
    """A checkpoint's tensors, exchanged one by one or in parts.

    Args:
        checkpoint: whose names and shapes they have.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._files = {name: file for file, header in checkpoint.weight_headers.items() for name in header}
        self._shapes = {
            name: entry["shape"] for header in checkpoint.weight_headers.values() for name, entry in header.items()
        }
        self._arrays: dict[str, Array] = {}
        self._set: dict[str, NDArray[np.bool_]] = {}

    def put(self, name: str, place: slice | NDArray[np.intp], values: Array) -> None:
        """Set (a part of) a tensor.

        Args:
            name: of the tensor in the checkpoint's files.
            place: where in the tensor, counted through all its dimensions.
            values: the numbers, as many as there are places.

        Raises:
            UnsupportedError: that part is set already, to other numbers: the artifact holds the tensor twice.
        """
        array, known = self._tensor(name)
        flat = values.reshape(-1)
        if known[place].any() and not np.array_equal(array[place], flat):
            raise UnsupportedError(f"the artifact holds {name} twice, rounded in two ways, and the model has it once")
        array[place] = flat
        known[place] = True

    def tensors(self) -> dict[str, Any]:
        """All of the checkpoint's tensors: those that were set in float32, the others as they are in its files."""
        import torch

        return {
            name: torch.from_numpy(self._arrays[name]).reshape(self._shapes[name])
            if name in self._arrays
            else self._stored(name)
            for name in self._files
        }

    def _tensor(self, name: str) -> tuple[Array, NDArray[np.bool_]]:
        if name not in self._arrays:
            self._arrays[name] = np.array(self._stored(name).float().numpy()).reshape(-1)
            self._set[name] = np.zeros(self._arrays[name].shape, np.bool_)
        return self._arrays[name], self._set[name]

    def _stored(self, name: str) -> Any:
        from safetensors import safe_open

        file = self._files[name]
        with said_by("safetensors", str(file)), safe_open(file, "pt") as opened:
            return opened.get_tensor(name)


def undone(name: str, change: Any, original: Array, stored: Array) -> Array:
    """The numbers that `change` turned into what is stored.

    Args:
        name: for messages.
        change: what an export did with the tensor, in float32; one with a method `undo` can be undone.
        original: the tensor of the checkpoint.
        stored: what the artifact holds.

    Raises:
        UnsupportedError: they are not the checkpoint's, and the change cannot be undone.
    """
    if change is None:
        return stored
    if hasattr(change, "undo"):
        undo: Array = change.undo(stored)
        return undo
    if np.array_equal(np.asarray(change(original), dtype=np.float32), stored):
        return original
    raise UnsupportedError(f"{name} was changed for this format in a way that cannot be undone")


def tensors_of(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """A folder's own tensors by their name in the model."""
    own, names = OwnWeights(checkpoint), checkpoint.weight_names
    return {names[name]: tensor for name, tensor in own.tensors().items()}
