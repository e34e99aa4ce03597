"""How far off the rotary angles of a runtime are at the target length, for it computes them in float32.

    angle at position n of pair i: float64 ──┐
    the same in the runtime's own order of float32 operations ──┴─► largest difference, in radians

An angle of a million radians has a last bit of 0.06 rad in float32, so the fast pairs of a long window lose their meaning
however right the factors are. Our ONNX graphs compute angles in float64 (`onnx.rope.chain` measures them).
Sources: `LlamaRotaryEmbedding` and `_compute_longrope_parameters` (transformers 5), `ggml_rope_cache_init` (ggml-cpu).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.base import Check
from longrope import rope
from longrope.factors import BoundFactors

# Radians: beyond them scores of attention move by more than what 8-bit weights do.
WORST_ANGLE_ERROR = 0.05
# Positions before the end of a window: errors grow with the position, and differ between neighbours by their rounding.
LAST_POSITIONS = 4096

Float32 = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]
Angles = Callable[[Float32, float, int, Float32], Floats]
"""[T] positions, theta, rotary_dim and [d/2] factors to [T, d/2] angles, as a runtime computes them."""


def transformers_angles(positions: Float32, theta: float, rotary_dim: int, factors: Float32) -> Floats:
    """Frequencies in float32, times the position. Unlike numpy's, torch's powers are off by a last bit at times."""
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    return np.outer(positions, np.float32(1) / (factors * np.float32(theta) ** exponents))


def ggml_angles(positions: Float32, theta: float, rotary_dim: int, factors: Float32) -> Floats:
    """From pair to pair the unscaled angle is multiplied by the same number, and divided by the pair's factor."""
    step = np.float32(theta) ** np.float32(-2.0 / rotary_dim)
    steps = np.full((len(positions), rotary_dim // 2), step, dtype=np.float32)
    steps[:, 0] = positions
    return np.multiply.accumulate(steps, axis=1, dtype=np.float32) / factors


def worst_angle_error(factors: BoundFactors, angles: Angles) -> tuple[float, int, int]:
    """The largest error of an angle near the ends of both sets' windows.

    Args:
        factors: both sets; the short one is for positions of the original window.
        angles: a runtime's arithmetic.

    Returns:
        Radians, and the position and rotary pair that they are at.
    """
    windows = {
        factors.target: factors.long_factor,
        factors.original: factors.set(factors.set_for_length(factors.original)),
    }
    return max(_error(factors, length, of_set, angles) for length, of_set in windows.items())


def _error(factors: BoundFactors, length: int, of_set: Sequence[float], angles: Angles) -> tuple[float, int, int]:
    positions = np.arange(max(0, length - LAST_POSITIONS), length)
    exact = np.outer(positions, rope.inv_freq(factors.rope_theta, factors.rotary_dim, of_set))
    with np.errstate(over="ignore", invalid="ignore"):  # the smallest factors: their angles are infinite in float32
        found = angles(
            positions.astype(np.float32), factors.rope_theta, factors.rotary_dim, np.asarray(of_set, dtype=np.float32)
        )
    errors = np.nan_to_num(np.abs(found.astype(np.float64) - exact), nan=np.inf, posinf=np.inf)
    row, pair = np.unravel_index(int(errors.argmax()), errors.shape)
    return float(errors[row, pair]), int(positions[row]), int(pair)


def precision_check(format_name: str, factors: BoundFactors, angles: Angles) -> Check:
    """`FORMAT.rope.precision`: a warning where float32 cannot hold the angles at the target length."""
    error, position, pair = worst_angle_error(factors, angles)
    message = (
        f"at position {position:,} its runtime rotates pair {pair} by an angle that is some {error:.2g} rad off, for float32 "
        "holds no finer ones there; the ONNX export computes angles in float64"
    )
    ok = error <= WORST_ANGLE_ERROR
    expected, found = f"≤ {WORST_ANGLE_ERROR:g} rad", f"{error:.2g} rad"
    return Check(f"{format_name}.rope.precision", "pass" if ok else "warn", expected, found, "" if ok else message)
