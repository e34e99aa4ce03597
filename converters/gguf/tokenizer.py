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
        chat_templates: Jinja sources by name; "default" is the one tools use unasked.
    """

    model: str
    pre: str | None
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str] = ()
    special: Mapping[str, int] = field(default_factory=dict)
    flags: Mapping[str, bool] = field(default_factory=dict)
    chat_templates: Mapping[str, str] = field(default_factory=dict)

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
        return found | _template_values(self.chat_templates)


def _template_values(templates: Mapping[str, str]) -> dict[str, Value]:
    named = sorted(name for name in templates if name != "default")
    found = {f"tokenizer.chat_template.{name}": text(templates[name]) for name in named}
    if named:
        found["tokenizer.chat_templates"] = array(Kind.STRING, named)
    if "default" in templates:
        found["tokenizer.chat_template"] = text(templates["default"])
    return found


# -- tokenizer.json → vocabulary

# Names of special tokens in tokenizer_config.json and config.json, and llama.cpp's.
SPECIAL_NAMES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask"}
# Normalizations that change few texts; llama.cpp has none for byte-level BPE, and files of such models are in wide use.
TOLERATED_NORMALIZERS = {"NFC"}


def vocabulary_of(checkpoint: Checkpoint) -> Vocabulary:
    """The vocabulary of a checkpoint's tokenizer.json.

    Raises:
        InputError: the tokenizer does not fit the model's vocabulary size, or is damaged.
        UnsupportedError: llama.cpp cannot express this tokenizer.
    """
    data = tokenizer_json(checkpoint)
    _refuse_what_is_not_byte_level(data)
    tokens, types = _tokens(data, checkpoint.vocab_size)
    special, flags = _special_tokens(checkpoint, data)
    return Vocabulary(
        model="gpt2",
        pre=find_pre_tokenizer(data).name,
        tokens=tokens,
        types=types,
        merges=[_merge_text(merge) for merge in data["model"]["merges"]],
        special=special,
        flags={"add_space_prefix": False, **flags},
        chat_templates=_chat_templates(checkpoint.path),
    )


def tokenizer_json(checkpoint: Checkpoint) -> dict[str, Any]:
    """tokenizer.json, parsed, of a checkpoint whose tokenizer the tokenizers library can read."""
    _ = checkpoint.tokenizer
    data: dict[str, Any] = json.loads((checkpoint.path / "tokenizer.json").read_text(encoding="utf-8"))
    return data


def unexpressed_normalizers(data: Mapping[str, Any]) -> list[str]:
    """Names of the normalizations of a tokenizer.json that llama.cpp will not apply."""
    node = data.get("normalizer")
    if node is None:
        return []
    children = node["normalizers"] if node["type"] == "Sequence" else [node]
    return [child["type"] for child in children]


def _refuse_what_is_not_byte_level(data: Mapping[str, Any]) -> None:
    model = data["model"]
    if model.get("type", "BPE") != "BPE" or "merges" not in model or model.get("byte_fallback"):
        raise UnsupportedError(
            f"tokenizers of type {model.get('type')!r} with byte_fallback {model.get('byte_fallback', False)} are not "
            "supported in GGUF; expected byte-level BPE. Export to HF or ONNX instead"
        )
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UnsupportedError(f"llama.cpp's BPE has no {name}, this tokenizer uses {model[name]!r}")
    alien = set(unexpressed_normalizers(data)) - TOLERATED_NORMALIZERS
    if alien:
        raise UnsupportedError(
            f"llama.cpp does not normalize text for byte-level BPE; this tokenizer does: {sorted(alien)}"
        )


def _tokens(data: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Text and type of every id; ids that the model has and the tokenizer lacks are unused ones."""
    by_id = {id: (token, TokenType.NORMAL) for token, id in data["model"]["vocab"].items()}
    for added in data.get("added_tokens", ()):
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        by_id[added["id"]] = (added["content"], kind)
    if by_id and max(by_id) >= vocab_size:
        raise InputError(
            f"the tokenizer has ids up to {max(by_id)}, the model's vocab_size is {vocab_size}; expected ids below it"
        )
    entries = [by_id.get(id, (f"[PAD{id}]", TokenType.UNUSED)) for id in range(vocab_size)]
    tokens = [token for token, _ in entries]
    if len(set(tokens)) != len(tokens):
        twice = next(token for token in tokens if tokens.count(token) > 1)
        raise UnsupportedError(f"the token {twice!r} has two ids, which llama.cpp does not load")
    return tokens, [int(kind) for _, kind in entries]


def _merge_text(merge: str | Sequence[str]) -> str:
    return merge if isinstance(merge, str) else " ".join(merge)


def _special_tokens(checkpoint: Checkpoint, data: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, bool]]:
    """Ids of the special tokens, and whether encoding a text puts BOS before it and EOS behind.

    tokenizer.json decides what is added; tokenizer_config.json and config.json only name the tokens.
    """
    ids = _named_ids(checkpoint, data)
    before, after = _added_around(checkpoint)
    for name, added in (("bos", before), ("eos", after)):
        if len(added) > 1:
            raise UnsupportedError(f"this tokenizer adds {len(added)} tokens around a text; llama.cpp adds one at most")
        if added:
            ids[name] = added[0]
    special = {SPECIAL_NAMES[name]: id for name, id in ids.items()}
    return special, {"add_bos_token": bool(before), "add_eos_token": bool(after)}


def _named_ids(checkpoint: Checkpoint, data: Mapping[str, Any]) -> dict[str, int]:
    settings = _json_object(checkpoint.path / "tokenizer_config.json")
    known = data["model"]["vocab"] | {added["content"]: added["id"] for added in data.get("added_tokens", ())}
    found = {}
    for name in SPECIAL_NAMES:
        named = settings.get(f"{name}_token")
        content = named.get("content") if isinstance(named, dict) else named
        listed = checkpoint.config.get(f"{name}_token_id")
        id = known.get(content, listed[0] if isinstance(listed, list) and listed else listed)
        if isinstance(id, int) and 0 <= id < checkpoint.vocab_size:
            found[name] = id
    return found


def _added_around(checkpoint: Checkpoint) -> tuple[list[int], list[int]]:
    """The ids that encoding puts before and behind a text."""
    plain = checkpoint.tokenizer.encode("a", add_special_tokens=False).ids
    full = checkpoint.tokenizer.encode("a").ids
    at = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
    return full[:at], full[at + len(plain) :]


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


def vocabulary_in(values: Mapping[str, Value]) -> Vocabulary:
    """The vocabulary in a file's metadata.

    Raises:
        UnsupportedError: of a kind that cannot be rebuilt.
        InputError: keys are missing.
    """

    def get(name: str, default: Any = None) -> Any:
        return values[PREFIX + name].data if PREFIX + name in values else default

    tokens = get("tokens")
    if not tokens:
        raise InputError("the GGUF file has no vocabulary (tokenizer.ggml.tokens)")
    templates = {"default": values["tokenizer.chat_template"].data} if "tokenizer.chat_template" in values else {}
    return Vocabulary(
        model=str(get("model")),
        pre=get("pre"),
        tokens=tokens,
        types=get("token_type", [TokenType.NORMAL] * len(tokens)),
        merges=get("merges", ()),
        special={name: id for name in SPECIAL_NAMES.values() if (id := get(f"{name}_token_id")) is not None},
        flags={name: on for name in ("add_bos_token", "add_eos_token") if (on := get(name)) is not None},
        chat_templates=templates,
    )


def rebuilt_tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    """A tokenizer.json that splits text as llama.cpp does with this vocabulary.

    Raises:
        UnsupportedError: not byte-level BPE, or an unknown pre-tokenizer.
    """
    known = _pre_tokenizer_named(vocabulary)
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": known.ignore_merges,
        "vocab": {token: id for id, token in enumerate(vocabulary.tokens) if vocabulary.types[id] != TokenType.UNUSED},
        "merges": list(vocabulary.merges),
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(vocabulary, id) for id in _added_ids(vocabulary)],
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer_node(known.steps),
        "post_processor": _post_processor_node(vocabulary, known.add_bos),
        "decoder": _byte_level_node(use_regex=True),
        "model": model,
    }


def rebuilt_tokenizer_config(vocabulary: Vocabulary) -> dict[str, Any]:
    """A tokenizer_config.json that names the special tokens and holds the chat template."""
    names = {theirs: name for name, theirs in SPECIAL_NAMES.items()}
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {f"{names[name]}_token": vocabulary.tokens[id] for name, id in vocabulary.special.items()}
    if "default" in vocabulary.chat_templates:
        config["chat_template"] = vocabulary.chat_templates["default"]
    return config


def _pre_tokenizer_named(vocabulary: Vocabulary) -> PreTokenizer:
    if vocabulary.model != "gpt2":
        raise UnsupportedError(
            f"a {vocabulary.model!r} vocabulary cannot be rebuilt from GGUF; use the original checkpoint"
        )
    pre = vocabulary.pre or "default"
    for known in PRE_TOKENIZERS:
        if pre in (known.name, *known.aliases):
            return known
    raise UnsupportedError(f"the pre-tokenizer {pre!r} cannot be rebuilt from GGUF; use the original checkpoint")


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


def _pre_tokenizer_node(steps: Sequence[str]) -> dict[str, Any]:
    nodes = [_step_node(step) for step in steps if step != GPT2 or step is not steps[-1]]
    return {"type": "Sequence", "pretokenizers": [*nodes, _byte_level_node(use_regex=steps[-1] == GPT2)]}


def _step_node(step: str) -> dict[str, Any]:
    if step == DIGIT:
        return {"type": "Digits", "individual_digits": True}
    return {"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated", "invert": False}


def _byte_level_node(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _post_processor_node(vocabulary: Vocabulary, add_bos_by_default: bool) -> dict[str, Any]:
    """Puts BOS before and EOS behind a text where the file asks for it."""
    add_bos = vocabulary.flags.get("add_bos_token", add_bos_by_default) and "bos" in vocabulary.special
    add_eos = vocabulary.flags.get("add_eos_token", False) and "eos" in vocabulary.special
    before, after = ["bos"] * add_bos, ["eos"] * add_eos
    if not before + after:
        return _byte_level_node(use_regex=True)
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
