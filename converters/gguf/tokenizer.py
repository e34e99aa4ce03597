"""tokenizer.json ⇄ the vocabulary of a GGUF file.

    tokenizer.json ──structure──► pre-tokenizer by name ──┐
                   ──vocabulary, merges, added tokens ────┴─► Vocabulary ──► tokenizer.ggml.* keys ──► back

The pre-tokenizer is found by comparing the steps of tokenizer.json, as data, with those llama.cpp implements under
each name; no list of known models is involved. Whether the result is right is decided by `agreement`, which
compares token ids on awkward text.

Source: llama.cpp, src/llama-vocab.cpp, as vendored by llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from converters.gguf.container import Kind, Value, array, flag, text, u32
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError, UnsupportedError

PREFIX = "tokenizer.ggml."


class TokenType(IntEnum):
    """llama.cpp's token types."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# -- pre-tokenizers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = _CONTRACTIONS + _WORDS + r"|\p{N}{1,3}" + _REST
QWEN2 = _CONTRACTIONS + _WORDS + r"|\p{N}" + _REST
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_EDGE = r"[^\r\n\p{L}\p{N}]?"
TEKKEN = f"{_EDGE}{_UPPER}*{_LOWER}+|{_EDGE}{_UPPER}+{_LOWER}*" + r"|\p{N}" + _CASED
GPT4O = f"{_EDGE}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_EDGE}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?" + r"|\p{N}{1,3}" + _CASED
DIGIT = r"\p{N}"


@dataclass(frozen=True)
class PreTokenizer:
    """A byte-level splitter that llama.cpp implements: regexes applied one after the other, matches kept apart.

    Args:
        name: `tokenizer.ggml.pre`.
        steps: the regexes, in tokenizer.json's spelling.
        ignore_merges: a whole word that is a token is taken without merging.
    """

    name: str
    steps: tuple[str, ...]
    ignore_merges: bool = False


PRE_TOKENIZERS = (
    PreTokenizer("gpt-2", (GPT2,)),
    PreTokenizer("smollm", (DIGIT, GPT2)),
    PreTokenizer("llama-bpe", (LLAMA3,), ignore_merges=True),
    PreTokenizer("smaug-bpe", (LLAMA3,)),
    PreTokenizer("qwen2", (QWEN2,)),
    PreTokenizer("tekken", (TEKKEN,), ignore_merges=True),
    PreTokenizer("gpt-4o", (GPT4O,)),
    PreTokenizer("superbpe", (r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    PreTokenizer("deepseek-coder", (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGIT)),
    PreTokenizer("minicpm5", (r"\p{N}{1,3}", _CONTRACTIONS + _WORDS + r"|\p{N}+" + _REST), ignore_merges=True),
)


def find_pre_tokenizer(data: Mapping[str, Any]) -> PreTokenizer:
    """The splitter of llama.cpp that does what a parsed byte-level tokenizer.json says.

    Raises:
        UnsupportedError: llama.cpp has none; the message shows the steps that were found.
    """
    steps = tuple(canonical(step) for step in split_steps(data.get("pre_tokenizer")))
    ignore_merges = bool(data["model"].get("ignore_merges", False))
    for known in PRE_TOKENIZERS:
        if tuple(map(canonical, known.steps)) == steps and known.ignore_merges == ignore_merges:
            return known
    raise UnsupportedError(
        f"llama.cpp has no pre-tokenizer that splits text by {' then '.join(map(repr, steps)) or 'nothing'} "
        f"(ignore_merges {ignore_merges}); it knows {', '.join(known.name for known in PRE_TOKENIZERS)}. "
        "Export to HF or ONNX instead"
    )


def split_steps(node: Mapping[str, Any] | None) -> list[str]:
    """The regexes of a pre_tokenizer node of tokenizer.json, in order.

    Raises:
        UnsupportedError: a step that is no regex whose matches are kept apart.
    """
    if node is None:
        return []
    if node["type"] == "Sequence":
        return [step for child in node["pretokenizers"] for step in split_steps(child)]
    if node["type"] == "ByteLevel" and not node.get("add_prefix_space"):
        return [GPT2] if node.get("use_regex", True) else []
    if node["type"] == "Digits":
        return [DIGIT if node.get("individual_digits") else r"\p{N}+"]
    if node["type"] == "Split" and _keeps_matches_apart(node):
        pattern = node["pattern"]
        return [pattern["Regex"] if "Regex" in pattern else re.escape(pattern["String"])]
    raise UnsupportedError(f"llama.cpp has no pre-tokenizer step like {json.dumps(node, ensure_ascii=False)[:200]}")


def _keeps_matches_apart(node: Mapping[str, Any]) -> bool:
    """`Isolated`, or the inverted `Removed` that OpenAI-derived tokenizers use with patterns that match everything."""
    return (node["behavior"], bool(node.get("invert"))) in {("Isolated", False), ("Removed", True)}


def canonical(pattern: str) -> str:
    """One spelling for regexes that say the same in different ways."""
    pattern = pattern.replace("\r", r"\r").replace("\n", r"\n").replace(r"\p{N}{1}", r"\p{N}")
    expanded = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    pattern = pattern.replace(expanded, _CONTRACTIONS)
    pattern = re.sub(r"\(\?i:'s\|'t\|'re\|'ve\|'m\|'ll\|'d\)", lambda match: _CONTRACTIONS, pattern)
    # At the end of an alternation `\s+(?!\S)|\s+` and `\s+(?!\S)` split alike once unmatched rests are kept, as here.
    return pattern.removesuffix(r"|\s+").removesuffix(r"|\s+(?!\S)") if pattern.endswith(r"\s+") else pattern


# -- the vocabulary


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp needs to tokenize.

    Args:
        model: `tokenizer.ggml.model`: "gpt2" for byte-level BPE.
        pre: name of the pre-tokenizer; None where the model has none.
        tokens: text of every id.
        types: `TokenType` of every id.
        merges: "left right", best first.
        special: ids by name: bos, eos, unknown, padding, …
        flags: add_bos_token, add_eos_token, add_space_prefix.
        chat_template: Jinja source.
    """

    model: str
    pre: str | None
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str] = ()
    special: Mapping[str, int] = field(default_factory=dict)
    flags: Mapping[str, bool] = field(default_factory=dict)
    chat_template: str | None = None

    def values(self) -> dict[str, Value]:
        """The `tokenizer.*` keys."""
        found = {
            PREFIX + "model": text(self.model),
            **({PREFIX + "pre": text(self.pre)} if self.pre else {}),
            PREFIX + "tokens": array(Kind.STRING, self.tokens),
            PREFIX + "token_type": array(Kind.INT32, self.types),
            PREFIX + "merges": array(Kind.STRING, self.merges),
        }
        found |= {f"{PREFIX}{name}_token_id": u32(id) for name, id in self.special.items()}
        found |= {PREFIX + name: flag(on) for name, on in self.flags.items()}
        if self.chat_template:
            found["tokenizer.chat_template"] = text(self.chat_template)
        return found
