"""report.html of a run, made from its JSON files alone, so that it can be made again; and a comparison of two runs.

run.json, factors.json, validation.json, evaluation.json ──Facts.read──► Facts ─┬─ verdict ──► sentences
                                                                                ├─ charts ───► SVG and tables
                                                                                └─ page ─────► one file of HTML
"""

from longrope_export.report.comparison import write_comparison
from longrope_export.report.page import write_report

__all__ = ["write_comparison", "write_report"]
