"""Everything a GGUF file will hold, worked out from headers alone: metadata and a plan for every tensor.

The writer follows the blueprint; the static checks compare a finished file with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import longrope
from converters.gguf.container import Content, Kind, TensorInfo, Value, array, f32, text, u32
from converters.gguf.layouts import COMMON_KEYS, LAYOUTS, Key, Layout
from converters.gguf.library import gguf_library
from converters.gguf.metadata import conventional_name, general_values
from converters.gguf.options import GgufOptions
from converters.gguf.outtypes import DEFAULT, OUTTYPES, OutType
from converters.gguf.target import FACTORS_KEY, OWN_PREFIX, Target, target_of
from converters.gguf.tensors import TensorPlanner
from converters.gguf.tokenizer import vocabulary_of
from converters.gguf.vocabulary import Vocabulary
from converters.gguf.weights import Planned, SafetensorsSource
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError
from longrope.factors import BoundFactors
from longrope.hf_config import rope_parameters

EMBEDDING = "token_embd.weight"


@dataclass(frozen=True)
class Blueprint:
    """What goes into a file.

    Args:
        checkpoint, factors: what is exported.
        outtype: weight type.
        options: of the export.
    """

    checkpoint: Checkpoint
    factors: BoundFactors
    outtype: OutType = OUTTYPES[DEFAULT]
    options: GgufOptions = field(default_factory=GgufOptions)

    @cached_property
    def target(self) -> Target:
        """What the file is written as. Raises UnsupportedError when llama.cpp has nothing that takes the factors."""
        return target_of(self.checkpoint, self.factors, as_llama=self.options.as_llama)

    @property
    def file_name(self) -> str:
        """Of the file, when only a folder is given."""
        infos = [planned.info for planned in self.tensors]
        return conventional_name(self.checkpoint, self.outtype, infos, name=self.options.name)

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return self.target.architecture

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.architecture]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return vocabulary_of(self.checkpoint)

    def values(self) -> dict[str, Value]:
        """All metadata, in the file's order."""
        model = {f"{self.architecture}.{name}": value for name, value in self.model_values().items()}
        infos = [planned.info for planned in self.tensors]
        general = general_values(self.checkpoint, self.architecture, self.outtype, infos, name=self.options.name)
        return {**general, **model, **self.scalar_values(), **self.vocabulary.values, **self.own_values()}

    def model_values(self) -> dict[str, Value]:
        """Hyperparameters, by name without the architecture."""
        checkpoint, config = self.checkpoint, self.checkpoint.config
        found = {key.name: _value(key, config) for key in (*COMMON_KEYS, *self.layout.keys)}
        return {
            **{name: value for name, value in found.items() if value is not None},
            **_head_values(checkpoint),
            **self.rope_values(),
        }

    def rope_values(self) -> dict[str, Value]:
        """Lengths and rotary facts. `rope.scaling.factor` is left out on purpose: llama.cpp would apply it on top."""
        factors = self.factors
        kind = {"rope.scaling.type": text("longrope")} if self.target.rope == "sets" else {}
        return {
            "context_length": u32(factors.target),
            "rope.dimension_count": u32(self.checkpoint.rotary_dim),
            "rope.freq_base": f32(self.checkpoint.rope_theta),
            **kind,
            "rope.scaling.original_context_length": u32(factors.original),
            "rope.scaling.attn_factor": f32(factors.effective_attention_factor),
        }

    def scalar_values(self) -> dict[str, Value]:
        """Numbers that transformers keeps as tensors of each layer, as arrays over the layers."""
        return {name: array(Kind.FLOAT32, data) for name, data in self._planner.scalars(self._source).items()}

    def own_values(self) -> dict[str, Value]:
        """The whole factors.json, with where the factors come from, and what wrote the file."""
        return {
            OWN_PREFIX + "version": text(longrope.__version__),
            FACTORS_KEY: text(json.dumps(self.factors.to_json(), default=str)),
        }

    # -- tensors

    def contents(self) -> list[Content]:
        """All tensors in the file's order."""
        f32 = int(gguf_library().GGMLQuantizationType.F32)
        factors = [Content(TensorInfo(n, a.shape, f32), partial(iter, (a,))) for n, a in self.factor_arrays().items()]
        return [*factors, *(planned.content() for planned in self.tensors)]

    def factor_arrays(self) -> dict[str, NDArray[np.float32]]:
        """The factor tensors by name: both sets, or the one that serves every context."""
        return {name: np.array(self.factors.set(s), dtype=np.float32) for name, s in self.target.factor_tensors.items()}

    @cached_property
    def tensors(self) -> tuple[Planned, ...]:
        """A plan for every weight. Raises InputError when one is missing, UnsupportedError for one that has no place."""
        planned = self._planner.plan(self._source)
        self._check_complete({entry.info.name: entry.info for entry in planned})
        return planned

    @cached_property
    def _source(self) -> SafetensorsSource:
        return SafetensorsSource(self.checkpoint.weight_files)

    @property
    def _planner(self) -> TensorPlanner:
        config = self.checkpoint.config
        heads = {"attn_q": int(config["num_attention_heads"]), "attn_k": num_key_value_heads(config)}
        return TensorPlanner(
            self.architecture,
            self.layout,
            matrix_type=int(gguf_library().GGMLQuantizationType[self.outtype.matrix or self._lossless]),
            heads=heads if self.target.permute_qk else {},
            tied=self._tied,
        )

    @property
    def _lossless(self) -> str:
        """The float type that holds all source weights; llama.cpp quantizes from it."""
        dtypes = {stored.dtype for stored in self._source.tensors.values()}
        return dtypes.pop() if len(dtypes) == 1 else "F32"

    @property
    def _tied(self) -> bool:
        return bool(self.checkpoint.config.get("tie_word_embeddings"))

    def _check_complete(self, infos: Mapping[str, TensorInfo]) -> None:
        """Every layer has what one of them has, and the embedding fits the vocabulary."""
        per_layer = {name.split(".", 2)[2] for name in infos if name.startswith("blk.")}
        layers = range(int(self.checkpoint.config["num_hidden_layers"]))
        expected = {f"blk.{layer}.{name}" for layer in layers for name in per_layer} | {EMBEDDING, "output_norm.weight"}
        if not self._tied:
            expected.add("output.weight")
        expected |= {name for name in infos if not name.startswith("blk.")}
        odd = sorted(expected ^ set(infos))
        if odd:
            raise InputError(
                f"{self.checkpoint.name}: expected {len(expected)} weights, got {len(infos)}; "
                f"{odd[0]} is {'missing' if odd[0] in expected else 'beyond the last layer'}"
            )
        if infos[EMBEDDING].shape[0] != self.checkpoint.vocab_size:
            raise InputError(
                f"{self.checkpoint.name}: config.json says vocab_size {self.checkpoint.vocab_size}, "
                f"the embedding has {infos[EMBEDDING].shape[0]} rows"
            )


def num_key_value_heads(config: Mapping[str, Any]) -> int:
    """Heads of k and v: as many as of q when config.json is silent."""
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def _head_values(checkpoint: Checkpoint) -> dict[str, Value]:
    """Sizes of heads. Latent attention has one key head a query head, made of a turned and an unturned part."""
    config = checkpoint.config
    if "qk_rope_head_dim" in config:
        key, value = config["qk_nope_head_dim"] + config["qk_rope_head_dim"], config["v_head_dim"]
        kv_heads = int(config["num_attention_heads"])
    else:
        key, value, kv_heads = checkpoint.head_dim, checkpoint.head_dim, num_key_value_heads(config)
    return {
        "attention.head_count_kv": u32(kv_heads),
        "attention.key_length": u32(key),
        "attention.value_length": u32(value),
    }


def _value(key: Key, config: Mapping[str, Any]) -> Value | None:
    data = {**rope_parameters(config), **config}.get(key.field, key.default)
    return None if data is None else key.make(data)
