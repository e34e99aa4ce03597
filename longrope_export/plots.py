"""Pictures of factors, searches and methods, as PNG or SVG. Needs the extra `report` (matplotlib)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longrope.errors import InputError, MissingRequirementError
from longrope.factors import RescaleFactors
from longrope.files import write_atomically
from longrope_export.factor_tables import known_methods

SUFFIXES = (".png", ".svg")


def plot_factors(named: Mapping[str, RescaleFactors], path: Path) -> None:
    """λ over rotary pairs, log scale, one line a set; known methods dashed, at the first one's length scale."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: expected a .png or .svg name")
    write_atomically(path, render(factors_figure(named), path.suffix[1:].lower()))


def factors_figure(named: Mapping[str, RescaleFactors]) -> Any:
    """Figure of λ over rotary pairs."""
    figure, axes = _figure("rotary pair (fast to slow)", "rescale factor λ")
    for name, factors in named.items():
        axes.plot(factors.long_factor, label=name if factors.factor_sets == "single" else f"{name}, long")
        if factors.factor_sets == "dual":
            axes.plot(factors.short_factor, label=f"{name}, short", linestyle="-.")
    for name, values in known_methods(next(iter(named.values()))).items():
        axes.plot(values, label=name, linestyle="--", linewidth=1, alpha=0.6)
    axes.set_yscale("log", base=2)
    axes.legend()
    return figure


def convergence_figure(points: Sequence[tuple[float, float]]) -> Any:
    """Figure of the best perplexity so far over tokens forwarded."""
    figure, axes = _figure("tokens forwarded (millions)", "best perplexity so far")
    axes.step([tokens / 1e6 for tokens, _ in points], [value for _, value in points], where="post")
    return figure


def render(figure: Any, kind: str) -> bytes:
    """A figure's bytes as `png` or `svg`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=120, bbox_inches="tight")
    return buffer.getvalue()


def _figure(x_label: str, y_label: str) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingRequirementError("plots need matplotlib: pip install 'longrope-export[report]'") from None
    figure = Figure(figsize=(7.5, 4.2))
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    return figure, axes
