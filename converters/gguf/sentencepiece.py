"""SentencePiece vocabularies, both kinds: tokenizer.json → vocabulary → tokenizer.json.

    BPE with byte fallback   tokenizer.ggml.model = llama   llama.cpp merges by a score for each token
    unigram                  tokenizer.ggml.model = t5      llama.cpp finds the likeliest split

tokenizer.json says in four ways where a word's leading space becomes ▁; llama.cpp knows one bit, `add_space_prefix`.
Whether that bit is enough for a tokenizer is decided by `tokenizer.difference`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from converters.gguf.native import gguf
from converters.gguf.vocabulary import SpecialTokens, Vocabulary, tokens_by_id
from longrope.checkpoint import Checkpoint
from longrope.errors import UnsupportedError

if TYPE_CHECKING:
    from gguf import TokenType

SPACE = "▁"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# Scores are log probabilities or negated ranks; tokens that no merge makes are never wanted as the result of one.
_NO_SCORE = -1e6


def bpe_vocabulary(checkpoint: Checkpoint, data: Mapping[str, Any], special: SpecialTokens) -> Vocabulary:
    """A SentencePiece BPE vocabulary: each token's score is the negated rank of the first merge that makes it."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(data["model"]["merges"]):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    tokens, types = tokens_by_id(data["model"]["vocab"], data, checkpoint.vocab_size, kind_of=_kind_of(data))
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=tokens,
        types=types,
        scores=tuple(-float(ranks[token]) if token in ranks else _NO_SCORE for token in tokens),
        special=special.ids,
        flags={"add_space_prefix": _prefixes_space(data), **special.flags},
    )


def unigram_vocabulary(checkpoint: Checkpoint, data: Mapping[str, Any], special: SpecialTokens) -> Vocabulary:
    """A SentencePiece unigram vocabulary with its character map.

    Raises:
        UnsupportedError: it falls back to bytes, which llama.cpp's unigram tokenizer does not.
    """
    model = data["model"]
    if model.get("byte_fallback"):
        raise UnsupportedError("llama.cpp's unigram tokenizer has no byte fallback, this one has; export to HF or ONNX")
    ids = {token: id for id, (token, _) in enumerate(model["vocab"])}
    tokens, types = tokens_by_id(ids, data, checkpoint.vocab_size, kind_of=_kind_of(data))
    scores = tuple(float(score) for _, score in model["vocab"])
    unknown = {} if model.get("unk_id") is None else {"unknown": int(model["unk_id"])}
    steps = [*_nodes(data.get("normalizer"), "normalizers"), *_nodes(data.get("pre_tokenizer"), "pretokenizers")]
    return Vocabulary(
        model="t5",
        pre="default",
        tokens=tokens,
        types=types,
        scores=scores + (_NO_SCORE,) * (len(tokens) - len(scores)),
        charsmap=_charsmap(steps),
        special={**special.ids, **unknown},
        flags={
            "add_space_prefix": _prefixes_space(data),
            "remove_extra_whitespaces": any(map(_drops_spaces, steps)),
            **special.flags,
        },
    )


def _kind_of(data: Mapping[str, Any]) -> Callable[[str], TokenType]:
    unknown, types = data["model"].get("unk_token"), gguf.TokenType

    def kind(token: str) -> TokenType:
        if token == unknown:
            return types.UNKNOWN
        return types.BYTE if _BYTE.fullmatch(token) else types.NORMAL

    return kind


def _nodes(node: Mapping[str, Any] | None, children: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a possibly nested sequence."""
    if node is None:
        return
    if node["type"] == "Sequence":
        for child in node[children]:
            yield from _nodes(child, children)
    else:
        yield node


def _prefixes_space(data: Mapping[str, Any]) -> bool:
    """Whether the first word is treated as if a space stood before it.

    Raises:
        UnsupportedError: spaces do not become ▁, or a step does something else.
    """
    steps = [*_nodes(data.get("normalizer"), "normalizers"), *_nodes(data.get("pre_tokenizer"), "pretokenizers")]
    effects = set[str]().union(*map(_space_effects, steps))
    if "escape" not in effects:
        raise UnsupportedError(
            "expected a SentencePiece tokenizer that writes spaces as ▁; llama.cpp has no other kind"
        )
    return "prefix" in effects


def _space_effects(step: Mapping[str, Any]) -> set[str]:
    """What a step does to spaces: "escape" writes them as ▁, "prefix" puts one before a text.

    Raises:
        UnsupportedError: it does something that llama.cpp does not.
    """
    kind = step["type"]
    if kind == "Prepend" and step["prepend"] == SPACE:
        return {"prefix"}
    if kind == "Replace" and step["content"] == SPACE:
        return {"escape"}
    if kind == "Metaspace" and step.get("replacement") == SPACE:
        return {"escape"} if step.get("prepend_scheme") == "never" else {"escape", "prefix"}
    if kind in ("Precompiled", "Strip") or _drops_spaces(step) or _splits_at_spaces(step):
        return set()
    raise UnsupportedError(f"llama.cpp has no step like {kind} for SentencePiece vocabularies; export to HF or ONNX")


def _drops_spaces(step: Mapping[str, Any]) -> bool:
    """Several spaces become one, or those at the ends none."""
    trims = step["type"] == "Replace" and step["content"] in ("", " ") and "Regex" in step["pattern"]
    return trims or step["type"] == "WhitespaceSplit"


def _splits_at_spaces(step: Mapping[str, Any]) -> bool:
    return step["type"] == "Split" and step["pattern"] in ({"String": " "}, {"String": SPACE})


def _charsmap(steps: Sequence[Mapping[str, Any]]) -> bytes:
    found = [step["precompiled_charsmap"] for step in steps if step["type"] == "Precompiled"]
    return base64.b64decode(found[0]) if found and found[0] else b""


# -- back to tokenizer.json


def rebuilt_bpe(vocabulary: Vocabulary) -> dict[str, Any]:
    """The model, normalizer, pre-tokenizer and decoder of a tokenizer.json for a `llama` vocabulary.

    Merges are all splits of a token into two others, the best token's first.
    """
    unused = gguf.TokenType.UNUSED
    ids = {token: id for id, token in enumerate(vocabulary.tokens) if vocabulary.types[id] != unused}
    order = sorted(_mergeable(vocabulary), key=lambda id: -vocabulary.scores[id])
    merges = [pair for id in order for pair in _splits(vocabulary.tokens[id], ids)]
    escape = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prefix = [{"type": "Prepend", "prepend": SPACE}] if vocabulary.flags.get("add_space_prefix", True) else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, escape]},
        "pre_tokenizer": None,
        "decoder": _decoder(strip=bool(prefix)),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": _text_of(vocabulary, gguf.TokenType.UNKNOWN),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": gguf.TokenType.BYTE in vocabulary.types,
            "ignore_merges": False,
            "vocab": ids,
            "merges": merges,
        },
    }


def rebuilt_unigram(vocabulary: Vocabulary) -> dict[str, Any]:
    """The same for a `t5` vocabulary."""
    normalizers: list[dict[str, Any]] = []
    if vocabulary.charsmap:
        encoded = base64.b64encode(vocabulary.charsmap).decode("ascii")
        normalizers.append({"type": "Precompiled", "precompiled_charsmap": encoded})
    if vocabulary.flags.get("remove_extra_whitespaces"):
        normalizers.append({"type": "Replace", "pattern": {"Regex": "^ +| +$"}, "content": ""})
        normalizers.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    scheme = "always" if vocabulary.flags.get("add_space_prefix", True) else "never"
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": True}
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers} if normalizers else None,
        "pre_tokenizer": metaspace,
        "decoder": metaspace,
        "model": {
            "type": "Unigram",
            "unk_id": vocabulary.special.get("unknown"),
            "vocab": [list(pair) for pair in zip(vocabulary.tokens, vocabulary.scores, strict=True)],
            "byte_fallback": False,
        },
    }


def _mergeable(vocabulary: Vocabulary) -> list[int]:
    words = (gguf.TokenType.NORMAL, gguf.TokenType.USER_DEFINED)
    return [id for id, kind in enumerate(vocabulary.types) if kind in words and len(vocabulary.tokens[id]) > 1]


def _splits(token: str, ids: Mapping[str, int]) -> list[list[str]]:
    pairs = [[token[:at], token[at:]] for at in range(1, len(token))]
    known = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
    return sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))


def _decoder(*, strip: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if strip:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _text_of(vocabulary: Vocabulary, kind: int) -> str | None:
    return next((token for token, k in zip(vocabulary.tokens, vocabulary.types, strict=True) if k == kind), None)
