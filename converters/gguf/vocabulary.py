"""What llama.cpp knows of a tokenizer, and its place in a file's metadata: the `tokenizer.*` keys.

For byte-level vocabularies `tokenizer.ggml.pre` names how text is split before merging. The name is found by comparing
the steps of tokenizer.json, as data, with those that llama.cpp implements; no list of known models is involved.

Source: llama.cpp, src/llama-vocab.cpp, as vendored by llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.gguf.container import Value, array, flag, text, u32
from converters.gguf.native import gguf
from longrope.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from gguf import TokenType

PREFIX = "tokenizer.ggml."
# Names of special tokens in tokenizer_config.json and config.json, and llama.cpp's.
SPECIAL_NAMES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask"}
FLAGS = ("add_bos_token", "add_eos_token", "add_space_prefix", "remove_extra_whitespaces")


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
        types: `gguf.TokenType` of every id.
        merges: "left right", best first.
        scores: of every id, for SentencePiece.
        charsmap: SentencePiece's compiled character map; empty without.
        special: ids by name: bos, eos, unknown, padding, …
        flags: of `FLAGS`.
        chat_templates: Jinja sources by name; "default" is the one tools use unasked.
        unapplied: names of normalizations that the tokenizer has and llama.cpp does not.
        stripping: added tokens that swallow the white space behind them.
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
    stripping: frozenset[str] = frozenset()

    @cached_property
    def values(self) -> Mapping[str, Value]:
        """The `tokenizer.*` keys."""
        kinds, keys = gguf.GGUFValueType, gguf.Keys.Tokenizer
        found = {
            keys.MODEL: text(self.model),
            **({keys.PRE: text(self.pre)} if self.pre else {}),
            keys.LIST: array(kinds.STRING, self.tokens),
            keys.TOKEN_TYPE: array(kinds.INT32, self.types),
        }
        if self.merges:
            found[keys.MERGES] = array(kinds.STRING, self.merges)
        if self.scores:
            found[keys.SCORES] = array(kinds.FLOAT32, np.array(self.scores, np.float32).tolist())
        if self.charsmap:
            found[keys.PRECOMPILED_CHARSMAP] = array(kinds.UINT8, self.charsmap)
        found |= {f"{PREFIX}{name}_token_id": u32(id) for name, id in self.special.items()}
        found |= {PREFIX + name: flag(on) for name, on in self.flags.items()}
        return found | _template_values(self.chat_templates)


def _template_values(templates: Mapping[str, str]) -> dict[str, Value]:
    keys, named = gguf.Keys.Tokenizer, sorted(name for name in templates if name != "default")
    found = {keys.CHAT_TEMPLATE_N.format(name=name): text(templates[name]) for name in named}
    if named:
        found[keys.CHAT_TEMPLATES] = array(gguf.GGUFValueType.STRING, named)
    if "default" in templates:
        found[keys.CHAT_TEMPLATE] = text(templates["default"])
    return found


def vocabulary_in(values: Mapping[str, Value]) -> Vocabulary:
    """The vocabulary in a file's metadata. Raises InputError when it has none."""

    keys = gguf.Keys.Tokenizer

    def get(key: str, default: Any = None) -> Any:
        return values[key].data if key in values else default

    tokens = get(keys.LIST)
    if not tokens:
        raise InputError(f"the GGUF file has no vocabulary ({keys.LIST})")
    for key in (keys.TOKEN_TYPE, keys.SCORES):
        if key in values and len(values[key].data) != len(tokens):
            raise InputError(f"{key}: expected {len(tokens)} numbers, one per token, got {len(values[key].data)}")
    template = get(keys.CHAT_TEMPLATE)
    return Vocabulary(
        model=str(get(keys.MODEL)),
        pre=get(keys.PRE),
        tokens=tokens,
        types=get(keys.TOKEN_TYPE, (int(gguf.TokenType.NORMAL),) * len(tokens)),
        merges=get(keys.MERGES, ()),
        scores=get(keys.SCORES, ()),
        charsmap=bytes(n & 0xFF for n in get(keys.PRECOMPILED_CHARSMAP, ())),
        special={name: id for name in SPECIAL_NAMES.values() if (id := get(f"{PREFIX}{name}_token_id")) is not None},
        flags={name: on for name in FLAGS if (on := get(PREFIX + name)) is not None},
        chat_templates={} if template is None else {"default": template},
        stripping=_stripping(get(gguf.Keys.General.NAME, ""), tokens, get(keys.TOKEN_TYPE, ())),
    )


# llama.cpp has no key for tokens that swallow the white space behind them (`rstrip` in tokenizer.json). It does so for
# Phi-3, which it knows by the name of the model, and looks these tokens up then: without them it ends the process.
_PHI3, _PHI3_SPACED = re.compile(r"(phi)-?3", re.IGNORECASE), re.compile(r"(phi)[ _]3", re.IGNORECASE)
_PHI3_KEEPS, _PHI3_STRIPS = frozenset({"<unk>", "<s>", "<|endoftext|>"}), frozenset({"</s>"})


def _stripping(name: str, tokens: Sequence[str], types: Sequence[int]) -> frozenset[str]:
    """What swallows white space in a file of this name."""
    if not _PHI3.search(name):
        return frozenset()
    plain = (gguf.TokenType.NORMAL, gguf.TokenType.BYTE, gguf.TokenType.UNUSED)
    added = {token for token, kind in zip(tokens, types, strict=False) if kind not in plain}
    return frozenset(added | _PHI3_STRIPS) - _PHI3_KEEPS


def loadable_name(name: str, vocabulary: Vocabulary) -> str:
    """`general.name` with which llama.cpp treats white space behind added tokens as the tokenizer does.

    It says Phi-3 where tokens swallow it, and does not where none does: "Phi 3" instead.
    """
    wanted = bool(vocabulary.stripping) and set(vocabulary.tokens) >= _PHI3_KEEPS | _PHI3_STRIPS
    if wanted == bool(_PHI3.search(name)):
        return name
    if not wanted:
        return _PHI3.sub(r"\1 3", name)
    joined = _PHI3_SPACED.sub(r"\1-3", name)
    return joined if _PHI3.search(joined) else f"{name} (Phi-3)"


def tokens_by_id(
    ids: Mapping[str, int],
    data: Mapping[str, Any],
    vocab_size: int,
    *,
    kind_of: Callable[[str], TokenType] | None = None,
) -> tuple[tuple[str, ...], tuple[int, ...]]:
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
    types = gguf.TokenType
    names = {id: token for token, id in ids.items()}
    kinds = {id: kind_of(token) for id, token in names.items()} if kind_of else {}
    for added in data.get("added_tokens", ()):
        kind = types.CONTROL if added["special"] else types.USER_DEFINED
        own = kind_of(added["content"]) if kind_of else types.NORMAL
        names[added["id"]] = added["content"]
        kinds[added["id"]] = kind if own is types.NORMAL else own
    if names and max(names) >= vocab_size:
        raise InputError(
            f"the tokenizer has ids up to {max(names)}, the model's vocab_size is {vocab_size}; expected ids below it"
        )
    unused = {id: f"[PAD{id}]" for id in range(vocab_size) if id not in names}
    kinds |= dict.fromkeys(unused, types.UNUSED)
    names |= unused
    tokens = tuple(map(names.__getitem__, range(vocab_size)))
    if len(set(tokens)) != len(tokens):
        twice = next(token for token in tokens if tokens.count(token) > 1)
        raise UnsupportedError(f"the token {twice!r} has two ids, which llama.cpp does not load")
    listed = [int(types.NORMAL)] * vocab_size
    for id, kind in kinds.items():
        listed[id] = int(kind)
    return tokens, tuple(listed)


# -- pre-tokenizers of byte-level vocabularies

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
