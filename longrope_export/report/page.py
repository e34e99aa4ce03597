"""The report of one run as HTML: one file, nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Undefined
from markupsafe import Markup, escape

from converters.explain.causes import Trial
from converters.onnx.weight_names import DTYPES
from longrope.files import write_atomically
from longrope.reading import visible
from longrope_export import recipes
from longrope_export.ci.suites import Suite
from longrope_export.console import number
from longrope_export.methods import ORIGINAL, by_length
from longrope_export.quality import Extension
from longrope_export.report import charts
from longrope_export.report.chart import Table
from longrope_export.report.facts import Facts
from longrope_export.report.verdict import verdict_of
from longrope_export.words import (
    PERCENT,
    change,
    count,
    listed,
    perplexity,
    share,
    signed,
    tiny,
    tokens,
    value_words,
    with_error,
)

REPORT = "report.html"
TASKS = ("passkey", "needle")
# Worst first.
STATUSES = {"fail": "✗ failed", "warn": "! warning", "skip": "– not run", "pass": "✓ passed"}
# A bar of this many percent is a full one, unless this run's own sets cost more.
FULL_BAR = 10.0
_FENCED = re.compile(r"```(\w*)\n(.*?)\n?```\s*", re.DOTALL)
_CODE = re.compile("`([^`]*)`")
_PLAIN_PATH = re.compile(r"[\w./+:@-]+")


@dataclass(frozen=True)
class Command:
    """How an artifact is started: the language, and the text to paste."""

    language: str
    text: str


def write_report(folder: Path, output: Path | None = None, validation: Path | None = None) -> Path:
    """Write the report of a run's folder; returns where.

    Args:
        folder: of the run.
        output: the file to write; None for the run's own report.
        validation: as of `Facts.read`.

    Raises:
        InputError: the folder is not a finished run, or a file is broken.
    """
    path = output or folder / REPORT
    write_atomically(path, render("report.html.j2", _values(Facts.read(folder, validation))))
    return path


def render(template: str, values: Mapping[str, Any]) -> str:
    """A page; every value is escaped but the SVG, which is ours."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("longrope_export"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_in_words,
    )
    environment.filters |= {
        "number": number,
        "share": share,
        "signed": signed,
        "perplexity": perplexity,
        "tiny": tiny,
        "tokens": tokens,
        "count": count,
        "marked": _marked,
    }
    environment.globals |= {"STATUSES": STATUSES, "listed": listed, "script_hash": _script_hash(environment)}
    return environment


def _script_hash(environment: Environment) -> str:
    """Of the one script that the page may run; a script that a file smuggled in would not."""
    source = environment.get_template("report.js").render()
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _in_words(value: Any) -> Any:
    """What a page shows of any value: words, never Python's or a terminal's notation."""
    if isinstance(value, Markup | Undefined):  # which raises as soon as it is written
        return value
    if isinstance(value, str):  # a line never ends between a number and its sign
        return (
            visible(value)
            .replace(PERCENT, "\N{NO-BREAK SPACE}%")
            .replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
        )
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if value is None or isinstance(value, float):
        return number(value, ".6g")
    return value_words(value)


def _marked(sentence: str) -> Markup:
    """A sentence with what stands in backticks as code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(_in_words(sentence)))))


def _values(facts: Facts) -> dict[str, Any]:
    """What the template is filled with."""
    drawn = [charts.by_length(facts), charts.factors_chart({"found": facts.factors}), charts.search_chart(facts)]
    drawn += [charts.front_chart(facts), *charts.training_charts(facts)]
    return {
        "facts": facts,
        "verdict": verdict_of(facts),
        "charts": {chart.name: chart for chart in drawn if chart is not None},
        "training": [chart for chart in drawn if chart is not None and chart.name.startswith("training")],
        "costs": list(_cost_rows(facts)),
        "extensions": [(extension, list(_quality_rows(extension))) for extension in facts.extensions],
        "whys": {suite.name: why for place, suite in enumerate(facts.suites) if (why := _why(place, suite))},
        "heat_maps": {task: heat_map(facts.evaluation[task], task) for task in TASKS if facts.evaluation.get(task)},
        "evaluated": _evaluated(facts),
        "stages": _stages(facts),
        "comparison": _short_sets(facts),
        "parity": parity_table(facts.suites),
        "exports": [{**each, "groups": _groups(each)} for each in facts.run["exports"]],
        "recipe": recipes.to_yaml(facts.run["recipe"]).removeprefix(recipes.HOW_TO_RUN).strip(),
        "settings": settings_table(facts),
        "versions": _versions(facts),
        "machine": facts.run["provenance"].get("machine") or {},
        "created": facts.run["provenance"].get("created"),
    }


# -- what the parts of the page are made of


def _cost_rows(facts: Facts) -> Iterator[dict[str, Any]]:
    """Rows of the table of costs inside the original window, cheapest first, with the share of a full bar."""
    methods, window = facts.methods, facts.window
    original = methods.at(ORIGINAL, window)
    costs = {name: change(methods.at(name, window), original) for name in methods.rows if name != ORIGINAL}
    measured = {name: cost for name, cost in costs.items() if cost is not None}
    full = max([FULL_BAR, *(2 * abs(cost.percent) for cost in facts.costs)])
    used_by = {cost.row: listed(cost.artifacts) for cost in facts.costs}
    for name, percent in sorted(measured.items(), key=lambda item: item[1]):
        yield {
            "name": facts.method_name(name),
            "ours": name not in methods.known,
            "used_by": used_by.get(name, ""),
            "perplexity": methods.at(name, window),
            "percent": percent,
            "bar": min(100, round(100 * abs(percent) / full)),
            "beyond": abs(percent) > full,
        }


def _quality_rows(extension: Extension) -> Iterator[dict[str, Any]]:
    """Rows of the table of quality, with the place of each change and of its interval between -FULL_BAR and FULL_BAR."""
    for row in extension.rows:
        rise = row.rise
        yield {
            "row": row,
            "verdict": STATUSES.get(row.status or "", "–"),
            "change": with_error(rise.percent, rise.error),
            "noise": rise.words or "one window",
            "place": _place(rise.percent),
            "interval": [_place(end) for end in (rise.low, rise.high)] if math.isfinite(rise.error) else None,
            "beyond": abs(rise.percent) > FULL_BAR,
        }


def _place(percent: float) -> int | None:
    """From 0 to 100 across a bar, whose middle is no change; None of what is no number."""
    return None if math.isnan(percent) else round(50 + 50 * min(max(percent / FULL_BAR, -1.0), 1.0))


def _why(place: int, suite: Suite) -> dict[str, Any] | None:
    """Why an artifact fails, and what of it is drawn and listed; None where nobody asked."""
    found = suite.explanation
    if found is None:
        return None
    trials = tuple(
        (trial.change, tokens(trial.length), tiny(trial.kl_unchanged), tiny(trial.kl_mean), share(_left(trial)))
        for trial in found.trials
    )
    parts = tuple(
        (part.name, share(part.error), share(part.error_at_start), "yes" if part.differs else "")
        for part in found.parts
    )
    return {
        "found": found,
        "chart": charts.difference_chart(f"why-{place}", suite.name, found),
        "trials": trials
        and Table(
            f"The reference with one change, against {suite.name}",
            ("change", "window", "KL without", "KL with", "left of it"),
            trials,
            frozenset({0}),
        ),
        "parts": parts
        and Table(
            f"Each part of {suite.name} by itself, of what it adds",
            ("part", "differs by", "at position 0", "more than rounding"),
            parts,
            frozenset({3}),
        ),
    }


def _left(trial: Trial) -> float | None:
    """The share of a difference that a change leaves."""
    return trial.kl_mean / trial.kl_unchanged if trial.kl_unchanged > 0 else None


def heat_map(rows: list[Mapping[str, Any]], task: str) -> dict[str, Any]:
    """Answers found by length (rows) and depth (columns): a table with a colour and a number in each cell."""
    found = by_length(rows)
    depths = sorted({row["depth"] for row in rows})
    return {
        "caption": f"{task.capitalize()} found, %",
        "depths": [number(depth, "g") for depth in depths],
        "rows": [
            {"length": length, "cells": [_cell(cells[depth]) if depth in cells else None for depth in depths]}
            for length, cells in found.items()
        ],
    }


def _cell(row: Mapping[str, Any]) -> dict[str, Any]:
    accuracy = min(max(row["accuracy"], 0.0), 1.0)
    words = [
        f"{number(100 * accuracy, '.0f')} % of {count(row['samples'], 'prompt')}",
        f"perplexity of the answer {number(row['answer_ppl'], '.3g')}",
    ]
    if row.get("generated") is not None:
        words.append(f"generated {number(100 * row['generated'], '.0f')} %")
    return {"percent": number(100 * accuracy, ".0f"), "level": round(10 * accuracy), "words": "; ".join(words)}


def _evaluated(facts: Facts) -> Table | None:
    rows = facts.evaluation.get("perplexity")
    if not rows:
        return None
    return Table(
        f"Perplexity of {facts.evaluation['artifact']} by window, as eval measured it",
        ("window", "windows", "perplexity"),
        tuple((tokens(row["length"]), str(row["windows"]), perplexity(row["ppl"])) for row in rows),
    )


def _stages(facts: Facts) -> Table | None:
    if not facts.stages:
        return None
    rows = []
    for entry in facts.stages:
        stage, training = entry["stage"], entry["training"]
        trained = ["–"] * 5
        if training:
            losses = (number(training["loss"][0], ".4f"), number(training["loss"][-1], ".4f"))
            trained = [str(stage["batch"]), tokens(training["tokens"]), *losses, number(training["seconds"], ",.0f")]
        rows.append((tokens(stage["length"]), entry["factors"]["method"], str(stage["steps"]), *trained))
    header = ("window", "factors", "steps", "rows a step", "tokens", "first loss", "last loss", "seconds")
    return Table("Stages of fine-tuning", header, tuple(rows), frozenset({1}))


def _short_sets(facts: Facts) -> Table | None:
    recovery = facts.run["extension"].get("recovery") or {}
    rows = recovery.get("comparison")
    if not rows:
        return None
    best = recovery.get("winner")
    return Table(
        "Short window: what wins",
        ("short set", "perplexity", "best"),
        tuple((row["name"], perplexity(row["perplexity"]), "yes" if row["name"] == best else "") for row in rows),
        frozenset({2}),
    )


def parity_table(suites: Sequence[Suite]) -> Table:
    """Every window of every artifact against the reference."""
    rows = tuple(
        (
            suite.name,
            f"{window['regime']} {tokens(window['length'])}",
            _window_verdict(suite, window),
            perplexity(window["ppl_reference"]),
            perplexity(window["ppl"]),
            signed(window["ppl_delta_percent"]),
            tiny(window["kl_mean"]),
            tiny(window["kl_p99"]),
            share(window["top1_agreement"]),
            tiny(window["max_logit_diff"]),
            tokens(window["tokens"]),
        )
        for suite in suites
        for window in suite.windows
    )
    header = (
        *("artifact", "window", "verdict", "reference", "perplexity", "change", "mean KL", "KL p99", "top-1"),
        *("largest Δ logit", "tokens"),
    )
    return Table("Artifacts against the reference", header, rows, frozenset({1, 2}))


def _window_verdict(suite: Suite, window: Mapping[str, Any]) -> str:
    """The worst that a check of this window says, such as `gguf.parity.long.2048`."""
    about = f".{window['regime']}.{window['length']}"
    found = {finding.status for finding in suite.findings if finding.name.endswith(about)}
    return next((words for status, words in STATUSES.items() if status in found), "–")


def _groups(export: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Runtimes that use the sets in the same way, once a way."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for use in _runtimes(export):
        found.setdefault((use["uses"], use["advice"], use["safe"]), []).append(use)
    return [
        {"uses": uses, "advice": advice, "safe": safe, "runtimes": of} for (uses, advice, safe), of in found.items()
    ]


def _runtimes(export: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Runtimes of an artifact, with the command that starts it from the run's folder, or from the Hub once it is there."""
    path = export["path"] if _PLAIN_PATH.fullmatch(export["path"]) else "PATH"
    kind = export["format"].partition(":")[2]
    names = {"path": path, "repo": "ORG/NAME", "tag": path.removesuffix(".gguf").rpartition("-")[2]}
    for use in export["runtimes"]:
        local = use.get("run_local") or ""
        text = Template(local or use.get("run") or "").safe_substitute(names, dtype=DTYPES.get(kind or "f32", "DTYPE"))
        yield {**use, "commands": [Command(*found) for found in _FENCED.findall(text)], "published": not local}


def settings_table(facts: Facts) -> Table:
    """Every setting of the run, one a row."""
    rows = tuple((name, value_words(value)) for name, value in flat(facts.run["configuration"]).items())
    return Table("All settings", ("setting", "value"), rows, frozenset({1}))


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `search.max_evals`."""
    found: dict[str, Any] = {}
    for name, value in data.items():
        inner = isinstance(value, Mapping) and value
        found |= (
            flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": "not set" if value is None else value}
        )
    return found


def _versions(facts: Facts) -> Table | None:
    versions = facts.run["provenance"].get("versions")
    if not versions:
        return None
    rows = tuple((name, value_words(version)) for name, version in versions.items())
    return Table("Versions", ("software", "version"), rows, frozenset({1}))
