"""The table of methods of a run's run.json, as the report and the model card read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Rows of the table: the model as it was, and the sets that the run found.
ORIGINAL, LONG, SHORT = "none", "searched", "searched, short set"
SETS = {LONG: "long", SHORT: "short"}


@dataclass(frozen=True)
class Methods:
    """Held-out perplexity by method and length.

    Args:
        lengths: windows, in tokens.
        rows: perplexities in the order of the lengths, by method; None where nothing was measured or it is not finite.
    """

    lengths: tuple[int, ...]
    rows: Mapping[str, tuple[float | None, ...]]

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> Methods:
        """Those of a run.json; empty where there are none."""
        found = (run.get("extension") or {}).get("methods") or {"lengths": (), "rows": ()}
        return cls(tuple(found["lengths"]), {row["name"]: tuple(row["perplexities"]) for row in found["rows"]})

    def at(self, name: str, length: int | None) -> float | None:
        """A method's perplexity at a length; None where nothing was measured."""
        values = dict(zip(self.lengths, self.rows.get(name, ()), strict=False))
        return values.get(length) if length is not None else None

    @property
    def known(self) -> list[str]:
        """The published methods."""
        return [name for name in self.rows if name != ORIGINAL and name not in SETS]

    def best_known(self, length: int | None) -> tuple[str, float] | None:
        """The published method with the lowest perplexity at a length."""
        measured = [(value, name) for name in self.known if (value := self.at(name, length)) is not None]
        return (min(measured)[1], min(measured)[0]) if measured else None


def by_length(rows: Sequence[Mapping[str, Any]]) -> dict[int, dict[float, Mapping[str, Any]]]:
    """Rows of retrieval by length and depth, both rising."""
    found: dict[int, dict[float, Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["length"], row["depth"])):
        found.setdefault(row["length"], {})[row["depth"]] = row
    return found
