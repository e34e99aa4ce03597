"""Everything a GGUF file will hold, worked out from headers alone: metadata and a plan for every tensor.

    Checkpoint ──► ModelPlan: hyperparameters, vocabulary, general keys, tensors; each worked out once ──┐
    BoundFactors ──► factor tensors, rope keys, our own record ──────────────────────────────────────────┴─► Blueprint

The writer follows the blueprint; the static checks compare a finished file with it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from converters.gguf.architectures import refuse_factors, target_of
from converters.gguf.carriers import Target, num_key_value_heads
from converters.gguf.container import GgufFile, TensorInfo, Value, array, f32, text, u32
from converters.gguf.factors import factor_arrays, factor_info, own_record, scaling_values
from converters.gguf.layouts import COMMON_KEYS, Key, Layout, layout_of, renamed_config
from converters.gguf.model_card import model_metadata
from converters.gguf.native import gguf
from converters.gguf.tensor_planner import TensorPlanner, has_own_head
from converters.gguf.tokenizer import vocabulary_of
from converters.gguf.vocabulary import Vocabulary, loadable_name
from converters.gguf.weights import DEFAULT, OUTTYPES, OutType, Planned, SafetensorsSource
from converters.gguf.writing import Content, total_bytes, write_parts
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError
from longrope.factors import BoundFactors
from longrope.hf_config import rope_parameters, switch_length
from longrope.hub import hub_id_of
from longrope.progress import Progress
from longrope.provenance import cached_hub_id, usable_cpus

EMBEDDING = "token_embd.weight"
TAGS = ("longrope", "long-context")
_SIZE = re.compile(r"(\d+)\s*([KMG]?)B?", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
MAX_WRITERS = 8


@dataclass(frozen=True)
class GgufOptions:
    """What `Export.options` may hold for GGUF.

    Args:
        name: `general.name`; None takes the one in the model card, or the checkpoint's.
        carrier: llama.cpp's architecture that the model is written as, where there is a choice; None takes the first of
            `carriers.TARGETS` that computes it.
        as_llama: True for architecture llama, False for any other that computes the model.
        imatrix: importance matrix of llama-imatrix, for the types that llama.cpp quantizes.
        split_max_size: bytes of tensors in one file, as a number or like "2G"; what is larger is written in parts
            NAME-00001-of-0000N.gguf. None writes one file.
        threads: that round and write weights, and of llama.cpp's quantizer; 0 for all there are.
    """

    name: str | None = None
    carrier: str | None = None
    as_llama: bool | None = None
    imatrix: str | Path | None = None
    split_max_size: int | str | None = None
    threads: int = 0

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Build from a mapping. Raises InputError for an unknown option, or a value that cannot be read."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(options) - known)
        if unknown:
            raise InputError(f"unknown GGUF option {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        built = cls(**options)
        _ = built.max_part_bytes
        if built.carrier and built.as_llama is not None:
            raise InputError("carrier and as_llama say the same; give one of them")
        if not isinstance(built.threads, int) or built.threads < 0:
            raise InputError(f"threads: expected a whole number, 0 for all there are, got {built.threads!r}")
        return built

    @property
    def writers(self) -> int:
        """Threads that round and write; more than `MAX_WRITERS` only wait for one another."""
        return min(self.threads or usable_cpus(), MAX_WRITERS)

    @property
    def max_part_bytes(self) -> int | None:
        """`split_max_size` in bytes."""
        if self.split_max_size is None:
            return None
        found = _SIZE.fullmatch(str(self.split_max_size).strip())
        if not found or not int(found[1]):
            raise InputError(f"split_max_size: expected a size like 500M or 2G, got {self.split_max_size!r}")
        return int(found[1]) * _UNITS[found[2].upper()]


def write_export(
    path: Path,
    values: Mapping[str, Value],
    contents: Sequence[Content],
    options: GgufOptions,
    source: Checkpoint | GgufFile,
    progress: Progress,
) -> None:
    """Write an artifact as its options say, in one file or in parts, which carry the fingerprint of their source."""
    with progress.task(f"writing {path.name}", total_bytes(contents)) as task:
        origin = source.fingerprint if options.max_part_bytes else ""
        write_parts(
            path, values, contents, options.max_part_bytes, task.advance, origin=origin, threads=options.writers
        )


@dataclass(frozen=True)
class ModelPlan:
    """What of a file does not depend on the factors. Each part is worked out when it is first asked for, and kept.

    Args:
        checkpoint: what is exported.
        target: what it is written as.
        outtype: weight type.
        name: `general.name`; None for the one that is found.
    """

    checkpoint: Checkpoint
    target: Target
    outtype: OutType = OUTTYPES[DEFAULT]
    name: str | None = None

    @property
    def layout(self) -> Layout:
        return layout_of(self.target)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Raises UnsupportedError when llama.cpp cannot express the tokenizer."""
        return vocabulary_of(self.checkpoint)

    @cached_property
    def hyperparameters(self) -> Mapping[str, Value]:
        """By name without the architecture; lengths and rotary facts come with the factors."""
        config = {**rope_parameters(self.checkpoint.config), **renamed_config(self.checkpoint.config)}
        found = {key.name: _value(key, config) for key in (*COMMON_KEYS, *self.layout.keys)}
        return {
            **{name: value for name, value in found.items() if value is not None},
            **_head_values(self.checkpoint),
        }

    @cached_property
    def scalars(self) -> Mapping[str, Value]:
        """Numbers that transformers keeps as tensors of each layer, as arrays over the layers."""
        kind = gguf.GGUFValueType.FLOAT32
        return {name: array(kind, data) for name, data in self._planner.scalars(self._source).items()}

    @cached_property
    def tensors(self) -> tuple[Planned, ...]:
        """A plan for every tensor but the factors. Raises as `_weights`."""
        return (*self._weights, *self._planner.filled(self.target.fills(self.checkpoint)))

    @cached_property
    def _weights(self) -> tuple[Planned, ...]:
        """A plan for every weight. Raises InputError when one is missing, UnsupportedError for one that has no place."""
        planned = self._planner.plan(self._source)
        self._check_complete({entry.info.name: entry.info for entry in planned})
        return planned

    @cached_property
    def general(self) -> Mapping[str, Value]:
        """The `general.*` keys."""
        found, keys = self._metadata, gguf.Keys.General
        if self.checkpoint.factors is None:
            found = dataclasses.replace(found, base_models=[_base_model(self.checkpoint, found)])
        if self.target.explanation:
            found = dataclasses.replace(found, description=self._description(found.description))
        writer = gguf.GGUFWriter(None, self.target.architecture)
        found.set_gguf_meta_model(writer)
        values = {key: _converted(entry) for key, entry in writer.kv_data[0].items()}
        if keys.NAME in values:
            values[keys.NAME] = text(loadable_name(values[keys.NAME].data, self.vocabulary))
        return {
            keys.ARCHITECTURE: text(self.target.architecture),
            keys.TYPE: text(gguf.GGUFType.MODEL),
            **values,
            keys.SIZE_LABEL: text(self._size_label),
            keys.TAGS: _with_tags(values.get(keys.TAGS)),
            keys.FILE_TYPE: u32(gguf.LlamaFileType[self.outtype.file_type]),
            keys.QUANTIZATION_VERSION: u32(gguf.GGML_QUANT_VERSION),
        }

    def _description(self, given: str | None) -> str:
        """`general.description` of a file whose architecture is not the model's own."""
        said = f"{self.checkpoint.model_type} model, {self.target.explanation}."
        return f"{given.rstrip('.')}. {said}" if given else said

    @property
    def file_name(self) -> str:
        """After llama.cpp's convention: base name, size, fine-tune, version, weight type."""
        found = self._metadata
        parts = (found.name, found.basename, found.finetune, found.version, self._size_label, self.outtype.name)
        return f"{gguf.naming_convention(*parts)}.gguf"

    @property
    def _metadata(self) -> Any:
        return self._card[0]

    @property
    def card_fault(self) -> str:
        """What is wrong with the model card; empty for a sound one."""
        return self._card[1]

    @cached_property
    def _card(self) -> tuple[Any, str]:
        """What `gguf` finds in the model card, config.json and the name of the folder or of the Hub's repository."""
        hub = _hub_id(self.checkpoint)
        folder = Path(hub.rpartition("/")[2]) if hub else self.checkpoint.path
        name = self.name or (folder.name if hub else None)
        count = sum(math.prod(info.shape) for info in self._counted)
        found, fault = model_metadata(self.checkpoint.path, name, count)
        if hub and not found.organization:
            found.organization = hub.partition("/")[0]
        return found, fault

    @property
    def _size_label(self) -> str:
        return _size_label(self._counted)

    @property
    def _counted(self) -> list[TensorInfo]:
        """The model's own weights, each once: no copy of the embedding."""
        infos = [planned.info for planned in self._weights]
        return infos if self._head == "own" else [info for info in infos if info.name != "output.weight"]

    @cached_property
    def _source(self) -> SafetensorsSource:
        return SafetensorsSource(self.checkpoint.weight_files, self.checkpoint.text_name)

    @property
    def _planner(self) -> TensorPlanner:
        config = self.checkpoint.config
        heads = {"attn_q": int(config["num_attention_heads"]), "attn_k": num_key_value_heads(config)}
        return TensorPlanner(
            self.target.architecture,
            self.layout,
            matrix_type=int(gguf.GGMLQuantizationType[self.outtype.matrix or self._lossless]),
            heads=heads if self.target.permute_qk else {},
            head=self._head,
            config=renamed_config(config),
        )

    @property
    def _lossless(self) -> str:
        """The float type that holds all source weights; llama.cpp quantizes from it."""
        dtypes = {stored.dtype for stored in self._source.tensors.values()}
        return dtypes.pop() if len(dtypes) == 1 and "F64" not in dtypes else "F32"

    @cached_property
    def _head(self) -> Literal["own", "embedding", ""]:
        """Where the output matrix comes from; see `TensorPlanner`."""
        tied = bool(self.checkpoint.config.get("tie_word_embeddings"))
        if not tied or has_own_head(self._source, self.layout):
            return "own"
        return "embedding" if self.target.own_head else ""

    @property
    def _kinds_of_layers(self) -> Mapping[int, Any]:
        """What layers may differ in: kind of attention, experts or none, own keys and values or those of a layer below."""
        config, types = self.checkpoint.config, self.checkpoint.layer_types
        dense, own = config.get("first_k_dense_replace") or 0, len(types) - (config.get("num_kv_shared_layers") or 0)
        return {layer: (kind, layer < dense, layer < own) for layer, kind in enumerate(types)}

    def _check_complete(self, infos: Mapping[str, TensorInfo]) -> None:
        """Every layer has what another of its kind has, and the embedding fits the vocabulary."""
        kinds, per_kind = self._kinds_of_layers, dict[Any, set[str]]()
        for name in (name for name in infos if name.startswith("blk.")):
            _, layer, inner = name.split(".", 2)
            per_kind.setdefault(kinds.get(int(layer)), set()).add(inner)
        expected = {f"blk.{layer}.{name}" for layer, kind in kinds.items() for name in per_kind.get(kind, ())}
        expected |= {EMBEDDING, "output_norm.weight"}
        if self._head == "own":
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


@dataclass(frozen=True)
class Blueprint:
    """What goes into a file: a model and its factors.

    Args:
        model: everything else.
        factors: bound to the model.
    """

    model: ModelPlan
    factors: BoundFactors

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        factors: BoundFactors,
        outtype: OutType = OUTTYPES[DEFAULT],
        *,
        name: str | None = None,
        carrier: str | None = None,
        as_llama: bool | None = None,
    ) -> Self:
        """Plan a file. Raises UnsupportedError when llama.cpp has nothing that computes this model with these factors."""
        checkpoint = checkpoint.attending_to(factors.target)
        target = target_of(checkpoint, factors, carrier=carrier, as_llama=as_llama)
        return cls(ModelPlan(checkpoint, target, outtype, name), factors)

    def with_factors(self, factors: BoundFactors) -> Self:
        """The same model with other factors. Raises UnsupportedError for those that llama.cpp cannot apply."""
        refuse_factors(self.model.checkpoint, self.model.target, factors)
        return dataclasses.replace(self, factors=factors)

    def values(self) -> dict[str, Value]:
        """All metadata, in the file's order."""
        prefix = f"{self.model.target.architecture}."
        model = {prefix + name: value for name, value in self.model_values().items()}
        return {
            **self.model.general,
            **model,
            **self.model.scalars,
            **self.model.vocabulary.values,
            **own_record(self.factors, self.model.target.carried),
        }

    def model_values(self) -> dict[str, Value]:
        """Hyperparameters, lengths and rotary facts, by name without the architecture."""
        checkpoint = self.model.checkpoint
        return {
            **self.model.hyperparameters,
            "context_length": u32(self.factors.target),
            "rope.dimension_count": u32(checkpoint.rotary_dim),
            "rope.freq_base": f32(self.factors.written_theta),
            **scaling_values(self.factors, self.model.target.rope, switch_length(checkpoint.config, self.factors)),
            **self.model.target.keys(checkpoint, self.factors),
        }

    def contents(self) -> list[Content]:
        """All tensors in the file's order, the factors first."""
        factors = self.factor_arrays().items()
        added = [Content(factor_info(name, data), partial(iter, (data,))) for name, data in factors]
        return [*added, *(planned.content() for planned in self.model.tensors)]

    def factor_arrays(self) -> dict[str, NDArray[np.float32]]:
        """The factor tensors by name."""
        return factor_arrays(self.factors, self.model.target.rope)


def _head_values(checkpoint: Checkpoint) -> dict[str, Value]:
    """Sizes of heads. Latent attention has one key head a query head, made of a rotated and an unrotated part."""
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
    given = config.get(key.field)
    data = key.default if given is None else given
    return None if data is None else key.make(data)


def _base_model(checkpoint: Checkpoint, metadata: Any) -> dict[str, str]:
    """The checkpoint itself: what is exported is its extension."""
    found = {"name": metadata.name, "organization": metadata.organization, "version": metadata.version}
    if hub := _hub_id(checkpoint):
        found["repo_url"] = f"https://huggingface.co/{hub}"
    return {key: value for key, value in found.items() if value}


def _hub_id(checkpoint: Checkpoint) -> str | None:
    """`organization/name` of a checkpoint that came from the Hub, or lies in its cache."""
    if hub_id := hub_id_of(checkpoint.name):
        return hub_id.partition("@")[0]
    return cached_hub_id(checkpoint.path)


def _size_label(infos: Sequence[TensorInfo]) -> str:
    """E.g. 135M, or 8x7B for experts."""
    stacks = [info for info in infos if "_exps." in info.name]
    total, in_stacks = (sum(math.prod(info.shape) for info in group) for group in (infos, stacks))
    count = stacks[0].shape[0] if stacks else 0
    expert = in_stacks // count if count else 0
    return str(gguf.size_label(total, total - in_stacks, expert, count))


def _converted(entry: Any) -> Value:
    """A GGUFValue of the library as ours."""
    if entry.type is not gguf.GGUFValueType.ARRAY:
        return Value(entry.type, entry.value)
    return array(entry.sub_type or gguf.GGUFValueType.STRING, entry.value)


def _with_tags(given: Value | None) -> Value:
    tags = given.data if given else ()
    return array(gguf.GGUFValueType.STRING, (*tags, *(tag for tag in TAGS if tag not in tags)))
