"""Draw the pictures of docs/method.md anew: `python -m docs.pictures`.

Text and axes are of a grey that reads on white and on black; curves differ in their dashes, too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from longrope import rope
from longrope.factors import RescaleFactors

HERE = Path(__file__).parent
GREY = "#7d8590"
CURVES = ("#2f81c7", "#c9651b", "#2f9960", "#a957c4")
DASHES = ("-", "--", "-.", ":")
STYLE = {
    "svg.fonttype": "none",  # text stays text: small, searchable, read aloud
    "svg.hashsalt": "longrope-export",
    "font.family": "sans-serif",
    "font.size": 11,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "savefig.transparent": True,
}
# A Llama of 4,096 tokens: rotary dimension and θ.
DIM, THETA, WINDOW, TARGET = 128, 10_000.0, 4096, 32_768


def frequencies(axes: Any) -> None:
    """The wavelength of each pair, and which of them a window holds whole."""
    wavelengths = 2 * np.pi / rope.inv_freq(THETA, DIM)
    axes.plot(wavelengths, color=CURVES[0], label="wavelength of the pair")
    for length, name, dash in ((WINDOW, "original window", "--"), (TARGET, "target length", ":")):
        axes.axhline(length, color=CURVES[1], linestyle=dash, linewidth=1.5)
        axes.text(0, length * 1.15, f"{name}, {length:,}", color=GREY)
    first = int(np.argmax(wavelengths > WINDOW))
    axes.axvspan(first, len(wavelengths) - 1, color=CURVES[2], alpha=0.15, linewidth=0)
    axes.text(first + 0.5, 9, "pairs that never turn\nonce in training", color=GREY)
    axes.set_yscale("log")
    axes.set_xlabel("rotary pair, fast to slow")
    axes.set_ylabel("tokens for one turn")


def curves(axes: Any) -> None:
    """The factor of each pair by four methods, at 8 times the window."""
    found = RescaleFactors.load(HERE / "demo-factors.json")
    dim, theta, original = (
        2 * found.num_pairs,
        float(found.rope_theta or 0),
        int(found.original_max_position_embeddings or 0),
    )
    scale = float(found.length_scale or 1)
    lines = {
        "LongRoPE, found by search": found.long_factor,
        "PI": np.full(found.num_pairs, scale),
        "NTK": rope.ntk_factors(dim, scale),
        "YaRN": rope.yarn_factors(dim, scale, rope_theta=theta, original=original),
    }
    for (name, values), color, dash in zip(lines.items(), CURVES, DASHES, strict=True):
        axes.plot(values, color=color, linestyle=dash, label=name)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("rotary pair, fast to slow")
    axes.set_ylabel("rescale factor λ")
    axes.legend()


def angles(axes: Any) -> None:
    """The angle of one slow pair over positions: beyond training, interpolated, and with start tokens left alone."""
    pair, start, window = 48, 2048, 4096  # so many start tokens that they can be seen; a search takes 256 at most
    speed = rope.inv_freq(THETA, DIM)[pair]
    positions = np.arange(0, TARGET, 64)
    axes.plot(positions, positions * speed, color=CURVES[0], linestyle="--", label="as trained: λ = 1")
    axes.plot(positions, positions * speed / 8, color=CURVES[1], label="rescaled: λ = 8")
    begin = positions[: 2 * start // 64]
    kept = np.where(begin < start, begin * speed, begin * speed / 8)
    axes.plot(begin, kept, color=CURVES[3], linestyle=":", label="start tokens kept (n̂, drawn large)")
    axes.axhspan(0, window * speed, color=CURVES[2], alpha=0.15, linewidth=0)
    axes.text(TARGET * 0.99, window * speed * 0.06, "angles seen in training", color=GREY, ha="right")
    axes.axvline(window, color=GREY, linewidth=1, linestyle=":")
    axes.set_ylim(0, 4 * window * speed)
    axes.set_xlabel("position")
    axes.set_ylabel(f"angle of pair {pair}, rad")
    axes.legend(loc="upper right")


PICTURES: dict[str, Callable[[Any], None]] = {"frequencies": frequencies, "factors": curves, "angles": angles}


def draw(folder: Path) -> None:
    """Write every picture as NAME.svg."""
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        for name, paint in PICTURES.items():
            figure = Figure(figsize=(7.2, 3.6), layout="constrained")
            paint(figure.subplots())
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    draw(HERE)
