"""What llama.cpp knows of a tokenizer, and its place in a file's metadata: the `tokenizer.*` keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np

from converters.gguf.container import Kind, Value, array, flag, text, u32
from longrope.errors import InputError, UnsupportedError

PREFIX = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"
# Names of special tokens in tokenizer_config.json and config.json, and llama.cpp's.
SPECIAL_NAMES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask"}
FLAGS = ("add_bos_token", "add_eos_token", "add_space_prefix", "remove_extra_whitespaces")


class TokenType(IntEnum):
    """llama.cpp's token types."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of special tokens by llama.cpp's names, and whether encoding puts BOS before a text and EOS behind."""

    ids: Mapping[str, int]
    flags: Mapping[str, bool]


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp needs to tokenize.

    Args:
        model: `tokenizer.ggml.model`: "gpt2" for byte-level BPE, "llama" and "t5" for SentencePiece's BPE and unigram.
        pre: name of the pre-tokenizer; None where the model has none.
        tokens: text of every id.
        types: `TokenType` of every id.
        merges: "left right", best first.
        scores: of every id, for SentencePiece.
        charsmap: SentencePiece's compiled character map; empty without.
        special: ids by name: bos, eos, unknown, padding, …
        flags: of `FLAGS`.
        chat_templates: Jinja sources by name; "default" is the one tools use unasked.
        unapplied: names of normalizations that the tokenizer has and llama.cpp does not.
    """

    model: str
    pre: str | None
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()
    charsmap: bytes = b""
    special: Mapping[str, int] = field(default_factory=dict)
    flags: Mapping[str, bool] = field(default_factory=dict)
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    unapplied: tuple[str, ...] = ()

    @cached_property
    def values(self) -> Mapping[str, Value]:
        """The `tokenizer.*` keys."""
        found = {
            PREFIX + "model": text(self.model),
            **({PREFIX + "pre": text(self.pre)} if self.pre else {}),
            PREFIX + "tokens": array(Kind.STRING, self.tokens),
            PREFIX + "token_type": array(Kind.INT32, self.types),
        }
        if self.merges:
            found[PREFIX + "merges"] = array(Kind.STRING, self.merges)
        if self.scores:
            found[PREFIX + "scores"] = array(Kind.FLOAT32, np.array(self.scores, np.float32).tolist())
        if self.charsmap:
            found[PREFIX + "precompiled_charsmap"] = array(Kind.UINT8, self.charsmap)
        found |= {f"{PREFIX}{name}_token_id": u32(id) for name, id in self.special.items()}
        found |= {PREFIX + name: flag(on) for name, on in self.flags.items()}
        return found | _template_values(self.chat_templates)


def _template_values(templates: Mapping[str, str]) -> dict[str, Value]:
    named = sorted(name for name in templates if name != "default")
    found = {f"{TEMPLATE}.{name}": text(templates[name]) for name in named}
    if named:
        found["tokenizer.chat_templates"] = array(Kind.STRING, named)
    if "default" in templates:
        found[TEMPLATE] = text(templates["default"])
    return found


def vocabulary_in(values: Mapping[str, Value]) -> Vocabulary:
    """The vocabulary in a file's metadata. Raises InputError when it has none."""

    def get(name: str, default: Any = None) -> Any:
        return values[PREFIX + name].data if PREFIX + name in values else default

    tokens = get("tokens")
    if not tokens:
        raise InputError("the GGUF file has no vocabulary (tokenizer.ggml.tokens)")
    templates = {"default": values[TEMPLATE].data} if TEMPLATE in values else {}
    return Vocabulary(
        model=str(get("model")),
        pre=get("pre"),
        tokens=tokens,
        types=get("token_type", [TokenType.NORMAL] * len(tokens)),
        merges=get("merges", ()),
        scores=get("scores", ()),
        charsmap=bytes(n & 0xFF for n in get("precompiled_charsmap", ())),
        special={name: id for name in SPECIAL_NAMES.values() if (id := get(f"{name}_token_id")) is not None},
        flags={name: on for name in FLAGS if (on := get(name)) is not None},
        chat_templates=templates,
    )


def tokens_by_id(
    ids: Mapping[str, int],
    data: Mapping[str, Any],
    vocab_size: int,
    *,
    kind_of: Callable[[str], TokenType] | None = None,
) -> tuple[list[str], list[int]]:
    """Text and type of every id; ids that the model has and the tokenizer lacks are unused ones.

    Args:
        ids: the tokenizer model's vocabulary.
        data: the parsed tokenizer.json, for the added tokens.
        vocab_size: of the model.
        kind_of: type of a token that was not added, or whose type is its own; None where all are words.

    Raises:
        InputError: an id beyond the model's vocabulary.
        UnsupportedError: a token with two ids.
    """
    names = {id: token for token, id in ids.items()}
    kinds = {id: kind_of(token) for id, token in names.items()} if kind_of else {}
    for added in data.get("added_tokens", ()):
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        own = kind_of(added["content"]) if kind_of else TokenType.NORMAL
        names[added["id"]] = added["content"]
        kinds[added["id"]] = kind if own is TokenType.NORMAL else own
    if names and max(names) >= vocab_size:
        raise InputError(
            f"the tokenizer has ids up to {max(names)}, the model's vocab_size is {vocab_size}; expected ids below it"
        )
    unused = {id: f"[PAD{id}]" for id in range(vocab_size) if id not in names}
    kinds |= dict.fromkeys(unused, TokenType.UNUSED)
    names |= unused
    tokens = [names[id] for id in range(vocab_size)]
    if len(set(tokens)) != len(tokens):
        twice = next(token for token in tokens if tokens.count(token) > 1)
        raise UnsupportedError(f"the token {twice!r} has two ids, which llama.cpp does not load")
    return tokens, [int(kinds.get(id, TokenType.NORMAL)) for id in range(vocab_size)]
