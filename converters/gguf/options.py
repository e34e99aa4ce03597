"""The options of a GGUF export, in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from longrope.errors import InputError


@dataclass(frozen=True)
class GgufOptions:
    """What `Export.options` may hold for GGUF.

    Args:
        name: `general.name`; None takes the checkpoint's.
        as_llama: write a network that differs from Llama's in name only (qwen2, seed_oss) as architecture llama, which
            takes factors where its own does not.
    """

    name: str | None = None
    as_llama: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Build from a mapping. Raises InputError for an unknown option."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(options) - known)
        if unknown:
            raise InputError(f"unknown GGUF option {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        return cls(**options)
