"""`longrope-export recover`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from longrope_export import options


@click.command()
@click.argument("model")
@click.option("--window", required=True, type=options.TOKENS, help="Window to recover, in tokens.")
@options.texts(required=True)
@options.output("factors.json to write, with both sets.")
@click.option("--factors", type=options.PATH, help="The long set, where MODEL has none of its own.")
@click.option("--max-evals", type=click.IntRange(1), default=64, show_default=True, help="Budget in evaluations.")
@options.dtype("float32")
@options.compute
def command(
    model: str,
    window: int,
    texts: tuple[Path, ...],
    output: Path,
    overwrite: bool,
    factors: Path | None,
    **arguments: Any,
) -> int:
    """Search short-window factors for an extended MODEL and put them beside its long set."""
    from longrope.search import SearchOptions
    from longrope_export.console import ConsoleProgress
    from longrope_export.searching import run_recover

    progress = ConsoleProgress()
    recovery = run_recover(
        model, factors, window, texts, SearchOptions(**arguments), output, overwrite=overwrite, progress=progress
    )
    single, found = math.exp(recovery.single_loss), math.exp(recovery.loss)
    progress.line(f"perplexity at {window}: long set {single:.4f}, short set {found:.4f}; written to {output}")
    return 0
