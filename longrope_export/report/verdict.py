"""What a run's measurements say, in sentences: the headline, its reasons, and what nobody has measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from converters.base import Status
from longrope.reading import cut
from longrope_export.ci.suites import Suite
from longrope_export.console import number
from longrope_export.methods import LONG, ORIGINAL, SETS
from longrope_export.report.facts import Facts, has_passed, largest_difference
from longrope_export.words import PERCENT, change, count, listed, perplexity, share, signed, tokens

# A perplexity that is off by less than this percentage is that of the same weights in another arithmetic.
ROUNDING = 0.1
# Of a check's text in a sentence; the list of checks has more.
TEXT_LENGTH = 200
# Checks of a status that are named at the top.
MOST = 5
WORDS: Mapping[Status, str] = {"pass": "passed", "warn": "warned", "fail": "failed", "skip": "did not run"}


@dataclass(frozen=True)
class Verdict:
    """The words at the top of a report.

    Args:
        headline: one sentence.
        passed: whether no check failed.
        reasons: sentences with the figures.
        cautions: what was not measured, or did not go well.
    """

    headline: str
    passed: bool
    reasons: tuple[str, ...]
    cautions: tuple[str, ...]


def verdict_of(facts: Facts) -> Verdict:
    """The verdict on a run."""
    parts = [_longer(facts), _inside_short(facts), same_model(facts.suites)]
    reasons = (*_target(facts), *_inside(facts), *_recalled(facts), *_checks(facts))
    return Verdict(f"{'; '.join(filter(None, parts))}.", facts.passed, reasons, tuple(_cautions(facts)))


def same_model(suites: Sequence[Suite]) -> str:
    """Whether the artifacts are the model that they were made from."""
    if not suites:
        return "no format was checked"
    if failed := [suite for suite in suites if not has_passed(suite)]:
        return f"{listed([_failures(suite) for suite in failed])} failed"
    unmeasured = [suite.name for suite in suites if not suite.windows]
    if unmeasured:
        return f"{listed(unmeasured)} {'was' if len(unmeasured) == 1 else 'were'} checked without being run"
    worst = largest_difference(suites)
    each = "the one format is" if len(suites) == 1 else "every format is"
    if worst is None or abs(worst.percent) < ROUNDING:
        return f"{each} the same model"
    return f"{each} the same model, within {signed(abs(worst.percent)).removeprefix('+')} of perplexity"


def _failures(suite: Suite) -> str:
    checks = len(suite.with_status("fail"))
    return f"{count(checks, 'check')} of {suite.name}" if checks else suite.name


def _longer(facts: Facts) -> str:
    scale = facts.factors.length_scale
    return f"{number(scale, '.4g')}× longer" if scale is not None else "longer"


def _inside_short(facts: Facts) -> str:
    percents = [cost.percent for cost in facts.costs]
    if not percents or facts.window is None:
        return ""
    said = signed(min(percents))
    if signed(max(percents)) != said:
        said = f"{said.removesuffix(PERCENT)} to {signed(max(percents))}"
    return f"{said} perplexity inside {tokens(facts.window)} tokens"


def _target(facts: Facts) -> Iterator[str]:
    """At the target: this run, the original model and the best published method."""
    found = facts.methods.at(LONG, facts.target)
    if found is None or facts.target is None:
        return
    said = f"At {tokens(facts.target)} tokens the perplexity is {perplexity(found)}"
    original = facts.methods.at(ORIGINAL, facts.target)
    if original is not None:
        said += f"; without the extension it is {perplexity(original)}"
    best = facts.methods.best_known(facts.target)
    if best is None:
        yield f"{said}."
        return
    name, value = best
    yield f"{said}. The best published method there, {name}, has {perplexity(value)} ({_beside(value, found)})."


def _beside(value: float, found: float) -> str:
    """Another perplexity beside this run's, in words."""
    percent = change(value, found)
    if percent is None or percent == 0:
        return "the same"
    size = signed(abs(percent)).removeprefix("+")
    return f"{size} higher" if percent > 0 else f"{size} lower: this run does not beat it"


def _inside(facts: Facts) -> Iterator[str]:
    original, costs = facts.methods.at(ORIGINAL, facts.window), facts.costs
    if original is None or facts.window is None or not costs:
        return
    found = [
        f"{perplexity(cost.perplexity)} with the {SETS[cost.row] if facts.is_dual else 'one'} set ({signed(cost.percent)}"
        f"{f', used by {listed(cost.artifacts)}' if cost.artifacts else ''})"
        for cost in costs
    ]
    yield (
        f"Inside the original window of {tokens(facts.window)} tokens it is {listed(found)}; without the extension "
        f"{perplexity(original)}."
    )


def _recalled(facts: Facts) -> Iterator[str]:
    for task in ("passkey", "needle"):
        rows = facts.evaluation.get(task) or ()
        if samples := sum(row["samples"] for row in rows):
            right = sum(row["samples"] * row["accuracy"] for row in rows) / samples
            longest = max(row["length"] for row in rows)
            yield f"The {task} was found in {share(right)} of {count(samples, 'prompt')} of up to {tokens(longest)} tokens."


def _checks(facts: Facts) -> Iterator[str]:
    if not facts.suites:
        return
    found = Counter(finding.status for suite in facts.suites for finding in suite.findings)
    said = listed([f"{found[status]} {word}" for status, word in WORDS.items() if found[status]])
    total, worst = found.total(), largest_difference(facts.suites)
    yield f"All {count(total, 'check')} passed." if found["pass"] == total else f"Of {count(total, 'check')}, {said}."
    if worst is not None:
        yield f"The largest change of perplexity against the reference is {worst}."


def _cautions(facts: Facts) -> Iterator[str]:
    """Failures first, then warnings, then what was not looked at."""
    yield from _findings(facts, "fail")
    yield from _findings(facts, "warn")
    best, found = facts.methods.best_known(facts.target), facts.methods.at(LONG, facts.target)
    if best is not None and found is not None and best[1] < found:
        yield f"{best[0]} has a lower perplexity at the target; a longer search (`--max-evals`) may find better factors."
    yield from _not_compared(facts)
    if not any(facts.evaluation.get(task) for task in ("passkey", "needle")):
        yield "Retrieval was not measured; `eval --passkey` does."


def _findings(facts: Facts, status: Status) -> Iterator[str]:
    """The first checks of a status, and how many more there are."""
    found = [(suite.name, finding) for suite in facts.suites for finding in suite.with_status(status)]
    for name, finding in found[:MOST]:
        text = cut(finding.message or finding.text, TEXT_LENGTH)
        yield f"{name}: `{finding.name}` {WORDS[status]}{f': {text}' if text else ''}"
    if len(found) > MOST:
        yield f"{count(len(found) - MOST, 'more check')} {WORDS[status]}, see Checks."


def _not_compared(facts: Facts) -> Iterator[str]:
    """Artifacts that were compared at shorter windows than the target length, once a longest window."""
    names: dict[int, list[str]] = {}
    for suite in facts.suites:
        longest = max((window["length"] for window in suite.windows), default=0)
        if facts.target is not None and 0 < longest < facts.target:
            names.setdefault(longest, []).append(suite.name)
    for longest, of in names.items():
        yield (
            f"{listed(of)}: compared with the reference up to {tokens(longest)} tokens, not up to "
            f"{tokens(facts.target or 0)}; `validate --windows {facts.target}` does."
        )
