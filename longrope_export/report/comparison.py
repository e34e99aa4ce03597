"""Two runs side by side: what they were told, what they found, which checks changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from converters.quality_checks import Rise
from longrope.files import write_atomically
from longrope_export.methods import LONG, ORIGINAL, SHORT
from longrope_export.quality import Row
from longrope_export.report.chart import Axis, Chart, Series, Table
from longrope_export.report.charts import FIRST_KNOWN, PPL, factors_chart, line, summary_of, window_mark
from longrope_export.report.facts import Facts
from longrope_export.report.page import STATUSES, TASKS, flat, render
from longrope_export.report.verdict import Verdict, same_model
from longrope_export.words import (
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

Key = TypeVar("Key")
COMPARISON = "comparison.html"
# A check that gets from one of these to a later one has got better.
ORDER = tuple(STATUSES)
NOT_THERE = "not there"
# Settings that say which texts and model were used: where they differ, perplexities are of different things.
SAME_MODEL, SAME_TEXT = "model_fingerprint", "test_fingerprint"


def write_comparison(first: Path, second: Path, output: Path | None = None) -> Path:
    """Write the comparison of two runs' folders; returns where: in the second one's folder if not said otherwise.

    Raises:
        InputError: one of them is not the folder of a finished run.
    """
    path = output or second / COMPARISON
    write_atomically(path, render("comparison.html.j2", _values(*_named(Facts.read(first), Facts.read(second)))))
    return path


def _named(a: Facts, b: Facts) -> tuple[Facts, Facts, str, str]:
    """The runs with the names of their folders, which a letter tells apart where they are the same."""
    names = (a.name, b.name) if a.name != b.name else (f"{a.name} (A)", f"{b.name} (B)")
    return a, b, *names


def _values(a: Facts, b: Facts, name_a: str, name_b: str) -> dict[str, Any]:
    names = (name_a, name_b)
    changed, found = settings_that_differ(a, b), checks_that_changed(a, b)
    checks = [row for row in found if not _is_new_and_well(row)]
    chart = _chart(a, b, names)
    return {
        "names": names,
        "models": (a, b),
        "verdict": _verdict(a, b, names, changed, checks),
        "chart": chart,
        "factors": factors_chart({name_a: a.factors, name_b: b.factors}),
        "methods": _methods(a, b, names),
        "settings": Table(
            "What the runs were told, and with what they ran", ("setting", *names), tuple(changed), frozenset({1, 2})
        ),
        "checks": Table(
            "Checks with another verdict",
            ("check", *names, f"what was found in {name_b}"),
            tuple(tuple(row.values()) for row in checks),
            frozenset({1, 2, 3}),
        ),
        "new_checks": Table(
            "Checks that one run alone has, none of which failed or warned",
            ("check", *names, f"what was found in {name_b}"),
            tuple(tuple(row.values()) for row in found if _is_new_and_well(row)),
            frozenset({1, 2, 3}),
        ),
        "quality": _quality(a, b, names),
        "parity": _parity(a, b, names),
        "retrieval": _retrieval(a, b, names),
    }


# -- what differs


def settings_that_differ(a: Facts, b: Facts) -> list[tuple[str, ...]]:
    """(setting, value of the first, value of the second), versions of software among them."""
    found = []
    for part in (lambda facts: facts.run["configuration"], lambda facts: {"versions": _versions(facts)}):
        ours, theirs = flat(part(a)), flat(part(b))
        for name in dict.fromkeys([*ours, *theirs]):
            if ours.get(name) != theirs.get(name):
                found.append((name, *(value_words(each.get(name, NOT_THERE)) for each in (ours, theirs))))
    return found


def _versions(facts: Facts) -> Mapping[str, Any]:
    return facts.run["provenance"].get("versions") or {}


def checks_that_changed(a: Facts, b: Facts) -> list[dict[str, str]]:
    """Checks whose status is not the same, or that only one run has; what has got worse first."""
    ours, theirs = _statuses(a), _statuses(b)
    changed = [
        key for key in dict.fromkeys([*ours, *theirs]) if ours.get(key, (None,))[0] != theirs.get(key, (None,))[0]
    ]
    rows = [(_rank(theirs.get(key)) - _rank(ours.get(key)), key) for key in changed]
    return [
        {
            "check": f"{artifact}: {name}",
            "a": _status(ours.get((artifact, name))),
            "b": _status(theirs.get((artifact, name))),
            "text": theirs.get((artifact, name), ("", ""))[1],
        }
        for _, (artifact, name) in sorted(rows, key=lambda row: row[0])
    ]


def _is_new_and_well(row: Mapping[str, str]) -> bool:
    """Whether one run alone has a check, and it did neither fail nor warn."""
    verdicts = {row["a"], row["b"]}
    return NOT_THERE in verdicts and not verdicts & {STATUSES["fail"], STATUSES["warn"]}


def _statuses(facts: Facts) -> dict[tuple[str, str], tuple[str, str]]:
    return {
        (suite.name, finding.name): (finding.status, finding.text)
        for suite in facts.suites
        for finding in suite.findings
    }


def _rank(found: tuple[str, str] | None) -> int:
    """A check that is not there counts as one that did not run."""
    return ORDER.index(found[0]) if found and found[0] in ORDER else ORDER.index("skip")


def _status(found: tuple[str, str] | None) -> str:
    return STATUSES.get(found[0], found[0]) if found else NOT_THERE


# -- in words


def _verdict(
    a: Facts, b: Facts, names: tuple[str, str], changed: Sequence[Any], checks: Sequence[Mapping[str, str]]
) -> Verdict:
    broken = [same_model(b.suites)] if a.passed and not b.passed else []
    parts = [*broken, *_moves(a, b), f"{count(len(checks), 'check')} changed" if checks else "no check changed"]
    reasons = [f"{name}: {same_model(facts.suites)}." for name, facts in zip(names, (a, b), strict=True)]
    reasons.append(
        f"{count(len(changed), 'setting')} {'differs' if len(changed) == 1 else 'differ'}."
        if changed
        else "The settings are the same."
    )
    reasons += _beyond_noise(a, b)
    return Verdict(
        f"{names[1]} against {names[0]}: {'; '.join(parts)}.", b.passed, tuple(reasons), tuple(_cautions(a, b))
    )


def _moves(a: Facts, b: Facts) -> Iterator[str]:
    """How the perplexity moved at each length that both measured: the original window and the target."""
    for length in _lengths(a, b, both=True):
        row_a, row_b = (_best_row(facts, length) for facts in (a, b))
        old, new = a.methods.at(row_a, length), b.methods.at(row_b, length)
        if (percent := change(new, old)) is not None:
            moved = "the same perplexity" if percent == 0 else f"{signed(percent)} perplexity"
            yield f"{moved} at {tokens(length)} tokens ({perplexity(old)} → {perplexity(new)})"


def _beyond_noise(a: Facts, b: Facts) -> Iterator[str]:
    """What got worse and better on the same windows, and whether that can be told."""
    paired = {
        **{f"{' '.join(key)} tokens": rise for key, rise in _paired_windows(a, b).items()},
        **{f"the extended model at {tokens(length)} tokens": rise for length, rise in _paired_lengths(a, b).items()},
    }
    if not paired:
        return
    for words in ("worse", "better"):
        if found := [f"{name} ({_with_error(rise)})" for name, rise in paired.items() if rise.words == words]:
            yield f"{words.capitalize()} beyond noise: {listed(found)}."
    if not any(rise.words for rise in paired.values()):
        yield "One window of each length was measured, which does not tell a change from noise."
    elif not any(rise.words in ("worse", "better") for rise in paired.values()):
        yield f"On the same windows no perplexity changed beyond noise ({count(len(paired), 'comparison')})."


def _with_error(rise: Rise) -> str:
    return with_error(rise.percent, rise.error)


def _best_row(facts: Facts, length: int) -> str:
    """The set that a run's model uses at a length: the short one, where there is one, inside the original window."""
    inside = facts.window is not None and length <= facts.window
    return SHORT if inside and facts.methods.at(SHORT, length) is not None else LONG


def _cautions(a: Facts, b: Facts) -> Iterator[str]:
    """Why the figures may not be comparable."""
    for key, what in ((SAME_MODEL, "models"), (SAME_TEXT, "held-out texts")):
        ours, theirs = (facts.run["configuration"].get(key) for facts in (a, b))
        if ours != theirs:
            yield f"The {what} are not the same: differences of perplexity say nothing about the factors."
    windows = [((f.run["configuration"].get("options") or {}).get("test_windows")) for f in (a, b)]
    if windows[0] != windows[1]:
        yield f"Perplexities are over {value_words(windows[0])} and {value_words(windows[1])} windows a length."


# -- side by side


def _lengths(a: Facts, b: Facts, *, both: bool = False) -> list[int]:
    ours, theirs = set(a.methods.lengths), set(b.methods.lengths)
    return sorted(ours & theirs if both else ours | theirs)


def _chart(a: Facts, b: Facts, names: tuple[str, str]) -> Chart | None:
    """Perplexity of both runs by length, their original models', and no method else."""
    series = []
    for look, (name, facts) in enumerate(zip(names, (a, b), strict=True)):
        points = tuple(
            (float(length), value)
            for length in facts.methods.lengths
            if (value := facts.methods.at(_best_row(facts, length), length)) is not None
        )
        series.append(Series(name, points, strong=True, look=look))
        series.append(Series(f"original model of {name}", line(facts.methods, ORIGINAL), look=FIRST_KNOWN + look))
    if series[1].points == series[3].points:
        series = [series[0], series[2], Series("original model", series[1].points, look=FIRST_KNOWN)]
    if not any(each.points for each in series):
        return None
    return Chart(
        "by-length",
        "Perplexity by length",
        summary_of(series, perplexity, "tokens"),
        Axis("window, tokens", tokens, base=2, ticks=tuple(map(float, _lengths(a, b)))),
        PPL,
        tuple(series),
        _methods(a, b, names),
        window_mark(a),
        "Lower is better; both axes are logarithmic. Inside the original window the short set, where there is one.",
    )


def _methods(a: Facts, b: Facts, names: tuple[str, str]) -> Table:
    """Every method at every length, side by side."""
    rows = [
        (f"{_row_name(name)}, {tokens(length)} tokens", perplexity(old), perplexity(new), signed(change(new, old)))
        for length in _lengths(a, b)
        for name in dict.fromkeys([*_order(a), *_order(b)])
        if (old := a.methods.at(name, length)) is not None or b.methods.at(name, length) is not None
        for new in [b.methods.at(name, length)]
    ]
    return Table("Held-out perplexity by method and length", ("method", *names, "change"), tuple(rows))


def _order(facts: Facts) -> list[str]:
    return [name for name in (LONG, SHORT, ORIGINAL) if name in facts.methods.rows] + facts.methods.known


def _row_name(row: str) -> str:
    return {ORIGINAL: "original model", LONG: "the run's long set", SHORT: "the run's short set"}.get(row, row)


def _quality(a: Facts, b: Facts, names: tuple[str, str]) -> Table | None:
    """What `validate --quality` measured of both, and the second against the first on the same windows."""
    ours, theirs = _compared(a), _compared(b)
    if not ours and not theirs:
        return None
    paired = _paired_lengths(a, b)
    rows = tuple(
        (
            f"{tokens(length)} tokens, against {against}",
            *(_with_error(row.rise) if row else "–" for row in (ours.get(key), theirs.get(key))),
            *_judged(paired, length),
        )
        for key in sorted(dict.fromkeys([*ours, *theirs]), key=lambda key: key[0])
        for length, against in [key]
    )
    beside = (f"{names[1]} against {names[0]}", "noise?") if paired else ()
    return Table("Quality of the extension", ("change of perplexity", *names, *beside), rows, frozenset({4}))


def _compared(facts: Facts) -> dict[tuple[int, str], Row]:
    """Rows of the first extension that was measured; runs whose artifacts have other sets are compared by their first."""
    rows = facts.extensions[0].rows if facts.extensions else ()
    return {(row.length, row.against_words): row for row in rows}


def _judged(paired: Mapping[Key, Rise], key: Key) -> tuple[str, ...]:
    """A paired change, and whether it is noise; no cells in a table without any."""
    if not paired:
        return ()
    rise = paired.get(key)
    return ("–", "not paired") if rise is None else (_with_error(rise), rise.words or "one window")


def _paired_lengths(a: Facts, b: Facts) -> dict[int, Rise]:
    """The second run's extended model against the first one's, by length, where both were measured on the same windows."""
    if not a.extensions or not b.extensions or not _same_texts(a, b, *(f.extensions[0].artifacts[0] for f in (a, b))):
        return {}
    ours, theirs = ({row.length: row.losses for row in _compared(facts).values()} for facts in (a, b))
    return {
        length: Rise.of(losses, ours[length])
        for length, losses in theirs.items()
        if len(losses) == len(ours.get(length, ()))
    }


def _paired_windows(a: Facts, b: Facts) -> dict[tuple[str, str, str], Rise]:
    """The second run's artifacts against the first one's of the same name, where both were measured on the same windows."""
    ours, theirs = _windows(a), _windows(b)
    found = {}
    for key, window in theirs.items():
        old, new = ours.get(key, {}).get("texts") or (), window.get("texts") or ()
        losses = [[text["nll"] for text in texts if text["nll"] is not None] for texts in (old, new)]
        is_whole = len(losses[0]) == len(losses[1]) == len(old) == len(new) > 0
        if is_whole and _same_texts(a, b, key[0], key[0]):
            found[key] = Rise.of(losses[1], losses[0])
    return found


def _same_texts(a: Facts, b: Facts, name_a: str, name_b: str) -> bool:
    """Whether two artifacts were measured on the same texts."""
    ours, theirs = a.texts.get(name_a), b.texts.get(name_b)
    return ours is not None and ours == theirs


def _parity(a: Facts, b: Facts, names: tuple[str, str]) -> Table:
    """Mean KL and change of perplexity of every artifact and window that one of them has, and what changed between them."""
    ours, theirs, paired = _windows(a), _windows(b), _paired_windows(a, b)
    rows = tuple(
        (
            " ".join(key),
            *(text for measure in (_kl, _delta) for found in (ours, theirs) for text in [measure(found.get(key))]),
            *_judged(paired, key),
        )
        for key in dict.fromkeys([*ours, *theirs])
    )
    header = (
        "artifact and window",
        *(f"{what}, {name}" for what in ("mean KL", "change of perplexity") for name in names),
        *((f"{names[1]} against {names[0]}", "noise?") if paired else ()),
    )
    return Table("Artifacts against the reference", header, rows, frozenset({6}))


def _windows(facts: Facts) -> dict[tuple[str, str, str], Mapping[str, Any]]:
    return {
        (suite.name, window["regime"], tokens(window["length"])): window
        for suite in facts.suites
        for window in suite.windows
    }


def _kl(window: Mapping[str, Any] | None) -> str:
    return tiny(window["kl_mean"]) if window else "–"


def _delta(window: Mapping[str, Any] | None) -> str:
    return signed(window["ppl_delta_percent"]) if window else "–"


def _retrieval(a: Facts, b: Facts, names: tuple[str, str]) -> Table | None:
    """The share of answers found by task and length."""
    ours, theirs = _found(a), _found(b)
    if not ours and not theirs:
        return None
    keys = sorted(ours.keys() | theirs.keys())
    rows = tuple(
        (f"{task}, {tokens(length)} tokens", *(share(f.get((task, length))) for f in (ours, theirs)))
        for task, length in keys
    )
    return Table("Answers found", ("task and length", *names), rows)


def _found(facts: Facts) -> dict[tuple[str, int], float]:
    found: dict[tuple[str, int], float] = {}
    for task in TASKS:
        rows = facts.evaluation.get(task) or []
        for length in {row["length"] for row in rows}:
            here = [row for row in rows if row["length"] == length]
            if samples := sum(row["samples"] for row in here):
                found[task, length] = sum(row["accuracy"] * row["samples"] for row in here) / samples
    return found
