"""`longrope-export eval`."""

from __future__ import annotations

from pathlib import Path

import click

from longrope_export import options


@click.command()
@click.argument("artifact")
@options.texts(required=True)
@click.option("--windows", type=options.LENGTHS, default=(), help="Lengths to measure perplexity at.")
@click.option("--passkey", type=options.LENGTHS, default=(), help="Lengths to measure passkey retrieval at.")
@click.option("--windows-per-length", type=click.IntRange(1), default=4, show_default=True, help="At most so many.")
@click.option("--samples", type=click.IntRange(1), default=2, show_default=True, help="Passkeys per length and depth.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of the runtime.  [default: all cores]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the passkeys.")
@options.json_output
def command(
    artifact: str,
    texts: tuple[Path, ...],
    windows: tuple[int, ...],
    passkey: tuple[int, ...],
    windows_per_length: int,
    samples: int,
    threads: int | None,
    seed: int,
    json_path: str | None,
) -> int:
    """Measure ARTIFACT (or a model) in its own runtime: perplexity and passkey retrieval by length."""
    from longrope_export.console import ConsoleProgress, write_json
    from longrope_export.evaluation import EvalRequest, evaluate
    from longrope_export.tables import print_evaluation

    request = EvalRequest(artifact, texts, windows, passkey, windows_per_length, samples, threads, seed)
    result = evaluate(request, ConsoleProgress())
    if json_path != "-":
        print_evaluation(result)
    write_json(result.to_json(), json_path)
    return 0
