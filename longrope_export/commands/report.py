"""`longrope-export report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from longrope.errors import InputError
from longrope.options import option
from longrope_export import options


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """The options of `report`."""

    run_dir: Path = option(argument=True, help="Folder of a finished run of extend.")
    other_dir: Path | None = option(None, argument=True, help="Folder of another run, to be compared with the first.")
    validation: Path | None = option(
        None,
        section="Input",
        metavar="RESULT.json",
        help="What validate --json wrote about artifacts of RUN_DIR, with --quality or --explain: it counts instead of "
        "what RUN_DIR/validation.json says of them.",
    )
    output: Path | None = option(
        None,
        short="o",
        section="Output",
        unset="RUN_DIR/report.html, of two runs OTHER_DIR/comparison.html",
        help="File to write, as HTML.",
    )

    def __post_init__(self) -> None:
        if self.other_dir is not None and self.validation is not None:
            raise InputError("--validation is about one run: expected no OTHER_DIR beside it")


@options.command(ReportRequest)
def command(request: ReportRequest) -> int:
    """Write the report of RUN_DIR again, from its JSON files; or compare RUN_DIR with OTHER_DIR.

    A report is one HTML file that loads nothing from elsewhere. A comparison shows the settings that differ, the
    perplexities side by side, the checks that changed, and what got worse beyond noise.
    """
    from longrope_export.console import say
    from longrope_export.report import write_comparison, write_report

    if request.other_dir is None:
        say(f"{write_report(request.run_dir, request.output, request.validation)}: written.")
    else:
        say(f"{write_comparison(request.run_dir, request.other_dir, request.output)}: written.")
    return 0
