"""Append-only, crash-safe run state: JSON lines, the first of which says what the run is about.

    {"journal": 1, "header": {"model": …, "text": …, "settings": {…}}, "notes": {…}}
    {…record…}                                   one line each, flushed to disk before the work goes on
    {…reco                                       a line cut by a crash: dropped on the next opening

Floats are written by `repr`, so they come back as the same bits. One at a time may hold a journal (`longrope.locks`). A
journal that is closed without a single record is removed: what failed before it measured anything leaves nothing to resume.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longrope.errors import InputError, MissingRequirementError
from longrope.files import errors_of_writing
from longrope.locks import alone_at
from longrope.reading import OBJECT, Kind, as_object, check, cut, parsed_json, record

JOURNAL_VERSION = 1
_FIRST = record(
    {
        "journal": Kind(f"a journal of version {JOURNAL_VERSION}", lambda value: value == JOURNAL_VERSION),
        "header": OBJECT,
    },
    {"notes": OBJECT},
)


class Journal:
    """An open journal; `records` holds what earlier runs wrote, `notes` what the first of them noted.

    Use as a context manager, or call `close`.
    """

    def __init__(
        self,
        path: Path,
        header: Mapping[str, Any],
        *,
        resume: bool,
        overwrite: bool = False,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Create `path`, or continue it.

        Args:
            path: the file; its folder is made when missing.
            header: what the run is about, as JSON; a resumed journal must hold the same.
            resume: continue an existing journal; a missing one is started.
            overwrite: start an existing one anew, unless `resume` is given.
            notes: kept with a new journal, never compared.

        Raises:
            InputError: it exists and neither `resume` nor `overwrite` is given, it is no journal, its header differs, or
                somebody else holds it.
            MissingRequirementError: the place is not writable, or its file system knows no locks.
        """
        self.path = path
        self.records: list[dict[str, Any]] = []
        self.notes: dict[str, Any] = dict(notes or {})
        if path.exists() and path.stat().st_size and not (resume or overwrite):
            raise InputError(
                f"{path}: a run was journalled here; resume it, overwrite it, or choose another place",
                option="resume",
            )
        self._made_folder = not path.parent.exists()
        self._empty = True
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as held:
                held.enter_context(alone_at(path))
                self._file = held.enter_context(path.open("a+b"))
                if overwrite and not resume:
                    self._file.truncate(0)
                self._start(json.loads(json.dumps(header)))
                self._held = held.pop_all()
        except OSError as error:
            raise MissingRequirementError(f"{path}: the journal is not writable ({error.strerror})") from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record and wait until it is on the disk."""
        self._empty = False
        self._write(record)

    def _write(self, record: Mapping[str, Any]) -> None:
        with errors_of_writing(self.path):
            self._file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file, and remove it when it holds no record."""
        if self._file.closed:
            return
        with self._held:
            self._file.close()
            if self._empty:
                self.path.unlink(missing_ok=True)
        if self._empty and self._made_folder:
            with contextlib.suppress(OSError):  # somebody else has put something there
                self.path.parent.rmdir()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, header: dict[str, Any]) -> None:
        self._file.seek(0)
        whole, _, _ = self._file.read().rpartition(b"\n")
        lines = whole.splitlines()
        self._file.truncate(len(whole) + 1 if lines else 0)
        self._file.seek(0, os.SEEK_END)
        if not lines:
            self._write({"journal": JOURNAL_VERSION, "header": header, "notes": self.notes})
            return
        first, *self.records = [self._parsed(number, line) for number, line in enumerate(lines, start=1)]
        self._empty = not self.records
        check(first, _FIRST, f"{self.path}, line 1")
        self.notes = first.get("notes", {})
        changes = differences(first["header"], header)
        if changes:
            raise InputError(f"{self.path}: cannot resume, the run has changed: {'; '.join(changes)}; start a new one")

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        where = f"{self.path}, line {number}"
        try:
            return as_object(parsed_json(line, where, non_finite=True), where)
        except InputError as error:
            raise InputError(f"{error}; this journal is damaged") from None


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two JSON values, one phrase a leaf: `settings.seed was 1, is 2`."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [
            phrase
            for key in keys
            for phrase in differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if before == now else [f"{name or 'header'} was {_short(before)}, is {_short(now)}"]


def _short(value: Any) -> str:
    return cut(json.dumps(value), 40)
