"""tokenizer.json ⇄ the vocabulary of a GGUF file, whatever its kind.

    tokenizer.json ──structure──► byte-level BPE, SentencePiece BPE or unigram ──► Vocabulary ──► tokenizer.* keys ──► back

Whether llama.cpp then splits text alike is not believed but asked: see `agreement`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

from converters.gguf.bytelevel import byte_level_vocabulary, rebuilt_byte_level, unexpressed_normalizers
from converters.gguf.pretokenizers import byte_level_node, pre_tokenizer_named
from converters.gguf.sentencepiece import bpe_vocabulary, rebuilt_bpe, rebuilt_unigram, unigram_vocabulary
from converters.gguf.vocabulary import SPECIAL_NAMES, SpecialTokens, TokenType, Vocabulary
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError, UnsupportedError

Reader = Callable[[Checkpoint, Mapping[str, Any], SpecialTokens], Vocabulary]


def vocabulary_of(checkpoint: Checkpoint) -> Vocabulary:
    """The vocabulary of a checkpoint's tokenizer.json.

    Raises:
        InputError: the tokenizer does not fit the model's vocabulary size, or is damaged.
        UnsupportedError: llama.cpp cannot express this tokenizer.
    """
    state = _state(checkpoint)
    if state not in _latest:
        _latest.clear()
        _latest[state] = _vocabulary(checkpoint)
    return _latest[state]


# One vocabulary is remembered: planning, writing and checking each ask for it, and it takes half a second to read.
_latest: dict[Hashable, Vocabulary] = {}


def _state(checkpoint: Checkpoint) -> Hashable:
    """What a vocabulary depends on."""
    files = [checkpoint.path / name for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")]
    found = [(file, file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.is_file()]
    return *found, json.dumps(checkpoint.config, sort_keys=True, default=str)


def _vocabulary(checkpoint: Checkpoint) -> Vocabulary:
    data = tokenizer_json(checkpoint)
    built = _reader(data["model"])(checkpoint, data, _special_tokens(checkpoint, data))
    normalizers = tuple(unexpressed_normalizers(data)) if built.model == "gpt2" else ()
    return dataclasses.replace(built, chat_templates=_chat_templates(checkpoint.path), unapplied=normalizers)


def _reader(model: Mapping[str, Any]) -> Reader:
    kind = model.get("type", "BPE")
    if kind == "Unigram":
        return unigram_vocabulary
    if kind == "BPE" and "merges" in model:
        return bpe_vocabulary if model.get("byte_fallback") else byte_level_vocabulary
    raise UnsupportedError(
        f"llama.cpp runs no text model with a tokenizer of type {kind!r}; expected BPE or Unigram. Export to HF or ONNX"
    )


def tokenizer_json(checkpoint: Checkpoint) -> dict[str, Any]:
    """tokenizer.json, parsed, of a checkpoint whose tokenizer the tokenizers library can read."""
    _ = checkpoint.tokenizer
    data: dict[str, Any] = json.loads((checkpoint.path / "tokenizer.json").read_text(encoding="utf-8"))
    return data


def _special_tokens(checkpoint: Checkpoint, data: Mapping[str, Any]) -> SpecialTokens:
    """tokenizer.json decides what is added; tokenizer_config.json and config.json only name the tokens."""
    ids = _named_ids(checkpoint, data)
    before, after = checkpoint.added_around
    for name, added in (("bos", before), ("eos", after)):
        if len(added) > 1:
            raise UnsupportedError(f"this tokenizer adds {len(added)} tokens around a text; llama.cpp adds one at most")
        if added:
            ids[name] = added[0]
    special = {SPECIAL_NAMES[name]: id for name, id in ids.items()}
    return SpecialTokens(special, {"add_bos_token": bool(before), "add_eos_token": bool(after)})


def _named_ids(checkpoint: Checkpoint, data: Mapping[str, Any]) -> dict[str, int]:
    settings = _json_object(checkpoint.path / "tokenizer_config.json")
    known = _model_ids(data["model"]) | {added["content"]: added["id"] for added in data.get("added_tokens", ())}
    found = {}
    for name in SPECIAL_NAMES:
        named = settings.get(f"{name}_token")
        content = named.get("content") if isinstance(named, dict) else named
        listed = checkpoint.config.get(f"{name}_token_id")
        id = known.get(content, listed[0] if isinstance(listed, list) and listed else listed)
        if isinstance(id, int) and 0 <= id < checkpoint.vocab_size:
            found[name] = id
    return found


def _model_ids(model: Mapping[str, Any]) -> dict[str, int]:
    """Token → id; unigram models have a list of (token, score) instead."""
    vocab = model["vocab"]
    return dict(vocab) if isinstance(vocab, dict) else {token: id for id, (token, _) in enumerate(vocab)}


def _chat_templates(folder: Path) -> dict[str, str]:
    """chat_template.jinja and additional_chat_templates/, or what tokenizer_config.json holds."""
    file = folder / "chat_template.jinja"
    extra = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("additional_chat_templates/*.jinja")}
    if file.is_file():
        return {"default": file.read_text(encoding="utf-8"), **extra}
    template = _json_object(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        return {entry["name"]: entry["template"] for entry in template}
    return {"default": template} if isinstance(template, str) else {}


def _json_object(file: Path) -> dict[str, Any]:
    """A JSON object, empty when there is no such file. Raises InputError when it is something else."""
    if not file.is_file():
        return {}
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise InputError(f"{file}: expected an object, got {type(data).__name__}")
    return data


# -- vocabulary → tokenizer.json


def rebuilt_tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    """A tokenizer.json that splits text as llama.cpp does with this vocabulary.

    Raises:
        UnsupportedError: a kind of vocabulary, or a pre-tokenizer, that cannot be rebuilt.
    """
    rebuild = {"gpt2": rebuilt_byte_level, "llama": rebuilt_bpe, "t5": rebuilt_unigram}.get(vocabulary.model)
    if rebuild is None:
        raise UnsupportedError(
            f"a {vocabulary.model!r} vocabulary cannot be rebuilt from GGUF; use the original checkpoint"
        )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(vocabulary, id) for id in _added_ids(vocabulary)],
        "post_processor": _post_processor_node(vocabulary),
        **rebuild(vocabulary),
    }


def rebuilt_tokenizer_config(vocabulary: Vocabulary) -> dict[str, Any]:
    """A tokenizer_config.json that names the special tokens and holds the chat template."""
    names = {theirs: name for name, theirs in SPECIAL_NAMES.items()}
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {f"{names[name]}_token": vocabulary.tokens[id] for name, id in vocabulary.special.items()}
    if "default" in vocabulary.chat_templates:
        config["chat_template"] = vocabulary.chat_templates["default"]
    return config


def _added_ids(vocabulary: Vocabulary) -> list[int]:
    added = {TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN}
    return [id for id, kind in enumerate(vocabulary.types) if kind in added]


def _added_token(vocabulary: Vocabulary, id: int) -> dict[str, Any]:
    return {
        "id": id,
        "content": vocabulary.tokens[id],
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": vocabulary.types[id] != TokenType.USER_DEFINED,
    }


def _adds_bos_by_default(vocabulary: Vocabulary) -> bool:
    """What llama.cpp does when the file does not say."""
    return pre_tokenizer_named(vocabulary.pre).add_bos if vocabulary.model == "gpt2" else vocabulary.model == "llama"


def _post_processor_node(vocabulary: Vocabulary) -> dict[str, Any] | None:
    """Puts BOS before and EOS behind a text where the file asks for it."""
    add_bos = vocabulary.flags.get("add_bos_token", _adds_bos_by_default(vocabulary)) and "bos" in vocabulary.special
    add_eos = vocabulary.flags.get("add_eos_token", vocabulary.model == "t5") and "eos" in vocabulary.special
    before, after = ["bos"] * add_bos, ["eos"] * add_eos
    if not before + after:
        return byte_level_node(use_regex=True) if vocabulary.model == "gpt2" else None
    tokens = {name: vocabulary.tokens[vocabulary.special[name]] for name in before + after}

    def template(sequence: str, type_id: int) -> list[dict[str, Any]]:
        def special(name: str) -> dict[str, Any]:
            return {"SpecialToken": {"id": tokens[name], "type_id": type_id}}

        middle = {"Sequence": {"id": sequence, "type_id": type_id}}
        return [*map(special, before), middle, *map(special, after)]

    return {
        "type": "TemplateProcessing",
        "single": template("A", 0),
        "pair": template("A", 0) + template("B", 1),
        "special_tokens": {
            token: {"id": token, "ids": [vocabulary.special[name]], "tokens": [token]} for name, token in tokens.items()
        },
    }
