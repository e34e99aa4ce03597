"""GGUF files that tests and benchmarks share: pico models, how they are written, run and refused, and faults to put in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from converters.base import Export
from converters.gguf import GgufConverter
from converters.gguf.container import GgufFile, TensorInfo, Value, f32, flag, text, u32
from converters.gguf.writing import Content, write_gguf
from longrope.checkpoint import Checkpoint
from longrope.factors import BoundFactors
from longrope.modeling import TorchSource, build_model
from longrope.progress import Silent
from longrope.scoring import WindowScore, compare_windows
from tests import common

Array = NDArray[Any]
F32, F16 = 0, 1
Values = dict[str, Value]
Tensors = dict[str, Content]
Fault = Callable[[Values, Tensors], None]


WINDOW, TARGET = 256, 1024
# Model types whose MLP is GELU, which llama.cpp looks up in a table of float16.
GELU = ("gemma", "gemma2", "gemma3_text", "gemma4_text", "phi", "gpt_neox")


def checkpoint(path: Path, model_type: str = "llama", **changes: Any) -> Checkpoint:
    return common.pico_checkpoint(path, model_type, **{"max_position_embeddings": WINDOW, **changes})


def factors_for(model: Checkpoint, **changes: Any) -> BoundFactors:
    values = {"target": TARGET, "original_max_position_embeddings": WINDOW, **changes}
    return model.bind(common.pico_factors(model.rotary_dim, **values))


def export(model: Checkpoint, factors: BoundFactors, outtype: str, path: Path, **options: Any) -> Path:
    checks = GgufConverter().convert(Export(model, factors, outtype, options), path, Silent())
    assert {check.status for check in checks} <= {"pass", "skip"}
    assert [check for check in GgufConverter().own_checks(path) if check.status == "fail"] == []
    return path


def scores(model: Checkpoint, factors: BoundFactors, path: Path) -> dict[str, WindowScore]:
    """One window in each regime, against transformers."""
    reference = TorchSource(build_model(model, factors), factors)
    source = GgufConverter().open_source(path, factors, max_length=TARGET, threads=1)
    ids = np.random.default_rng(0).integers(0, model.vocab_size, TARGET - 100)
    found = {}
    for factor_set, length in (("short", WINDOW), ("long", len(ids))):
        score = compare_windows(reference, {"gguf": source}, [ids[:length]], factor_set=factor_set)  # type: ignore[arg-type]
        found[factor_set] = score["gguf"]
    source.close()
    return found


def refused(error: type[Exception], match: str, model: Checkpoint, factors: BoundFactors, **changes: Any) -> None:
    with pytest.raises(error, match=match):
        GgufConverter().plan(Export(model, factors, **{"outtype": "f32", **changes}))


# Transformers' model types beside llama: name → (model type, fields of config.json).
GRANITE = {"attention_multiplier": 0.3, "embedding_multiplier": 1.5, "residual_multiplier": 0.8, "logits_scaling": 2.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-sliding": ("mistral", {"sliding_window": 100}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "sliding_window": None}),
    "ministral3": ("ministral3", common.PICO_CHANGES["ministral3"]),
    "granite": ("granite", {**GRANITE, "attention_bias": True, "mlp_bias": True}),
    "granite-tied": ("granite", {**GRANITE, "tie_word_embeddings": True}),
    "granitemoe": ("granitemoe", {**GRANITE, "num_local_experts": 4}),
    "granitemoeshared": ("granitemoeshared", {**GRANITE, "num_local_experts": 4, "shared_intermediate_size": 96}),
    "minicpm3": ("minicpm3", common.PICO_CHANGES["minicpm3"]),
    "phi3": ("phi3", {"pad_token_id": 0, "original_max_position_embeddings": 256}),
    "phi3-partial": (
        "phi3",
        {
            "pad_token_id": 0,
            "original_max_position_embeddings": 256,
            "rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5},
        },
    ),
    "apertus": ("apertus", common.PICO_CHANGES["apertus"]),
    "arcee": ("arcee", {}),
    "exaone4": ("exaone4", common.PICO_CHANGES["exaone4"]),
    "qwen2": ("qwen2", {}),
    "seed_oss": ("seed_oss", {"head_dim": 16, "attention_bias": True}),
    "internlm3": ("internlm3", {"head_dim": 16}),
    "ernie4_5": ("ernie4_5", {"head_dim": 16, "use_bias": True}),
    "exaone": ("exaone", {}),
    "granitemoehybrid": (
        "granitemoehybrid",
        {
            **GRANITE,
            "num_local_experts": 0,
            "shared_intermediate_size": 96,
            "layer_types": ["attention"] * 2,
            "position_embedding_type": "rope",
        },
    ),
    "gemma": ("gemma", {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma3_text": (
        "gemma3_text",
        {
            "head_dim": 16,
            "sliding_window": 64,
            "query_pre_attn_scalar": 4,
            "tie_word_embeddings": True,
            "final_logit_softcapping": 5.0,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gemma4_text": (
        "gemma4_text",
        {
            "head_dim": 16,
            "global_head_dim": 32,
            "sliding_window": 64,
            "tie_word_embeddings": True,
            "layer_types": ["sliding_attention", "full_attention"],
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": 384,
        },
    ),
    "qwen3": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3_moe": (
        "qwen3_moe",
        {
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "norm_topk_prob": True,
        },
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]}),
}


def stock(model: Checkpoint, path: Path, outtype: str = "q8_0", **options: Any) -> Path:
    """A file as other tools write it: the weights, and nothing of LongRoPE."""
    GgufConverter().convert(Export(model, factors_for(model), outtype, options), path, Silent())
    if options:
        return path

    def strip(values: dict[str, Any], tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.startswith("rope_")]:
            del tensors[name]
        for key in [key for key in values if ".rope.scaling." in key or key.startswith("longrope_export.")]:
            del values[key]
        length = f"{model.model_type}.context_length"
        values[length] = dataclasses.replace(values[length], data=WINDOW)

    plain = path.with_name(f"stock-{path.name}")
    return rewrite(path, plain, strip)


def holding(info: TensorInfo, data: Any) -> Content:
    return Content(info, lambda: (data,))


def rewrite(source: Path, target: Path, fault: Fault) -> Path:
    """Copy a GGUF file with a fault put in."""
    with GgufFile(source) as file:
        values = dict(file.values)
        tensors = {name: holding(info, np.array(file.raw(name))) for name, info in file.tensors.items()}
        fault(values, tensors)
        write_gguf(target, values, list(tensors.values()))
    return target


def in_file(fault: Fault) -> Callable[[Path], Path]:
    """The fault, put into a file that keeps its name."""
    return lambda path: rewrite(path, path.with_name("rewritten"), fault).replace(path)


# -- the catalogue: each fault with the check that names it


def set_key(name: str, value: Value | None) -> Fault:
    def fault(values: Values, tensors: Tensors) -> None:
        key = name if name.startswith(("general.", "tokenizer.")) else f"llama.{name}"
        values.pop(key, None)
        if value is not None:
            values[key] = value

    return fault


def edit_list(name: str, edit: Callable[[list[Any]], list[Any]]) -> Fault:
    def fault(values: Values, tensors: Tensors) -> None:
        key = f"tokenizer.ggml.{name}"
        values[key] = dataclasses.replace(values[key], data=edit(list(values[key].data)))

    return fault


def drop(*names: str) -> Fault:
    def fault(values: Values, tensors: Tensors) -> None:
        for name in names:
            del tensors[name]

    return fault


def swap(one: str, other: str) -> Fault:
    """Exchange what two tensors hold."""

    def fault(values: Values, tensors: Tensors) -> None:
        first, second = tensors[one], tensors[other]
        tensors[one] = dataclasses.replace(second, info=dataclasses.replace(second.info, name=one))
        tensors[other] = dataclasses.replace(first, info=dataclasses.replace(first.info, name=other))

    return fault


def edit(name: str, change: Callable[[Array], Array], type: int = F32) -> Fault:
    """Change a tensor's numbers, its shape and type with them."""

    def fault(values: Values, tensors: Tensors) -> None:
        content = tensors[name]
        data = next(iter(content.blocks())).view(np.float32).reshape(content.info.shape)
        changed = np.ascontiguousarray(change(data.copy()))
        tensors[name] = holding(TensorInfo(name, changed.shape, type), changed)

    return fault


def scale_blocks(name: str, scale: float, block_bytes: int) -> Fault:
    """The scales of a quantized tensor times a number; a block begins with its scale, in float16."""

    def fault(values: Values, tensors: Tensors) -> None:
        content = tensors[name]
        blocks = np.array(next(iter(content.blocks()))).reshape(-1, block_bytes)
        blocks[:, :2] = (blocks[:, :2].copy().view(np.float16) * np.float16(scale)).view(np.uint8)
        tensors[name] = holding(content.info, blocks.reshape(-1))

    return fault


def setting(place: tuple[int, ...], number: float) -> Callable[[Array], Array]:
    def change(data: Array) -> Array:
        data[place] = number
        return data

    return change


def add(name: str, data: Array) -> Fault:
    def fault(values: Values, tensors: Tensors) -> None:
        tensors[name] = holding(TensorInfo(name, data.shape, F32), data)

    return fault


def reorder_heads(*, undo: bool) -> Fault:
    """Reorder the rows of q and k in each of their heads of 16: undo the interleaving, or do it again."""

    def change(data: Array) -> Array:
        halves = (8, 2) if undo else (2, 8)
        return data.reshape(data.shape[0] // 16, *halves, -1).swapaxes(1, 2).reshape(data.shape)

    def fault(values: Values, tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith(("attn_q.weight", "attn_k.weight"))]:
            edit(name, change)(values, tensors)

    return fault


LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
UP, GATE = "blk.1.ffn_up.weight", "blk.1.ffn_gate.weight"

CATALOGUE: dict[str, tuple[Fault, str]] = {
    # keys
    "another architecture": (set_key("general.architecture", text("qwen2")), "gguf.arch"),
    "no architecture": (set_key("general.architecture", None), "gguf.arch"),
    "short context length": (set_key("context_length", u32(256)), "gguf.context_length"),
    "no scaling type": (set_key("rope.scaling.type", None), "gguf.rope.scaling.type"),
    "another scaling type": (set_key("rope.scaling.type", text("yarn")), "gguf.rope.scaling.type"),
    "no original length": (
        set_key("rope.scaling.original_context_length", None),
        "gguf.rope.scaling.original_context_length",
    ),
    "wrong original length": (
        set_key("rope.scaling.original_context_length", u32(1024)),
        "gguf.rope.scaling.original_context_length",
    ),
    "no attention factor": (set_key("rope.scaling.attn_factor", None), "gguf.rope.scaling.attn_factor"),
    "wrong attention factor": (set_key("rope.scaling.attn_factor", f32(1.0)), "gguf.rope.scaling.attn_factor"),
    "stale scaling factor": (set_key("rope.scaling.factor", f32(4.0)), "gguf.rope.scaling.factor"),
    "another theta": (set_key("rope.freq_base", f32(500_000.0)), "gguf.rope.freq_base"),
    "half of the head rotated": (set_key("rope.dimension_count", u32(8)), "gguf.rope.dimension_count"),
    "another number of kv heads": (set_key("attention.head_count_kv", u32(4)), "gguf.attention.head_count_kv"),
    "another epsilon": (
        set_key("attention.layer_norm_rms_epsilon", f32(1e-2)),
        "gguf.attention.layer_norm_rms_epsilon",
    ),
    "a key that rescales attention": (set_key("attention.scale", f32(0.5)), "gguf.keys"),
    "a yarn key": (set_key("rope.scaling.yarn_log_multiplier", f32(0.1)), "gguf.keys"),
    # factors
    "no factors": (drop(LONG, SHORT), "gguf.factors.long"),
    "one set only": (drop(SHORT), "gguf.factors.short"),
    "sets exchanged": (swap(LONG, SHORT), "gguf.factors.long"),
    "factors in reverse": (edit(LONG, lambda data: data[::-1]), "gguf.factors.long"),
    "inverse factors": (edit(LONG, lambda data: 1 / data), "gguf.factors.long"),
    "one factor off by a bit": (
        edit(SHORT, setting((0,), np.nextafter(np.float32(1.01**0.25), 2))),
        "gguf.factors.short",
    ),
    "factors in f16": (edit(LONG, lambda data: data.astype(np.float16), type=F16), "gguf.factors.dtype"),
    "too few factors": (edit(LONG, lambda data: data[:4]), "gguf.factors.long"),
    "rope_freqs beside them": (add("rope_freqs.weight", np.ones(8, np.float32)), "gguf.rope_freqs"),
    # weights
    "q and k not interleaved": (reorder_heads(undo=True), "gguf.weights"),
    "q and k interleaved twice": (reorder_heads(undo=False), "gguf.weights"),
    "a missing tensor": (drop(UP), "gguf.tensors.missing"),
    "a tensor too many": (add("blk.0.attn_q.bias", np.zeros(64, np.float32)), "gguf.tensors.extra"),
    "gate and up exchanged": (swap(UP, GATE), "gguf.weights"),
    "layers exchanged": (swap("blk.0.attn_v.weight", "blk.1.attn_v.weight"), "gguf.weights"),
    "a transposed matrix": (edit("blk.0.attn_k.weight", lambda data: data.T), "gguf.tensors.shapes"),
    "one weight changed": (edit(UP, setting((3, 4), 0.5)), "gguf.weights"),
    "a non-finite weight": (edit(UP, setting((3, 4), np.nan)), "gguf.weights"),
    "another norm": (edit("output_norm.weight", lambda data: data * 2), "gguf.weights"),
    # vocabulary
    "two tokens exchanged": (
        edit_list("tokens", lambda data: [*data[:10], data[11], data[10], *data[12:]]),
        "gguf.vocab.tokens",
    ),
    "a shorter vocabulary": (edit_list("tokens", lambda data: data[:-1]), "gguf.vocab.tokens"),
    "merges missing": (edit_list("merges", lambda data: data[:-3]), "gguf.vocab.merges"),
    "control tokens as words": (edit_list("token_type", lambda data: [1] * len(data)), "gguf.vocab.token_type"),
    "another pre-tokenizer": (set_key("tokenizer.ggml.pre", text("gpt-2")), "gguf.vocab.pre"),
    "another end of text": (set_key("tokenizer.ggml.eos_token_id", u32(7)), "gguf.vocab.eos_token_id"),
    "a BOS nobody asked for": (set_key("tokenizer.ggml.add_bos_token", flag(True)), "gguf.vocab.add_bos_token"),
}


# -- broken containers

BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "without its last bytes": lambda data: data[:-40],
    "not gguf": lambda data: b"FUGG" + data[4:],
    "another version": lambda data: data[:4] + (2).to_bytes(4, "little") + data[8:],
    "more tensors than it has": lambda data: data[:8] + (10**6).to_bytes(8, "little") + data[16:],
    "a key cut short": lambda data: data[:30] + data[33:],
}
