"""`longrope-export search`: factors to a file, the journal of all evaluations beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from longrope.files import alone_in
from longrope.metrics import perplexity
from longrope.options import ModelName, Tokens, nested, option
from longrope.search.options import SearchOptions
from longrope.search.processes import import_ahead
from longrope_export import options
from longrope_export.journals import journal_of

if TYPE_CHECKING:
    from longrope.progress import Progress
    from longrope.search import SearchResult


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """The options of `search`."""

    model: ModelName = option(argument=True, help="Model to extend: a folder, a Hub id, a GGUF file, or default.")
    target_length: Tokens = option(section="Input", help="Window after the extension, in tokens, such as 128k.")
    texts: tuple[Path, ...] = options.texts(required=False)
    original: Tokens | None = options.original()
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
    if not request.plan:
        import_ahead(request.search)
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
        LongRopeError: what `preflight.prepare_search` or `search` refuses.
    """
    from longrope.search import search
    from longrope_export.plots import plot_search
    from longrope_export.preflight import prepare_search

    if not request.texts:
        raise click.MissingParameter(param_type="option", param_hint="'--text'")  # only a plan goes without
    if request.output is None:
        raise click.MissingParameter(param_type="option", param_hint="'-o' / '--output'")
    checkpoint, corpus, search_options = prepare_search(request, progress)
    assert corpus is not None, "there are texts"
    with alone_in(request.output):
        result = search(
            checkpoint,
            corpus,
            request.target_length,
            options=search_options,
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
    """What a search would cost, for a person, and whether it fits; no weights are loaded. Texts and output may be missing.

    Raises:
        LongRopeError: what `run_search` refuses before it begins, but for a lack of memory, which the lines report.
    """
    from longrope.estimates.search import search_estimate
    from longrope.progress import Silent
    from longrope_export.preflight import prepare_search

    checkpoint, _, search_options = prepare_search(request, Silent(), planning=True)
    return search_estimate(checkpoint, request.target_length, search_options).lines()


def print_result(result: SearchResult, output: Path | None, progress: Progress) -> None:
    """The Pareto front, every starting point, and what was found."""
    for point in result.front:
        sides = f"perplexity {perplexity(point.short_loss):.4f} at the original window"
        mark = " (chosen)" if point.chosen else ""
        progress.line(f"Pareto front: {sides}, {perplexity(point.target_loss):.4f} at the target{mark}")
    for start in sorted(result.starting_points, key=lambda start: start.loss):
        above = f", {100 * math.expm1(start.excess):.2f} % above the short budget" if start.excess else ""
        progress.line(f"{start.name}: perplexity {start.perplexity:.4f}{above}")
    for line in family_lines(result):
        progress.line(line)
    progress.line(f"found: perplexity {result.perplexity:.4f}, {result.evaluations} evaluations; written to {output}")


def family_lines(result: SearchResult) -> Iterator[str]:
    """The parameters that a family's search found, and what they were compared with."""
    family = result.factors.family
    if family is None:
        return
    yield f"parameters: {family}"
    others = sorted(result.starting_points, key=lambda start: start.loss)
    if others:
        best = others[0]
        yield (
            f"against {best.name}, the best of {', '.join(start.name for start in others)} on the same windows: "
            f"{100 * math.expm1(result.target_loss - best.target_loss):+.2f} % perplexity. Free factors were not searched: "
            "--family free with the same budget shows what the family costs"
        )
