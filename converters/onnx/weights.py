"""A checkpoint's tensors, read one at a time, as the initializers of a graph.

Nothing is kept: a tensor is read from its safetensors file when its bytes are written to the artifact, so the peak
memory of an export is that of its largest tensor, whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from longrope.checkpoint import DERIVED, Checkpoint
from longrope.errors import InputError, UnsupportedError
from longrope.weights import safetensors_header

Array = NDArray[Any]
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies, its safetensors type and its shape."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]

    def read(self) -> Array:
        """The tensor in float32."""
        with safe_open(self.file, "pt") as file:  # numpy has no bfloat16
            array: Array = file.get_tensor(self.name).float().numpy()
        return array


@dataclass(frozen=True)
class Stack:
    """Matrices of a checkpoint taken as one: their names, and the shape of the whole."""

    names: tuple[str, ...]
    rows: int
    columns: int


class Weights:
    """The tensors of a checkpoint by name; remembers which were asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.name = checkpoint.name
        names = checkpoint.weight_names
        self.entries = {names[name]: entry for file in checkpoint.weight_files for name, entry in _entries(file)}
        self._used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def entry(self, name: str, shape: tuple[int, ...] | None = None) -> Entry:
        """A tensor's place.

        Raises:
            InputError: there is no such tensor, or it has another shape.
            UnsupportedError: its type is not a float type.
        """
        found = self.entries.get(name)
        if found is None:
            raise InputError(f"{self.name}: weight {name} is missing")
        if shape is not None and found.shape != shape:
            raise InputError(f"{self.name}: {name}: expected shape {list(shape)}, got {list(found.shape)}")
        if found.dtype not in FLOATS:
            raise UnsupportedError(f"{self.name}: {name}: expected a float type, got {found.dtype} (quantized weights)")
        self._used.add(name)
        return found

    def stack(self, names: Sequence[str]) -> Stack:
        """Matrices of equal width, one below the other. Raises InputError when they are not."""
        shapes = [self.entry(name).shape for name in names]
        if any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes):
            raise InputError(f"{self.name}: {', '.join(names)}: expected matrices of equal width, got {shapes}")
        return Stack(tuple(names), sum(shape[0] for shape in shapes), shapes[0][1])

    def reader(self, names: Sequence[str], change: Callable[[Array], Array], dtype: Any) -> Callable[[], Array]:
        """A function that reads tensors, one below the other, changes them in float32 and rounds them to `dtype`.

        The function raises UnsupportedError when a weight does not fit the type.
        """
        entries = [self.entry(name) for name in names]

        def read() -> Array:
            parts = [entry.read() for entry in entries]
            wide = np.ascontiguousarray(change(parts[0] if len(parts) == 1 else np.concatenate(parts)))
            with np.errstate(over="ignore"):
                found = wide.astype(dtype, copy=False)
            if found.dtype != wide.dtype and not np.isfinite(found.astype(np.float32)).all():
                what = f"{self.name}: {names[0]} has weights beyond what {np.dtype(dtype)} holds"
                raise UnsupportedError(f"{what}; use f32")
            return found

        return read

    def refuse_unused(self, but: tuple[str, ...] = ()) -> None:
        """Raise UnsupportedError when the checkpoint has weights that nothing has asked for.

        A tensor that the graph does not use is a part of the model that the graph does not have.
        """
        unused = sorted(set(self.entries) - self._used - set(but))
        unknown = [name for name in unused if not DERIVED.fullmatch(name)]
        if unknown:
            raise UnsupportedError(
                f"{self.name}: {len(unknown)} weights have no place in the ONNX graph of this model type, the first is "
                f"{unknown[0]}; the model is not what its config.json says"
            )


def _entries(file: Path) -> Iterator[tuple[str, Entry]]:
    for name, item in safetensors_header(file).items():
        yield name, Entry(file, name, item["dtype"], tuple(item["shape"]))
