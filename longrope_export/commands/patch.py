"""`longrope-export patch`."""

from __future__ import annotations

from pathlib import Path

import click

from longrope_export import options


@click.command()
@click.argument("file", type=options.PATH)
@click.option("--factors", required=True, type=options.PATH, help="factors.json to put in.")
@click.option("-o", "--output", type=options.PATH, help="GGUF file to write.")
@click.option("--in-place", is_flag=True, help="Replace FILE, by a rename once the new file is complete.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@options.factor_sets
def command(file: Path, factors: Path, output: Path | None, in_place: bool, overwrite: bool, factor_sets: str) -> int:
    """Put factors into a GGUF FILE of the same base model, quantized and split ones too; no weights are touched."""
    from longrope_export.console import ConsoleProgress
    from longrope_export.conversion import patch

    checks = patch(file, factors, output, in_place=in_place, overwrite=overwrite, factor_sets=factor_sets)
    ConsoleProgress().line(f"{output or file}: written; {len(checks)} read-back checks passed.")
    return 0
