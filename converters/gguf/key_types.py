"""The metadata keys of a GGUF file that anything here reads, with their types; checked once, when a file is opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from converters.gguf.native import gguf
from longrope.reading import BOOLEAN, COUNT, COUNT_OR_ZERO, HEAD_WIDTH, NUMBER, TEXT, WIDTH, Kind, check, printable

if TYPE_CHECKING:
    from converters.gguf.container import Value


def _is_array(value: Any, fits: Kind) -> bool:
    return isinstance(value, tuple) and all(map(fits.fits, value))


# Strings and numbers that a file stores by the hundred thousand are known by the type of the array.
TEXTS = Kind("an array of strings", lambda value: isinstance(value, tuple) and (not value or isinstance(value[0], str)))
NUMBERS = Kind(
    "an array of numbers", lambda value: isinstance(value, tuple) and (not value or isinstance(value[0], int | float))
)
WHOLES = Kind(
    "an array of whole numbers",
    lambda value: isinstance(value, tuple) and (not value or (isinstance(value[0], int) and value[0] is not True)),
)
# One number for the model, or one per layer.
SIZES = Kind(
    "a whole number of 0 or more, or one per layer",
    lambda value: COUNT_OR_ZERO.fits(value) or _is_array(value, COUNT_OR_ZERO),
)
SCALES = Kind("a finite number, or one per layer", lambda value: NUMBER.fits(value) or _is_array(value, NUMBER))

# Keys by their whole name.
_WHOLE: Mapping[Kind, tuple[str, ...]] = {
    TEXT: (
        "general.architecture",
        "general.name",
        "general.license",
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.chat_template",
        "longrope_export.factors",
        "longrope_export.carried",
    ),
    TEXTS: (
        "general.languages",
        "general.tags",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
        "tokenizer.chat_templates",
    ),
    NUMBERS: ("tokenizer.ggml.scores",),
    WHOLES: ("tokenizer.ggml.token_type", "tokenizer.ggml.precompiled_charsmap"),
    COUNT: ("general.alignment",),
    COUNT_OR_ZERO: ("general.file_type", "split.count", "split.no", "split.tensors.count"),
    BOOLEAN: tuple(
        f"tokenizer.ggml.{name}"
        for name in ("add_bos_token", "add_eos_token", "add_space_prefix", "remove_extra_whitespaces")
    ),
}
# Keys that begin with the name of the file's architecture.
_OF_MODEL: Mapping[Kind, tuple[str, ...]] = {
    COUNT: (
        "context_length",
        "rope.scaling.original_context_length",
        "vocab_size",
    ),
    WIDTH: ("embedding_length",),
    HEAD_WIDTH: ("rope.dimension_count", "attention.key_length", "attention.value_length"),
    COUNT_OR_ZERO: ("expert_count", "expert_used_count", "block_count"),
    SIZES: ("attention.head_count", "attention.head_count_kv", "feed_forward_length", "attention.sliding_window"),
    SCALES: (
        "rope.freq_base",
        "rope.scaling.factor",
        "rope.scale_linear",
        "rope.scaling.attn_factor",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "rope.scaling.yarn_ext_factor",
        "rope.scaling.yarn_attn_factor",
        "rope.scaling.yarn_log_multiplier",
        "attention.layer_norm_rms_epsilon",
        "attention.layer_norm_epsilon",
        "attention.scale",
        "embedding_scale",
        "residual_scale",
        "logit_scale",
    ),
    TEXT: ("rope.scaling.type",),
    BOOLEAN: ("rope.scaling.finetuned",),
}
_KINDS = {key: kind for kind, keys in _WHOLE.items() for key in keys}
_MODEL_KINDS = {key: kind for kind, keys in _OF_MODEL.items() for key in keys}
_TOKEN_ID = "_token_id"


def check_values(values: Mapping[str, Value], name: str) -> None:
    """Hold the metadata of a file against their types, and token ids against the vocabulary.

    Args:
        values: by key.
        name: of the file, for messages.

    Raises:
        InputError: names the file, the key, what was expected and what was found.
    """
    for key, value in values.items():
        kind = _KINDS.get(key) or _MODEL_KINDS.get(key.partition(".")[2])
        if kind is not None:
            check(value.data, kind, f"{name}: {printable(key)}")
    tokens = values.get(gguf.Keys.Tokenizer.LIST)
    if tokens is None:
        return
    for key, value in values.items():
        if key.startswith("tokenizer.ggml.") and key.endswith(_TOKEN_ID):
            _check_token(value.data, len(tokens.data), f"{name}: {printable(key)}")


def _check_token(id: Any, rows: int, where: str) -> None:
    check(id, Kind(f"a token id below {rows}", lambda value: COUNT_OR_ZERO.fits(value) and value < rows), where)
