"""Pictures of factors and searches, as PNG or SVG. Needs the extra `report` (matplotlib)."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from converters.factor_files import known_methods
from longrope.errors import InputError, MissingRequirementError
from longrope.factors import RescaleFactors
from longrope.files import refuse_existing, write_atomically
from longrope.metrics import perplexity
from longrope.reading import visible
from longrope.retrieval import RetrievalRow
from longrope.search import SearchResult

SUFFIXES = (".png", ".svg")
# What `plot_search` draws, the last one of two-sided searches only.
PICTURES = ("factors", "convergence", "pareto")

Points = Sequence[tuple[float, float]]


def plot_factors(
    named: Mapping[str, RescaleFactors], path: Path, *, beside: Mapping[str, RescaleFactors] | None = None
) -> None:
    """λ over rotary pairs, log scale, one line per set; known methods dashed, other models' long sets (`beside`) dotted.

    Known methods and other models' shapes are drawn at the first one's length scale.

    Raises:
        InputError: factors in `beside`, or the first of `named` with any beside it, do not say their length scale.
        MissingRequirementError: matplotlib is not installed.
    """
    check_picture(path)
    write_atomically(path, render(factors_figure(named, beside or {}), path.suffix[1:].lower()))


def plot_retrieval(named: Mapping[str, Sequence[RetrievalRow]], path: Path) -> None:
    """Heat maps of retrieval, one per name, side by side."""
    check_picture(path)
    write_atomically(path, render(retrieval_figure(named), path.suffix[1:].lower()))


def check_picture(path: Path) -> None:
    """Refuse, before any work is done, a name that is no picture's, and a machine without matplotlib."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: expected a .png or .svg name")
    require_matplotlib()


def plot_search(result: SearchResult, folder: Path) -> list[Path]:
    """Factors, convergence curve and, for a two-sided search, Pareto front, as PNG and SVG; returns what was written."""
    figures = {
        "factors": factors_figure({"found": result.factors}),
        "convergence": convergence_figure(
            [(point.tokens, perplexity(point.best_target)) for point in result.history if point.best_target is not None]
        ),
    }
    if result.short_cap is not None:
        front = [(perplexity(p.short_loss), perplexity(p.target_loss)) for p in result.front]
        chosen = next((i for i, point in enumerate(result.front) if point.chosen), None)
        figures["pareto"] = pareto_figure(front, chosen, perplexity(result.short_cap))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        for suffix in SUFFIXES:
            paths.append(folder / f"{name}{suffix}")
            write_atomically(paths[-1], render(figure, suffix[1:]))
    return paths


def check_picture_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse, before any work is done, a folder that is a file or holds these pictures already, and a lack of matplotlib."""
    require_matplotlib()
    for part in (folder, *folder.parents):
        if part.exists() and not part.is_dir():
            raise InputError(f"{folder}: {part} is a file; expected a folder for pictures")
    for name in PICTURES:
        for suffix in SUFFIXES:
            refuse_existing(folder / f"{name}{suffix}", overwrite=overwrite)


def require_matplotlib() -> None:
    """Raise MissingRequirementError when it is not installed, before any work is done."""
    if find_spec("matplotlib") is None:
        raise MissingRequirementError("plots need matplotlib: pip install 'longrope-export[report]'")


def factors_figure(named: Mapping[str, RescaleFactors], beside: Mapping[str, RescaleFactors] | None = None) -> Any:
    """Figure of λ over rotary pairs; see `plot_factors`."""
    first = next(iter(named.values()))
    figure, axes = _figure("rotary pair (fast to slow)", "rescale factor λ")
    for name, factors in named.items():
        axes.plot(factors.long_factor, label=name if factors.factor_sets == "single" else f"{name}, long")
        if factors.factor_sets == "dual":
            axes.plot(factors.short_factor, label=f"{name}, short", linestyle="-.")
    for name, values in known_methods(first).items():
        axes.plot(values, label=name, linestyle="--", linewidth=1, alpha=0.6)
    for name, shape in (beside or {}).items():
        points = rescaled_shape(name, shape, first)
        axes.plot(*zip(*points, strict=True), label=name, linestyle=":", linewidth=1, alpha=0.6)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(fontsize="small")
    return figure


def retrieval_figure(named: Mapping[str, Sequence[RetrievalRow]]) -> Any:
    """Figure of the share of answers found by length (across) and depth (down), one heat map per name.

    Raises:
        InputError: nothing was measured.
    """
    if not named:
        raise InputError("expected retrieval rows to draw; measure --passkey N,N or --needle N,N")
    figure = _figure_class()(figsize=(1.5 + 4.2 * len(named), 3.6), layout="constrained")
    for axes, (name, rows) in zip(figure.subplots(1, len(named), squeeze=False)[0], named.items(), strict=True):
        picture = _heat_map(axes, rows)
        axes.set_title(name)
    figure.colorbar(picture, ax=figure.axes, label="answers found, %")
    return figure


def _heat_map(axes: Any, rows: Sequence[RetrievalRow]) -> Any:
    """Cells of accuracy in percent with their numbers; a length and depth that was not measured stays empty."""
    lengths, depths = sorted({row.length for row in rows}), sorted({row.depth for row in rows})
    found = {(row.depth, row.length): 100 * row.accuracy for row in rows}
    grid = [[found.get((depth, length), math.nan) for length in lengths] for depth in depths]
    picture = axes.imshow(grid, vmin=0, vmax=100, cmap="RdYlGn", aspect="auto")
    for y, line in enumerate(grid):
        for x, value in enumerate(line):
            if not math.isnan(value):
                axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(lengths)), [_tokens(length) for length in lengths], rotation=45)
    axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
    axes.set_xlabel("prompt, tokens")
    axes.set_ylabel("depth of the answer")
    return picture


def _tokens(length: int) -> str:
    """`16k` for 16384."""
    return f"{length // 1024}k" if length % 1024 == 0 else f"{length}"


def rescaled_shape(name: str, shape: RescaleFactors, like: RescaleFactors) -> Points:
    """A model's long set as (pair, λ), brought to the pairs and the length scale of another's.

    Pair i of n stands at i (m − 1) / (n − 1) of m, and λ at scale s' becomes λ^(ln s / ln s'): PI and NTK stay what they are.

    Raises:
        InputError: one of them does not say its length scale, or the shape is one of no extension.
    """
    scale, wanted = _length_scale(name, shape), _length_scale("the first file", like)
    if scale <= 1:
        raise InputError(f"{name}: expected factors for a longer window than the original one, to draw their shape")
    places = np.linspace(0, like.num_pairs - 1, shape.num_pairs)
    here = np.asarray(shape.long_factor) ** (math.log(wanted) / math.log(scale))
    return list(zip(places.tolist(), here.tolist(), strict=True))


def _length_scale(name: str, factors: RescaleFactors) -> float:
    if factors.length_scale is None:
        raise InputError(
            f"{name}: expected factors that say their window and target, to bring shapes to one length scale; "
            "longrope-export factors import FILE -o OUT.json --original N --target N adds them"
        )
    return factors.length_scale


def convergence_figure(points: Points) -> Any:
    """Figure of the best perplexity so far over tokens forwarded."""
    figure, axes = _figure("tokens forwarded (millions)", "best perplexity so far")
    axes.step([tokens / 1e6 for tokens, _ in points], [value for _, value in points], where="post")
    return figure


def pareto_figure(front: Points, chosen: int | None, cap: float) -> Any:
    """Figure of the (perplexity at the original window, at the target) that none beats, the cap, and the chosen point."""
    figure, axes = _figure("perplexity at the original window", "perplexity at the target length")
    axes.plot(*zip(*front, strict=True), marker="o", label="not beaten on both sides")
    axes.axvline(cap, linestyle="--", linewidth=1, label="short budget")
    if chosen is not None:
        axes.plot(*front[chosen], marker="*", markersize=16, linestyle="", label="chosen")
    axes.legend()
    return figure


def training_figure(records: Sequence[tuple[int, float, float]]) -> Any:
    """Figure of loss (left axis) and learning rate (right axis, dotted) over (step, loss, learning rate)."""
    figure, axes = _figure("optimizer step", "loss, nats per token")
    steps, losses, rates = zip(*records, strict=True)
    axes.plot(steps, losses, linewidth=1)
    right = axes.twinx()
    right.plot(steps, rates, linestyle=":", color="tab:orange")
    right.set_ylabel("learning rate")
    right.set_ylim(bottom=0)
    return figure


def render(figure: Any, kind: str) -> bytes:
    """A figure's bytes as `png` or `svg`."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):  # names of files are no mathematics
        text.set_parse_math(False)
        text.set_text(visible(text.get_text()))
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=120, bbox_inches="tight")
    return buffer.getvalue()


def _figure(x_label: str, y_label: str) -> tuple[Any, Any]:
    figure = _figure_class()(figsize=(7.5, 4.2))
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    return figure, axes


def _figure_class() -> Any:
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure
