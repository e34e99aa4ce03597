"""`longrope-export report`."""

from __future__ import annotations

from pathlib import Path

import click

from longrope_export import options


@click.command()
@click.argument("run_dir", type=options.PATH)
@click.option("-o", "--output", type=options.PATH, help="File to write.  [default: RUN_DIR/report.html]")
def command(run_dir: Path, output: Path | None) -> int:
    """Write the report of RUN_DIR again, from its JSON files."""
    from longrope_export.report import write_report

    click.echo(f"{write_report(run_dir, output)}: written.")
    return 0
