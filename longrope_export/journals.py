"""Where `search` and `recover` keep their journal, and what may be written over."""

from __future__ import annotations

from pathlib import Path

from longrope.files import refuse_existing, refuse_folder
from longrope.locks import refuse_occupied


def journal_of(output: Path) -> Path:
    """The folder of a search's journal."""
    return output.with_name(f"{output.name}.journal")


def goes_on(output: Path, *, resume: bool) -> bool:
    """Whether there is a run to resume, which may replace what it wrote."""
    from longrope.search.run import JOURNAL_NAME

    return resume and (journal_of(output) / JOURNAL_NAME).is_file()


def refuse_output(output: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse, before any work is done, a name that cannot be written; what a resumed run wrote before is its own."""
    refuse_occupied(output)
    refuse_existing(output, overwrite=overwrite or goes_on(output, resume=resume))
    refuse_folder(output)
