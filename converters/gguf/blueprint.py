"""Everything a GGUF file will hold, worked out from headers alone: metadata and a plan for every tensor.

The writer follows the blueprint; the static checks compare a finished file with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

import longrope
from converters.gguf.container import Content, TensorInfo, Value, block_size, f32, text, u32
from converters.gguf.layouts import COMMON_KEYS, LAYOUTS, Key, Layout
from converters.gguf.library import gguf_library
from converters.gguf.options import GgufOptions
from converters.gguf.tokenizer import Vocabulary, vocabulary_of
from converters.gguf.weights import Piece, Planned, SafetensorsSource
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError, UnsupportedError
from longrope.factors import FactorSet, RescaleFactors

LONG = "rope_factors_long.weight"
SHORT = "rope_factors_short.weight"
FREQS = "rope_freqs.weight"
FACTOR_TENSORS: Mapping[FactorSet, str] = {"long": LONG, "short": SHORT}
OWN_PREFIX = "longrope_export."
FACTORS_KEY = OWN_PREFIX + "factors"

# Our names of weight types: the ggml type of matrices, and the name of `general.file_type`.
OUTTYPES: Mapping[str, tuple[str, str]] = {
    "f16": ("F16", "MOSTLY_F16"),
    "f32": ("F32", "ALL_F32"),
    "bf16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_IGNORED = re.compile(r".*\.(inv_freq|masked_bias|attention\.bias)")


@dataclass(frozen=True)
class Blueprint:
    """What goes into a file.

    Args:
        checkpoint, factors: what is exported.
        outtype: a name of `OUTTYPES`.
        options: of the export.
    """

    checkpoint: Checkpoint
    factors: RescaleFactors
    outtype: str
    options: GgufOptions = field(default_factory=GgufOptions)

    @cached_property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture. Raises UnsupportedError when it has none that takes the factors."""
        row = self.checkpoint.architecture
        if row.gguf is None or row.gguf_rope is None:
            raise UnsupportedError(
                f"GGUF cannot hold rope factors for {row.model_type}: {row.note or 'llama.cpp has no such architecture'}. "
                "Export to HF or ONNX instead"
            )
        _refuse_other_networks(self.checkpoint, LAYOUTS[row.gguf])
        return row.gguf

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.architecture]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return vocabulary_of(self.checkpoint)

    def values(self) -> dict[str, Value]:
        """All metadata, in the file's order."""
        model = {f"{self.architecture}.{name}": value for name, value in self.model_values().items()}
        return {**self.general_values(), **model, **self.vocabulary.values(), **self.own_values()}

    def general_values(self) -> dict[str, Value]:
        """The `general.*` keys."""
        library = gguf_library()
        return {
            "general.architecture": text(self.architecture),
            "general.type": text("model"),
            "general.name": text(self.options.name or self.checkpoint.path.name),
            "general.file_type": u32(library.LlamaFileType[OUTTYPES[self.outtype][1]]),
            "general.quantization_version": u32(library.GGML_QUANT_VERSION),
        }

    def model_values(self) -> dict[str, Value]:
        """Hyperparameters, by name without the architecture."""
        checkpoint, config = self.checkpoint, self.checkpoint.config
        found = {key.name: _value(key, config) for key in (*COMMON_KEYS, *self.layout.keys)}
        return {
            **{name: value for name, value in found.items() if value is not None},
            "attention.head_count_kv": u32(num_key_value_heads(config)),
            "attention.key_length": u32(checkpoint.head_dim),
            "attention.value_length": u32(checkpoint.head_dim),
            **self.rope_values(),
        }

    def rope_values(self) -> dict[str, Value]:
        """Lengths and rotary facts. `rope.scaling.factor` is left out on purpose: llama.cpp would apply it on top."""
        factors = self.factors
        return {
            "context_length": u32(factors.target),
            "rope.dimension_count": u32(self.checkpoint.rotary_dim),
            "rope.freq_base": f32(self.checkpoint.rope_theta),
            "rope.scaling.type": text("longrope"),
            "rope.scaling.original_context_length": u32(factors.original),
            "rope.scaling.attn_factor": f32(factors.effective_attention_factor),
        }

    def own_values(self) -> dict[str, Value]:
        """The whole factors.json, with where the factors come from, and what wrote the file."""
        return {
            OWN_PREFIX + "version": text(longrope.__version__),
            FACTORS_KEY: text(json.dumps(self.factors.to_json(), default=str)),
        }

    # -- tensors

    def contents(self) -> list[Content]:
        """All tensors in the file's order."""
        return [*self.factor_contents(), *(planned.content() for planned in self.tensors)]

    def factor_contents(self) -> Iterator[Content]:
        """The two factor sets, float32."""
        for name, data in self.factor_arrays().items():
            info = TensorInfo(name, data.shape, int(gguf_library().GGMLQuantizationType.F32))
            yield Content(info, lambda data=data: (data,))  # type: ignore[misc]

    def factor_arrays(self) -> dict[str, NDArray[np.float32]]:
        return {FACTOR_TENSORS[name]: np.array(self.factors.set(name), dtype=np.float32) for name in FACTOR_TENSORS}

    @cached_property
    def tensors(self) -> tuple[Planned, ...]:
        """A plan for every weight. Raises InputError when one is missing, UnsupportedError for one that has no place."""
        source = SafetensorsSource(self.checkpoint.weight_files)
        planned = [self._planned(name, source) for name in sorted(source.tensors, key=_file_order) if self._kept(name)]
        self._check_complete({entry.info.name for entry in planned})
        return tuple(planned)

    def _kept(self, name: str) -> bool:
        tied = name == "lm_head.weight" and self.checkpoint.config.get("tie_word_embeddings")
        return not tied and not _IGNORED.fullmatch(name)

    def _planned(self, name: str, source: SafetensorsSource) -> Planned:
        target, stored = self._target_name(name), source[name]
        info = TensorInfo(target, stored.shape, self._type_for(target, stored.shape))
        return Planned(info, (Piece(name, heads=self._permuted_heads(target)),), source)

    def _target_name(self, name: str) -> str:
        module, _, suffix = name.rpartition(".")
        layer = _LAYER.fullmatch(module)
        short = self.layout.layer.get(layer[2]) if layer else self.layout.outer.get(module)
        if short is None or suffix not in ("weight", "bias"):
            raise UnsupportedError(
                f"llama.cpp's {self.architecture} has no place for the weight {name}; export to HF or ONNX instead"
            )
        return f"blk.{layer[1]}.{short}.{suffix}" if layer else f"{short}.{suffix}"

    def _type_for(self, name: str, shape: tuple[int, ...]) -> int:
        """Matrices get the wanted type; vectors stay float32, and rows that do not fit its blocks become float16."""
        types = gguf_library().GGMLQuantizationType
        if len(shape) < 2:
            return int(types.F32)
        wanted = int(types[OUTTYPES[self.outtype][0]])
        return wanted if shape[-1] % block_size(wanted)[0] == 0 else int(types.F16)

    def _permuted_heads(self, name: str) -> int:
        """Number of heads whose rows are interleaved; 0 for tensors that are kept as they are."""
        module = name.rpartition(".")[0].rpartition(".")[2]
        config = self.checkpoint.config
        if not self.checkpoint.architecture.permute_qk or module not in ("attn_q", "attn_k"):
            return 0
        return int(config["num_attention_heads"]) if module == "attn_q" else num_key_value_heads(config)

    def _check_complete(self, names: set[str]) -> None:
        per_layer = {name.split(".", 2)[2] for name in names if name.startswith("blk.")}
        layers = range(int(self.checkpoint.config["num_hidden_layers"]))
        expected = {f"blk.{layer}.{name}" for layer in layers for name in per_layer}
        expected |= {"token_embd.weight", "output_norm.weight"}
        if not self.checkpoint.config.get("tie_word_embeddings"):
            expected.add("output.weight")
        odd = sorted(expected ^ names)
        if odd:
            raise InputError(
                f"{self.checkpoint.name}: expected {len(expected)} weights, got {len(names)}; "
                f"{odd[0]} is {'missing' if odd[0] in expected else 'beyond the last layer'}"
            )


def _refuse_other_networks(checkpoint: Checkpoint, layout: Layout) -> None:
    """Fields of config.json for which llama.cpp computes one value only."""
    for name, needed in layout.needs.items():
        given = checkpoint.config.get(name, needed)
        if given != needed:
            raise UnsupportedError(
                f"{checkpoint.name}: llama.cpp computes {name} {needed!r} for this architecture, the model has {given!r}; "
                "export to HF or ONNX instead"
            )


def num_key_value_heads(config: Mapping[str, Any]) -> int:
    """Heads of k and v: as many as of q when config.json is silent."""
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def _value(key: Key, config: Mapping[str, Any]) -> Value | None:
    data = config.get(key.field, key.default)
    return None if data is None else key.make(data)


def _file_order(name: str) -> tuple[int, str]:
    """Embedding first, then layer by layer, then what follows the layers."""
    layer = _LAYER.fullmatch(name)
    if layer:
        return int(layer[1]) + 1, name
    return (0, name) if "embed" in name else (1 << 30, name)
