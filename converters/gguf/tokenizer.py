"""tokenizer.json ⇄ the vocabulary of a GGUF file, and whether llama.cpp then splits text alike.

tokenizer.json ──structure──► byte-level BPE (here), SentencePiece's BPE or unigram ──► Vocabulary ──► back

Vocabulary ──weightless GGUF──► llama.cpp ──ids──┐
tokenizer.json ──► tokenizers ──ids──────────────┴─► difference: the first text they split differently, or None
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.folder import chat_templates, tokenizer_config
from converters.gguf.container import TensorInfo, Value
from converters.gguf.native import gguf, loaded_model, tokenize
from converters.gguf.sentencepiece import bpe_vocabulary, rebuilt_bpe, rebuilt_unigram, unigram_vocabulary
from converters.gguf.vocabulary import (
    SPECIAL_NAMES,
    SpecialTokens,
    Vocabulary,
    byte_level_node,
    find_pre_tokenizer,
    pre_tokenizer_named,
    pre_tokenizer_node,
    tokens_by_id,
)
from converters.gguf.writing import write_skeleton
from longrope.checkpoint import Checkpoint
from longrope.errors import UnsupportedError
from longrope.files import errors_of_writing
from longrope.reading import read_object
from longrope.unfinished import temporary_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Reader = Callable[[Checkpoint, Mapping[str, Any], SpecialTokens], Vocabulary]

# Normalizations that change few texts; llama.cpp has none for byte-level BPE, and files of such models are in wide use.
TOLERATED_NORMALIZERS = {"NFC"}


def vocabulary_of(checkpoint: Checkpoint) -> Vocabulary:
    """The vocabulary of a checkpoint's tokenizer.json.

    Raises:
        InputError: the tokenizer does not fit the model's vocabulary size, or is damaged.
        UnsupportedError: llama.cpp cannot express this tokenizer.
    """
    data = tokenizer_json(checkpoint)
    built = _reader(data["model"])(checkpoint, data, _special_tokens(checkpoint, data))
    normalizers = tuple(unexpressed_normalizers(data)) if built.model == "gpt2" else ()
    return dataclasses.replace(
        built,
        chat_templates=chat_templates(checkpoint.path),
        unapplied=normalizers,
        stripping=frozenset(added["content"] for added in data.get("added_tokens", ()) if added.get("rstrip")),
    )


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
    return read_object(checkpoint.tokenizer_file)


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
    settings = tokenizer_config(checkpoint.path)
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
    added = {gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED, gguf.TokenType.UNKNOWN}
    return [id for id, kind in enumerate(vocabulary.types) if kind in added]


def _added_token(vocabulary: Vocabulary, id: int) -> dict[str, Any]:
    return {
        "id": id,
        "content": vocabulary.tokens[id],
        "single_word": False,
        "lstrip": False,
        "rstrip": vocabulary.tokens[id] in vocabulary.stripping,
        "normalized": False,
        "special": vocabulary.types[id] != gguf.TokenType.USER_DEFINED,
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


# -- byte-level BPE


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
        merges=tuple([m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]),
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
    known, unused = pre_tokenizer_named(vocabulary.pre), gguf.TokenType.UNUSED
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
            "vocab": {token: id for id, token in enumerate(vocabulary.tokens) if vocabulary.types[id] != unused},
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


# -- does llama.cpp split text alike?

# Texts on which splitters are known to differ.
AWKWARD = (
    "",
    " ",
    "  two  spaces,   three,    four     ",
    "\n",
    "\n\n\n",
    " \n \n\t\t\n  x\r\n\r\ny",
    "tabs\tand\t\tmore \t mixed  \t",
    "trailing newline\n",
    "0 7 42 365 1024 65536 1234567 3.14159 1,000,000 0x1F 1e-9 ½ ² Ⅷ ٣٤",
    "2026-11-23T07:10:47Z v1.2.3-rc4+build.56 192.168.0.1:8080",
    "I'm you're he'll they'd we've it's don't I'M YOU'RE HE'LL 'tis ’twas rock'n'roll",
    "CamelCase snake_case SCREAMING_CASE kebab-case ALLCAPSword iPhone15Pro",
    "¿Qué? Ärger, naïve façade, Łódź, Þórr, ΑΒΓ αβγ, Привет мир, עולם שלום, مرحبا بالعالم, नमस्ते दुनिया, สวัสดีชาวโลก",
    "你好，世界！漢字かなカナ混じり文。안녕하세요 세계 ㄱㄴㄷ",
    "😀 😃😄 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 👍🏽 ❤️ ☃ ✓ → ∑ √ ∞",
    "“quotes” ‘single’ «guillemets» – en — em … ellipsis • bullet € £ ¥ § ©",
    "...!!!??? --- === *** ### $$$ %%% &&& @@@ ^^^ ~~~ ``` ''' \"\"\"",
    "def f(x: int) -> list[int]:\n    return [i**2 for i in range(x) if i % 2 == 0]  # squares\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * c; }\n\n\treturn a[n-1];\n",
    '<html><body class="x">&nbsp;&#169;</body></html>',
    "https://example.org/path?q=1&r=two#frag mail@example.org C:\\dir\\file.txt /usr/bin/env",
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n* item\n  * nested\n1. first\n",
    "non\u00a0breaking ideographic\u3000space thin\u2009space",
    "The quick brown fox jumps over the lazy dog. " * 4,
)
_ALPHABET = "aZéßж漢字か한😀 \t\n.,'’-_/#0123456789"
_RANDOM_TEXTS = 200
_CONTROL_TOKENS = 64


@dataclass(frozen=True)
class Difference:
    """A text that the two split differently."""

    text: str
    expected: Sequence[int]
    actual: Sequence[int]

    def __str__(self) -> str:
        pairs = zip(self.expected, self.actual, strict=False)
        shorter = min(len(self.expected), len(self.actual))
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
        window = slice(max(at - 2, 0), at + 6)
        return (
            f"{self.text[:60]!r} becomes {list(self.actual[window])} in llama.cpp, expected {list(self.expected[window])} "
            f"(from token {window.start} on)"
        )


def awkward_texts(tokenizer: Tokenizer) -> Iterator[str]:
    """Texts that tell splitters apart: known hard ones, random mixtures, and control tokens in and between words."""
    yield from AWKWARD
    rng = np.random.default_rng(0)
    for _ in range(_RANDOM_TEXTS):
        yield "".join(rng.choice(list(_ALPHABET), size=rng.integers(1, 40)))
    for added in sorted(tokenizer.get_added_tokens_decoder().values(), key=lambda token: str(token.content))[
        :_CONTROL_TOKENS
    ]:
        yield f"{added.content}"
        yield f"before{added.content}after {added.content} and\n{added.content}\n"


def difference(
    tokenizer: Tokenizer, values: Mapping[str, Value], infos: Sequence[TensorInfo] = (), name: str | None = None
) -> Difference | None:
    """The first awkward text that llama.cpp, given these metadata, splits otherwise than `tokenizer`; None if none.

    Args:
        infos: tensors of the file; where given, llama.cpp checks them too, as it would on loading the file.
        name: of the model, for messages.

    Raises:
        InputError: llama.cpp does not load a file like this; says why.
        MissingRequirementError: llama-cpp-python is not installed.
    """
    texts = list(awkward_texts(tokenizer))
    expected = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    with temporary_folder("vocab") as folder:
        path = Path(folder) / "skeleton.gguf"
        with errors_of_writing(path):
            write_skeleton(path, values, infos)
        with loaded_model(path, load="skeleton" if infos else "vocabulary", name=name) as model:
            for text, ids in zip(texts, expected, strict=True):
                found = tokenize(model, text)
                if found != ids:
                    return Difference(text, ids, found)
    return None
