"""Documents to token windows, with a fingerprint.

    --text files and folders ──► documents ──encode──► token ids ──cut──► windows of one length

A window is the start of a document; long documents give several, one after the other, never overlapping and never
spanning two documents. Documents too short for a window are counted, and an error says how many there were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longrope.errors import InputError
from longrope.reading import TEXT, check, parsed_json, read_utf8, record

TokenIds = NDArray[np.int64]
SUFFIXES = (".txt", ".md", ".jsonl")
# Larger than any book or code base that a window is cut from, and tokenized in memory.
MAX_TEXT = 4 << 30


@dataclass(frozen=True)
class Document:
    """A named text as token ids, [T]."""

    name: str
    ids: TokenIds

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order."""

    documents: tuple[Document, ...]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all token ids, document by document."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(len(document).to_bytes(8, "little"))
            digest.update(document.ids.astype("<i8").tobytes())
        return digest.hexdigest()

    def first_windows(self, length: int, limit: int | None = None) -> list[TokenIds]:
        """The first `length` tokens of every document that has them: [length] each, at most `limit`.

        Raises:
            InputError: no document is long enough; says how many there are and how long the longest is.
        """
        return self._limited((d.ids[:length] for d in self.documents if len(d) >= length), length, limit)

    def windows(self, length: int, limit: int | None = None) -> list[TokenIds]:
        """Windows of `length` tokens from all documents, the first of each document before any second one.

        Raises:
            InputError: as `first_windows`.
        """
        rounds = max((len(d) // length for d in self.documents), default=0)
        found = (
            d.ids[k * length : (k + 1) * length]
            for k in range(rounds)
            for d in self.documents
            if len(d) >= (k + 1) * length
        )
        return self._limited(found, length, limit)

    def split(self, held_out_share: float = 0.3) -> tuple[Corpus, Corpus]:
        """The documents in two: to search on, and held out. A single document is cut in two at its end part."""
        if len(self.documents) == 1:
            only = self.documents[0]
            cut = int(len(only) * (1 - held_out_share))
            head = Document(f"{only.name} (start)", only.ids[:cut])
            tail = Document(f"{only.name} (end)", only.ids[cut:])
            return Corpus((head,)), Corpus((tail,))
        held = max(1, int(len(self.documents) * held_out_share))
        return Corpus(self.documents[:-held]), Corpus(self.documents[-held:])

    def _limited(self, found: Iterable[TokenIds], length: int, limit: int | None) -> list[TokenIds]:
        windows = [ids for ids, _ in zip(found, range(limit or 10**9), strict=False)]
        if not windows:
            longest = max((len(d) for d in self.documents), default=0)
            raise InputError(
                f"expected a document of at least {length} tokens, got {len(self.documents)} documents, the longest "
                f"with {longest} tokens; give longer texts or a smaller window",
                option="text",
            )
        return windows


def load_corpus(paths: Sequence[str | Path], encode: Callable[[str], Sequence[int]]) -> Corpus:
    """Read documents and turn them into token ids.

    Args:
        paths: UTF-8 files (.txt, .md: one document; .jsonl: one per line, field `text`) or folders of such files.
        encode: text to token ids.

    Raises:
        InputError: a path is missing, unreadable or not UTF-8; a line of JSONL has no text; nothing but empty texts.
    """
    texts = [item for path in paths for item in read_texts(Path(path))]
    documents = tuple(Document(name, np.asarray(encode(text), dtype=np.int64)) for name, text in texts if text.strip())
    if not documents:
        raise InputError(f"{', '.join(map(str, paths))}: expected text, found {len(texts)} empty documents")
    return Corpus(documents)


def read_texts(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of every document under `path`, in the order of their names."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise InputError(f"{path}: expected {', '.join(SUFFIXES)} files in this folder, found none")
        for file in files:
            yield from _read_file(file)
    else:
        yield from _read_file(path)


def _read_file(path: Path) -> Iterator[tuple[str, str]]:
    content = read_utf8(path, limit=MAX_TEXT)
    if path.suffix.lower() != ".jsonl":
        yield path.name, content
        return
    for number, line in enumerate(content.split("\n"), start=1):  # splitlines would cut at U+2028 inside a string
        if line.strip():
            yield f"{path.name}:{number}", _text_field(path, number, line)


_LINE = record({"text": TEXT})


def _text_field(path: Path, number: int, line: str) -> str:
    where = f"{path}, line {number}"
    text: str = check(parsed_json(line, where, non_finite=True), _LINE, where)["text"]
    return text
