"""Rescale factors as the LongRoPE authors publish them: a matrix of layers × rotary pairs. An example of a format.

It shows the whole of what a format has to say: what it recognizes, what it refuses, how it writes, how it reads back
and checks itself. There is no runtime for CSV files, and it says so.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from converters.base import Check, Converter, Export, PlannedExport, RuntimeUse
from longrope.checkpoint import Checkpoint
from longrope.errors import UnsupportedError
from longrope.factors import BoundFactors, RescaleFactors, read_authors_csv
from longrope.progress import Progress


class CsvExport(PlannedExport):
    """One file that is planned."""

    def __init__(self, export: Export) -> None:
        super().__init__(export)
        if export.factors.factor_sets == "dual" or export.factors.n_hat:
            raise UnsupportedError("a CSV file holds one factor set and no start tokens; use --factor-sets single")

    def with_factors(self, factors: BoundFactors) -> CsvExport:
        return CsvExport(replace(self.export, factors=factors))

    def write(self, path: Path, progress: Progress) -> None:
        row = ",".join(repr(factor) for factor in self.export.factors.long_factor)
        layers = int(self.export.checkpoint.config["num_hidden_layers"])
        path.write_text(f"{row}\n" * layers, encoding="utf-8")

    def check(self, path: Path, *, sampled: bool = False) -> list[Check]:
        wanted, stored = list(self.export.factors.long_factor), list(read_authors_csv(path))
        return [Check.equal("csv.factors", wanted, stored, "another factor set")]


class CsvConverter(Converter):
    """One factor set, the same in every layer."""

    name = "csv"
    suffix = ".csv"

    def recognizes(self, path: Path) -> bool:
        return path.suffix == self.suffix and path.is_file()

    def check_requirements(self) -> None:
        """Needs nothing beyond longrope-export."""

    def plan(self, export: Export) -> CsvExport:
        return CsvExport(export)

    def plan_like(self, path: Path, expected: BoundFactors, reference: Checkpoint) -> CsvExport:
        return CsvExport(Export(reference, expected))

    def read_factors(self, path: Path) -> RescaleFactors | None:
        factors = read_authors_csv(path)
        return RescaleFactors(factors, factors, method="csv")

    def open_source(
        self, path: Path, factors: BoundFactors | None, *, max_length: int, threads: int | None = None
    ) -> NoReturn:
        raise UnsupportedError("nothing runs a CSV file; convert the model to hf, gguf or onnx to score it")

    def runtime_uses(self, factors: RescaleFactors) -> list[RuntimeUse]:
        return []

    def describe(self, path: Path) -> dict[str, Any]:
        return {"format": self.name, "factors": len(read_authors_csv(path))}
