"""A run's folder as the facts that its report is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from longrope.errors import InputError
from longrope.factors import RescaleFactors
from longrope.provenance import without_folders
from longrope_export.ci.suites import Suite, suites_of
from longrope_export.methods import LONG, ORIGINAL, SHORT, Methods
from longrope_export.quality import Extension, extensions_of
from longrope_export.run_files import RUN, VALIDATION, read_evaluation, read_finished_run, read_validation
from longrope_export.words import change, listed, signed


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
        entries: those of validation.json, by the names of the run's exports.
        factors: factors.json.
    """

    name: str
    run: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    entries: Sequence[Mapping[str, Any]]
    factors: RescaleFactors

    @classmethod
    def read(cls, folder: Path, validation: Path | None = None) -> Facts:
        """Those of a folder.

        Args:
            folder: of the run.
            validation: what `validate --json` wrote about some of its artifacts; it counts instead of the folder's own.

        Raises:
            InputError: it is not the folder of a finished run, a file of it is broken, or a validation is of other artifacts,
                or of other files of the same names.
        """
        if not (folder / RUN).is_file():
            raise InputError(f"{folder / RUN}: no such file; expected the folder of a finished run")
        run = read_finished_run(folder)
        for part in ("configuration", "recipe"):
            run[part] = without_folders(run[part])
        entries = _called(read_validation(folder / VALIDATION), run)
        return cls(
            folder.resolve().name,
            run,
            read_evaluation(folder),
            entries
            if validation is None
            else _replaced(entries, _called(read_validation(validation), run), validation),
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

    @cached_property
    def extensions(self) -> list[Extension]:
        """What `validate --quality` measured."""
        return extensions_of(self.suites)

    @cached_property
    def texts(self) -> dict[str, str | None]:
        """The fingerprint of the texts that each artifact was measured on; None where none is said."""
        fingerprints = [(entry.get("provenance") or {}).get("text_fingerprint") for entry in self.entries]
        return {suite.name: found for suite, found in zip(self.suites, fingerprints, strict=True)}

    @property
    def unchecked(self) -> list[str]:
        """Artifacts that the validation is not about."""
        checked = {suite.name for suite in self.suites}
        return [export["format"] for export in self.run["exports"] if export["format"] not in checked]

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


Entries = Sequence[Mapping[str, Any]]


def _called(entries: Entries, run: Mapping[str, Any]) -> Entries:
    """Entries about artifacts of a run by the names of its exports, where they go by those of the files."""
    labels = {PurePath(export["path"]).name: export["format"] for export in run["exports"]}
    return [{**entry, "artifact": labels.get(entry["artifact"], entry["artifact"])} for entry in entries]


def _replaced(entries: Entries, newer: Entries, name: Path) -> Entries:
    """The entries of a run, with newer ones in the places of those about the same artifacts."""
    known, found = [entry["artifact"] for entry in entries], {entry["artifact"]: entry for entry in newer}
    if strangers := [artifact for artifact in found if artifact not in known]:
        raise InputError(
            f"{name}: it is about {listed(strangers)}, which the run's own validation is not about; expected "
            f"{listed(known) or 'a run with artifacts'}"
        )
    for artifact, entry in zip(known, entries, strict=True):
        if artifact in found and (changed := _changed_file(entry, found[artifact])):
            raise InputError(
                f"{name}: {changed} of {artifact} is not the file that this run validated; expected a validation of the "
                f"run's own artifacts. Where they were changed since, `validate --json RUN_DIR/{VALIDATION}` replaces the "
                "run's"
            )
    return [found.get(artifact, entry) for artifact, entry in zip(known, entries, strict=True)]


def _changed_file(entry: Mapping[str, Any], newer: Mapping[str, Any]) -> str | None:
    """The first file of which two entries know other bytes."""
    ours, theirs = ((each.get("provenance") or {}).get("files") or {} for each in (entry, newer))
    return next((file for file in sorted(ours) if theirs.get(file, ours[file]) != ours[file]), None)


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
