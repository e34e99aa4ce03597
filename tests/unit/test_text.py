"""Documents, windows, the fingerprint, and texts that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from longrope.errors import InputError
from longrope.text import Corpus, Document, load_corpus, read_texts


def encode(text: str) -> list[int]:
    """One token a character."""
    return [ord(character) for character in text]


def corpus(*lengths: int) -> Corpus:
    """Documents of so many tokens; document k starts at 1000 k."""
    return Corpus(tuple(Document(f"d{k}", np.arange(n) + 1000 * k) for k, n in enumerate(lengths)))


def starts(windows: Sequence[np.ndarray]) -> list[int]:
    return [int(window[0]) for window in windows]


# -- windows


def test_first_windows_take_the_start_of_every_long_document() -> None:
    windows = corpus(10, 3, 25).first_windows(8)
    assert starts(windows) == [0, 2000]
    assert {len(window) for window in windows} == {8}


def test_windows_come_from_every_document_before_any_second_time() -> None:
    assert starts(corpus(20, 3, 25).windows(8)) == [0, 2000, 8, 2008, 2016]


def test_windows_never_overlap_and_never_span_documents() -> None:
    for window in corpus(100, 41).windows(20):
        assert np.array_equal(window, np.arange(window[0], window[0] + 20))
        assert window[0] % 1000 % 20 == 0


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_the_limit_keeps_the_first(limit: int) -> None:
    all_of_them = corpus(20, 3, 25).windows(8)
    assert starts(corpus(20, 3, 25).windows(8, limit)) == starts(all_of_them)[:limit]


@pytest.mark.parametrize("method", ["windows", "first_windows"])
def test_texts_shorter_than_the_window_say_how_short(method: str) -> None:
    message = "expected a document of at least 30 tokens, got 2 documents, the longest with 25 tokens"
    with pytest.raises(InputError, match=message):
        getattr(corpus(20, 25), method)(30)


# -- split


def test_split_holds_out_whole_documents_from_the_end() -> None:
    search, held_out = corpus(*[5] * 10).split()
    assert [d.name for d in search.documents] == [f"d{k}" for k in range(7)]
    assert [d.name for d in held_out.documents] == ["d7", "d8", "d9"]


def test_split_of_two_documents_holds_out_one() -> None:
    search, held_out = corpus(5, 5).split()
    assert (len(search.documents), len(held_out.documents)) == (1, 1)


def test_split_of_one_document_cuts_it() -> None:
    search, held_out = corpus(100).split()
    whole = np.concatenate([d.ids for part in (search, held_out) for d in part.documents])
    assert np.array_equal(whole, np.arange(100))
    assert len(held_out.documents[0]) == 30


# -- fingerprint


def test_the_fingerprint_is_of_token_ids_and_document_boundaries() -> None:
    one = corpus(10, 10).fingerprint
    assert one == corpus(10, 10).fingerprint
    assert (
        one == Corpus(tuple(Document("renamed", d.ids.astype(np.int32)) for d in corpus(10, 10).documents)).fingerprint
    )
    others = [corpus(10, 11), corpus(20), corpus(10), Corpus(corpus(10, 10).documents[::-1])]
    assert len({one, *(other.fingerprint for other in others)}) == 5


# -- reading


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b.txt").write_text("bb", encoding="utf-8")
    (tmp_path / "a.md").write_text("ä", encoding="utf-8")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.jsonl").write_text(
        "\n".join(json.dumps({"text": text}) for text in ("c1", "c2")) + "\n\n", encoding="utf-8"
    )
    (tmp_path / "ignored.bin").write_bytes(b"\xff")
    return tmp_path


def test_a_folder_gives_its_texts_in_the_order_of_their_names(folder: Path) -> None:
    assert list(read_texts(folder)) == [("a.md", "ä"), ("b.txt", "bb"), ("c.jsonl:1", "c1"), ("c.jsonl:2", "c2")]


def test_a_line_separator_inside_a_json_string_does_not_end_the_line(tmp_path: Path) -> None:
    """json.dumps(ensure_ascii=False) leaves U+2028 and U+0085 as they are; only a line feed ends a record."""
    text = "one\u2028two\u0085three\x0cfour"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False), encoding="utf-8")
    assert [found for _, found in read_texts(tmp_path / "a.jsonl")] == [text]


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfabc")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "abc"}')
    assert [text for _, text in read_texts(tmp_path)] == ["abc", "abc"]


def test_a_single_file_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "novel").write_text("abc", encoding="utf-8")
    assert load_corpus([tmp_path / "novel"], encode).documents[0].ids.tolist() == [97, 98, 99]


def test_empty_documents_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n ", encoding="utf-8")
    (tmp_path / "b.txt").write_text("b", encoding="utf-8")
    assert [d.name for d in load_corpus([tmp_path], encode).documents] == ["b.txt"]


UNUSABLE: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.txt", b"", "expected text, found 1 empty documents"),
    "blank": ("a.txt", b" \n\t\n", "expected text, found 1 empty documents"),
    "latin-1": ("a.txt", "naïve".encode("latin-1"), "cannot be read as UTF-8 text"),
    "no JSON": ("a.jsonl", b'{"text": "a"}\nnot json', r"line 2 is not valid JSON"),
    "no field": ("a.jsonl", b'{"body": "a"}', r"line 1: text: expected a string, found none"),
    "a list": ("a.jsonl", b'["a"]', r"line 1: expected an object, got \['a'\]"),
    "a number": ("a.jsonl", b'{"text": 1}', r"line 1: text: expected a string, got 1"),
    "no lines": ("a.jsonl", b"\n\n", "expected text, found 0 empty documents"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_text_is_refused_by_name(tmp_path: Path, name: str) -> None:
    file, content, message = UNUSABLE[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=rf"{file}.*{message}"):
        load_corpus([tmp_path / file], encode)


def test_a_missing_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.txt: no such file"):
        load_corpus([tmp_path / "nowhere.txt"], encode)


def test_a_folder_without_texts(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(InputError, match=r"expected \.txt, \.md, \.jsonl files in this folder, found none"):
        load_corpus([tmp_path], encode)
