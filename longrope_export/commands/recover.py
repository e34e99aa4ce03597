"""`longrope-export recover`."""

from __future__ import annotations

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
@click.option(
    "--from",
    "stages",
    multiple=True,
    type=options.PATH,
    help="Factors MODEL was fine-tuned with: a starting point, and compared; repeatable.",
)
@click.option(
    "--test-text",
    "test_texts",
    multiple=True,
    type=options.PATH,
    help="Held-out text to compare on; repeatable.  [default: a part of --text]",
)
@click.option("--max-evals", type=click.IntRange(1), default=64, show_default=True, help="Budget in evaluations.")
@click.option("--resume", is_flag=True, help="Go on with the journal beside the output.")
@options.dtype("float32")
@options.compute
@options.json_output
def command(
    model: str,
    window: int,
    texts: tuple[Path, ...],
    output: Path,
    overwrite: bool,
    factors: Path | None,
    stages: tuple[Path, ...],
    test_texts: tuple[Path, ...],
    resume: bool,
    json_path: str | None,
    **arguments: Any,
) -> int:
    """Search short-window factors for an extended MODEL and put them beside its long set.

    On held-out text they are compared with the original RoPE, the long set and, with --from, earlier stages' factors.
    """
    from longrope.search import SearchOptions
    from longrope_export.console import ConsoleProgress, write_json
    from longrope_export.searching import RecoverRequest, recovery_json, run_recover
    from longrope_export.tables import print_recovery

    request = RecoverRequest(model, window, texts, output, factors, stages, test_texts, overwrite, resume)
    recovery = run_recover(request, SearchOptions(**arguments), ConsoleProgress())
    print_recovery(recovery, window, output, err=json_path == "-")
    write_json(recovery_json(request, recovery), json_path)
    return 0
