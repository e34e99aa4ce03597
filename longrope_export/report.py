"""report.html of a run, made from its JSON files alone, so that it can be made again.

run.json, factors.json, validation.json, and evaluation.json where there is one (`eval --json RUN_DIR/evaluation.json`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longrope.errors import InputError, MissingRequirementError
from longrope.factors import RescaleFactors
from longrope.files import write_atomically
from longrope.provenance import without_folders
from longrope_export.console import number
from longrope_export.run_files import RUN, VALIDATION, read_evaluation, read_finished_run, read_validation

TEMPLATE = "report.html.j2"


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the report of a run's folder; returns where. Raises InputError when the folder is not a finished run."""
    path = output or folder / "report.html"
    if not (folder / RUN).is_file():
        raise InputError(f"{folder / RUN}: no such file; expected the folder of a finished run")
    run, evaluation = read_finished_run(folder), read_evaluation(folder)
    factors, artifacts = RescaleFactors.load(folder / "factors.json"), read_validation(folder / VALIDATION)
    run["configuration"] = without_folders(run["configuration"])
    data = {
        "run": run,
        "evaluation": evaluation,
        "artifacts": artifacts,
        "passed": all(artifact["passed"] for artifact in artifacts),
        "factors": factors,
        "plots": _plots(run, factors, evaluation),
    }
    write_atomically(path, render(data))
    return path


def render(data: Mapping[str, Any]) -> str:
    """The report as HTML; every value is escaped but the plots, which are ours."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("longrope_export"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"number": number, "percent": _percent, "said": _said}
    return environment.get_template(TEMPLATE).render(**data)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{number(100 * share, '.2f')} %"


def _said(value: object) -> str:
    """What a check expected or found; nothing where it says neither."""
    return "" if value is None else str(value)


def _plots(run: Mapping[str, Any], factors: RescaleFactors, evaluation: Mapping[str, Any]) -> dict[str, str]:
    """SVG pictures by title; none without matplotlib, which the report then says."""
    from longrope_export import plots
    from longrope_export.evaluation import retrieval_rows

    recalled = retrieval_rows(evaluation)

    search = run["extension"]["search"] or {}
    history = [(point["tokens"], point["perplexity"]) for point in search.get("history", [])]
    front = search.get("front", [])
    try:
        figures = {"Rescale factors": plots.factors_figure({"found": factors})}
        if history:
            figures["Search"] = plots.convergence_figure(history)
        for stage in run["extension"].get("stages", []):
            if curve := stage["training"]:
                points = list(zip(curve["steps"], curve["loss"], curve["learning_rate"], strict=True))
                figures[f"Training at {stage['stage']['length']} tokens"] = plots.training_figure(points)
        if front:
            sides = [(point["short"], point["target"]) for point in front]
            chosen = next((i for i, point in enumerate(front) if point["chosen"]), None)
            figures["Original window against target"] = plots.pareto_figure(sides, chosen, search["short_cap"])
        if recalled:
            figures["Retrieval by length and depth"] = plots.retrieval_figure(recalled)
        return {title: _inline(plots.render(figure, "svg")) for title, figure in figures.items()}
    except MissingRequirementError:
        return {}


def _inline(svg: bytes) -> str:
    """An SVG file without its XML prologue, to stand inside HTML."""
    text = svg.decode("utf-8")
    return text[text.index("<svg") :]
