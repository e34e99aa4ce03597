"""Markdown for the comment on a pull request: the verdict in words, the artifacts, the failures; the rest is folded.

Names, values and messages may be a stranger's: they stand in `<code>`, where GitHub and GitLab make no mention of `@name`,
and every character that Markdown or HTML reads is a numeric reference.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from longrope.reading import visible
from longrope_export.ci.suites import Finding, Suite
from longrope_export.console import number
from longrope_export.quality import Extension, Row, extensions_of

# Characters that the body of a comment on GitHub may have.
COMMENT_LENGTH = 65_536
LEFT_OUT = "\n_{} parts of this report are left out for its length; they are in the JSON and JUnit files._\n"
_ARTIFACTS = (
    "artifact",
    "format",
    "verdict",
    "failed",
    "warned",
    "not run",
    "passed",
    "worst Δ ppl",
    "worst KL",
    "top-1",
)
_QUALITY = ("tokens", "against", "change of perplexity", "perplexity", "verdict")
_WINDOWS = ("window", "regime", "ppl reference", "ppl", "Δ %", "KL", "top-1", "max logit diff")
_ICONS = {"fail": "❌", "warn": "⚠️", "skip": "➖", "pass": "✅"}
_READ = re.compile(r"[^\w\s.,;()+=%/≤≥–…-]|_|(?<=[wW]{3})\.")


def text(suites: Sequence[Suite], limit: int = COMMENT_LENGTH, size: Callable[[str], int] = len) -> str:
    """The report; whole parts of it are left out, the folded ones first, where it would be longer than `limit`.

    Args:
        suites: the artifacts.
        limit: most that `size` may give.
        size: how long a text is, in the unit of `limit`; characters if not given.
    """
    return _fitting(_parts(suites), limit, size)


def code(foreign: str) -> str:
    """A text of unknown origin on one line, as it is, without any meaning in Markdown or HTML."""
    line = visible(" ".join(foreign.split()))
    return f"<code>{_READ.sub(lambda found: f'&#{ord(found[0])};', line)}</code>"


def _parts(suites: Sequence[Suite]) -> Iterable[str]:
    yield f"## {verdict(suites)}\n"
    yield _table(_ARTIFACTS, [_artifact_row(suite) for suite in suites])
    for suite in suites:
        if failures := suite.with_status("fail"):
            yield f"\n### Failed: {code(suite.name)}\n\n"
            yield "".join(f"- 🔎 {code(line)}\n" for line in suite.why)
            yield from map(_line, failures)
    for extension in extensions_of(suites):
        yield from _quality(extension)
    yield from map(_folded, suites)


def _quality(extension: Extension) -> Iterable[str]:
    """What an extension costs and brings in sentences; every comparison is folded."""
    yield f"\n### Quality of the extension: {', '.join(map(code, extension.artifacts))}\n\n"
    yield from (f"- {code(sentence)}\n" for sentence in extension.sentences())
    rows = [_quality_row(row) for row in extension.rows]
    yield f"\n<details><summary>Every comparison</summary>\n{_table(_QUALITY, rows)}\n</details>\n" if rows else ""


def _quality_row(row: Row) -> list[str]:
    return [
        str(row.length),
        code(row.against_words),
        row.words,
        f"{number(row.ppl, '.4f')} in place of {number(row.other, '.4f')}",
        _ICONS.get(row.status or "", "–"),
    ]


def verdict(suites: Sequence[Suite]) -> str:
    """The outcome as a sentence, such as "2 of 3 artifacts pass; 4 checks failed."."""
    passed, total = sum(suite.passed for suite in suites), len(suites)
    failed, warned, skipped = (
        sum(len(suite.with_status(status)) for suite in suites) for status in ("fail", "warn", "skip")
    )
    if passed == total:
        said = "The artifact passes" if total == 1 else f"All {total} artifacts pass"
    else:
        said = "The artifact fails" if total == 1 else f"{passed} of {total} artifacts pass"
    rest = [
        f"{_checks(count)} {word}"
        for count, word in ((failed, "failed"), (warned, "warned"), (skipped, "did not run"))
        if count
    ]
    return f"{'✅' if passed == total else '❌'} {said}{'; ' if rest else ''}{', '.join(rest)}."


def _checks(count: int) -> str:
    return "1 check" if count == 1 else f"{count} checks"


def _artifact_row(suite: Suite) -> list[str]:
    counts = [str(len(suite.with_status(status))) for status in ("fail", "warn", "skip", "pass")]
    deltas = [window["ppl_delta_percent"] for window in suite.windows]
    worst = max(deltas, key=lambda value: abs(value) if value is not None else 0.0, default=None)
    return [
        code(suite.name),
        code(suite.format),
        "✅ pass" if suite.passed else "❌ fail",
        *counts,
        f"{number(None if None in deltas else worst, '+.4f')} %",
        number(_extreme(max, suite, "kl_mean"), ".1e"),
        _percent(_extreme(min, suite, "top1_agreement")),
    ]


def _extreme(choose: Callable[..., float], suite: Suite, measure: str) -> float | None:
    """The worst of a measure; None where a window has none."""
    values = [window[measure] for window in suite.windows]
    return None if not values or None in values else choose(values)


def _percent(share: float | None) -> str:
    return f"{number(None if share is None else 100 * share, '.2f')} %"


def _folded(suite: Suite) -> str:
    rest = suite.with_status("warn", "skip", "pass")
    title = f"{code(suite.name)} against {code(suite.reference)}: windows, and {_checks(len(rest))} that did not fail"
    order = sorted(rest, key=lambda finding: ("warn", "skip", "pass").index(finding.status))
    body = _table(_WINDOWS, [_window_row(window) for window in suite.windows]) if suite.windows else ""
    lines = "".join(map(_line, order))
    return f"\n<details><summary>{title}</summary>\n\n{body}\n{lines}\n</details>\n"


def _window_row(window: Mapping[str, Any]) -> list[str]:
    return [
        str(window["length"]),
        code(window["regime"]),
        number(window["ppl_reference"], ".4f"),
        number(window["ppl"], ".4f"),
        number(window["ppl_delta_percent"], "+.4f"),
        number(window["kl_mean"], ".1e"),
        _percent(window["top1_agreement"]),
        number(window["max_logit_diff"], ".1e"),
    ]


def _line(finding: Finding) -> str:
    said = f": {code(finding.text)}" if finding.text and finding.status != "pass" else ""
    return f"- {_ICONS[finding.status]} {code(finding.name)}{said}\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _fitting(parts: Iterable[str], limit: int, size: Callable[[str], int]) -> str:
    """As many of the parts as fit, each whole, and how many do not."""
    parts = list(parts)
    whole = "".join(parts)
    if size(whole) <= limit:
        return whole
    room = limit - size(LEFT_OUT.format(len(parts)))
    kept: list[str] = []
    for part in parts:
        if size(part) <= room:
            kept.append(part)
            room -= size(part)
    return "".join(kept) + LEFT_OUT.format(len(parts) - len(kept)) if room >= 0 else ""
