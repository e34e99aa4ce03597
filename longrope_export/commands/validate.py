"""`longrope-export validate`."""

from __future__ import annotations

from pathlib import Path

import click

from longrope_export import options


@click.command()
@click.argument("artifact")
@click.option("--reference", required=True, metavar="MODEL", help="The model it was made from, extended or not.")
@options.texts(required=True)
@click.option("--windows", type=options.LENGTHS, default=(), help="Lengths to measure.  [default: original, target]")
@click.option("--windows-per-length", type=click.IntRange(1), default=4, show_default=True, help="At most so many.")
@click.option("--factors", type=options.PATH, help="The factors.json it must carry.  [default: the reference's]")
@options.factor_sets
@click.option("--crossing/--no-crossing", default=True, help="Decode across the original window through the cache.")
@options.json_output
@options.compute
def command(
    artifact: str,
    reference: str,
    texts: tuple[Path, ...],
    windows: tuple[int, ...],
    windows_per_length: int,
    factors: Path | None,
    factor_sets: str,
    crossing: bool,
    json_path: str | None,
    device: str,
    threads: int | None,
    seed: int,
) -> int:
    """Check ARTIFACT against a reference model: keys, tensors, factors, then perplexity, KL and top-1 in its runtime."""
    from longrope_export.console import ConsoleProgress, write_json
    from longrope_export.models import artifact_path
    from longrope_export.tables import print_parity
    from longrope_export.validation import ValidateRequest, validate_artifact

    path = artifact_path(artifact)
    request = ValidateRequest(
        path, reference, texts, windows, windows_per_length, factors, factor_sets, crossing, threads, device
    )
    result = validate_artifact(request, ConsoleProgress())
    print_parity([result], err=json_path == "-")
    write_json(result.to_json(), json_path)
    return 0 if result.passed else 1
