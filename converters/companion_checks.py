"""Checks of what lies beside the weights in a folder: configuration, tokenizer, templates, and what has no place there.

Everything is compared with the source's own files, or with the plan where an export changes them. What engines read in
their place counts, not bytes: files that other tools have saved again pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from converters.base import Check
from converters.folder import chat_templates, optional_object, tokenizer_config
from longrope.checkpoint import Checkpoint, open_folder
from longrope.errors import LongRopeError
from longrope.reading import read_object

# Fields of config.json that a network is built by, or that say where a text ends. Missing is as wrong as another value.
FIELDS = (
    *("model_type", "architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "layer_norm_eps"),
    *("tie_word_embeddings", "attention_bias", "mlp_bias", "sliding_window", "layer_types", "num_experts_per_tok"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)
_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
_ADDED_TOKENS = ("add_bos_token", "add_eos_token")
_LENGTH, _LONG_ENOUGH = "model_max_length", "at least the target"
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
    yield _fields(f"{format_name}.config.fields", planned, config)
    yield _tokenizer(f"{format_name}.tokenizer", folder, source)
    yield from _texts(format_name, folder, source.path, target)
    yield files_check(f"{format_name}.files", folder, config)


def _fields(id: str, planned: Mapping[str, Any], config: Mapping[str, Any]) -> Check:
    """Of a multimodal model, the fields of its text part, too."""
    wanted = {name: planned[name] for name in FIELDS if planned.get(name) is not None}
    odd = [name for name in wanted if config.get(name) != wanted[name]]
    inner, found = planned.get("text_config"), config.get("text_config")
    if isinstance(inner, dict) and not odd:
        return _fields(id, inner, found if isinstance(found, dict) else {})
    expected, actual = {name: wanted[name] for name in odd}, {name: config.get(name) for name in odd}
    return Check.equal(id, expected, actual, "engines build another network, or stop at another token")


# -- tokenizer


def _tokenizer(id: str, folder: Path, source: Checkpoint) -> Check:
    """Same ids on text with digits, white space, several scripts and every special token; same vocabulary and merges."""
    try:
        artifact = open_folder(folder, needs_weights=False)
        added = "".join(map(str, artifact.tokenizer.get_added_tokens_decoder().values()))
        text = f"In 1847,  36 houses\n\n\tstood – naïve, 日本語, 🙂; x_i != 0x1F.{added}"
        found, wanted = artifact.encode(text), source.encode(text)
    except LongRopeError as error:
        return Check(id, "fail", "the source's tokenizer", "none that can be read", str(error))
    if found != wanted:
        return Check(id, "fail", wanted, found, "the same text gives other token ids")
    if source.keep_alive is None:
        mine, theirs = (_pieces(each) for each in (artifact, source))
        for name, expected in theirs.items():
            if mine[name] != expected:
                message = "texts with these tokens are split otherwise, if not the sample"
                return Check(id, "fail", f"{len(expected)} {name}", f"{len(mine[name])}, or others", message)
    return Check(id, "pass", f"{len(wanted)} ids", f"{len(found)} equal ids")


def _pieces(checkpoint: Checkpoint) -> dict[str, Sequence[Any]]:
    """A tokenizer's vocabulary, merges and added tokens, however the file spells them."""
    data = read_object(checkpoint.tokenizer_file)
    model = data.get("model") or {}
    vocab, merges = model.get("vocab") or {}, model.get("merges") or []
    return {
        "tokens": sorted(vocab.items()) if isinstance(vocab, dict) else [tuple(entry) for entry in vocab],
        "merges": [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges],
        "added tokens": sorted((token["id"], token["content"]) for token in data.get("added_tokens") or ()),
    }


def text_ids(id: str, folder: Path, source: Checkpoint, texts: Sequence[str]) -> Check:
    """Same ids on the given texts: a sample of one sentence holds a small part of a vocabulary."""
    try:
        artifact = open_folder(folder, needs_weights=False)
        pairs = [(source.encode_plain(text), artifact.encode_plain(text)) for text in texts]
    except LongRopeError as error:
        return Check(id, "fail", "the source's tokenizer", "none that can be read", str(error))
    expected, actual = (sum(map(len, side)) for side in zip(*pairs, strict=True))
    odd = next((number for number, (one, other) in enumerate(pairs) if one != other), None)
    if odd is None:
        return Check(id, "pass", f"{expected} ids", f"{actual} equal ids")
    return Check(id, "fail", f"{expected} ids", f"{actual} ids, others", f"text {odd + 1} gives other token ids")


# -- settings


def _texts(format_name: str, folder: Path, source: Path, target: int) -> Iterator[Check]:
    """Chat template, special tokens and length of the tokenizer, token ids of generation_config.json."""
    try:
        wanted, found = _settings(source, target), _settings(folder, target)
    except LongRopeError as error:
        yield Check(f"{format_name}.tokenizer_config", "fail", "readable settings", "broken ones", str(error))
        return
    if _LENGTH in wanted["tokenizer_config"]:
        wanted["tokenizer_config"][_LENGTH] = _LONG_ENOUGH
    messages = {
        "chat_template": "conversations are written for another model",
        "generation_config": "generation ends at another token, or never",
        "tokenizer_config": "other tokens are put around texts, or texts are cut at another length",
    }
    for name, message in messages.items():
        expected, actual = wanted[name], {key: found[name].get(key) for key in wanted[name]}
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
    longest = tokenizer.get(_LENGTH)
    if isinstance(longest, int | float):
        special[_LENGTH] = _LONG_ENOUGH if longest >= target else longest
    generation = optional_object(folder, "generation_config.json")
    ids = {name: value for name, value in generation.items() if name.endswith("_token_id") and value is not None}
    return {"chat_template": dict(chat_templates(folder)), "generation_config": ids, "tokenizer_config": special}


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
