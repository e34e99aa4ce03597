"""Search as the command line does: factors to a file, the journal beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrope.checkpoint import Checkpoint
from longrope.errors import InputError
from longrope.factors import RescaleFactors
from longrope.files import refuse_existing
from longrope.progress import Progress
from longrope.provenance import provenance
from longrope.search import Recovery, SearchOptions, SearchResult, check_search, plan_search, recover_short, search
from longrope.search.run import JOURNAL_NAME
from longrope.text import load_corpus
from longrope_export.models import open_model
from longrope_export.plots import check_picture_folder, plot_search


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
    _refuse_output(output, resume=resume, overwrite=overwrite)
    if plots:
        check_picture_folder(plots, overwrite=overwrite or _goes_on(output, resume=resume))
    checkpoint = _open_for_search(model, target_length, options)
    corpus = load_corpus(texts, checkpoint.encode)
    result = search(
        checkpoint,
        corpus,
        target_length,
        options=options,
        journal_dir=_journal_of(output),
        resume=resume,
        overwrite=overwrite,
        progress=progress,
    )
    result.factors.save(output)
    if plots:
        plot_search(result, plots)
    return result


def _open_for_search(model: str, target_length: int, options: SearchOptions) -> Checkpoint:
    """The model, after what `search` refuses of it, the target and the options."""
    checkpoint = open_model(model)
    window = checkpoint.bind(options.from_factors).target if options.from_factors else checkpoint.window
    if target_length <= window:
        raise InputError(f"--target-length {target_length}: expected more than the window of {window} tokens")
    check_search(checkpoint, target_length, options)
    return checkpoint


def plan_lines(model: str, target_length: int, options: SearchOptions) -> list[str]:
    """What a search would cost, for a person, and whether it fits; no weights are loaded.

    Raises:
        LongRopeError: what `check_search` refuses.
    """
    checkpoint = _open_for_search(model, target_length, options)
    return plan_search(checkpoint, target_length, options).lines()


@dataclass(frozen=True)
class RecoverRequest:
    """The arguments of `recover`.

    Args:
        model: an extended model, or one that `factors` extend.
        window: to recover, in tokens.
        texts: to search on; a part is held out unless `test_texts` are given.
        factors: the long set, where the model has none of its own.
        stages: factors that the model was fine-tuned with, to compare.
        resume: go on with the journal beside the output.
    """

    model: str
    window: int
    texts: Sequence[Path]
    output: Path
    factors: Path | None = None
    stages: Sequence[Path] = ()
    test_texts: Sequence[Path] = ()
    overwrite: bool = False
    resume: bool = False


def run_recover(request: RecoverRequest, options: SearchOptions, progress: Progress) -> Recovery:
    """Search a short set, compare it on held-out text, and save both sets. The journal is kept in `OUTPUT.journal/`."""
    _refuse_output(request.output, resume=request.resume, overwrite=request.overwrite)
    checkpoint = open_model(request.model)
    known = RescaleFactors.load(request.factors) if request.factors else checkpoint.factors
    if known is None:
        raise InputError(f"{request.model} has no rescale factors; pass --factors FACTORS.json")
    corpus = load_corpus(request.texts, checkpoint.encode)
    if request.test_texts:
        held_out = load_corpus(request.test_texts, checkpoint.encode)
    else:
        corpus, held_out = corpus.split()
    recovery = recover_short(
        checkpoint,
        corpus,
        known,
        window=request.window,
        options=options,
        journal_dir=_journal_of(request.output),
        resume=request.resume,
        overwrite=request.overwrite,
        progress=progress,
        stages=_named(request.stages),
        held_out=held_out,
    )
    recovery.factors.save(request.output)
    return recovery


def _named(paths: Sequence[Path]) -> dict[str, RescaleFactors]:
    """Factor files by name, by their whole path where a name is there twice."""
    names = Counter(path.name for path in paths)
    return {path.name if names[path.name] == 1 else str(path): RescaleFactors.load(path) for path in paths}


def recovery_json(request: RecoverRequest, recovery: Recovery) -> dict[str, Any]:
    """The versioned result of `recover`."""
    made = provenance(factors=str(request.output), seed=recovery.factors.provenance.get("seed"))
    return {
        "schema_version": 1,
        "model": request.model,
        "window": request.window,
        **recovery.to_json(),
        "provenance": made,
    }


def _goes_on(output: Path, *, resume: bool) -> bool:
    """Whether there is a run to resume, which may replace what it wrote."""
    return resume and (_journal_of(output) / JOURNAL_NAME).is_file()


def _refuse_output(output: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse, before any work is done, a name that cannot be written; what a resumed run wrote before is its own."""
    refuse_existing(output, overwrite=overwrite or _goes_on(output, resume=resume))
    if output.is_dir():
        raise InputError(f"{output} is a folder; expected the name of a file")


def _journal_of(output: Path) -> Path:
    """The folder of a search's journal."""
    return output.with_name(f"{output.name}.journal")
