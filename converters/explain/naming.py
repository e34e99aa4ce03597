"""From measurements to a cause: what the trials say first, then which parts differ, then what failed checks speak of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from converters.base import Check
from converters.explain.causes import CAUSES, Explanation, Part, Shape, cause_of_check
from converters.explain.trials import Verdict
from converters.explain.windows import only_the_cache

# Causes that cannot be told apart by what one position computes; the failed checks decide between them.
_OF_PARTS = ("weights", "settings", "graph")
# What failed checks may speak of where nothing measurable differs, or where all is NaN; the likeliest first.
_OF_FILES = (
    *("weights", "rope.factors", "rope.attention_factor", "rope.theta", "rope.n_hat", "rope.switch"),
    *("rope.dimensions", "cache", "settings", "graph", "files"),
)
_OF_NAN = ("weights", "rope.factors", "rope.attention_factor", "rope.theta", "graph", "settings")
# All layers, or nearly: with so many it is nothing that one layer has to itself.
_MANY_LAYERS = 0.75


@dataclass(frozen=True)
class Findings:
    """All that was measured of an artifact.

    Args:
        checks: its failed checks.
        verdicts: of every window that was run; windows that agree have no tried changes.
        shapes: of the same windows.
        parts: of the window that differs most.
        decoding: KL of decoding through the cache against one pass, in nats; None where it was not run.
        padding: KL of a padded batch against each text alone; None where it was not run.
        floor: KL that rounding explains.
        notes: what could not be measured, in sentences.
        opened: whether the runtime opens it.
    """

    checks: Sequence[Check]
    verdicts: Sequence[Verdict] = ()
    shapes: Sequence[Shape] = ()
    parts: Sequence[Part] = ()
    decoding: float | None = None
    padding: float | None = None
    floor: float = 0.0
    notes: Sequence[str] = ()
    opened: bool = True

    @property
    def differing(self) -> list[Verdict]:
        return [each for each in self.verdicts if each.window.kl_mean > self.floor]

    @property
    def broken(self) -> list[Part]:
        return [part for part in self.parts if part.differs]

    @property
    def spoken_of(self) -> set[str]:
        """Causes that failed checks speak of."""
        return {cause for check in self.checks if (cause := cause_of_check(check))}


def explanation(findings: Findings) -> Explanation:
    """The likeliest cause, with its evidence."""
    cause, title, where = _named(findings)
    fitting = tuple(check.id for check in findings.checks if _fits(cause, cause_of_check(check)))
    return Explanation(
        cause=cause,
        title=title or CAUSES[cause].title,
        advice=CAUSES[cause].advice,
        where=where,
        checks=fitting,
        evidence=tuple(_evidence(findings, fitting)),
        shapes=tuple(findings.shapes),
        trials=tuple(trial for verdict in findings.differing for trial in verdict.report()),
        parts=tuple(findings.parts),
    )


Named = tuple[str, str, str]


def _named(findings: Findings) -> Named:
    """Cause, title where there is a better one than the cause's, and place."""
    if not findings.opened:
        cause, title, where = _by_checks(findings, (*_OF_FILES[:-1], "loads"), "loads")
        return cause, title if cause == "loads" else f"The artifact is not run: {_lower(CAUSES[cause].title)}", where
    if not findings.verdicts:
        return _by_checks(findings, _OF_FILES[:-1], "unknown")
    broken = [each.window for each in findings.verdicts if each.window.non_finite is not None]
    if broken:
        cause, title, _ = _by_checks(findings, _OF_NAN, "non_finite")
        layer = findings.broken[0].name if findings.broken else ""
        return cause, title, ", ".join(filter(None, (layer, f"from position {broken[0].non_finite} on")))
    if not findings.differing:
        return _without_difference(findings)
    if _only_the_cache(findings):
        return "cache", "", ""
    return _by_rotation(findings) or _by_parts(findings)


def _by_checks(findings: Findings, causes: Sequence[str], otherwise: str) -> Named:
    return next((cause for cause in causes if cause in findings.spoken_of), otherwise), "", ""


def _without_difference(findings: Findings) -> Named:
    """Every window is as the reference's: the cache, padding, or what no window shows."""
    if findings.decoding is not None and not findings.decoding <= findings.floor:
        return "cache", "", ""
    if findings.padding is not None and not findings.padding <= findings.floor:
        return "padding", "", ""
    return _by_checks(findings, _OF_FILES, "rounding")


def _only_the_cache(findings: Findings) -> bool:
    """Whether one pass over the beginning is as the reference's, and decoding is not as one pass."""
    windows = [each.window for each in findings.verdicts]
    return only_the_cache(findings.decoding, windows, findings.floor)


def _by_rotation(findings: Findings) -> Named | None:
    """The change of the rotation that explains the windows that differ; None when none does."""
    explained = [(each, each.best) for each in findings.differing]
    found = [(each, best) for each, best in explained if best is not None]
    if not found or len(found) < len(explained):
        return None
    _, hypothesis = max(found, key=lambda pair: pair[0].window.kl_mean)
    if hypothesis.cause == "rope.switch":
        return _switched([each for each, best in found if best.cause == "rope.switch"], findings)
    lengths = sorted(len(each.window.ids) for each, _ in found)
    agreeing = sorted(len(each.window.ids) for each in findings.verdicts if each not in findings.differing)
    where = f"in windows of {_list(lengths)} tokens, not of {_list(agreeing)}" if agreeing else "at every length"
    title = f"{CAUSES[hypothesis.cause].title[:-1]}: {hypothesis.change}."
    return hypothesis.cause, title, where


def _switched(others: Sequence[Verdict], findings: Findings) -> Named:
    """Windows that were computed with the set that is not theirs."""
    regimes = {each.window.regime for each in others}
    wrong = _list(sorted(len(each.window.ids) for each in others))
    if regimes == {"short", "long"} and len(others) == len(findings.verdicts):
        return "rope.sets_exchanged", "", f"in windows of {wrong} tokens"
    used = "short" if "long" in regimes else "long"
    title = f"The {used} set is used where the {'long' if used == 'short' else 'short'} one belongs."
    return "rope.switch", title, f"in windows of {wrong} tokens"


def _by_parts(findings: Findings) -> Named:
    """Which parts differ by themselves, and whether they do where nothing is rotated."""
    broken = findings.broken
    if not broken:
        return _by_checks(findings, _OF_FILES[:-1], "unknown")
    layers = [part for part in broken if part.name.startswith("layer")]
    many = len(layers) > max(_MANY_LAYERS * (len(findings.parts) - 2), 1)
    where = f"all {len(layers)} layers" if len(layers) == len(findings.parts) - 2 else _list([p.name for p in broken])
    by_check = [cause for cause in _OF_PARTS if cause in findings.spoken_of]
    if by_check:
        return by_check[0], "", where
    if layers and not any(part.error_at_start > part.error / 100 for part in broken):
        return ("rope.factors" if many else "attention"), "", where
    return ("settings" if many else "weights"), "", where


def _fits(cause: str, spoken_of: str) -> bool:
    related: Mapping[str, tuple[str, ...]] = {
        "rope.plain": ("rope.factors", "rope.attention_factor"),
        "rope.sets_exchanged": ("rope.factors", "rope.switch"),
        "rope.switch": ("rope.factors",),
        "rope.layout": ("weights", "graph"),
        "attention": ("weights", "graph", "settings"),
        "padding": ("graph",),
        "non_finite": ("weights", "graph", "rope.factors"),
        "unknown": tuple(_OF_FILES),
    }
    return spoken_of == cause or spoken_of in related.get(cause, ())


def _evidence(findings: Findings, fitting: Sequence[str]) -> Iterator[str]:
    """What was measured, in sentences."""
    for verdict, shape in zip(findings.verdicts, findings.shapes, strict=True):
        yield f"{shape.length} tokens ({shape.regime} set): KL {shape.kl_mean:.2g}, {shape.words}"
        if verdict in findings.differing and verdict.tried:
            yield f"{shape.length} tokens: {_of_trials(verdict)}"
    if findings.broken:
        first = findings.broken[0]
        yield (
            f"the first part that differs by itself is {first.name}: by {100 * first.error:.2g} % of what it adds, at "
            f"position 0 by {100 * first.error_at_start:.2g} %; {len(findings.broken)} of {len(findings.parts)} parts do"
        )
    for words, value in (("decoding through the cache", findings.decoding), ("a padded batch", findings.padding)):
        if value is not None and not value <= findings.floor:
            yield f"{words} differs from one pass by KL {value:.2g}"
    for check in findings.checks:
        if check.id in fitting:
            yield f"{check.id} failed: {check.message}"
    yield from findings.notes


def _of_trials(verdict: Verdict) -> str:
    """How close the closest change comes."""
    closest = verdict.tried[0]
    left = f"{100 * closest.kl / verdict.unchanged:.2g} % of the difference (KL {closest.kl:.2g} of {verdict.unchanged:.2g})"
    if verdict.best is not None:
        return f"the reference with {closest.hypothesis.change} leaves {left}"
    return f"no other rotation explains it; the closest, {closest.hypothesis.change}, leaves {left}"


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def _list(items: Sequence[object]) -> str:
    *first, last = map(str, items)
    return f"{', '.join(first)} and {last}" if first else last
