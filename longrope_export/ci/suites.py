"""The entries of validation.json as what every report of a pipeline is made of: suites of findings with unique names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converters.base import Status
from converters.explain.causes import Explanation
from converters.measurements import explanation_of, quality_of
from longrope.measures import Quality
from longrope.reading import cut
from longrope_export.words import value_words

# Of a message, which may be a runtime's last words.
MESSAGE_LENGTH = 600
# Begins the ids of checks about the extension, not about the artifact.
QUALITY = "quality."


@dataclass(frozen=True)
class Finding:
    """One check: its name, unique in its suite, its status, what was expected and found in words, and its message alone."""

    name: str
    status: Status
    text: str
    message: str = ""


@dataclass(frozen=True)
class Suite:
    """One artifact.

    Args:
        name: the artifact's, unique among the suites.
        format: `hf`, `gguf`, `onnx` or another's.
        reference: the model that it was compared with.
        passed: whether no check failed.
        findings: its checks in their order.
        windows: entries of `windows` of validation.json.
        quality: what the extension costs and brings; None where that was not measured.
        explanation: why it fails; None where that was not asked.
    """

    name: str
    format: str
    reference: str
    passed: bool
    findings: tuple[Finding, ...]
    windows: tuple[Mapping[str, Any], ...]
    quality: Quality | None = None
    explanation: Explanation | None = None

    def with_status(self, *statuses: Status) -> list[Finding]:
        """The findings of these statuses."""
        return [finding for finding in self.findings if finding.status in statuses]

    @property
    def why(self) -> tuple[str, ...]:
        """Why it fails: cause, what to do, what was measured; nothing where that was not asked."""
        found = self.explanation
        if found is None:
            return ()
        where = f" ({found.where})" if found.where else ""
        lines = (f"Likeliest cause: {found.title}{where}", f"What to do: {found.advice}", *found.evidence)
        return tuple(cut(line, MESSAGE_LENGTH) for line in lines)


def suites_of(entries: Sequence[Mapping[str, Any]]) -> list[Suite]:
    """One suite for each entry of validation.json. Raises InputError for a broken quality or explanation."""
    names = unique(entry["artifact"] or "artifact" for entry in entries)
    return [
        Suite(
            name=name,
            format=entry["format"],
            reference=entry["reference"],
            passed=entry["passed"],
            findings=_findings(entry["checks"]),
            windows=tuple(entry["windows"]),
            quality=quality_of(entry, name),
            explanation=explanation_of(entry, name),
        )
        for name, entry in zip(names, entries, strict=True)
    ]


def _findings(checks: Sequence[Mapping[str, Any]]) -> tuple[Finding, ...]:
    names = unique(check["id"] for check in checks)
    return tuple(
        Finding(name, check["status"], _text(check), _message(check)) for name, check in zip(names, checks, strict=True)
    )


def _text(check: Mapping[str, Any]) -> str:
    message = _message(check)
    if check["expected"] is None and check["actual"] is None:
        return message
    found = f"Expected {value_words(check['expected'])}, found {value_words(check['actual'])}"
    return f"{found}: {message}" if message else f"{found}."


def _message(check: Mapping[str, Any]) -> str:
    return cut(check["message"], MESSAGE_LENGTH)


def unique(names: Iterable[str]) -> list[str]:
    """The names; from the second time on with a number that makes a name nobody else has."""
    names = list(names)
    seen: Counter[str] = Counter()
    taken, made = set(names), []
    for name in names:
        seen[name] += 1
        own = name
        while seen[name] > 1 and own in taken:
            own = f"{name} ({seen[name]})"
            seen[name] += own in taken
        taken.add(own)
        made.append(own)
    return made
