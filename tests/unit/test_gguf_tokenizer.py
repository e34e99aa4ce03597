"""The pre-tokenizer is found from structure; what llama.cpp cannot split is refused; and back again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from tokenizers import Tokenizer

from converters.gguf.tokenizer import rebuilt_tokenizer, vocabulary_of
from converters.gguf.vocabulary import (
    GPT2,
    LLAMA3,
    PRE_TOKENIZERS,
    QWEN2,
    Vocabulary,
    canonical,
    find_pre_tokenizer,
    split_steps,
)
from longrope.errors import InputError, UnsupportedError
from tests import common

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
BYTES_ONLY = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
DIGITS = {"type": "Digits", "individual_digits": True}


def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def sequence(*children: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(children)}


@pytest.mark.parametrize(
    ("node", "ignore_merges", "name"),
    [
        (BYTE_LEVEL, False, "gpt-2"),
        (sequence(DIGITS, BYTE_LEVEL), False, "smollm"),
        (sequence(split(LLAMA3), BYTES_ONLY), True, "llama-bpe"),
        (sequence(split(LLAMA3), BYTES_ONLY), False, "smaug-bpe"),
        (sequence(split(QWEN2), BYTES_ONLY), False, "qwen2"),
        (sequence(split(QWEN2, "Removed", True), BYTES_ONLY), False, "qwen2"),
        (sequence(split(r"\p{N}{1}"), split(GPT2), BYTES_ONLY), False, "smollm"),
    ],
)
def test_found_from_structure(node: dict[str, Any], ignore_merges: bool, name: str) -> None:
    assert find_pre_tokenizer({"pre_tokenizer": node, "model": {"ignore_merges": ignore_merges}}).name == name


@pytest.mark.parametrize(
    "node",
    [
        None,
        {"type": "Whitespace"},
        {"type": "ByteLevel", "add_prefix_space": True},
        sequence(split(r"\w+"), BYTES_ONLY),
        split(LLAMA3, "MergedWithPrevious"),
        sequence(DIGITS, DIGITS, BYTE_LEVEL),
    ],
)
def test_what_llama_cpp_cannot_split_is_refused(node: dict[str, Any] | None) -> None:
    with pytest.raises(UnsupportedError, match=r"llama\.cpp"):
        find_pre_tokenizer({"pre_tokenizer": node, "model": {}})


def test_spellings_of_one_pattern_are_one() -> None:
    expanded = LLAMA3.replace(
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    )
    assert canonical(expanded) == canonical(LLAMA3)
    assert canonical(LLAMA3.replace(r"\r\n", "\r\n")) == canonical(LLAMA3)


@pytest.mark.parametrize("known", PRE_TOKENIZERS, ids=lambda known: known.name)
def test_rebuilt_tokenizers_are_found_again(known: Any) -> None:
    vocabulary = Vocabulary("gpt2", known.name, ["a", "b", "ab"], [1, 1, 1], ["a b"])
    data = rebuilt_tokenizer(vocabulary)
    assert find_pre_tokenizer(data).name == known.name
    assert Tokenizer.from_str(json.dumps(data)).encode("ab").ids == [2]
    assert split_steps(data["pre_tokenizer"]) == list(known.steps)


def test_vocabulary_of_a_checkpoint(tmp_path: Path) -> None:
    vocabulary = vocabulary_of(common.pico_checkpoint(tmp_path / "m", vocab_size=400))
    assert (vocabulary.model, vocabulary.pre) == ("gpt2", "smollm")
    assert len(vocabulary.tokens) == 400
    assert vocabulary.types[0] == TokenType.CONTROL
    assert vocabulary.tokens[399] == "[PAD399]"
    assert vocabulary.types[399] == TokenType.UNUSED
    assert vocabulary.special == {"bos": 0, "eos": 0}
    assert vocabulary.flags == {"add_space_prefix": False, "add_bos_token": False, "add_eos_token": False}


def edited(path: Path, edit: Any) -> Any:
    checkpoint = common.pico_checkpoint(path)
    file = path / "tokenizer.json"
    data = json.loads(file.read_text())
    edit(data)
    file.write_text(json.dumps(data))
    return checkpoint


def test_bos_comes_from_the_post_processor(tmp_path: Path) -> None:
    def add_bos(data: dict[str, Any]) -> None:
        token = "<|endoftext|>"
        data["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {token: {"id": token, "ids": [0], "tokens": [token]}},
        }

    vocabulary = vocabulary_of(edited(tmp_path / "m", add_bos))
    assert vocabulary.flags["add_bos_token"] is True
    assert vocabulary.flags["add_eos_token"] is False


def test_more_tokens_than_the_model_has(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="vocab_size is 300"):
        vocabulary_of(common.pico_checkpoint(tmp_path / "m", vocab_size=300))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda data: data["model"].update(byte_fallback=True), "SentencePiece"),
        (lambda data: data.update(normalizer={"type": "Lowercase"}), "Lowercase"),
        (lambda data: data["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
    ],
)
def test_other_tokenizers_are_refused(tmp_path: Path, edit: Any, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        vocabulary_of(edited(tmp_path / "m", edit))
