"""Curves in a terminal: braille dots, a logarithmic axis, one style a curve and its name at its end.

8.00 ┤                 ⣀⠤⠒⠉⠉ long
     │            ⢀⡠⠔⠊
1.00 ┤⣀⣀⣀⣀⡠⠤⠤⠔⠒⠊⠁⠤ ⠤ ⠤ ⠤ short
     └ pair 0               31
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.text import Text

ROWS, COLUMNS = 7, 60
# A braille letter has two columns of four dots; the bit of each, from the top.
_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BRAILLE = 0x2800
_STYLES = ("cyan", "yellow")
# Of a curve that is not the first, so many columns of dots are drawn and so many left out.
_DRAWN, _LEFT_OUT = 3, 2
_LABEL = 7


def log_plot(curves: Mapping[str, Sequence[float]], *, columns: int = COLUMNS, rows: int = ROWS) -> list[Text]:
    """Lines that show curves of positive numbers over their index; every curve after the first is dashed.

    Args:
        curves: values by name, all of one length.
        columns, rows: letters of the plot itself.
    """
    logs = {name: [math.log(value) for value in values] for name, values in curves.items()}
    low, high = min(map(min, logs.values())), max(map(max, logs.values()))
    scale = _Scale(low, (high - low) or 1.0, 4 * rows)
    grid = [[(0, "")] * columns for _ in range(rows)]
    for order, values in enumerate(logs.values()):
        for x, y in _dots(values, scale, 2 * columns, dashed=order > 0):
            bits, style = grid[y // 4][x // 2]
            grid[y // 4][x // 2] = bits | _BITS[x % 2][y % 4], style or _STYLES[order % len(_STYLES)]
    names, marked = _names(logs, scale), {0, rows // 2, rows - 1}
    lines = []
    for row, cells in enumerate(grid):
        label = f"{math.exp(scale.at(row)):.4g}" if row in marked else ""
        line = Text(f"{label:>{_LABEL}} {'┤' if row in marked else '│'}")
        for bits, style in cells:
            line.append(chr(_BRAILLE + bits) if bits else " ", style)
        lines.append(line.append(names.get(row, "")))
    last = f"slowest, {len(next(iter(logs.values()))) - 1}"
    return [*lines, Text(f"{'':>{_LABEL}} └ pair 0, fastest{last:>{max(columns - 17, 1)}}")]


@dataclass(frozen=True)
class _Scale:
    """The vertical axis: logarithms from `low` over `span`, on so many dots, the largest on dot 0."""

    low: float
    span: float
    dots: int

    def dot(self, value: float) -> int:
        return round((1 - (value - self.low) / self.span) * (self.dots - 1))

    def at(self, row: int) -> float:
        """The value of a row of four dots: at the ends of the axis its own, else that in the row's middle."""
        middle = 4 * row + 1.5
        place = 0.0 if row == 0 else self.dots - 1.0 if 4 * row + 4 == self.dots else middle
        return self.low + self.span * (1 - place / (self.dots - 1))


def _dots(values: Sequence[float], scale: _Scale, width: int, *, dashed: bool) -> Iterator[tuple[int, int]]:
    """The dots of a curve, joined from column to column."""
    before: int | None = None
    for x, value in enumerate(np.interp(np.linspace(0, len(values) - 1, width), range(len(values)), values)):
        y = scale.dot(float(value))
        first, before = (y if before is None else before), y
        if not dashed or x % (_DRAWN + _LEFT_OUT) < _DRAWN:
            step = 1 if first < y else -1
            yield from ((x, dot) for dot in (range(first + step, y + step, step) if first != y else (y,)))


def _names(curves: Mapping[str, Sequence[float]], scale: _Scale) -> dict[int, str]:
    """What stands behind each row: the names of the curves that end there."""
    found: dict[int, str] = {}
    for name, values in curves.items():
        row = scale.dot(values[-1]) // 4
        found[row] = f"{found[row]}, {name}" if row in found else f" {name}"
    return found
