"""The options of a GGUF export, in one place."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from longrope.errors import InputError
from longrope.provenance import usable_cpus

_SIZE = re.compile(r"(\d+)\s*([KMG]?)B?", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
MAX_WRITERS = 8


@dataclass(frozen=True)
class GgufOptions:
    """What `Export.options` may hold for GGUF.

    Args:
        name: `general.name`; None takes the one in the model card, or the checkpoint's.
        as_llama: write a network that differs from Llama's in name only (qwen2, seed_oss) as architecture llama, which
            takes factors where its own does not.
        imatrix: importance matrix of llama-imatrix, for the types that llama.cpp quantizes.
        split_max_size: bytes of tensors in one file, as a number or like "2G"; what is larger is written in parts
            NAME-00001-of-0000N.gguf. None writes one file.
        threads: that round and write weights, and of llama.cpp's quantizer; 0 for all there are.
    """

    name: str | None = None
    as_llama: bool = False
    imatrix: str | Path | None = None
    split_max_size: int | str | None = None
    threads: int = 0

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Build from a mapping. Raises InputError for an unknown option or a size that is none."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(options) - known)
        if unknown:
            raise InputError(f"unknown GGUF option {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        built = cls(**options)
        _ = built.max_part_bytes
        if not isinstance(built.threads, int) or built.threads < 0:
            raise InputError(f"threads: expected a whole number, 0 for all there are, got {built.threads!r}")
        return built

    @property
    def writers(self) -> int:
        """Threads that round and write; more than `MAX_WRITERS` only wait for one another."""
        return min(self.threads or usable_cpus(), MAX_WRITERS)

    @property
    def max_part_bytes(self) -> int | None:
        """`split_max_size` in bytes."""
        if self.split_max_size is None:
            return None
        found = _SIZE.fullmatch(str(self.split_max_size).strip())
        if not found or not int(found[1]):
            raise InputError(f"split_max_size: expected a size like 500M or 2G, got {self.split_max_size!r}")
        return int(found[1]) * _UNITS[found[2].upper()]
