"""Line charts as SVG for a page: themed by CSS, told apart without colour, values on hover without JavaScript.

    Chart ──draw, wide──► labels at the ends of the lines ──┐
          ──draw, narrow► a key below, for a phone ─────────┴─► the page shows the one that fits

A series has a colour (a CSS class), a dash pattern and a marker. Where the pointer is, a line and a box show the values of
all series at that place; they are hidden groups that `:hover` shows.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from markupsafe import Markup, escape

from longrope.reading import cut, visible

Point = tuple[float, float]

# Of each there are so many that series with the same colour differ in dash and marker.
COLOURS = 9
DASHES = ("", "7 4", "2 4", "9 3 2 3", "4 4")
MARKERS = ("circle", "square", "triangle", "diamond", "cross", "plus", "down")
# What a chart has room for; the table has everything.
MAX_SERIES, MAX_PLACES = 12, 64
LABEL_LENGTH, LINE, LETTER = 34, 15.0, 6.4
# Beyond it, and below its inverse on a log axis, nothing is drawn.
LARGEST = 1e15
_STEPS = {10: ((1, 2, 3, 5, 7), (1, 2, 5), (1,)), 2: ((1,),)}


@dataclass(frozen=True)
class Series:
    """A line.

    Args:
        name: of it.
        points: (x, y), by rising x.
        strong: one of ours, drawn thicker.
        steps: the value holds until the next point.
        look: which colour, dash and marker; the same method has the same in every chart.
    """

    name: str
    points: tuple[Point, ...]
    strong: bool = False
    steps: bool = False
    look: int = 0


@dataclass(frozen=True)
class Axis:
    """An axis.

    Args:
        label: with the unit.
        words: what a round value on it is called.
        exact: what a measured value is called; None as a round one.
        base: of the logarithm; None for a linear axis.
        ticks: where to write values; none for round places.
    """

    label: str
    words: Callable[[float], str]
    base: int | None = None
    ticks: tuple[float, ...] = ()
    exact: Callable[[float], str] | None = None

    def value(self, value: float) -> str:
        """What a measured value is called."""
        return (self.exact or self.words)(value)


@dataclass(frozen=True)
class Table:
    """A table: the first column names the rows.

    Args:
        caption: what it shows.
        header: names of columns.
        rows: cells.
        text: numbers of the columns that hold text, which stand to the left; the first one does anyway.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Chart:
    """A chart and the table of its values.

    Args:
        name: unique on the page, an HTML id.
        title: what it shows.
        summary: what is to be seen, for those who do not see it.
        marks: vertical lines, (x, label).
        table: every value.
        note: what stands below it.
    """

    name: str
    title: str
    summary: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    table: Table
    marks: tuple[tuple[float, str], ...] = ()
    note: str = ""

    @property
    def drawn(self) -> tuple[Series, ...]:
        """The series that have a place on both axes, the first ones where there are too many."""
        kept = (replace(each, points=self._drawable(each.points)) for each in self.series)
        return tuple(each for each in kept if each.points)[:MAX_SERIES]

    def _drawable(self, points: Sequence[Point]) -> tuple[Point, ...]:
        return tuple(sorted(((x, y) for x, y in points if _fits(x, self.x) and _fits(y, self.y)), key=lambda p: p[0]))

    def wide(self) -> Markup:
        """The SVG for a screen or paper, with the lines' names at their ends."""
        return draw(self, WIDE)

    def narrow(self) -> Markup:
        """The SVG for a phone; its key stands outside."""
        return draw(self, NARROW)

    def key(self) -> list[tuple[Markup, str]]:
        """A sample of each line, and its name."""
        return [(_sample(each), _short(each.name)) for each in self.drawn]


def _fits(value: float, axis: Axis) -> bool:
    if not math.isfinite(value) or abs(value) > LARGEST:
        return False
    return axis.base is None or value >= 1 / LARGEST


@dataclass(frozen=True)
class Frame:
    """Where things are, in SVG units."""

    name: str
    width: float
    height: float
    left: float
    right: float
    labels: bool
    places: int
    top: float = 22
    bottom: float = 60

    @property
    def end(self) -> float:
        return self.width - self.right

    @property
    def floor(self) -> float:
        return self.height - self.bottom


WIDE = Frame("wide", 860, 414, 60, 262, labels=True, places=8)
NARROW = Frame("narrow", 360, 314, 52, 22, labels=False, places=5)


@dataclass(frozen=True)
class Scale:
    """From values to places on the page."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        low, high, here = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (here - low) / (high - low) * (self.end - self.start)


@dataclass
class _Picture:
    """What has been drawn so far."""

    parts: list[str] = field(default_factory=list)

    def add(self, tag: str, content: object = "", **attributes: object) -> None:
        """An element; `_` in names is `-`, but for `class_`; numbers are rounded, contents and values escaped."""
        written = "".join(f' {_attribute(name)}="{escape(_value(value))}"' for name, value in attributes.items())
        self.parts.append(f"<{tag}{written}>{escape(content)}</{tag}>")

    def text(self, x: float, y: float, content: str, class_: str = "", anchor: str = "start") -> None:
        self.add("text", content, x=x, y=y, class_=class_, text_anchor=anchor)

    def line(self, x1: float, y1: float, x2: float, y2: float, class_: str) -> None:
        self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def _attribute(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


def _value(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def draw(chart: Chart, frame: Frame) -> Markup:
    """The chart as an `<svg>` element with a title and a description; a sentence where there is nothing to draw."""
    series = chart.drawn
    if not series:
        return Markup("<p>There is no finite value to draw.</p>")
    xs = [x for each in series for x, _ in each.points] + [x for x, _ in chart.marks if _fits(x, chart.x)]
    ys = [y for each in series for _, y in each.points]
    across = _scale(xs, chart.x, frame.left, frame.end, pad=0.0)
    up = _scale(ys, chart.y, frame.floor, frame.top, pad=0.06)
    picture = _Picture()
    _axes(picture, chart, frame, across, up, _ticks_across(chart.x, xs, across, frame))
    for x, label in chart.marks:
        _mark(picture, frame, across, x, label)
    for each in reversed(series):  # ours, which come first, on top
        _draw_series(picture, each, across, up)
    if frame.labels:
        _end_labels(picture, chart, frame, across, up)
    _readouts(picture, chart, series, frame, across)
    name = f"{chart.name}-{frame.name}"
    head = (
        f'<svg class="chart {frame.name}" viewBox="0 0 {frame.width:g} {frame.height:g}" role="img" '
        f'aria-labelledby="{escape(name)}-title {escape(name)}-desc" xmlns="http://www.w3.org/2000/svg">'
        f'<title id="{escape(name)}-title">{escape(visible(chart.title))}</title>'
        f'<desc id="{escape(name)}-desc">{escape(visible(chart.summary))}</desc>'
    )
    return Markup(f"{head}{''.join(picture.parts)}</svg>")


# -- axes


def _scale(values: Sequence[float], axis: Axis, start: float, end: float, pad: float) -> Scale:
    """From the least to the largest value with a margin; a single value stands in the middle."""
    low, high, log = min(values), max(values), axis.base is not None
    if low == high:
        low, high = (low / 1.2, high * 1.2) if log else (low - (abs(low) or 1) / 5, high + (abs(high) or 1) / 5)
    elif log:
        room = (high / low) ** pad
        low, high = low / room, high * room
    else:
        room = pad * (high - low)
        low, high = low - room, high + room
    return Scale(low, high, start, end, log)


def ticks(low: float, high: float, base: int | None, places: int) -> list[float]:
    """Round values between two, at most about `places` of them."""
    if base is not None and high / low >= (3 if base == 10 else 2):
        first, last = math.floor(math.log(low, base)), math.ceil(math.log(high, base))
        for steps in _STEPS[base]:
            found = [m * float(base) ** k for k in range(first, last + 1) for m in steps]
            found = [value for value in found if low <= value <= high]
            if len(found) <= places + 1:
                return found
        return found[:: math.ceil(len(found) / places)]
    rough = (high - low) / (places - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _ticks_across(axis: Axis, xs: Sequence[float], scale: Scale, frame: Frame) -> list[float]:
    """The given places, fewer where their labels would touch."""
    given = [x for x in axis.ticks if min(xs) <= x <= max(xs)]
    wanted = given or ticks(scale.low, scale.high, axis.base, frame.places)
    kept: list[float] = []
    for x in sorted(wanted, reverse=True):  # the last one, the target, stays
        room = LETTER * (len(axis.words(x)) + 2)
        if not kept or scale(kept[-1]) - scale(x) >= room:
            kept.append(x)
    return kept


def _axes(picture: _Picture, chart: Chart, frame: Frame, across: Scale, up: Scale, places: Sequence[float]) -> None:
    for y in ticks(up.low, up.high, chart.y.base, frame.places):
        picture.line(frame.left, up(y), frame.end, up(y), "grid")
        picture.text(frame.left - 8, up(y) + 4, chart.y.words(y), anchor="end")
    for x in places:
        picture.line(across(x), frame.floor, across(x), frame.floor + 5, "axis")
        picture.text(across(x), frame.floor + 19, chart.x.words(x), anchor="middle")
    picture.line(frame.left, frame.floor, frame.end, frame.floor, "axis")
    picture.text((frame.left + frame.end) / 2, frame.height - 6, chart.x.label, "label", "middle")
    picture.text(4, 13, chart.y.label, "label")


def _mark(picture: _Picture, frame: Frame, across: Scale, x: float, label: str) -> None:
    if not across.low <= x <= across.high:
        return
    picture.line(across(x), frame.top, across(x), frame.floor, "mark")
    place = across(x)
    half = LETTER * len(label) / 2
    anchor = "start" if place - half < frame.left - 20 else "end" if place + half > frame.end + 10 else "middle"
    picture.text(place + {"start": -16, "middle": 0, "end": 10}[anchor], frame.floor + 34, label, "label", anchor)


# -- series


def _look(number: int) -> tuple[str, str, str]:
    """Class of the colour, dash pattern and marker."""
    return f"s{number % COLOURS}", DASHES[number % len(DASHES)], MARKERS[number % len(MARKERS)]


def _draw_series(picture: _Picture, series: Series, across: Scale, up: Scale) -> None:
    colour, dash, marker = _look(series.look)
    places = [(across(x), up(y)) for x, y in series.points]
    if len(places) > 1:
        class_ = f"line {colour}{' strong' * series.strong}"
        picture.add("path", class_=class_, stroke_dasharray=dash or "none", d=_path(places, series.steps))
    for x, y in places[:: max(1, len(places) // 10)] if len(places) > MAX_PLACES // 2 else places:
        picture.add("path", class_=f"dot {colour}", d=marker_path(marker, x, y, 4.6 if series.strong else 3.8))


def _path(places: Sequence[Point], steps: bool) -> str:
    written = [f"M{places[0][0]:.1f} {places[0][1]:.1f}"]
    for x, y in places[1:]:
        written.append(f"H{x:.1f}V{y:.1f}" if steps else f"L{x:.1f} {y:.1f}")
    return "".join(written)


def marker_path(marker: str, x: float, y: float, r: float) -> str:
    """A marker around a place, as the `d` of a path."""
    if marker == "circle":
        return f"M{x - r:.1f} {y:.1f}a{r:.1f} {r:.1f} 0 1 0 {2 * r:.1f} 0a{r:.1f} {r:.1f} 0 1 0 {-2 * r:.1f} 0Z"
    thin = r / 3
    corners = {
        "square": ((-r, -r), (r, -r), (r, r), (-r, r)),
        "triangle": ((0, -r), (r, r), (-r, r)),
        "down": ((0, r), (r, -r), (-r, -r)),
        "diamond": ((0, -1.3 * r), (1.3 * r, 0), (0, 1.3 * r), (-1.3 * r, 0)),
        "plus": _cross(r, thin),
        "cross": tuple(((a - b) * 0.75, (a + b) * 0.75) for a, b in _cross(1.2 * r, thin)),
    }[marker]
    return "M" + "L".join(f"{x + dx:.1f} {y + dy:.1f}" for dx, dy in corners) + "Z"


def _cross(r: float, thin: float) -> tuple[Point, ...]:
    t = thin
    return ((-t, -r), (t, -r), (t, -t), (r, -t), (r, t), (t, t), (t, r), (-t, r), (-t, t), (-r, t), (-r, -t), (-t, -t))


def _sample(series: Series) -> Markup:
    """A short piece of a line for the key; the name beside it says what it is."""
    colour, dash, marker = _look(series.look)
    picture = _Picture()
    picture.add(
        "path", class_=f"line {colour}{' strong' * series.strong}", stroke_dasharray=dash or "none", d="M1 8H43"
    )
    picture.add("path", class_=f"dot {colour}", d=marker_path(marker, 22, 8, 4.2))
    return Markup(f'<svg class="sample" viewBox="0 0 44 16" aria-hidden="true">{"".join(picture.parts)}</svg>')


def _end_labels(picture: _Picture, chart: Chart, frame: Frame, across: Scale, up: Scale) -> None:
    """The lines' last values and names beside their ends, pushed apart, with a thin line to the end of each."""
    ordered = sorted(chart.drawn, key=lambda series: up(series.points[-1][1]))
    places = apart([up(series.points[-1][1]) for series in ordered], LINE, frame.top, frame.floor)
    for series, place in zip(ordered, places, strict=True):
        colour, _, marker = _look(series.look)
        x, y = series.points[-1]
        picture.add("path", class_="leader", d=f"M{across(x) + 7:.1f} {up(y):.1f}L{frame.end + 12:.1f} {place:.1f}")
        picture.add("path", class_=f"dot {colour}", d=marker_path(marker, frame.end + 19, place, 3.8))
        said = f"{chart.y.value(y)}  {_short(series.name)}"
        picture.text(frame.end + 28, place + 4, said, f"name{' strong' * series.strong}")


def _short(name: str) -> str:
    return cut(visible(name), LABEL_LENGTH)


def apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Rising places at least `gap` from each other, near the wanted ones, which rise too; within the bounds if that goes."""
    places: list[float] = []
    for place in wanted:
        places.append(max(place, places[-1] + gap) if places else max(place, low))
    for number in reversed(range(len(places))):
        limit = places[number + 1] - gap if number + 1 < len(places) else high
        places[number] = min(places[number], limit)
    return places


# -- values on hover


def _readouts(picture: _Picture, chart: Chart, series: Sequence[Series], frame: Frame, across: Scale) -> None:
    """For every x with a value, an area that shows the values there when the pointer is in it."""
    xs = sorted({x for each in series for x, _ in each.points})
    xs = xs[:: math.ceil(len(xs) / MAX_PLACES)]
    between = [(across(a) + across(b)) / 2 for a, b in pairwise(xs)]
    edges = pairwise([frame.left - 10, *between, frame.end + 10])
    picture.parts.append('<g class="readouts"><title></title>')  # no tooltip of the browser's over ours
    for x, (start, end) in zip(xs, edges, strict=True):
        picture.parts.append('<g class="at">')
        picture.add("rect", class_="area", x=start, y=frame.top, width=end - start, height=frame.floor - frame.top)
        picture.parts.append('<g class="readout">')
        picture.line(across(x), frame.top, across(x), frame.floor, "here")
        rows = [(each, value) for each in series if (value := _at(each, x)) is not None]
        _box(picture, chart, frame, across(x), f"{chart.x.label}: {chart.x.value(x)}", rows)
        picture.parts.append("</g></g>")
    picture.parts.append("</g>")


def _at(series: Series, x: float) -> float | None:
    """A series' value at a place; of steps the last one up to there."""
    place = bisect_right(series.points, x, key=lambda point: point[0]) - 1
    if place < 0 or (not series.steps and series.points[place][0] != x):
        return None
    return series.points[place][1]


def _box(
    picture: _Picture, chart: Chart, frame: Frame, x: float, title: str, rows: Sequence[tuple[Series, float]]
) -> None:
    ordered = sorted(rows, key=lambda row: -row[1])
    lines = [f"{chart.y.value(value)}  {_short(series.name)}" for series, value in ordered]
    width = min(1.06 * LETTER * max(len(title) + 4, *(len(text) + 5 for text in lines)), frame.width - 8)
    left = x + 12 if x + 12 + width <= frame.width - 4 else max(x - 12 - width, 4)
    height = LINE * (len(lines) + 1) + 12
    picture.add("rect", class_="box", x=left, y=frame.top, width=width, height=height, rx=4)
    picture.text(left + 8, frame.top + 16, title, "label")
    for number, ((series, _), text) in enumerate(zip(ordered, lines, strict=True), start=1):
        colour, _, marker = _look(series.look)
        y = frame.top + 16 + LINE * number
        picture.add("path", class_=f"dot {colour}", d=marker_path(marker, left + 14, y - 4, 3.8))
        picture.text(left + 24, y, text)
