"""Values of results as words and figures for people: no `None`, no `nan`, no dictionaries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from longrope.reading import cut, shown, visible
from longrope_export.console import number

# Of a value in words, which may be a whole list of factors; of it, so many parts are looked at.
VALUE_LENGTH, PARTS = 160, 40
NOTHING = "–"
PERCENT = " %"


def value_words(value: Any, limit: int = VALUE_LENGTH) -> str:
    """A value in words, at most `limit` characters: an object is its fields, `kl_mean ≤ 1e-06, top1_agreement ≥ 0.999`."""
    return cut(_said(value, limit), limit)


def _said(value: Any, limit: int) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "yes" if value else "no"
        case float():  # every digit: values that are held against each other may differ in the last one
            return repr(value).removesuffix(".0") if math.isfinite(value) else NOTHING
        case str():
            return visible(value[: limit + 1])
        case Mapping():
            return _listed([f"{name} {_part(item)}" for name, item in list(value.items())[:PARTS]])
        case list() | tuple():
            return _listed([_part(item) for item in value[:PARTS]])
        case _:
            return shown(value, limit)


def _listed(parts: Sequence[str]) -> str:
    return ", ".join(parts) or "none"


def _part(value: Any) -> str:
    """A part of a value, numbers short; of an object or a list in a list, its size."""
    match value:
        case float():
            return number(value, ".4g")
        case Mapping() | list() | tuple():
            return f"({len(value)} values)" if value else "(none)"
        case _:
            return _said(value, VALUE_LENGTH)


def count(value: int, noun: str) -> str:
    """`1 check`, `2 checks`."""
    return f"{value:,} {noun}{'s' * (value != 1)}"


def tokens(length: float) -> str:
    """`2,048`."""
    return f"{length:,.0f}" if math.isfinite(length) else NOTHING


def perplexity(value: float | None) -> str:
    """`20.724`; of five digits and more no fraction."""
    return number(value, ",.3f" if value is None or abs(value) < 1e4 else ".4g")


def change(new: float | None, old: float | None) -> float | None:
    """By how many percent `new` is above `old`; None where one of them is missing or `old` is no perplexity."""
    if new is None or old is None or not old > 0:
        return None
    return 100 * (new / old - 1)


def signed(percent: float | None) -> str:
    """`+0.83 %`, with the digits that its size deserves."""
    if percent is None or not math.isfinite(percent):
        return NOTHING
    size = abs(percent)
    if size == 0:
        return f"0{PERCENT}"
    if size < 5e-5:
        return f"< 0.0001{PERCENT}"
    if size >= 1e6:
        return f"{percent:+.2g}{PERCENT}"
    return f"{percent:+,.{_digits(size)}f}{PERCENT}".replace("-", "−")


def _digits(size: float) -> int:
    """Digits behind the point of a percentage."""
    return 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 4


def with_error(percent: float | None, error: float) -> str:
    """`+0.83 ± 0.11 %`, both with as many digits; without the standard error where there is none."""
    said = signed(percent)
    if percent is None or said == NOTHING or not math.isfinite(error) or percent == error == 0:
        return said
    digits = _digits(abs(percent))
    shown = f"{error:,.{digits}f}" if 0.5 <= error * 10**digits < 1e6 * 10**digits else f"{error:.1g}"
    return f"{said.removesuffix(PERCENT)} ± {shown}{PERCENT}"


def tiny(value: float | None) -> str:
    """`2.6e-07`, and `0` of nothing at all."""
    return "0" if value == 0 else number(value, ".1e")


def share(value: float | None) -> str:
    """`99.8 %` of a share between 0 and 1."""
    return NOTHING if value is None else f"{number(100 * value, '.4g')}{PERCENT}"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
