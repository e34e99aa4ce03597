"""A plan for every tensor of a GGUF file, from the headers of a checkpoint and the layout of its architecture."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from converters.gguf.carriers import Fill
from converters.gguf.container import TensorInfo, block_size
from converters.gguf.layouts import Halves, Layout
from converters.gguf.native import gguf
from converters.gguf.parts import Part, one_more
from converters.gguf.weights import Constants, Piece, Planned, Rows, SafetensorsSource, Stored, same_numbers
from longrope.checkpoint import DERIVED
from longrope.errors import UnsupportedError
from longrope.reading import printable

LAYER = re.compile(r"(?:model\.layers|transformer\.h|gpt_neox\.layers)\.(\d+)\.(.+)")
HEAD = "lm_head.weight"
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
# Routers decide between experts by small differences; llama.cpp keeps them in float32.
_ALWAYS_F32 = ("ffn_gate_inp", "ssm_conv1d")
# Heads that predict more than the next token; transformers ignores them, too.
_NOT_READ = "mtp."


def has_own_head(source: SafetensorsSource, layout: Layout) -> bool:
    """Whether a checkpoint holds an output matrix that is not a copy of its embedding."""
    embedding = next(name for name, place in layout.outer.items() if place == "token_embd") + ".weight"
    names = source.tensors.keys()
    return HEAD in names and embedding in names and not same_numbers(source[HEAD], source[embedding])


@dataclass(frozen=True)
class Place:
    """Where (a part of) a source tensor goes.

    Args:
        name: of the tensor in the file.
        expert: its place in a stack of experts; None for a tensor that is no expert's.
        half: 0 or 1 for the upper or lower rows; None for all.
        part: how the rows are arranged; None where a name is all that changes.
    """

    name: str
    expert: int | None = None
    half: int | None = None
    part: Part | None = None


@dataclass(frozen=True)
class TensorPlanner:
    """Plans the tensors of one checkpoint.

    Args:
        architecture: llama.cpp's name, for messages.
        layout: of that architecture.
        matrix_type: ggml type of matrices.
        heads: number of heads of the tensors whose rows are interleaved, by module name within a layer.
        head: where the output matrix comes from: "own" for the checkpoint's, "" for none in the file (it is the
            embedding's), "embedding" for a copy of that.
        config: of the checkpoint, with current names.
    """

    architecture: str
    layout: Layout
    matrix_type: int
    heads: Mapping[str, int]
    head: Literal["own", "embedding", ""]
    config: Mapping[str, Any]

    def plan(self, source: SafetensorsSource) -> tuple[Planned, ...]:
        """A plan for every weight, in the file's order. Raises UnsupportedError for one that has no place."""
        parts: dict[str, list[tuple[Place, str]]] = {}
        for name in sorted(filter(self._kept, source.tensors), key=_file_order):
            for place in self._places(name):
                parts.setdefault(place.name, []).append((place, name))
        return tuple(self._planned(name, members, source) for name, members in parts.items())

    def filled(self, fills: Iterable[Fill]) -> tuple[Planned, ...]:
        """A plan for every tensor that is one number throughout."""
        fills = tuple(fills)
        source = Constants({fill.name: (fill.number, fill.shape) for fill in fills})
        return tuple(
            Planned(
                TensorInfo(fill.name, fill.shape, self._type_for(fill.name, fill.shape)), (Piece(fill.name),), source
            )
            for fill in fills
        )

    def scalars(self, source: SafetensorsSource) -> dict[str, list[float]]:
        """Metadata arrays over the layers that transformers keep as tensors."""
        found: dict[str, list[float]] = {}
        for name in sorted(source.tensors, key=_file_order):
            layer = LAYER.fullmatch(name)
            if layer and layer[2] in self.layout.scalars:
                found.setdefault(self.layout.scalars[layer[2]], []).append(source[name].scalar)
        return found

    def _kept(self, name: str) -> bool:
        layer = LAYER.fullmatch(name)
        scalar = layer is not None and layer[2] in self.layout.scalars
        tied = self.head != "own" and name == HEAD
        return not (scalar or tied or DERIVED.fullmatch(name) or name.startswith(_NOT_READ))

    def _places(self, name: str) -> Iterator[Place]:
        whole = LAYER.fullmatch(name)
        if whole and (parts := self.layout.parts.get(whole[2])):
            yield from (Place(f"blk.{whole[1]}.{part.name}", part=part) for part in parts)
            return
        module, _, suffix = name.rpartition(".")
        layer, expert = LAYER.fullmatch(module), _EXPERT.search(module)
        inner = _EXPERT.sub(".experts.*.", layer[2]) if layer else ""
        target = self.layout.layer.get(inner) if layer else self.layout.outer.get(module)
        if target is None or suffix not in ("weight", "bias"):
            raise UnsupportedError(
                f"llama.cpp's {self.architecture} has no place for the weight {printable(name)}, which is no part of the "
                "network that it computes. Remove it if the model works without it, or export to HF"
            )
        prefix = f"blk.{layer[1]}." if layer else ""
        if isinstance(target, Halves):
            yield Place(f"{prefix}{target.upper}.{suffix}", half=0)
            yield Place(f"{prefix}{target.lower}.{suffix}", half=1)
        else:
            yield Place(f"{prefix}{target}.{suffix}", int(expert[1]) if expert else None)
        if target == "token_embd" and self.head == "embedding":
            yield Place("output.weight")

    def _planned(self, name: str, members: list[tuple[Place, str]], source: SafetensorsSource) -> Planned:
        members = sorted(members, key=lambda member: member[0].expert or 0)
        place, first = members[0]
        shape = self._shape(source[first], place, len(members))
        pieces = tuple(piece for place, origin in members for piece in self._pieces(place, origin, source[origin]))
        return Planned(TensorInfo(name, shape, self._type_for(name, shape)), pieces, source)

    def _pieces(self, place: Place, origin: str, stored: Stored) -> Iterator[Piece]:
        if place.part is not None:
            yield from self._arranged(place.part, origin, stored)
            return
        if place.half is None:
            offset = self.layout.norm_plus_one and "norm" in place.name and "ssm_norm" not in place.name
            change = partial(_with_config, one_more, self.config) if offset else None
            yield Piece(origin, heads=self.heads.get(_module(place.name), 0), change=change)
            return
        rows = stored.shape[-2] // 2
        for expert in range(stored.shape[0] if len(stored.shape) == 3 else 1):
            yield Piece(origin, first=(2 * expert + place.half) * rows, count=rows)

    def _arranged(self, part: Part, origin: str, stored: Stored) -> Iterator[Piece]:
        arrange, change = (
            function and partial(_with_config, function, self.config) for function in (part.arrange, part.change)
        )
        if not part.stacked:
            yield Piece(origin, arrange=arrange, change=change)
            return
        rows = stored.shape[-2]
        for expert in range(stored.shape[0]):
            yield Piece(origin, first=expert * rows, count=rows, arrange=arrange, change=change)

    def _shape(self, stored: Stored, place: Place, count: int) -> tuple[int, ...]:
        if place.part is not None:
            return self._arranged_shape(place.part, stored)
        if place.expert is not None:
            return (count, *stored.shape)
        if place.half is not None:
            return (*stored.shape[:-2], stored.shape[-2] // 2, stored.shape[-1])
        return stored.shape

    def _arranged_shape(self, part: Part, stored: Stored) -> tuple[int, ...]:
        if len(stored.shape) < 2:
            return stored.shape
        rows = stored.shape[-2] if part.stacked else stored.rows.shape[0]
        blank = np.broadcast_to(np.uint8(0), (rows, stored.shape[-1]))
        shape = part.arrange(blank, self.config).shape if part.arrange else blank.shape
        return (stored.shape[0], *shape) if part.stacked else shape

    def _type_for(self, name: str, shape: tuple[int, ...]) -> int:
        """Matrices get the wanted type; vectors stay float32, and rows that do not fit its blocks become float16."""
        types = gguf.GGMLQuantizationType
        if len(shape) < 2 or name.endswith(".bias") or _module(name) in _ALWAYS_F32:
            return int(types.F32)
        fits = shape[-1] % block_size(self.matrix_type)[0] == 0
        return self.matrix_type if fits else int(types.F16)


def _with_config(function: Callable[[Rows, Mapping[str, Any]], Rows], config: Mapping[str, Any], rows: Rows) -> Rows:
    return function(rows, config)


def _module(name: str) -> str:
    """`blk.3.attn_q.weight` → `attn_q`."""
    return name.split(".")[-2]


def _file_order(name: str) -> tuple[int, str]:
    """Embedding first, then layer by layer, then what follows the layers."""
    layer = LAYER.fullmatch(name)
    if layer:
        return int(layer[1]) + 1, name
    return (0, name) if "embed" in name else (1 << 30, name)
