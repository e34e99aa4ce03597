"""The fields of config.json that anything here reads, with their types; checked once, when a folder is opened."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from longrope.errors import InputError
from longrope.reading import (
    BOOLEAN,
    COUNT,
    COUNTS,
    HEAD_WIDTH,
    NUMBER,
    OBJECT,
    POSITIVE,
    TEXT,
    TOKEN_IDS,
    WIDTH,
    Kind,
    check_fields,
    list_of,
    record,
    table_of,
)

# Ten times what the deepest model has; every layer costs time before its weights are looked for.
LAYERS = Kind("a whole number from 1 to 10000", lambda value: COUNT.fits(value) and value <= 10_000)
TORCH_TYPE = Kind(
    "a type of torch (float32, float16, bfloat16, …)",
    lambda value: isinstance(value, str) and bool(re.fullmatch(r"(torch\.)?(b?float\d\w*)", value)),
)
# Field → type. Null stands for "not said" in every one of them.
_TYPES: Mapping[Kind, tuple[str, ...]] = {
    COUNT: (
        "vocab_size",
        "max_position_embeddings",
        "original_max_position_embeddings",
    ),
    COUNTS: (  # one for the model, or one per layer
        "intermediate_size",
        "moe_intermediate_size",
        "num_key_value_heads",
        "qk_nope_head_dim",
        "v_head_dim",
        "kv_lora_rank",
        "q_lora_rank",
        "num_experts_per_tok",
        "num_local_experts",
        "num_experts",
        "n_routed_experts",
        "n_shared_experts",
    ),
    WIDTH: ("hidden_size", "num_attention_heads"),
    HEAD_WIDTH: ("head_dim", "qk_rope_head_dim", "global_head_dim", "rotary_dim"),
    LAYERS: ("num_hidden_layers",),
    NUMBER: (
        "sliding_window",
        "final_logit_softcapping",
        "attn_logit_softcapping",
        "query_pre_attn_scalar",
        "initializer_range",
        "attention_dropout",
        "hidden_dropout",
        "embd_pdrop",
        "resid_pdrop",
    ),
    POSITIVE: (
        "rope_theta",
        "rms_norm_eps",
        "layer_norm_eps",
        "partial_rotary_factor",
        "rotary_pct",
        "rotary_emb_base",
    ),
    BOOLEAN: ("tie_word_embeddings", "use_sliding_window", "attention_bias", "mlp_bias", "use_cache"),
    TEXT: ("model_type", "hidden_act"),
    TORCH_TYPE: ("torch_dtype", "dtype"),
    list_of(TEXT): ("layer_types", "architectures"),
    OBJECT: ("rope_scaling", "rope_parameters", "text_config", "quantization_config", "quantization"),
    table_of(record({}, {"head_dim": HEAD_WIDTH})): ("per_layer_config",),
    TOKEN_IDS: ("bos_token_id", "eos_token_id", "pad_token_id"),
}
KINDS: Mapping[str, Kind] = {field: kind.or_null() for kind, fields in _TYPES.items() for field in fields}
_ROPE_TYPES: Mapping[Kind, tuple[str, ...]] = {
    TEXT: ("rope_type", "type"),
    COUNT: ("original_max_position_embeddings",),
    POSITIVE: ("rope_theta", "factor", "partial_rotary_factor", "low_freq_factor", "high_freq_factor"),
    NUMBER: ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "short_mscale", "long_mscale"),
    list_of(NUMBER): ("short_factor", "long_factor"),
    BOOLEAN: ("truncate",),
}
ROPE_KINDS: Mapping[str, Kind] = {field: kind.or_null() for kind, fields in _ROPE_TYPES.items() for field in fields}


class Config(dict[str, Any]):
    """A config.json whose fields have been checked; one that is asked for by name and is missing is the file's fault."""

    def __init__(self, fields: Mapping[str, Any], name: str) -> None:
        super().__init__(fields)
        self._name = name

    def __missing__(self, field: str) -> Any:
        raise InputError(f"{self._name}: config.json has no {field}")


def check_config(config: Mapping[str, Any], name: str) -> None:
    """Hold a parsed config.json, its text model's part and its RoPE parameters against their types.

    Args:
        config: the file's object.
        name: of the model, for messages.

    Raises:
        InputError: names the field, what was expected and what was found.
    """
    _check(config, f"{name}: config.json")
    if config.get("text_config"):
        _check(config["text_config"], f"{name}: config.json: text_config")


def _check(config: Mapping[str, Any], name: str) -> None:
    check_fields(config, KINDS, name)
    for field in ("rope_scaling", "rope_parameters"):
        given = config.get(field) or {}
        by_layer_type = bool(given) and all(isinstance(value, dict) for value in given.values())
        for part, rope in given.items() if by_layer_type else [("", given)]:
            check_fields(rope, ROPE_KINDS, f"{name}: {field}{f'.{part}' if part else ''}")
    _check_padding(config, name)


def _check_padding(config: Mapping[str, Any], name: str) -> None:
    """transformers builds no embedding whose padding token has no row."""
    padding, rows = config.get("pad_token_id"), config.get("vocab_size")
    if isinstance(padding, int) and rows is not None and not -rows <= padding < rows:
        raise InputError(
            f"{name}: pad_token_id: expected a token id below vocab_size = {rows}, got {padding}; "
            "set it to null or to another token's id"
        )
