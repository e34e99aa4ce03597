"""Search as the command line does: factors to a file, the journal beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longrope.errors import InputError
from longrope.factors import RescaleFactors
from longrope.files import refuse_existing
from longrope.progress import Progress
from longrope.search import Recovery, SearchOptions, SearchResult, plan_search, recover_short, search
from longrope.text import load_corpus
from longrope_export.models import open_model
from longrope_export.plots import plot_search, require_matplotlib


def run_search(
    model: str,
    texts: Sequence[Path],
    target_length: int,
    options: SearchOptions,
    output: Path,
    *,
    plots: Path | None = None,
    resume: bool,
    overwrite: bool,
    progress: Progress,
) -> SearchResult:
    """Search and save. The journal of all evaluations is kept in `OUTPUT.journal/`, pictures in the folder `plots`.

    Raises:
        LongRopeError: the target is not above the model's window, or anything `search` refuses.
    """
    if not resume:
        refuse_existing(output, overwrite=overwrite)
    if plots:
        require_matplotlib()
    checkpoint = open_model(model)
    window = options.from_factors.target if options.from_factors else checkpoint.window
    if target_length <= window:
        raise InputError(f"--target-length {target_length}: expected more than the window of {window} tokens")
    corpus = load_corpus(texts, checkpoint.encode)
    journal = journal_of(output)
    result = search(
        checkpoint, corpus, target_length, options=options, journal_dir=journal, resume=resume, progress=progress
    )
    result.factors.save(output)
    if plots:
        plot_search(result, plots)
    return result


def plan_lines(model: str, target_length: int, options: SearchOptions) -> list[str]:
    """What a search would cost, for a person; no weights are loaded."""
    return plan_search(open_model(model), target_length, options).lines()


def run_recover(
    model: str,
    factors: Path | None,
    window: int,
    texts: Sequence[Path],
    options: SearchOptions,
    output: Path,
    *,
    overwrite: bool,
    progress: Progress,
) -> Recovery:
    """Search a short set for an extended model, or for a model and the factors that extend it, and save both sets."""
    refuse_existing(output, overwrite=overwrite)
    checkpoint = open_model(model)
    known = RescaleFactors.load(factors) if factors else checkpoint.factors
    if known is None:
        raise InputError(f"{model} has no rescale factors; pass --factors FACTORS.json")
    corpus = load_corpus(texts, checkpoint.encode)
    recovery = recover_short(checkpoint, corpus, known, window=window, options=options, progress=progress)
    recovery.factors.save(output)
    return recovery


def journal_of(output: Path) -> Path:
    """The folder of a search's journal."""
    return output.with_name(f"{output.name}.journal")
