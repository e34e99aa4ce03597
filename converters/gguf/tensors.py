"""Which tensors a GGUF file of a checkpoint will have, and which rows of which source tensors each is made of.

model.layers.3.self_attn.q_proj.weight ──layout──► blk.3.attn_q.weight, rows interleaved by head
…experts.0.w1, experts.1.w1, …         ──layout──► ffn_gate_exps, stacked
…input_linear (gate above up)          ──layout──► ffn_gate_exps and ffn_up_exps, halves
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from converters.gguf.container import TensorInfo, block_size
from converters.gguf.layouts import Halves, Layout
from converters.gguf.library import gguf_library
from converters.gguf.weights import Piece, Planned, SafetensorsSource, Stored
from longrope.checkpoint import DERIVED
from longrope.errors import UnsupportedError

LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
# Routers decide between experts by small differences; llama.cpp keeps them in float32.
_ALWAYS_F32 = ("ffn_gate_inp",)


@dataclass(frozen=True)
class Place:
    """Where (a part of) a source tensor goes.

    Args:
        name: of the tensor in the file.
        expert: its place in a stack of experts; None for a tensor that is no expert's.
        half: 0 or 1 for the upper or lower rows; None for all.
    """

    name: str
    expert: int | None = None
    half: int | None = None


@dataclass(frozen=True)
class TensorPlanner:
    """Plans the tensors of one checkpoint.

    Args:
        architecture: llama.cpp's name, for messages.
        layout: of that architecture.
        matrix_type: ggml type of matrices.
        heads: number of heads of the tensors whose rows are interleaved, by module name within a layer.
        tied: the output matrix is the embedding's; a copy in the checkpoint is left out.
    """

    architecture: str
    layout: Layout
    matrix_type: int
    heads: Mapping[str, int]
    tied: bool

    def plan(self, source: SafetensorsSource) -> tuple[Planned, ...]:
        """A plan for every weight, in the file's order. Raises UnsupportedError for one that has no place."""
        parts: dict[str, list[tuple[Place, str]]] = {}
        for name in sorted(filter(self._kept, source.tensors), key=_file_order):
            for place in self._places(name):
                parts.setdefault(place.name, []).append((place, name))
        return tuple(self._planned(name, members, source) for name, members in parts.items())

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
        return not (scalar or (self.tied and name == "lm_head.weight") or DERIVED.fullmatch(name))

    def _places(self, name: str) -> Iterator[Place]:
        module, _, suffix = name.rpartition(".")
        layer, expert = LAYER.fullmatch(module), _EXPERT.search(module)
        inner = _EXPERT.sub(".experts.*.", layer[2]) if layer else ""
        target = self.layout.layer.get(inner) if layer else self.layout.outer.get(module)
        if target is None or suffix not in ("weight", "bias"):
            raise UnsupportedError(
                f"llama.cpp's {self.architecture} has no place for the weight {name}; export to HF or ONNX instead"
            )
        prefix = f"blk.{layer[1]}." if layer else ""
        if isinstance(target, Halves):
            yield Place(f"{prefix}{target.upper}.{suffix}", half=0)
            yield Place(f"{prefix}{target.lower}.{suffix}", half=1)
        else:
            yield Place(f"{prefix}{target}.{suffix}", int(expert[1]) if expert else None)

    def _planned(self, name: str, members: list[tuple[Place, str]], source: SafetensorsSource) -> Planned:
        members = sorted(members, key=lambda member: member[0].expert or 0)
        place, first = members[0]
        shape = _shape(source[first], place, len(members))
        pieces = tuple(piece for place, origin in members for piece in self._pieces(place, origin, source[origin]))
        return Planned(TensorInfo(name, shape, self._type_for(name, shape)), pieces, source)

    def _pieces(self, place: Place, origin: str, stored: Stored) -> Iterator[Piece]:
        if place.half is None:
            yield Piece(origin, heads=self.heads.get(_module(place.name), 0))
            return
        rows = stored.shape[-2] // 2
        for expert in range(stored.shape[0] if len(stored.shape) == 3 else 1):
            yield Piece(origin, first=(2 * expert + place.half) * rows, count=rows)

    def _type_for(self, name: str, shape: tuple[int, ...]) -> int:
        """Matrices get the wanted type; vectors stay float32, and rows that do not fit its blocks become float16."""
        types = gguf_library().GGMLQuantizationType
        if len(shape) < 2 or _module(name) in _ALWAYS_F32:
            return int(types.F32)
        fits = shape[-1] % block_size(self.matrix_type)[0] == 0
        return self.matrix_type if fits else int(types.F16)


def _shape(stored: Stored, place: Place, count: int) -> tuple[int, ...]:
    if place.expert is not None:
        return (count, *stored.shape)
    if place.half is not None:
        return (*stored.shape[:-2], stored.shape[-2] // 2, stored.shape[-1])
    return stored.shape


def _module(name: str) -> str:
    """`blk.3.attn_q.weight` → `attn_q`."""
    return name.split(".")[-2]


def _file_order(name: str) -> tuple[int, str]:
    """Embedding first, then layer by layer, then what follows the layers."""
    layer = LAYER.fullmatch(name)
    if layer:
        return int(layer[1]) + 1, name
    return (0, name) if "embed" in name else (1 << 30, name)
