"""What a run's measurements say, in sentences: the headline, its reasons, and what nobody has measured."""

from __future__ import annotations

import math
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
# Causes of failures that leave it open whether the artifact is the same model.
UNDECIDED = ("files", "loads", "rounding", "unknown")
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
    reasons = (*_target(facts), *_inside(facts), *_quality(facts), *_recalled(facts), *_checks(facts))
    return Verdict(f"{'; '.join(filter(None, parts))}.", facts.passed, reasons, tuple(_cautions(facts)))


def same_model(suites: Sequence[Suite]) -> str:
    """Whether the artifacts are the model that they were made from."""
    if not suites:
        return "no format was checked"
    if failed := [suite for suite in suites if not has_passed(suite)]:
        return _failed(failed)
    unmeasured = [suite.name for suite in suites if not suite.windows]
    if unmeasured:
        return f"{listed(unmeasured)} {'was' if len(unmeasured) == 1 else 'were'} checked without being run"
    worst = largest_difference(suites)
    each = "the one format is" if len(suites) == 1 else "every format is"
    if worst is None or abs(worst.percent) < ROUNDING:
        return f"{each} the same model"
    return f"{each} the same model, within {signed(abs(worst.percent)).removeprefix('+')} of perplexity"


def _failed(failed: Sequence[Suite]) -> str:
    """What failed; of an artifact whose cause is known that it is another model, and of a single one the cause."""
    explained = [suite for suite in failed if suite.explanation and suite.explanation.cause not in UNDECIDED]
    rest = [suite for suite in failed if suite not in explained]
    said = [f"{listed([_failures(suite) for suite in rest])} failed"] if rest else []
    if explained:
        names = listed([suite.name for suite in explained])
        said.append(f"{names} {'is' if len(explained) == 1 else 'are'} not the same model")
    if len(explained) == 1 and (cause := explained[0].explanation) is not None:
        said[-1] += f"; likely cause: {_lower(cause.title.removesuffix('.'))}"
    return "; ".join(said)


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _failures(suite: Suite) -> str:
    checks = len(suite.with_status("fail"))
    return f"{count(checks, 'check')} of {suite.name}" if checks else suite.name


def _longer(facts: Facts) -> str:
    scale = facts.factors.length_scale
    return f"{number(scale, '.4g')}× longer" if scale is not None else "longer"


def _inside_short(facts: Facts) -> str:
    """What was measured in pairs counts before the table of methods."""
    costs = [cost for extension in facts.extensions if (cost := extension.cost) is not None]
    percents = [cost.rise.percent for cost in costs] or [cost.percent for cost in facts.costs]
    window = max((cost.length for cost in costs), default=facts.window)
    if not all(map(math.isfinite, percents)) or not percents or window is None:
        return ""
    said = signed(min(percents))
    if signed(max(percents)) != said:
        said = f"{said.removesuffix(PERCENT)} to {signed(max(percents))}"
    return f"{said} perplexity inside {tokens(window)} tokens"


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


def _quality(facts: Facts) -> Iterator[str]:
    """What `validate --quality` measured; where extensions differ in it, whose it is."""
    said: dict[tuple[int, str], list[str]] = {}
    for extension in facts.extensions:
        for place in enumerate(extension.sentences()):
            said.setdefault(place, []).extend(extension.artifacts)
    everybody = sum(len(extension.artifacts) for extension in facts.extensions)
    for (_, sentence), names in sorted(said.items(), key=lambda item: item[0][0]):
        yield sentence if len(names) == everybody else f"{listed(names)}: {_lower(sentence)}"


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
    """Why what failed does, failures, warnings, then what was not looked at."""
    for suite in facts.suites:
        if suite.explanation is not None:
            yield f"{suite.name}: likely cause: {_lower(suite.explanation.sentence)} {suite.explanation.advice}"
    yield from _findings(facts, "fail")
    yield from _findings(facts, "warn")
    best, found = facts.methods.best_known(facts.target), facts.methods.at(LONG, facts.target)
    if best is not None and found is not None and best[1] < found:
        yield f"{best[0]} has a lower perplexity at the target; a longer search (`--max-evals`) may find better factors."
    yield from _not_compared(facts)
    if facts.suites and facts.unchecked:
        yield f"{listed(facts.unchecked)}: not validated; the checks below are of the others."
    is_recalled = any(facts.evaluation.get(task) for task in ("passkey", "needle"))
    if not is_recalled and not any(extension.passkeys for extension in facts.extensions):
        yield "Retrieval was not measured; `eval --passkey` does."


def _findings(facts: Facts, status: Status) -> Iterator[str]:
    """The first checks of a status, one of several artifacts that say the same once, and how many more there are."""
    found: dict[tuple[str, str], list[str]] = {}
    for suite in facts.suites:
        for finding in suite.with_status(status):
            found.setdefault((finding.name, finding.message or finding.text), []).append(suite.name)
    for (name, text), artifacts in list(found.items())[:MOST]:
        said = cut(text, TEXT_LENGTH)
        yield f"{listed(artifacts)}: `{name}` {WORDS[status]}{f': {said}' if said else ''}"
    if rest := sum(map(len, list(found.values())[MOST:])):
        yield f"{count(rest, 'more check')} {WORDS[status]}, see Checks."


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
