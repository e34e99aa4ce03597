"""The entries of validation.json as what every report of a pipeline is made of: suites of findings with unique names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converters.base import Status
from longrope.reading import cut, shown

# Of an expected or found value, which may be a whole list of factors; of a message, which may be a runtime's last words.
VALUE_LENGTH, MESSAGE_LENGTH = 160, 600


@dataclass(frozen=True)
class Finding:
    """One check: its name, which is unique in its suite, its status, and what was expected and found, in words."""

    name: str
    status: Status
    text: str


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
    """

    name: str
    format: str
    reference: str
    passed: bool
    findings: tuple[Finding, ...]
    windows: tuple[Mapping[str, Any], ...]

    def with_status(self, *statuses: Status) -> list[Finding]:
        """The findings of these statuses."""
        return [finding for finding in self.findings if finding.status in statuses]


def suites_of(entries: Sequence[Mapping[str, Any]]) -> list[Suite]:
    """One suite for each entry of validation.json."""
    names = unique(entry["artifact"] or "artifact" for entry in entries)
    return [
        Suite(
            name=name,
            format=entry["format"],
            reference=entry["reference"],
            passed=entry["passed"],
            findings=_findings(entry["checks"]),
            windows=tuple(entry["windows"]),
        )
        for name, entry in zip(names, entries, strict=True)
    ]


def _findings(checks: Sequence[Mapping[str, Any]]) -> tuple[Finding, ...]:
    names = unique(check["id"] for check in checks)
    return tuple(Finding(name, check["status"], _text(check)) for name, check in zip(names, checks, strict=True))


def _text(check: Mapping[str, Any]) -> str:
    found = ""
    if check["expected"] is not None or check["actual"] is not None:
        found = f"Expected {_value(check['expected'])}, found {_value(check['actual'])}."
    return " ".join(filter(None, (found, cut(check["message"], MESSAGE_LENGTH))))


def _value(value: Any) -> str:
    """A value in words: an object is its fields, `kl_mean ≤ 1e-06, top1_agreement ≥ 0.999`."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        value = ", ".join(f"{name} {_field(item)}" for name, item in value.items())
    return cut(value, VALUE_LENGTH) if isinstance(value, str) else shown(value, VALUE_LENGTH)


def _field(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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
