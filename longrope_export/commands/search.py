"""`longrope-export search`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from longrope_export import options


@click.command()
@click.argument("model")
@click.option("--target-length", required=True, type=options.TOKENS, help="Window after extension, in tokens.")
@options.texts(required=False)
@options.output("factors.json to write.", required=False)
@options.search_options
@click.option("--plan", is_flag=True, help="Print the budget and the memory it takes, and stop.")
@click.option("--plots", type=options.PATH, help="Folder for pictures: factors, convergence, Pareto front.")
@click.option("--resume", is_flag=True, help="Go on with the journal beside the output.")
@options.compute
def command(
    model: str,
    target_length: int,
    texts: tuple[Path, ...],
    output: Path | None,
    overwrite: bool,
    plan: bool,
    plots: Path | None,
    resume: bool,
    **arguments: Any,
) -> int:
    """Search rescale factors that extend MODEL to the target length; the journal of all evaluations is kept beside them."""
    from longrope.metrics import perplexity
    from longrope_export.console import ConsoleProgress
    from longrope_export.requests import search_request
    from longrope_export.searching import run_search, search_plan_lines

    progress, wanted = ConsoleProgress(), search_request(**arguments)
    if plan:
        lines = search_plan_lines(
            model, texts, target_length, wanted, output, plots=plots, resume=resume, overwrite=overwrite
        )
        click.echo("\n".join(lines))
        return 0
    if not texts:
        raise click.MissingParameter(param_type="option", param_hint="'--text'")  # only a plan goes without
    if output is None:
        raise click.MissingParameter(param_type="option", param_hint="'-o' / '--output'")
    result = run_search(
        model,
        texts,
        target_length,
        wanted,
        output,
        plots=plots,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
    )
    for point in result.front:
        sides = f"perplexity {perplexity(point.short_loss):.4f} at the original window"
        mark = " (chosen)" if point.chosen else ""
        progress.line(f"Pareto front: {sides}, {perplexity(point.target_loss):.4f} at the target{mark}")
    for start in sorted(result.starting_points, key=lambda start: start.loss):
        above = f", {100 * math.expm1(start.excess):.2f} % above the short budget" if start.excess else ""
        progress.line(f"{start.name}: perplexity {start.perplexity:.4f}{above}")
    progress.line(f"found: perplexity {result.perplexity:.4f}, {result.evaluations} evaluations; written to {output}")
    return 0
