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
    other_dir: Path | None = option(None, argument=True, help="Folder of another run, to be compared with the first.")
    output: Path | None = option(
        None,
        short="o",
        section="Output",
        unset="RUN_DIR/report.html, of two runs OTHER_DIR/comparison.html",
        help="File to write, as HTML.",
    )


@options.command(ReportRequest)
def command(request: ReportRequest) -> int:
    """Write the report of RUN_DIR again, from its JSON files; or compare RUN_DIR with OTHER_DIR.

    A report is one HTML file that loads nothing from elsewhere. A comparison shows the settings that differ, the
    perplexities side by side and the checks that changed.
    """
    from longrope_export.console import say
    from longrope_export.report import write_comparison, write_report

    if request.other_dir is None:
        say(f"{write_report(request.run_dir, request.output)}: written.")
    else:
        say(f"{write_comparison(request.run_dir, request.other_dir, request.output)}: written.")
    return 0
