"""`longrope-export inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from longrope_export import options


@click.command()
@click.argument("artifact", type=options.PATH)
@options.json_output
def command(artifact: Path, json_path: str | None) -> int:
    """Say what ARTIFACT holds: format, factor sets, lengths, and which runtime uses which set when."""
    from longrope_export.console import write_json
    from longrope_export.inspection import inspect_artifact, print_inspection

    result = inspect_artifact(artifact)
    if json_path is None:
        print_inspection(result)
    write_json(result, json_path)
    return 0
