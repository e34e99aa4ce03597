"""A checkpoint's tensors, read one at a time, as the initializers of a graph.

Nothing is kept: a tensor is read from its safetensors file when its bytes are written to the artifact, so the peak
memory of an export is that of its largest tensor, whatever the model's size. A part of a stacked tensor (one expert's
matrix) is an entry like any other, under a name of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from longrope.checkpoint import DERIVED, Checkpoint
from longrope.errors import InputError, UnsupportedError
from longrope.reading import said_by
from longrope.weights import refuse_non_finite, safetensors_header

Array = NDArray[Any]
Replacements = Sequence[tuple[str, str]]
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Part:
    """What to take of a stacked tensor: its `index`-th matrix [out, in] (or vector), of that rows `start`, + `step`, ….

    Args:
        transposed: the matrix lies as [in, out].
    """

    index: int
    start: int = 0
    stop: int | None = None
    step: int = 1
    transposed: bool = False

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop, self.step)


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies, its safetensors type and its shape; `part` where it is a part of what lies there, `whole`."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    part: Part | None = None
    whole: tuple[int, ...] = ()

    def read(self) -> Array:
        """The tensor in float32."""
        with said_by("safetensors", str(self.file)), safe_open(self.file, "pt") as file:  # numpy has no bfloat16
            if self.part is None:
                array: Array = file.get_tensor(self.name).float().numpy()
                return array
            whole: Array = file.get_slice(self.name)[self.part.index].float().numpy()
        return (whole.T if self.part.transposed else whole)[self.part.rows]

    def taken(self, part: Part) -> Entry:
        """The entry of a part of this tensor."""
        inner = self.shape[1:]
        rows, *columns = reversed(inner) if part.transposed else inner
        shape = (len(range(rows)[part.rows]), *columns)
        return dataclasses.replace(self, shape=shape, part=part, whole=self.shape)


@dataclass(frozen=True)
class Stack:
    """Matrices of a checkpoint taken as one: their names, and the shape of the whole."""

    names: tuple[str, ...]
    rows: int
    columns: int


class Change(Protocol):
    """What becomes of a tensor, in float32."""

    def __call__(self, array: Array) -> Array: ...


@dataclass(frozen=True)
class Plus:
    """Norms that are stored as offsets from a number."""

    number: float

    def __call__(self, array: Array) -> Array:
        return np.asarray(array + array.dtype.type(self.number))

    def undo(self, array: Array) -> Array:
        """What was stored."""
        return np.asarray(array - array.dtype.type(self.number))


@dataclass(frozen=True)
class Transposed:
    """Matrices that are multiplied from the left."""

    def __call__(self, array: Array) -> Array:
        return array.T

    def undo(self, array: Array) -> Array:
        """What was stored."""
        return array.T


@dataclass(frozen=True)
class Reader:
    """The values of an initializer, read when they are asked for.

    Args:
        model: whose, for messages.
        names: of the tensors that it is made of, one below the other.
        entries: where they lie.
        change: what becomes of them in float32; None for the same.
        dtype: numpy's type that they are rounded to.
    """

    model: str
    names: tuple[str, ...]
    entries: tuple[Entry, ...]
    change: Change | None
    dtype: Any

    def original(self) -> Array:
        """The tensors in float32, unchanged."""
        parts = [entry.read() for entry in self.entries]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def __call__(self) -> Array:
        """The values. Raises UnsupportedError when a weight does not fit the type."""
        original = self.original()
        wide = np.asarray(self.change(original) if self.change else original, order="C")
        refuse_non_finite(wide, "F32", f"{self.model}: {self.names[0]}")
        with np.errstate(over="ignore"):
            found = wide.astype(self.dtype, copy=False)
        if found.dtype != wide.dtype and not np.isfinite(found.astype(np.float32)).all():
            what = f"{self.model}: {self.names[0]} has weights beyond what {np.dtype(self.dtype)} holds"
            raise UnsupportedError(f"{what}; use f32")
        return found


class Weights:
    """The tensors of a checkpoint's text model by name; remembers which were asked for.

    Args:
        checkpoint: whose.
        names: what to replace in its names, in this order.
    """

    def __init__(self, checkpoint: Checkpoint, names: Replacements = ()) -> None:
        self.name = checkpoint.name
        stored = {name: entry for file in checkpoint.weight_files for name, entry in _entries(file)}
        text = {checkpoint.text_name(name): entry for name, entry in stored.items()}
        self.entries = {_renamed(name, names): entry for name, entry in text.items() if name is not None}
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

    def take(self, source: str, parts: Mapping[str, Part]) -> None:
        """Give parts of a stacked tensor names of their own; the tensor counts as asked for."""
        entry = self.entry(source)
        self.entries.update({name: entry.taken(part) for name, part in parts.items()})
        self._used.update(parts)

    def differ(self, first: str, second: str) -> bool:
        """Whether two tensors hold different numbers, or have different shapes."""
        one, other = self.entry(first), self.entry(second)
        return one.shape != other.shape or not np.array_equal(one.read(), other.read())

    def stack(self, names: Sequence[str]) -> Stack:
        """Matrices of equal width, one below the other. Raises InputError when they are not."""
        shapes = [self.entry(name).shape for name in names]
        if any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes):
            raise InputError(f"{self.name}: {', '.join(names)}: expected matrices of equal width, got {shapes}")
        return Stack(tuple(names), sum(shape[0] for shape in shapes), shapes[0][1])

    def reader(self, names: Sequence[str], change: Change | None, dtype: Any) -> Reader:
        """Reads tensors, one below the other, changes them in float32 (None: leaves them) and rounds them to `dtype`."""
        return Reader(self.name, tuple(names), tuple(self.entry(name) for name in names), change, dtype)

    def refuse_unused(self) -> None:
        """Raise UnsupportedError when the checkpoint has weights that nothing has asked for.

        A tensor that the graph does not use is a part of the model that the graph does not have.
        """
        unused = sorted(set(self.entries) - self._used)
        unknown = [name for name in unused if not DERIVED.fullmatch(name)]
        if unknown:
            raise UnsupportedError(
                f"{self.name}: {len(unknown)} weights have no place in the ONNX graph of this model type, the first is "
                f"{unknown[0]}. Remove them if the model works without them, or export to HF"
            )


def _renamed(name: str, replacements: Replacements) -> str:
    for old, new in replacements:
        name = name.replace(old, new)
    return name


def _entries(file: Path) -> Iterator[tuple[str, Entry]]:
    for name, item in safetensors_header(file).items():
        yield name, Entry(file, name, item["dtype"], tuple(item["shape"]))
