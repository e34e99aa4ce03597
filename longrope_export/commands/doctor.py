"""`longrope-export doctor`."""

from __future__ import annotations

import click

from longrope_export import options


@click.command()
@options.json_output
def command(json_path: str | None) -> int:
    """Say what is installed, what works and what to do. Exit code 3 when something required is missing."""
    import dataclasses

    from longrope_export.console import print_table, write_json
    from longrope_export.doctor import examine

    findings = examine()
    if json_path is None:
        print_table(
            "longrope-export doctor",
            ("what", "state", "detail"),
            [[finding.what, finding.state, finding.detail] for finding in findings],
        )
    write_json([dataclasses.asdict(finding) for finding in findings], json_path)
    return 3 if any(finding.required and finding.state != "ok" for finding in findings) else 0
