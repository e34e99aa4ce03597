"""Byte-level BPE vocabularies: tokenizer.json → vocabulary → tokenizer.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from converters.gguf.pretokenizers import byte_level_node, find_pre_tokenizer, pre_tokenizer_named, pre_tokenizer_node
from converters.gguf.vocabulary import SpecialTokens, TokenType, Vocabulary, tokens_by_id
from longrope.checkpoint import Checkpoint
from longrope.errors import UnsupportedError

# Normalizations that change few texts; llama.cpp has none for byte-level BPE, and files of such models are in wide use.
TOLERATED_NORMALIZERS = {"NFC"}


def byte_level_vocabulary(checkpoint: Checkpoint, data: Mapping[str, Any], special: SpecialTokens) -> Vocabulary:
    """The vocabulary of a parsed tokenizer.json.

    Raises:
        UnsupportedError: llama.cpp cannot express this tokenizer.
        InputError: it does not fit the model's vocabulary size.
    """
    _refuse_what_llama_cpp_lacks(data)
    tokens, types = tokens_by_id(data["model"]["vocab"], data, checkpoint.vocab_size)
    return Vocabulary(
        model="gpt2",
        pre=find_pre_tokenizer(data).name,
        tokens=tokens,
        types=types,
        merges=[_merge_text(merge) for merge in data["model"]["merges"]],
        special=special.ids,
        flags={"add_space_prefix": False, **special.flags},
    )


def unexpressed_normalizers(data: Mapping[str, Any]) -> list[str]:
    """Names of the normalizations of a byte-level tokenizer.json, none of which llama.cpp applies."""
    node = data.get("normalizer")
    if node is None:
        return []
    children = node["normalizers"] if node["type"] == "Sequence" else [node]
    return [child["type"] for child in children]


def rebuilt_byte_level(vocabulary: Vocabulary) -> dict[str, Any]:
    """The model, pre-tokenizer and decoder of a tokenizer.json for a `gpt2` vocabulary.

    Raises:
        UnsupportedError: an unknown pre-tokenizer.
    """
    known = pre_tokenizer_named(vocabulary.pre)
    return {
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer_node(known.steps),
        "decoder": byte_level_node(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": known.ignore_merges,
            "vocab": {
                token: id for id, token in enumerate(vocabulary.tokens) if vocabulary.types[id] != TokenType.UNUSED
            },
            "merges": list(vocabulary.merges),
        },
    }


def _refuse_what_llama_cpp_lacks(data: Mapping[str, Any]) -> None:
    model = data["model"]
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UnsupportedError(f"llama.cpp's BPE has no {name}, this tokenizer uses {model[name]!r}")
    alien = set(unexpressed_normalizers(data)) - TOLERATED_NORMALIZERS
    if alien:
        raise UnsupportedError(
            f"llama.cpp does not normalize text for byte-level BPE; this tokenizer does: {sorted(alien)}"
        )


def _merge_text(merge: str | Sequence[str]) -> str:
    return merge if isinstance(merge, str) else " ".join(merge)
