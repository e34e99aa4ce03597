"""`longrope-export report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from longrope.options import option
from longrope_export import options


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """The options of `report`."""

    run_dir: Path = option(argument=True, help="Folder of a finished run of extend.")
    output: Path | None = option(
        None, short="o", section="Output", unset="RUN_DIR/report.html", help="File to write, as HTML."
    )


@options.command(ReportRequest)
def command(request: ReportRequest) -> int:
    """Write the report of RUN_DIR again, from its JSON files."""
    from longrope_export.console import say
    from longrope_export.report import write_report

    say(f"{write_report(request.run_dir, request.output)}: written.")
    return 0
