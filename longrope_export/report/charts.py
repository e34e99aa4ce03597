"""The charts of a run: what is drawn, and the table of the same values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from converters.explain.causes import Explanation
from converters.factor_files import known_methods
from longrope.factors import RescaleFactors
from longrope_export.console import number
from longrope_export.methods import LONG, ORIGINAL, SHORT, Methods
from longrope_export.report.chart import Axis, Chart, Point, Series, Table
from longrope_export.report.facts import Facts
from longrope_export.words import change, count, perplexity, signed, tiny, tokens

# Points of a curve that are kept, and rows of its table.
CURVE_POINTS, CURVE_ROWS = 240, 24
# The look of the first published method; before it come two sets of ours and the original model.
FIRST_KNOWN = 3
PPL = Axis("perplexity", lambda value: number(value, ".3g"), base=10, exact=lambda value: number(value, ",.2f"))


def window_mark(facts: Facts) -> tuple[tuple[float, str], ...]:
    """The end of the original window."""
    return ((float(facts.window), "original window"),) if facts.window is not None else ()


def by_length(facts: Facts) -> Chart | None:
    """Perplexity of this run, the original model and the published methods by length; None where nothing was measured."""
    methods = facts.methods
    order = [name for name in (LONG, SHORT, ORIGINAL) if name in methods.rows] + methods.known
    looks = {name: look for look, name in enumerate((LONG, SHORT, ORIGINAL, *methods.known))}
    series = [
        Series(facts.method_name(name), line(methods, name), name == LONG, look=looks[name])
        for name in order
        if name != SHORT
    ]
    if SHORT in methods.rows:
        both = tuple(dict([*line(methods, LONG), *line(methods, SHORT)]).items())
        series.insert(1, Series("this run, both sets", both, strong=True, look=looks[SHORT]))
    if not any(each.points for each in series):
        return None
    rows = tuple(_method_row(facts, name) for name in order)
    beside = ("to the original",) if ORIGINAL in methods.rows else ()
    headers = [(f"{tokens(length)} tokens", *beside) for length in methods.lengths]
    return Chart(
        "by-length",
        "Perplexity by length, beside published methods",
        summary_of(series, perplexity, "tokens"),
        Axis("window, tokens", tokens, base=2, ticks=tuple(map(float, methods.lengths))),
        PPL,
        tuple(series),
        Table("Held-out perplexity by method and length", ("method", *(h for pair in headers for h in pair)), rows),
        window_mark(facts),
        "Lower is better; both axes are logarithmic. The same held-out windows for every method.",
    )


def line(methods: Methods, name: str) -> tuple[Point, ...]:
    """A method's row as points."""
    values = zip(methods.lengths, methods.rows.get(name, ()), strict=False)
    return tuple((float(length), value) for length, value in values if value is not None)


def _method_row(facts: Facts, name: str) -> tuple[str, ...]:
    methods = facts.methods
    cells = [facts.method_name(name)]
    for length in methods.lengths:
        value = methods.at(name, length)
        cells.append(perplexity(value))
        if ORIGINAL in methods.rows:
            cells.append("" if name == ORIGINAL else signed(change(value, methods.at(ORIGINAL, length))))
    return tuple(cells)


def summary_of(series: Iterable[Series], words: Any, unit: str) -> str:
    """First and last value of each line, in a sentence each."""
    said = []
    for each in series:
        if each.points:
            (x0, y0), (x1, y1) = each.points[0], each.points[-1]
            end = f" to {words(y1)} at {tokens(x1)} {unit}" if x1 != x0 else ""
            said.append(f"{each.name}: {words(y0)} at {tokens(x0)} {unit}{end}.")
    return " ".join(said)


def factors_chart(named: Mapping[str, RescaleFactors]) -> Chart:
    """Rescale factors over rotary pairs: the sets of each, and known methods at the length scale of the first."""
    sets = dict(_sets(named))
    known = known_methods(next(iter(named.values())))
    series = [Series(n, _numbered(values), strong=True, look=look) for look, (n, values) in enumerate(sets.items())]
    first = max(len(series), FIRST_KNOWN)
    series += [Series(n, _numbered(values), look=look) for look, (n, values) in enumerate(known.items(), first)]
    columns = {**sets, **known}
    pairs = max(len(values) for values in columns.values())
    rows = tuple(
        (str(pair), *(number(values[pair], ".6g") if pair < len(values) else "–" for values in columns.values()))
        for pair in range(pairs)
    )
    return Chart(
        "factors",
        "Rescale factors over rotary pairs",
        summary_of(series, lambda value: number(value, ".4g"), "(rotary pair)"),
        Axis("rotary pair, fast to slow", lambda value: number(value, ".0f")),
        Axis("rescale factor λ", lambda value: number(value, ".4g"), base=2),
        tuple(series),
        Table("Rescale factor by rotary pair", ("pair", *columns), rows),
        note="1 leaves a pair as it is; the length scale stretches it to the target length (PI).",
    )


def _sets(named: Mapping[str, RescaleFactors]) -> Iterator[tuple[str, Sequence[float]]]:
    for name, factors in named.items():
        if factors.factor_sets == "dual":
            yield f"{name}, long set", factors.long_factor
            yield f"{name}, short set", factors.short_factor
        else:
            yield name, factors.long_factor


def _numbered(values: Sequence[float]) -> tuple[Point, ...]:
    return tuple((float(pair), value) for pair, value in enumerate(values))


def search_chart(facts: Facts) -> Chart | None:
    """The best perplexity so far over tokens; None without a search."""
    measured = [(p["tokens"], p["perplexity"]) for p in facts.search.get("history", []) if p["perplexity"] is not None]
    steps = list(_improvements(measured))
    if not steps:
        return None
    (first, start), (last, best) = steps[0], steps[-1]
    seeds = facts.search.get("seeds") or {}
    from_seed = f" The best start was {next(iter(seeds))}." if seeds else ""
    gained = signed(change(best, start))
    return Chart(
        "search",
        "Progress of the search",
        f"The best perplexity fell from {perplexity(start)} after {_millions(first)} to {perplexity(best)} after "
        f"{_millions(last)} ({gained}) in {count(facts.search['evaluations'], 'evaluation')}.{from_seed}",
        Axis("tokens forwarded", _millions),
        Axis("best perplexity so far", lambda value: number(value, ".5g")),
        (
            Series(
                "best so far", tuple((float(x), y) for x, y in thinned(steps, CURVE_POINTS)), strong=True, steps=True
            ),
        ),
        Table(
            "Each improvement of the best perplexity",
            ("tokens forwarded", "best perplexity", "to the start"),
            tuple((tokens(x), perplexity(y), signed(change(y, start))) for x, y in thinned(steps, CURVE_ROWS)),
        ),
        note=f"Measured on the search's own texts.{from_seed}",
    )


def _improvements(history: Sequence[tuple[int, float]]) -> Iterator[tuple[int, float]]:
    """First value, each better one, and the end."""
    best = math.inf
    for place, value in history:
        if value < best:
            best = value
            yield place, value
    if history and history[-1][1] == best and history[-1][0] != 0:
        yield history[-1][0], best


def _millions(value: float) -> str:
    return f"{number(value / 1e6, '.3g')}M"


def thinned(values: Sequence[Any], limit: int) -> list[Any]:
    """At most about `limit` of them, evenly, the last one among them."""
    step = max(1, math.ceil(len(values) / limit))
    kept = list(values[::step])
    return kept if not values or kept[-1] is values[-1] else [*kept, values[-1]]


def training_charts(facts: Facts) -> Iterator[Chart]:
    """The loss of every stage that was trained."""
    for place, stage in enumerate(facts.stages):
        curve = stage["training"]
        if not curve:
            continue
        records = list(zip(curve["steps"], curve["loss"], curve["learning_rate"], strict=False))
        points = [(float(step), loss) for step, loss, _ in records if loss is not None]
        length = tokens(stage["stage"]["length"])
        series = Series("loss", tuple(thinned(points, CURVE_POINTS)), strong=True)
        yield Chart(
            f"training-{place}",
            f"Training at {length} tokens",
            summary_of([series], lambda value: number(value, ".4f"), "(step)"),
            Axis("optimizer step", tokens),
            Axis("loss, nats per token", lambda value: number(value, ".4g")),
            (series,),
            Table(
                "Loss and learning rate",
                ("step", "loss", "learning rate"),
                tuple(
                    (tokens(step), number(loss, ".4f"), number(rate, ".2e"))
                    for step, loss, rate in thinned(records, CURVE_ROWS)
                ),
            ),
        )


def difference_chart(name: str, artifact: str, explanation: Explanation) -> Chart | None:
    """How far a failed artifact's logits are from the reference's over the positions of each window; None without one."""
    shapes = [shape for shape in explanation.shapes if len(shape.positions) == len(shape.kl)]
    series = [
        Series(
            f"{tokens(shape.length)} tokens, {shape.regime} set",
            tuple((float(position), kl) for position, kl in zip(shape.positions, shape.kl, strict=True) if kl > 0),
            strong=shape is shapes[-1],
            look=look,
        )
        for look, shape in enumerate(shapes)
    ]
    if not any(each.points for each in series):
        return None
    rows = tuple(
        (f"{tokens(shape.length)} tokens, {shape.regime} set", tiny(shape.kl_mean), tiny(max(shape.kl)), shape.words)
        for shape in shapes
        if shape.kl
    )
    return Chart(
        name,
        f"{artifact} against the reference over the positions of a window",
        " ".join(f"{window}: mean KL {mean}; {words}." for window, mean, _, words in rows),
        Axis("position", tokens),
        Axis("KL, nats per token", lambda value: number(value, ".0e"), base=10, exact=tiny),
        tuple(series),
        Table("Windows against the reference", ("window", "mean KL", "largest KL", "shape"), rows, frozenset({3})),
        note="What differs at position 0 is no fault of the RoPE. Positions without any difference are not drawn.",
    )


def _chosen(points: Sequence[Point]) -> str:
    if not points:
        return ""
    short, target = points[0]
    return f"; the chosen one has {perplexity(short)} at the original window and {perplexity(target)} at the target"


def front_chart(facts: Facts) -> Chart | None:
    """What none beats on both sides of a two-sided search; None of another."""
    front = [p for p in facts.search.get("front") or [] if p["short"] is not None and p["target"] is not None]
    if not front:
        return None
    chosen = tuple((p["short"], p["target"]) for p in front if p["chosen"])
    cap = facts.search.get("short_cap")
    return Chart(
        "front",
        "Original window against target",
        f"{count(len(front), 'set')} that no other beats on both sides{_chosen(chosen)}.",
        Axis("perplexity at the original window", lambda value: number(value, ".4g")),
        Axis("perplexity at the target length", lambda value: number(value, ".4g")),
        (
            Series("chosen", chosen, strong=True, look=1),
            Series("not beaten on both sides", tuple((p["short"], p["target"]) for p in front)),
        ),
        Table(
            "Sets that none beats on both sides",
            ("original window", "target length", "chosen"),
            tuple((perplexity(p["short"]), perplexity(p["target"]), "yes" if p["chosen"] else "") for p in front),
            frozenset({2}),
        ),
        ((cap, "short budget"),) if cap is not None else (),
    )
