"""`longrope-export search`: factors to a file, the journal of all evaluations beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from longrope.errors import InputError
from longrope.metrics import perplexity
from longrope.options import ModelName, Tokens, nested, option
from longrope.search.options import SearchOptions
from longrope_export import options
from longrope_export.journals import goes_on, journal_of, refuse_output

if TYPE_CHECKING:
    from longrope.checkpoint import Checkpoint
    from longrope.progress import Progress
    from longrope.search import SearchResult


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """The options of `search`."""

    model: ModelName = option(argument=True, help="Model to extend: a folder, a Hub id, a GGUF file, or default.")
    target_length: Tokens = option(section="Input", help="Window after the extension, in tokens, such as 128k.")
    texts: tuple[Path, ...] = options.texts(required=False)
    search: SearchOptions = nested(SearchOptions())
    output: Path | None = options.output("File of the factors to write, factors.json.", required=False)
    plots: Path | None = option(
        None, section="Output", help="Folder for pictures of the factors, the convergence and the Pareto front."
    )
    plan: bool = options.plan("Print the budget and the memory that the search takes, and stop.")
    resume: bool = options.resume("Go on with the journal beside the output.")
    overwrite: bool = options.overwrite()


@options.command(SearchRequest)
def command(request: SearchRequest) -> int:
    """Search rescale factors that extend MODEL to the target length; the journal of all evaluations is kept beside them."""
    from longrope_export.console import ConsoleProgress

    if request.plan:
        for line in plan_lines(request):
            click.echo(line)
        return 0
    progress = ConsoleProgress()
    print_result(run_search(request, progress), request.output, progress)
    return 0


def run_search(request: SearchRequest, progress: Progress) -> SearchResult:
    """Search and save. The journal of all evaluations is kept in `OUTPUT.journal/`, pictures in the folder `plots`.

    Raises:
        LongRopeError: the target is not above the model's window, or anything `search` refuses.
    """
    from longrope.search import search
    from longrope.text import load_corpus
    from longrope_export.plots import check_picture_folder, plot_search

    if not request.texts:
        raise click.MissingParameter(param_type="option", param_hint="'--text'")  # only a plan goes without
    if request.output is None:
        raise click.MissingParameter(param_type="option", param_hint="'-o' / '--output'")
    refuse_output(request.output, resume=request.resume, overwrite=request.overwrite)
    if request.plots:
        replaces = request.overwrite or goes_on(request.output, resume=request.resume)
        check_picture_folder(request.plots, overwrite=replaces)
    checkpoint = _opened(request)
    corpus = load_corpus(request.texts, checkpoint.encode)
    result = search(
        checkpoint,
        corpus,
        request.target_length,
        options=request.search,
        journal_dir=journal_of(request.output),
        resume=request.resume,
        overwrite=request.overwrite,
        progress=progress,
    )
    result.factors.save(request.output)
    if request.plots:
        plot_search(result, request.plots)
    return result


def plan_lines(request: SearchRequest) -> list[str]:
    """What a search would cost, for a person, and whether it fits; no weights are loaded.

    Raises:
        LongRopeError: what `check_search` refuses.
    """
    from longrope.search import plan_search

    return plan_search(_opened(request), request.target_length, request.search).lines()


def print_result(result: SearchResult, output: Path | None, progress: Progress) -> None:
    """The Pareto front, every starting point, and what was found."""
    for point in result.front:
        sides = f"perplexity {perplexity(point.short_loss):.4f} at the original window"
        mark = " (chosen)" if point.chosen else ""
        progress.line(f"Pareto front: {sides}, {perplexity(point.target_loss):.4f} at the target{mark}")
    for start in sorted(result.starting_points, key=lambda start: start.loss):
        above = f", {100 * math.expm1(start.excess):.2f} % above the short budget" if start.excess else ""
        progress.line(f"{start.name}: perplexity {start.perplexity:.4f}{above}")
    progress.line(f"found: perplexity {result.perplexity:.4f}, {result.evaluations} evaluations; written to {output}")


def _opened(request: SearchRequest) -> Checkpoint:
    """The model, after what `search` refuses of it, the target and the options."""
    from longrope.search import check_search
    from longrope_export.models import open_model

    checkpoint = open_model(request.model)
    earlier = request.search.from_factors
    window = earlier.target if earlier else checkpoint.window
    if request.target_length <= window:
        raise InputError(f"--target-length {request.target_length}: expected more than the window of {window} tokens")
    check_search(checkpoint, request.target_length, request.search)
    return checkpoint
