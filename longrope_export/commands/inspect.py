"""`longrope-export inspect`."""

from __future__ import annotations

import click

from longrope_export import options


@click.command()
@click.argument("artifact")
@options.json_output
def command(artifact: str, json_path: str | None) -> int:
    """Say what ARTIFACT holds: format, factor sets, lengths, and which runtime uses which set when."""
    from longrope_export.console import write_json
    from longrope_export.inspection import inspect_artifact, print_inspection
    from longrope_export.models import artifact_path

    result = inspect_artifact(artifact_path(artifact))
    if json_path is None:
        print_inspection(result)
    write_json(result, json_path)
    return 0
