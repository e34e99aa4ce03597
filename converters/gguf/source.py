"""A GGUF file as the source of a conversion: unpacked into a Hugging Face folder that lives as long as its checkpoint.

    file.gguf ──► config.json, tokenizer.json, model.safetensors (floats kept, quantized tensors as float32)

The tensors get transformers' names and row order back, so that everything else works on them unchanged.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.gguf.carriers import own_rows
from converters.gguf.container import GgufFile, dequantize, f32, type_name
from converters.gguf.factors import FREQS, LONG, SHORT, bound_to_file
from converters.gguf.file_rope import file_rope
from converters.gguf.layouts import COMMON_KEYS, LAYOUTS, Layout
from converters.gguf.native import gguf
from converters.gguf.tokenizer import rebuilt_tokenizer, rebuilt_tokenizer_config
from converters.gguf.vocabulary import Vocabulary, vocabulary_in
from converters.gguf.weights import FLOATS
from converters.gguf.writing import Output
from longrope.checkpoint import Checkpoint, open_folder
from longrope.errors import UnsupportedError
from longrope.factors import BoundFactors, RescaleFactors
from longrope.files import errors_of_writing, write_json
from longrope.hf_config import extended_config
from longrope.unfinished import temporary_folder

_ROWS_AT_ONCE = 1 << 22  # elements, 16 MB of float32


@dataclass(frozen=True, kw_only=True)
class GgufCheckpoint(Checkpoint):
    """A checkpoint that is a GGUF file; its weights are unpacked when somebody asks for them.

    Args:
        file: with its head parsed; open as long as the checkpoint lives.
    """

    file: GgufFile = field(compare=False, repr=False)

    def oddities(self) -> list[str]:
        """How text is split where the file does not say; nothing else was mended, and no weight is unpacked for this."""
        keys = gguf.Keys.Tokenizer
        if self.file.get(keys.MODEL) != "gpt2" or keys.PRE in self.file.values:
            return []
        return [
            f"{self.name} does not say how text is split before merging ({keys.PRE}): it is split by llama.cpp's default, "
            "which most models were not trained with. Token ids may be others than the original model's"
        ]

    @cached_property
    def weight_files(self) -> tuple[Path, ...]:
        """One safetensors file, written on first use."""
        target = self.path / "model.safetensors"
        with errors_of_writing(target):
            write_safetensors(target, list(_restored(self.file, LAYOUTS[self.file.architecture])))
        return (target,)


def open_gguf(path: Path) -> GgufCheckpoint:
    """Unpack a GGUF file into a temporary folder and open that; weights follow when they are needed.

    Raises:
        InputError: not a sound GGUF file of a text model.
        UnsupportedError: an architecture, tokenizer or RoPE scaling that has no counterpart in transformers.
    """
    with ExitStack() as undo:
        file = undo.enter_context(GgufFile(path))
        room = temporary_folder("gguf")
        undo.callback(room.cleanup)
        folder = Path(room.name)
        with errors_of_writing(folder):
            _unpack(file, folder)
        opened = open_folder(folder, str(path), room, needs_weights=False)
        undo.pop_all()
        return GgufCheckpoint(folder, opened.name, opened.config, room, file=file)


def _unpack(file: GgufFile, folder: Path) -> None:
    model_type = _model_type(file)
    layout = LAYOUTS[file.architecture]
    vocabulary = vocabulary_in(file.values)
    _ = list(_restored(file, layout))  # every tensor has a place, before anything is written
    write_json(folder / "config.json", _config(file, model_type, layout, vocabulary))
    write_json(folder / "generation_config.json", _token_ids(vocabulary))
    write_json(folder / "tokenizer.json", rebuilt_tokenizer(vocabulary))
    write_json(folder / "tokenizer_config.json", rebuilt_tokenizer_config(vocabulary))
    (folder / "README.md").write_text(_model_card(file), encoding="utf-8")


def _model_card(file: GgufFile) -> str:
    """What the file says of its licence, languages and tags, as a model card says it."""
    fields = {
        "license": file.get("general.license"),
        "language": file.get("general.languages"),
        "tags": file.get("general.tags"),
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in fields.items() if value]
    name = file.get("general.name", file.path.stem)
    return "\n".join(["---", *lines, "---", "", f"# {name}", ""])


def _model_type(file: GgufFile) -> str:
    """The first model type whose own architecture in llama.cpp this is."""
    own = {row.architecture: model_type for model_type, row in reversed(own_rows())}
    known = sorted(name for name in own if LAYOUTS[name].model_class)
    if file.architecture not in known or file.model_key("expert_count", 0):
        raise UnsupportedError(
            f"{file.path}: a GGUF of architecture {file.architecture!r} cannot be opened as a source; expected a dense "
            f"model of {', '.join(known)}. Use the original checkpoint"
        )
    return own[file.architecture]


# -- config.json


def _config(file: GgufFile, model_type: str, layout: Layout, vocabulary: Vocabulary) -> dict[str, Any]:
    heads = file.required_key("attention.head_count")
    name = file.get("general.name", file.path.stem)
    config: dict[str, Any] = {
        "architectures": [layout.model_class],
        "model_type": model_type,
        "_name_or_path": name,
        "dtype": "float32",
        **layout.needs,
    }
    for key in (*COMMON_KEYS, *layout.keys):
        if (data := file.model_key(key.name)) is not None:
            config[key.field] = shortest(data)
    config |= {
        "vocab_size": len(vocabulary.tokens),
        "num_key_value_heads": file.model_key("attention.head_count_kv", heads),
        "head_dim": file.model_key("attention.key_length", file.required_key("embedding_length") // heads),
        "max_position_embeddings": file.required_key("context_length"),
        "rope_theta": shortest(file.model_key("rope.freq_base", 10_000.0)),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
        **_token_ids(vocabulary),
    }
    rotary_dim = file.model_key("rope.dimension_count", config["head_dim"])
    if rotary_dim != config["head_dim"]:
        config["partial_rotary_factor"] = rotary_dim / config["head_dim"]
    return _with_rope(file, config)


def _with_rope(file: GgufFile, config: dict[str, Any]) -> dict[str, Any]:
    """The config with the RoPE that llama.cpp computes from the file; its own factors, if it has some, are longrope."""
    _refuse_sliding_window(file)
    rope = file_rope(file)
    if rope.factors is not None:
        return extended_config(config, _bound(file, rope.factors))
    given = {name: config[name] for name in ("rope_theta", "partial_rotary_factor") if name in config}
    return {**config, "rope_parameters": {**rope.parameters, **given}}


def _refuse_sliding_window(file: GgufFile) -> None:
    """transformers' Phi-3 looks back over a window that llama.cpp ignores: the two are different models."""
    window, length = file.model_key("attention.sliding_window", 0), file.required_key("context_length")
    if isinstance(window, int) and 0 < window < length:
        raise UnsupportedError(
            f"{file.path}: its attention.sliding_window of {window} tokens is below its context of {length}; llama.cpp "
            f"ignores it in {file.architecture} and transformers does not. Put factors into the file itself (patch), or use "
            "the original checkpoint"
        )


def _bound(file: GgufFile, factors: RescaleFactors) -> BoundFactors:
    """A file's own factors; an attention factor that is the formula's, rounded, is left to the formula."""
    bound = bound_to_file(file, factors)
    same = f32(bound.effective_attention_factor) == f32(bound.formula_attention_factor)
    return dataclasses.replace(bound, attention_factor=None if same else bound.attention_factor)


def _token_ids(vocabulary: Vocabulary) -> dict[str, int]:
    names = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
    return {field: vocabulary.special[name] for name, field in names.items() if name in vocabulary.special}


def shortest(data: Any) -> Any:
    """A float32 by its shortest decimal, 1e-05 instead of 9.999999747378752e-06; anything else as it is."""
    return float(str(np.float32(data))) if isinstance(data, float) else data


# -- weights


@dataclass(frozen=True)
class Restored:
    """A tensor under transformers' name, read from the file block by block."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: GgufFile
    source: str
    heads: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * (4 if self.dtype == "F32" else 2)

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Its bytes, rows in transformers' order."""
        rows, type = self.file.rows(self.source), self.file.tensors[self.source].type
        per_head = len(rows) // self.heads if self.heads else 1
        step = max(_ROWS_AT_ONCE // max(self.shape[-1], 1) // per_head, 1) * per_head
        for at in range(0, len(rows), step):
            block = rows[at : at + step]
            floats = dequantize(np.ascontiguousarray(block), type) if self.dtype == "F32" else block
            yield np.ascontiguousarray(_halves_apart(floats, per_head) if self.heads else floats)


def _halves_apart(rows: NDArray[Any], per_head: int) -> NDArray[Any]:
    """Undo the interleaving: rows 0, 2, 4 … of each head first, then 1, 3, 5 …"""
    return rows.reshape(-1, per_head // 2, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def _restored(file: GgufFile, layout: Layout) -> Iterator[Restored]:
    heads = {
        "attn_q": file.required_key("attention.head_count"),
        "attn_k": file.model_key("attention.head_count_kv", file.required_key("attention.head_count")),
    }
    permute_qk = next(row for _, row in own_rows() if row.architecture == file.architecture).permute_qk
    for name, info in file.tensors.items():
        if name in (LONG, SHORT, FREQS):
            continue
        dtype = type_name(info.type).upper() if type_name(info.type) in FLOATS else "F32"
        permuted = heads.get(name.split(".")[-2], 0) if permute_qk and name.startswith("blk.") else 0
        yield Restored(_source_name(file, layout, name), dtype, info.shape, file, name, permuted)


def _source_name(file: GgufFile, layout: Layout, name: str) -> str:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`."""
    module, _, suffix = name.rpartition(".")
    _, layer, short = module.split(".", 2) if module.startswith("blk.") else ("", "", module)
    table: Mapping[str, Any] = layout.layer if layer else layout.outer
    found = next((theirs for theirs, ours in table.items() if ours == short), None)
    if found is None:
        raise UnsupportedError(f"{file.path}: no place in a {file.architecture} model for the tensor {name}")
    return f"model.layers.{layer}.{found}.{suffix}" if layer else f"{found}.{suffix}"


def write_safetensors(path: Path, tensors: list[Restored]) -> None:
    """Write one safetensors file, block by block."""
    header, offset = {}, 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    encoded += b" " * (-len(encoded) % 8)
    with Output(path) as output:
        output.reserve(8 + len(encoded) + offset)
        output.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors:
            for block in tensor.blocks():
                output.write(block)
