"""Checks of a folder's tokenizer: the same ids and the same text back, by the tokenizers library and by transformers."""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from converters.base import Check
from converters.folder import tokenizer_config
from longrope.checkpoint import Checkpoint, open_folder
from longrope.errors import LongRopeError
from longrope.reading import own_file, read_object, said_by

# Digits, white space, scripts, contractions, capitals, composed and decomposed letters, control characters, ends of spaces.
SAMPLES = (
    "In 1847,  36 houses\n\n\tstood – naïve, 日本語, 🙂; x_i != 0x1F.",
    "  I'd've said: DON'T, WE'LL; re\u0301sume\u0301, Ａ１ ½ ﬁ, Straße, İstanbul  ",
    "Ελληνικά, русский, العربية, हिन्दी, ไทย\r\n\r\n    indented   \u00a0\u200b end\t\n",
)
# Settings of tokenizer.json that engines obey beside the vocabulary; where the source has none, one is a fault.
_SETTINGS = ("truncation", "padding")
_MODEL_SETTINGS = ("dropout", "ignore_merges", "byte_fallback")
_FLAGS = ("content", "lstrip", "rstrip", "single_word", "special")
# What other readers take in the place of tokenizer.json: llama.cpp's converter, mistral-common, slow tokenizers.
_OTHER_FILES = (
    *("vocab.json", "merges.txt", "tokenizer.model", "tekken.json", "vocab.txt", "spiece.model"),
    *("sentencepiece.bpe.model", "added_tokens.json"),
)
# Compared elsewhere, or a name for the same class.
_NOT_COMPARED = ("model_max_length", "chat_template", "name_or_path", "transformers_version")
_NONE_READ = "none that can be read"


def tokenizer_checks(format_name: str, folder: Path, source: Checkpoint) -> Iterator[Check]:
    """All checks of one folder's tokenizer against the source's.

    Args:
        format_name: what the ids begin with.
        folder: of the artifact.
        source: the model it was made from.
    """
    check = _tokenizer(f"{format_name}.tokenizer", folder, source)
    yield check
    yield _files(f"{format_name}.tokenizer.files", folder, source.path)
    if check.status == "pass":
        yield _loaded(f"{format_name}.tokenizer.loaded", folder, source)


# -- tokenizer.json


def _tokenizer(id: str, folder: Path, source: Checkpoint) -> Check:
    """Same ids and same text back on the samples and every added token; same vocabulary, merges and settings."""
    try:
        artifact = open_folder(folder, needs_weights=False)
        texts = _samples(artifact)
        found, wanted = ([_ids(each, text) for text in texts] for each in (artifact, source))
        if found != wanted:
            odd = next(number for number in range(len(texts)) if found[number] != wanted[number])
            return Check(id, "fail", wanted[odd], found[odd], "the same text gives other token ids")
        back, expected = (_texts_of(each, wanted) for each in (artifact, source))
    except LongRopeError as error:
        return Check(id, "fail", "the source's tokenizer", _NONE_READ, str(error))
    if back != expected:
        odd = next(number for number in range(len(back)) if back[number] != expected[number])
        return Check(id, "fail", expected[odd], back[odd], "the same token ids give another text")
    if source.keep_alive is None and (fault := _other_pieces(id, artifact, source)):
        return fault
    total = sum(map(len, wanted))
    return Check(id, "pass", f"{total} ids", f"{total} equal ids")


def _samples(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The samples, every added token behind the first."""
    added = "".join(map(str, checkpoint.tokenizer.get_added_tokens_decoder().values()))
    return (SAMPLES[0] + added, *SAMPLES[1:])


def _ids(checkpoint: Checkpoint, text: str) -> list[int]:
    """Token ids, those among them that the model has no row for."""
    tokenizer = checkpoint.tokenizer
    with said_by("the tokenizers library", f"{checkpoint.name}: tokenizer.json", "split a text by it"):
        return tokenizer.encode(text).ids


def _texts_of(checkpoint: Checkpoint, ids: Sequence[Sequence[int]]) -> list[str]:
    return [checkpoint.decode(each, skip_special_tokens=skip) for each in ids for skip in (False, True)]


def _other_pieces(id: str, artifact: Checkpoint, source: Checkpoint) -> Check | None:
    """A failed check where vocabulary, merges, added tokens or settings differ in what no sample shows."""
    ours, given = (read_object(each.tokenizer_file) for each in (artifact, source))
    mine, theirs = _pieces(artifact, ours), _pieces(source, given)
    for name, expected in theirs.items():
        if mine[name] != expected:
            message = "texts with these tokens are split otherwise, if not the sample"
            return Check(id, "fail", f"{len(expected)} {name}", f"{len(mine[name])}, or others", message)
    found, wanted = _settings(ours), _settings(given)
    odd = {name: value for name, value in found.items() if value and value != wanted[name]}
    if not odd:
        return None
    message = "texts are cut, padded or split otherwise by engines that obey tokenizer.json"
    return Check(id, "fail", {name: wanted[name] for name in odd}, odd, message)


def _pieces(checkpoint: Checkpoint, data: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """Vocabulary, merges and added tokens of a tokenizer.json, however the file spells them."""
    model = data.get("model") or {}
    vocab, merges = model.get("vocab") or {}, model.get("merges") or []
    added = checkpoint.tokenizer.get_added_tokens_decoder()
    flags = (*_FLAGS, *(("normalized",) if data.get("normalizer") else ()))
    return {
        "tokens": sorted(vocab.items()) if isinstance(vocab, dict) else [tuple(entry) for entry in vocab],
        "merges": [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges],
        "added tokens": sorted((number, *(getattr(token, flag) for flag in flags)) for number, token in added.items()),
    }


def _settings(data: Mapping[str, Any]) -> dict[str, Any]:
    """What a tokenizer.json says beside its vocabulary, None where nothing."""
    model = data.get("model") or {}
    return {name: data.get(name) for name in _SETTINGS} | {name: model.get(name) for name in _MODEL_SETTINGS}


def text_ids(id: str, folder: Path, source: Checkpoint, texts: Sequence[str]) -> Check:
    """Same ids on the given texts: samples of some sentences hold a small part of a vocabulary."""
    try:
        artifact = open_folder(folder, needs_weights=False)
        pairs = [(source.encode_plain(text), artifact.encode_plain(text)) for text in texts]
    except LongRopeError as error:
        return Check(id, "fail", "the source's tokenizer", _NONE_READ, str(error))
    expected, actual = (sum(map(len, side)) for side in zip(*pairs, strict=True))
    odd = next((number for number, (one, other) in enumerate(pairs) if one != other), None)
    if odd is None:
        return Check(id, "pass", f"{expected} ids", f"{actual} equal ids")
    return Check(id, "fail", f"{expected} ids", f"{actual} ids, others", f"text {odd + 1} gives other token ids")


# -- what is read in its place, and beside it


def _files(id: str, folder: Path, source: Path) -> Check:
    """The files that other readers take: where both folders have one, it is the source's. One that is left out is none."""
    shared = [name for name in _OTHER_FILES if (folder / name).is_file() and (source / name).is_file()]
    try:
        odd = [name for name in shared if not _same(own_file(folder, name), own_file(source, name))]
    except LongRopeError as error:
        return Check(id, "fail", "the source's files", "broken ones", str(error))
    return Check.equal(id, [], odd, "engines that read these in the place of tokenizer.json split texts otherwise")


def _same(one: Path, other: Path) -> bool:
    """The same bytes, or the same JSON."""
    return filecmp.cmp(one, other, shallow=False) or (one.suffix == ".json" and read_object(one) == read_object(other))


def _loaded(id: str, folder: Path, source: Checkpoint) -> Check:
    """What transformers makes of tokenizer.json and its settings; it builds nothing where the settings are the source's."""
    try:
        ours, theirs = (_compared(tokenizer_config(each)) for each in (folder, source.path))
        if ours == theirs or source.keep_alive is not None:
            return Check(id, "pass", "the source's settings", "the same")
        texts = _samples(source)
        expected = _by_transformers(source.path, texts)
    except LongRopeError as error:
        return Check(id, "skip", message=f"transformers does not load the source's tokenizer: {error}")
    try:
        actual = _by_transformers(folder, texts)
    except LongRopeError as error:
        return Check(id, "fail", "the source's tokenizer", _NONE_READ, str(error))
    odd = next((number for number, pair in enumerate(zip(expected, actual, strict=True)) if pair[0] != pair[1]), None)
    if odd is None:
        return Check(id, "pass", f"{len(expected)} samples", f"{len(actual)} equal ones")
    message = "with these settings transformers splits the same text otherwise, or gives back another one"
    return Check(id, "fail", expected[odd], actual[odd], message)


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _NOT_COMPARED}


def _by_transformers(folder: Path, texts: Sequence[str]) -> list[Any]:
    """Ids of each text and the text that comes back.

    Raises:
        InputError: transformers does not load the tokenizer.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    with said_by("transformers", f"{folder}: its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        ids = [tokenizer(text)["input_ids"] for text in texts]
        return [(each, tokenizer.decode(each), tokenizer.decode(each, skip_special_tokens=True)) for each in ids]
