"""A file that is to be published: where it goes, where its bytes are, and the hashes that the Hub knows it by."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from longrope.files import sha256_of


@dataclass(frozen=True)
class Content:
    """A file of a repository.

    Args:
        place: in the repository.
        source: a file here, or the bytes themselves.
        known_sha256: of the source, where somebody has computed it; None to compute it here.
    """

    place: str
    source: Path | bytes = field(repr=False)
    known_sha256: str | None = None

    @property
    def size(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """What large files are known by."""
        if self.known_sha256 is not None:
            return self.known_sha256
        return hashlib.sha256(self.source).hexdigest() if isinstance(self.source, bytes) else sha256_of(self.source)

    @cached_property
    def git_sha1(self) -> str:
        """What git calls the blob; small files are known by it."""
        digest = hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)
        if isinstance(self.source, bytes):
            digest.update(self.source)
        else:
            with self.source.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()

    def read(self) -> bytes:
        """All of its bytes."""
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()
