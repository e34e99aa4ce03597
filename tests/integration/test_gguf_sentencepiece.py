"""SentencePiece tokenizers, BPE and unigram: llama.cpp splits awkward text as tokenizers does, there and back."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import TokenType
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from converters.base import Export
from converters.gguf import GgufConverter
from converters.gguf.container import GgufFile
from converters.gguf.sentencepiece import SPACE
from converters.gguf.tokenizer import awkward_texts, difference
from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.errors import UnsupportedError
from longrope.progress import Silent
from tests import common
from tests.gguf_files import factors_for, refused

SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def bpe_json() -> dict[str, Any]:
    """A tokenizer of the Llama 2 kind: bytes, then pieces by falling score, and every split of a piece as a merge."""
    escape = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    trained = Tokenizer(models.BPE())
    trained.normalizer = escape
    trained.train_from_iterator(common.SENTENCES, trainers.BpeTrainer(vocab_size=500, show_progress=False))
    learned = trained.get_vocab()
    pieces = sorted(learned, key=lambda piece: (len(piece) == 1, learned[piece]))
    vocab = {token: id for id, token in enumerate([*SPECIAL, *BYTES, *pieces])}
    merges = [
        [piece[:at], piece[at:]]
        for piece in pieces
        for at in range(1, len(piece))
        if piece[:at] in vocab and piece[at:] in vocab
    ]
    tokenizer = Tokenizer(
        models.BPE(vocab, [tuple(m) for m in merges], byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    tokenizer.normalizer = escape
    tokenizer.add_special_tokens(SPECIAL)
    data: dict[str, Any] = json.loads(tokenizer.to_str())
    data["post_processor"] = template("<s>", 1)
    return data


def spaces_map() -> bytes:
    """A SentencePiece character map that writes tab, line feed and carriage return as a space.

    It is a double array of 32-bit units: the root's base is 256, a key's unit lies at 256 ^ key and points to its value.
    """
    units = np.zeros(1024, "<u4")
    units[0] = 256 << 10
    for number, key in enumerate(b"\t\n\r"):
        unit = 256 ^ key
        units[unit] = ((unit ^ (512 + number)) << 10) | (1 << 8) | key
        units[512 + number] = 1 << 31  # the value: offset 0 of the replacements
    return struct.pack("<I", units.nbytes) + units.tobytes() + b" \0"


def unigram_json() -> dict[str, Any]:
    """A tokenizer of the T5 kind: white space is one space, none at the ends, and ▁ before every word."""
    clean = normalizers.Sequence(
        [
            normalizers.Precompiled(spaces_map()),
            normalizers.Replace(Regex("^ +| +$"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = clean
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(common.SENTENCES, trainer)
    data: dict[str, Any] = json.loads(tokenizer.to_str())
    return data


def template(token: str, id: int) -> dict[str, Any]:
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    }


def with_tokenizer(path: Path, data: dict[str, Any], vocab_size: int) -> Checkpoint:
    common.pico_folder(path, vocab_size=vocab_size, max_position_embeddings=256)
    (path / "tokenizer.json").write_text(json.dumps(data))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (path / "tokenizer_config.json").write_text(json.dumps({**names, "chat_template": "{{ messages }}"}))
    return open_checkpoint(path)


def exported(model: Checkpoint, path: Path) -> Path:
    GgufConverter().convert(Export(model, factors_for(model), "f16"), path, Silent())
    return path


def test_bpe_agrees_there_and_back(tmp_path: Path) -> None:
    model = with_tokenizer(tmp_path / "m", bpe_json(), 800)
    path = exported(model, tmp_path / "a.gguf")
    with GgufFile(path) as file:
        assert file.get("tokenizer.ggml.model") == "llama"
        assert file.get("tokenizer.ggml.add_bos_token") is True
        assert file.get("tokenizer.ggml.add_space_prefix") is True
        assert file.get("tokenizer.chat_template") == "{{ messages }}"
        types = file.get("tokenizer.ggml.token_type")
        assert types[:4] == (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE)
        back = open_checkpoint(path)
        assert difference(back.tokenizer, file.values) is None
    for text in awkward_texts(model.tokenizer):
        assert back.encode(text) == model.encode(text)


def test_unigram_agrees_there_and_back(tmp_path: Path) -> None:
    model = with_tokenizer(tmp_path / "m", unigram_json(), 160)
    path = exported(model, tmp_path / "a.gguf")
    with GgufFile(path) as file:
        assert file.get("tokenizer.ggml.model") == "t5"
        assert file.get("tokenizer.ggml.remove_extra_whitespaces") is True
        back = open_checkpoint(path)
        assert difference(back.tokenizer, file.values) is None


def test_a_unigram_tokenizer_that_keeps_spaces_is_refused(tmp_path: Path) -> None:
    data = unigram_json()
    data["normalizer"]["normalizers"].pop(1)
    model = with_tokenizer(tmp_path / "m", data, 160)
    refused(UnsupportedError, "split text otherwise", model, factors_for(model), outtype="f16")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data.update(normalizer=None), "writes spaces as ▁"),
        (lambda data: data.update(normalizer={"type": "Lowercase"}), "no step like Lowercase"),
    ],
)
def test_what_llama_cpp_cannot_express(tmp_path: Path, change: Any, reason: str) -> None:
    data = bpe_json()
    change(data)
    model = with_tokenizer(tmp_path / "m", data, 800)
    refused(UnsupportedError, reason, model, factors_for(model))


def test_unigram_with_byte_fallback_is_refused(tmp_path: Path) -> None:
    data = unigram_json()
    data["model"]["byte_fallback"] = True
    model = with_tokenizer(tmp_path / "m", data, 160)
    refused(UnsupportedError, "no byte fallback", model, factors_for(model))
