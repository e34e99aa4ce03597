"""GitHub Actions: workflow commands that annotate a run, and the summary of a step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from longrope.errors import InputError
from longrope.reading import visible
from longrope_export.ci import markdown
from longrope_export.ci.suites import Suite

# GitHub shows so many annotations of a kind and step, and drops the rest without a word.
MOST_ANNOTATIONS = 10
# Bytes that the summary of a step may have; a longer one is dropped whole.
SUMMARY_BYTES = 1 << 20
SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"


def annotation_lines(suites: Sequence[Suite]) -> list[str]:
    """Workflow commands: why artifacts fail, then an error for each failed check, then warnings, at most ten.

    The last one counts the checks that are left out.
    """
    explained = [
        ("error", f"Why it fails ({suite.name})", "\n".join(suite.why[:2]))
        for suite in suites
        if suite.why and not suite.passed
    ][: MOST_ANNOTATIONS - 1]
    room = MOST_ANNOTATIONS - len(explained)
    found = [
        (kind, f"{finding.name} ({suite.name})", finding.text)
        for status, kind in (("fail", "error"), ("warn", "warning"))
        for suite in suites
        for finding in suite.findings
        if finding.status == status
    ]
    if len(found) > room:
        rest = found[room - 1 :]
        failed = sum(kind == "error" for kind, *_ in rest)
        message = (
            f"{failed} more checks failed and {len(rest) - failed} more warned; the step's summary has all of them"
        )
        found = [*found[: room - 1], (rest[0][0], "longrope-export validate", message)]
    return [f"::{kind} title={_property(title)}::{_data(message)}" for kind, title, message in (*explained, *found)]


def write_summary(suites: Sequence[Suite]) -> bool:
    """Append the Markdown report to the step's summary; whether there is one, that is, whether GitHub runs this.

    Raises:
        InputError: the summary's file cannot be written.
    """
    place = os.environ.get(SUMMARY_VARIABLE)
    if not place:
        return False
    path = Path(place)
    try:
        room = SUMMARY_BYTES - (path.stat().st_size if path.exists() else 0)
        with path.open("a", encoding="utf-8") as file:
            file.write(markdown.text(suites, room, _bytes))
    except OSError as error:
        raise InputError(f"the file that {SUMMARY_VARIABLE} names cannot be written: {error.strerror}") from error
    return True


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _data(text: str) -> str:
    lines = "\n".join(map(visible, text.splitlines()))
    return lines.replace("%", "%25").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
