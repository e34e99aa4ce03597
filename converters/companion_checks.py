"""Checks of what lies beside the weights in a folder: configuration, tokenizer, templates, and what has no place there.

Everything is compared with the source's own files, or with the plan where an export changes them. What engines read in
their place counts, not bytes: files that other tools have saved again pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from converters.base import Check
from converters.folder import (
    GENERATION_CONFIG,
    chat_templates,
    ends_at_the_window,
    optional_object,
    tokenizer_config,
)
from converters.network_fields import fields_check
from converters.tokenizer_checks import tokenizer_checks
from longrope.checkpoint import Checkpoint
from longrope.errors import LongRopeError

_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
_ADDED_TOKENS = ("add_bos_token", "add_eos_token")
_LENGTH, _LONG_ENOUGH = "model_max_length", "at least the target"
_MAX_LENGTH = "max_length"
# Of generation_config.json: what ends a text or keeps words out of it, unasked. How to sample is the user's.
_LIMITS = frozenset(
    {
        *(_MAX_LENGTH, "max_new_tokens", "min_length", "min_new_tokens", "stop_strings", "bad_words_ids"),
        *(
            "suppress_tokens",
            "begin_suppress_tokens",
            "sequence_bias",
            "forced_decoder_ids",
            "exponential_decay_length_penalty",
        ),
    }
)
_CODE = frozenset({".py", ".pyc", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat", ".ipynb"})
_PICKLES = frozenset({".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".npy", ".npz"})
_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


def companion_checks(
    format_name: str,
    folder: Path,
    planned: Mapping[str, Any],
    config: Mapping[str, Any],
    source: Checkpoint,
    target: int,
) -> Iterator[Check]:
    """All checks of one folder.

    Args:
        format_name: what the ids begin with.
        folder: of the artifact.
        planned: the config.json that an export of the source has.
        config: the artifact's config.json.
        source: the model it was made from.
        target: L' in tokens.
    """
    yield fields_check(f"{format_name}.config.fields", planned, config)
    yield from tokenizer_checks(format_name, folder, source)
    yield from _texts(format_name, folder, source, target)
    yield files_check(f"{format_name}.files", folder, config)


# -- settings


def _texts(format_name: str, folder: Path, source: Checkpoint, target: int) -> Iterator[Check]:
    """Chat template, special tokens and length of the tokenizer, ends and limits of generation_config.json."""
    try:
        wanted, found = _settings(source.path, target), _settings(folder, target)
    except LongRopeError as error:
        yield Check(f"{format_name}.tokenizer_config", "fail", "readable settings", "broken ones", str(error))
        return
    if _LENGTH in wanted["tokenizer_config"]:
        wanted["tokenizer_config"][_LENGTH] = _LONG_ENOUGH
    if ends_at_the_window(wanted["generation_config"], source.window):
        wanted["generation_config"][_MAX_LENGTH] = _LONG_ENOUGH
    messages = {
        "chat_template": "conversations are written for another model",
        "generation_config": "generation ends at another token or length, or never",
        "tokenizer_config": "other tokens are put around texts, or texts are cut at another length",
    }
    for name, message in messages.items():
        limits = {key for key, value in found[name].items() if key in _LIMITS and value != _LONG_ENOUGH}
        expected, actual = (
            {key: each[name].get(key) for key in {**wanted[name], **dict.fromkeys(limits)}} for each in (wanted, found)
        )
        yield Check.equal(f"{format_name}.{name}", _short(expected), _short(actual), message)


def _short(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Long texts as their length and checksum, which say whether two differ and where to look."""
    return {
        key: _digest(value) if isinstance(value, str) and len(value) > 60 else value for key, value in settings.items()
    }


def _digest(text: str) -> str:
    return f"{len(text)} characters, {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _settings(folder: Path, target: int) -> dict[str, dict[str, Any]]:
    """What a folder says, by check."""
    tokenizer = {
        **optional_object(folder, "special_tokens_map.json"),
        **tokenizer_config(folder),
    }
    special = {name: _content(tokenizer[name]) for name in _SPECIAL_TOKENS if tokenizer.get(name) is not None}
    special |= {name: bool(tokenizer.get(name)) for name in _ADDED_TOKENS}
    if isinstance(length := tokenizer.get(_LENGTH), int | float):
        special[_LENGTH] = _LONG_ENOUGH if length >= target else length
    generation = optional_object(folder, GENERATION_CONFIG)
    ends = {name: value for name, value in generation.items() if _ends_texts(name) and value is not None}
    if isinstance(longest := ends.get(_MAX_LENGTH), int) and longest >= target:
        ends[_MAX_LENGTH] = _LONG_ENOUGH
    return {"chat_template": dict(chat_templates(folder)), "generation_config": ends, "tokenizer_config": special}


def _ends_texts(name: str) -> bool:
    """Whether a field of generation_config.json says where a text ends, or what it may not hold; how to sample is free."""
    return name.endswith("_token_id") or name in _LIMITS


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


# -- what has no place in a folder


def files_check(id: str, folder: Path, config: Mapping[str, Any]) -> Check:
    """No code and no pickle, which loaders of other tools would run."""
    found = ["auto_map in config.json"] if config.get("auto_map") else []
    for file in sorted(folder.rglob("*")):
        if file.is_file() and (file.suffix.lower() in _CODE | _PICKLES or _is_pickle(file)):
            found.append(file.relative_to(folder).as_posix())
    return Check.equal(id, [], found[:5], "code, or a pickle, which is code to whoever opens it")


def _is_pickle(file: Path) -> bool:
    if file.suffix.lower() != ".bin":
        return False
    with file.open("rb") as handle:
        return handle.read(4).startswith(_PICKLE_STARTS)
