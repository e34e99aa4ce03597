"""How byte-level tokenizers split text before merging: tokenizer.json's steps, and the names llama.cpp has for them.

The name is found by comparing the steps, as data, with those llama.cpp implements; no list of known models is involved.

Source: llama.cpp, src/llama-vocab.cpp, as vendored by llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longrope.errors import UnsupportedError

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
        add_bos: llama.cpp puts BOS before a text when the file does not say.
        aliases: other names for the same splitting.
    """

    name: str
    steps: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    aliases: tuple[str, ...] = ()


PRE_TOKENIZERS = (
    PreTokenizer(
        "gpt-2",
        (GPT2,),
        aliases=("phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "gigachat", "a.x-4.0"),
    ),
    PreTokenizer(
        "smollm",
        (DIGIT, GPT2),
        aliases=("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
    ),
    PreTokenizer(
        "llama-bpe",
        (LLAMA3,),
        ignore_merges=True,
        add_bos=True,
        aliases=("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "glm4"),
    ),
    PreTokenizer("smaug-bpe", (LLAMA3,), aliases=("dbrx", "chatglm-bpe")),
    PreTokenizer(
        "qwen2",
        (QWEN2,),
        aliases=("deepseek-r1-qwen", "kormo", "stablelm2", "megrez", "hunyuan", "solar-open", "grok-2"),
    ),
    PreTokenizer("tekken", (TEKKEN,), ignore_merges=True, add_bos=True),
    PreTokenizer("gpt-4o", (GPT4O,), aliases=("llama4", "kanana2", "minimax-m2", "talkie")),
    PreTokenizer("superbpe", (r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    PreTokenizer("deepseek-coder", (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGIT)),
    PreTokenizer("minicpm5", (r"\p{N}{1,3}", _CONTRACTIONS + _WORDS + r"|\p{N}+" + _REST), ignore_merges=True),
    PreTokenizer("default", (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
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
    return pattern.replace(expanded, _CONTRACTIONS)


# -- and back


def pre_tokenizer_named(name: str | None) -> PreTokenizer:
    """The splitter that llama.cpp uses for `tokenizer.ggml.pre`. Raises UnsupportedError for a name not in the table."""
    pre = name or "default"
    for known in PRE_TOKENIZERS:
        if pre in (known.name, *known.aliases):
            return known
    raise UnsupportedError(f"the pre-tokenizer {pre!r} cannot be rebuilt from GGUF; use the original checkpoint")


def pre_tokenizer_node(steps: Sequence[str]) -> dict[str, Any]:
    """The pre_tokenizer of a tokenizer.json that splits by these regexes and then works on bytes."""
    nodes = [_step_node(step) for step in steps if step != GPT2 or step is not steps[-1]]
    return {"type": "Sequence", "pretokenizers": [*nodes, byte_level_node(use_regex=steps[-1] == GPT2)]}


def _step_node(step: str) -> dict[str, Any]:
    if step == DIGIT:
        return {"type": "Digits", "individual_digits": True}
    return {"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated", "invert": False}


def byte_level_node(*, use_regex: bool) -> dict[str, Any]:
    """A ByteLevel step, which is pre-tokenizer, post-processor and decoder alike."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}
