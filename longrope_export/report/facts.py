"""A run's folder as the facts that its report is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from longrope.errors import InputError
from longrope.factors import RescaleFactors
from longrope.provenance import without_folders
from longrope_export.ci.suites import Suite, suites_of
from longrope_export.methods import LONG, ORIGINAL, SHORT, Methods
from longrope_export.run_files import RUN, VALIDATION, read_evaluation, read_finished_run, read_validation
from longrope_export.words import change, signed


@dataclass(frozen=True)
class Cost:
    """What a set costs inside the original window.

    Args:
        row: the set's row in the table of methods.
        artifacts: those that use it there.
        perplexity: with it.
        percent: by how much that is above the original model's.
    """

    row: str
    artifacts: tuple[str, ...]
    perplexity: float
    percent: float


@dataclass(frozen=True)
class Facts:
    """What a finished run left behind.

    Args:
        name: the folder's.
        run: run.json, without folders of the machine.
        evaluation: evaluation.json; empty where there is none.
        entries: those of validation.json.
        factors: factors.json.
    """

    name: str
    run: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    entries: Sequence[Mapping[str, Any]]
    factors: RescaleFactors

    @classmethod
    def read(cls, folder: Path) -> Facts:
        """Those of a folder. Raises InputError when it is not the folder of a finished run."""
        if not (folder / RUN).is_file():
            raise InputError(f"{folder / RUN}: no such file; expected the folder of a finished run")
        run = read_finished_run(folder)
        for part in ("configuration", "recipe"):
            run[part] = without_folders(run[part])
        return cls(
            folder.resolve().name,
            run,
            read_evaluation(folder),
            read_validation(folder / VALIDATION),
            RescaleFactors.load(folder / "factors.json"),
        )

    @property
    def model(self) -> str:
        """A Hub id, or the last part of a path."""
        name: str = self.run["configuration"]["model"]
        return name.rpartition("/")[2] if name.count("/") > 1 or name.endswith(".gguf") else name

    @property
    def window(self) -> int | None:
        """The original window."""
        return self.factors.original_max_position_embeddings

    @property
    def target(self) -> int | None:
        return self.factors.target_length

    @property
    def is_dual(self) -> bool:
        return self.factors.factor_sets == "dual"

    @cached_property
    def methods(self) -> Methods:
        return Methods.of(self.run)

    @cached_property
    def suites(self) -> list[Suite]:
        return suites_of(self.entries)

    @property
    def passed(self) -> bool:
        return all(map(has_passed, self.suites))

    @property
    def search(self) -> Mapping[str, Any]:
        """The search's entry of run.json; empty without one."""
        return self.run["extension"]["search"] or {}

    @property
    def stages(self) -> Sequence[Mapping[str, Any]]:
        return self.run["extension"].get("stages") or ()

    @property
    def costs(self) -> list[Cost]:
        """What each set that an artifact uses inside the original window costs there, the short set first."""
        original = self.methods.at(ORIGINAL, self.window)
        found = []
        for row, sets in ((SHORT, "dual"), (LONG, "single")):
            names = tuple(each["format"] for each in self.run["exports"] if each["factor_sets"] == sets)
            measured = self.methods.at(row, self.window)
            percent = change(measured, original)
            if measured is not None and percent is not None and (names or not self.run["exports"]):
                found.append(Cost(row, names, measured, percent))
        return found

    def method_name(self, row: str) -> str:
        """A row of the table of methods as people call it."""
        names = {ORIGINAL: "original model", LONG: "this run", SHORT: "this run, short set"}
        if self.is_dual and row == LONG:
            return "this run, long set"
        return names.get(row, row)


def has_passed(suite: Suite) -> bool:
    """Whether an artifact's entry says so, and none of its checks says otherwise."""
    return suite.passed and not suite.with_status("fail")


@dataclass(frozen=True)
class Difference:
    """The largest difference of an artifact's perplexity to the reference's."""

    artifact: str
    length: int
    regime: str
    percent: float

    def __str__(self) -> str:
        return f"{signed(self.percent)} ({self.artifact}, {self.regime} window of {self.length:,} tokens)"


def largest_difference(suites: Sequence[Suite]) -> Difference | None:
    """Over all windows that were measured; None without any."""
    found = [
        Difference(suite.name, window["length"], window["regime"], window["ppl_delta_percent"])
        for suite in suites
        for window in suite.windows
        if window["ppl_delta_percent"] is not None
    ]
    return max(found, key=lambda each: abs(each.percent), default=None)
