"""Search as the command line does: factors to a file, the journal beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrope.errors import InputError
from longrope.estimates.search import search_estimate
from longrope.factors import RescaleFactors
from longrope.progress import Progress
from longrope.provenance import provenance
from longrope.search import Recovery, SearchOptions, SearchResult, recover_short, search
from longrope.text import load_corpus
from longrope_export.models import open_model
from longrope_export.plots import plot_search
from longrope_export.preflight import check_output_file, journal_of, prepare_search


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
        LongRopeError: what `preflight.prepare_search` or `search` refuses.
    """
    checkpoint, corpus = prepare_search(
        model, texts, target_length, options, output, plots=plots, resume=resume, overwrite=overwrite
    )
    assert corpus is not None, "a search has texts"
    result = search(
        checkpoint,
        corpus,
        target_length,
        options=options,
        journal_dir=journal_of(output),
        resume=resume,
        overwrite=overwrite,
        progress=progress,
    )
    result.factors.save(output)
    if plots:
        plot_search(result, plots)
    return result


def search_plan_lines(
    model: str,
    texts: Sequence[Path],
    target_length: int,
    options: SearchOptions,
    output: Path | None,
    *,
    plots: Path | None = None,
    resume: bool,
    overwrite: bool,
) -> list[str]:
    """What a search would cost, for a person, and whether it fits; no weights are loaded. Texts and output may be missing.

    Raises:
        LongRopeError: what `run_search` refuses before it begins, but for a lack of memory, which the lines report.
    """
    checkpoint, _ = prepare_search(
        model,
        texts,
        target_length,
        options,
        output,
        plots=plots,
        resume=resume,
        overwrite=overwrite,
        planning=True,
    )
    return search_estimate(checkpoint, target_length, options).lines()


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
    checkpoint = open_model(request.model)
    known = RescaleFactors.load(request.factors) if request.factors else checkpoint.factors
    if known is None:
        raise InputError(f"{request.model} has no rescale factors; pass --factors FACTORS.json")
    corpus = load_corpus(request.texts, checkpoint.encode)
    if request.test_texts:
        held_out = load_corpus(request.test_texts, checkpoint.encode)
    else:
        corpus, held_out = corpus.split()
    check_output_file(request.output, resume=request.resume, overwrite=request.overwrite)
    recovery = recover_short(
        checkpoint,
        corpus,
        known,
        window=request.window,
        options=options,
        journal_dir=journal_of(request.output),
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
