"""The tables of a run: format × window, methods, checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrope_export.console import number, print_table, say
from longrope_export.words import value_words

if TYPE_CHECKING:  # most of these import torch, which judging a result again does not need
    from converters.base import Check
    from converters.explain.causes import Explanation
    from converters.measurements import Validation
    from longrope.extend import MethodTable
    from longrope.retrieval import RetrievalRow
    from longrope.search import Recovery
    from longrope.tasks import TaskRow
    from longrope_export.evaluation import Evaluation

PARITY_HEADER = (
    "artifact",
    "window",
    "regime",
    "ppl reference",
    "ppl",
    "Δ %",
    "KL",
    "KL own weights",
    "top-1",
    "max logit diff",
    "verdict",
)


def parity_rows(validations: Sequence[Validation]) -> list[list[str]]:
    """One row per artifact and window; "KL own weights" is that to the reference with the artifact's rounded weights."""
    return [
        [
            validation.artifact,
            f"{score.length}",
            score.regime,
            number(score.ppl_reference, ".4f"),
            number(score.ppl, ".4f"),
            number(score.ppl_delta_percent, "+.4f"),
            number(score.kl_mean, ".1e"),
            number(own.get((score.regime, score.length)), ".1e"),
            f"{number(100 * score.top1_agreement, '.2f')} %",
            number(score.max_logit_diff, ".1e"),
            validation.verdict(score),
        ]
        for validation in validations
        for own in [{(each.regime, each.length): each.kl_mean for each in validation.runtime}]
        for score in validation.windows
    ]


def print_methods(table: MethodTable) -> None:
    """Held-out perplexity of every method at every window."""
    rows = [
        [name, *(number(table.perplexity(name, length), ".3f") for length in table.lengths)] for name in table.names
    ]
    print_table("Held-out perplexity", ("method", *(f"at {length}" for length in table.lengths)), rows)


def print_evaluation(result: Evaluation) -> None:
    """Perplexity by length, then retrieval by length and depth."""
    if result.perplexity:
        rows = [[f"{row.length}", f"{row.windows}", number(row.ppl, ".4f")] for row in result.perplexity]
        print_table(result.artifact, ("length", "windows", "ppl"), rows)
    for task, recalled in result.retrieval.items():
        print_retrieval(task, recalled)
    for task in dict.fromkeys(row.task for row in result.tasks):
        print_task(task, [row for row in result.tasks if row.task == task])
    if result.lm_eval is not None:
        print_harness(result.lm_eval["results"])


def print_harness(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Metrics of the lm-evaluation-harness, one row each."""
    rows = [
        [task, name, number(value, ".4f")]
        for task, metrics in results.items()
        for name, value in metrics.items()
        if isinstance(value, float)
    ]
    print_table("lm-evaluation-harness", ("task", "metric", "value"), rows)


def print_task(task: str, rows: Sequence[TaskRow]) -> None:
    """Scores of one task, one row per window and number of shots."""
    names = list(rows[0].scores)
    shots = ("shots",) if rows[0].shots is not None else ()
    lines = [
        [
            f"{row.window}",
            *([f"{row.shots}"] if shots else []),
            f"{row.samples}",
            f"{row.truncated}",
            f"{row.mean_tokens:.0f}",
            *(number(row.scores[name], ".3f") for name in names),
        ]
        for row in rows
    ]
    print_table(task, ("window", *shots, "prompts", "cut", "tokens", *names), lines)


def print_retrieval(task: str, rows: Sequence[RetrievalRow]) -> None:
    """Share of answers found, by length and depth: teacher-forced, then generated, then the answers' perplexity."""
    print_grid(f"{task}: answers found", rows, lambda row: f"{100 * row.accuracy:.0f} %")
    if any(row.generated is not None for row in rows):
        print_grid(f"{task}: answers generated", rows, lambda row: f"{100 * (row.generated or 0):.0f} %")
    print_grid(f"{task}: perplexity of the answers", rows, lambda row: number(row.answer_ppl, ".3g"))


def print_grid(title: str, rows: Sequence[RetrievalRow], cell: Callable[[RetrievalRow], str]) -> None:
    """A table of lengths × depths."""
    depths, found = sorted({row.depth for row in rows}), {(row.length, row.depth): cell(row) for row in rows}
    lengths = sorted({row.length for row in rows})
    lines = [[f"{length}", *(found[length, depth] for depth in depths)] for length in lengths]
    print_table(title, ("length", *(f"depth {depth:g}" for depth in depths)), lines)


def print_recovery(recovery: Recovery, window: int, output: Path, *, err: bool = False) -> None:
    """Held-out perplexity of every short set, who wins, and what was written."""
    rows = [[score.name, number(score.perplexity, ".4f")] for score in recovery.comparison]
    print_table(f"Held-out perplexity at {window}", ("short set", "ppl"), rows, err=err)
    winner = recovery.winner
    if winner is not None:
        say(f"{winner.name} wins; {output} has the searched short set beside the long one.", err=err)


def print_parity(validations: Sequence[Validation], *, err: bool = False) -> None:
    """The table of windows, then every check that did not pass."""
    print_table("Artifacts against the original model", PARITY_HEADER, parity_rows(validations), err=err)
    for validation in validations:
        for check in validation.checks:
            if check.status in ("fail", "warn"):
                say(_check_line(check), err=err)
        if validation.explanation is not None:
            print_explanation(validation.artifact, validation.explanation, err=err)


def print_explanation(artifact: str, explanation: Explanation, *, err: bool = False) -> None:
    """Why an artifact fails: cause, place, what to do, and what was measured."""
    where = f" ({explanation.where})" if explanation.where else ""
    say(f"Why {artifact} fails: {explanation.title}{where}", err=err)
    say(f"  What to do: {explanation.advice}", err=err)
    for sentence in explanation.evidence:
        say(f"  - {sentence}", err=err)


QUALITY_HEADER = (
    "tokens",
    "extended against",
    "ppl extended",
    "ppl other",
    "Δ %",
    "± standard error",
    "KL",
    "verdict",
)


def print_quality(validations: Sequence[Validation], *, err: bool = False) -> None:
    """What each extension costs and brings; artifacts of the same one share a table."""
    measured = [validation for validation in validations if validation.quality is not None]
    while measured:
        alike = [validation for validation in measured if validation.quality == measured[0].quality]
        measured = [validation for validation in measured if validation not in alike]
        title = f"The extension of {', '.join(validation.artifact for validation in alike)} against other RoPEs"
        # Without `found`: those that limits decide, not findings that a stranger's file gives such a name.
        checks = {each.id: each for each in alike[0].checks if each.id.startswith("quality.") and each.found is None}
        print_table(title, QUALITY_HEADER, quality_rows(checks), err=err)
        rows = [
            [id.rpartition(".")[2], check.actual["found"], check.actual["original"], check.status]
            for id, check in checks.items()
            if id.startswith("quality.passkey.") and check.actual is not None
        ]
        if rows:
            print_table("Passkeys found", ("tokens", "extended", "original", "verdict"), rows, err=err)


def quality_rows(checks: Mapping[str, Check]) -> list[list[str]]:
    """One row for each comparison of perplexities, inside the original window and beyond it."""
    return [
        [
            id.rpartition(".")[2],
            "original" if id.startswith("quality.inside.") else id.split(".")[2],
            number(check.actual["ppl"], ".4f"),
            number(check.actual.get("ppl_original", check.actual.get("ppl_method")), ".4f"),
            number(check.actual.get("ppl_rise_percent"), "+.2f"),
            number(check.actual.get("standard_error"), ".2f"),
            number(check.actual.get("kl_mean"), ".1e"),
            check.status,
        ]
        for id, check in checks.items()
        if id.startswith(("quality.inside.", "quality.beyond.")) and check.actual is not None
    ]


def _check_line(check: Check) -> str:
    """One line, whatever the width of the terminal: ids must stay whole, to be searched for."""
    found = (
        ""
        if check.expected is check.actual is None
        else f"expected {_short(check.expected)}, got {_short(check.actual)}"
    )
    return f"{check.status}: {check.id}: {'. '.join(filter(None, (found, check.message)))}"


def _short(value: object) -> str:
    return value_words(value, 120)
