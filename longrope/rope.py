"""The rotary maths: frequencies, cos/sin tables and the known methods.

    angle(n, i) = n * theta**(-2 i / d) / factor[i]      n >= n_hat
    angle(n, i) = n * theta**(-2 i / d)                  n <  n_hat
    cos, sin    = attention_factor * cos(angle), attention_factor * sin(angle)

All of it is computed in float64 and rounded once. Everything is numpy, so that converters need no torch.
Sources: RoPE (arXiv 2104.09864), PI (arXiv 2306.15595), NTK-aware (bloc97, 2023), YaRN (arXiv 2309.00071),
LongRoPE (arXiv 2402.13753, equation 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from longrope.errors import InputError

Float64 = NDArray[np.float64]


def inv_freq(rope_theta: float, rotary_dim: int, factors: Sequence[float] | Float64 | None = None) -> Float64:
    """Angle per position of every rotary pair, in radians.

    Args:
        rope_theta: base b.
        rotary_dim: d, even.
        factors: d/2 rescale factors; None for the original RoPE.

    Returns:
        [d/2] float64, b**(-2i/d) / factor[i].
    """
    if rotary_dim < 2 or rotary_dim % 2:
        raise InputError(f"rotary_dim: expected an even number above 0, got {rotary_dim}")
    base = float(rope_theta) ** (-np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
    if factors is None:
        return base
    scale = np.asarray(factors, dtype=np.float64)
    if scale.shape != base.shape:
        raise InputError(f"expected {base.size} factors for rotary_dim {rotary_dim}, got {scale.size}")
    return np.asarray(base / scale)


def cos_sin(
    positions: NDArray[np.integer] | Sequence[int],
    frequencies: Float64,
    *,
    attention_factor: float = 1.0,
    n_hat: int = 0,
    unscaled_frequencies: Float64 | None = None,
) -> tuple[Float64, Float64]:
    """Cos and sin of every position and rotary pair, times the attention factor.

    Args:
        positions: [T] positions, in tokens.
        frequencies: [d/2] radians per position, as `inv_freq` returns with factors.
        attention_factor: multiplies both tables.
        n_hat: the first n_hat positions use `unscaled_frequencies`.
        unscaled_frequencies: [d/2], required when n_hat > 0.

    Returns:
        cos [T, d/2] and sin [T, d/2], float64.
    """
    n_T = np.asarray(positions, dtype=np.float64)
    angles = np.outer(n_T, frequencies)
    if n_hat:
        if unscaled_frequencies is None:
            raise ValueError("n_hat needs the unscaled frequencies")
        start = n_T < n_hat
        angles[start] = np.outer(n_T[start], unscaled_frequencies)
    return np.cos(angles) * attention_factor, np.sin(angles) * attention_factor


# -- known methods, as rescale factors


def unscaled_factors(rotary_dim: int) -> Float64:
    """[d/2] ones: the original RoPE."""
    return np.ones(rotary_dim // 2)


def pi_factors(rotary_dim: int, length_scale: float) -> Float64:
    """Position interpolation: every pair is slowed by s. Returns [d/2]."""
    return np.full(rotary_dim // 2, float(length_scale))


def ntk_factors(rotary_dim: int, length_scale: float) -> Float64:
    """NTK-aware: s**(2i/(d-2)), so the fastest pair keeps its speed and the slowest is slowed by s. Returns [d/2]."""
    if rotary_dim == 2:
        return np.array([float(length_scale)])
    exponent = np.arange(0, rotary_dim, 2, dtype=np.float64) / (rotary_dim - 2)
    return np.asarray(float(length_scale) ** exponent)


def yarn_factors(
    rotary_dim: int,
    length_scale: float,
    *,
    rope_theta: float,
    original: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
) -> Float64:
    """YaRN's "NTK by parts": pairs with more than beta_fast rotations in L are kept, with fewer than beta_slow slowed by s.

    Between them the *frequencies* are mixed linearly, so the factor is the harmonic mixture of 1 and s.

    Args:
        rotary_dim: d.
        length_scale: s.
        rope_theta: base b.
        original: L in tokens; a pair's rotations in L decide where it lies on the ramp.
        beta_fast: rotations in L from which a pair is kept (32; 128 in the authors' Mistral runs).
        beta_slow: rotations in L below which a pair is interpolated in full (1; 2 in the authors' Mistral runs).
        truncate: round the ramp's ends to whole pairs, as the published models do.

    Returns:
        [d/2] factors from 1 to s.
    """

    low, high = (pair_with_rotations(rotary_dim, rope_theta, original, beta) for beta in (beta_fast, beta_slow))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    if low == high:
        high += 0.001  # a ramp of no width would divide by zero
    interpolated = np.clip((np.arange(rotary_dim // 2, dtype=np.float64) - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - interpolated) + interpolated / float(length_scale)))


def pair_with_rotations(rotary_dim: int, rope_theta: float, original: int, rotations: float) -> float:
    """The pair, with a fraction, that makes so many rotations in `original` tokens."""
    return rotary_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope_theta))


def yarn_attention_factor(length_scale: float, mscale: float = 1.0) -> float:
    """YaRN's temperature as a factor on cos and sin: 0.1 mscale ln s + 1, 1 for s <= 1."""
    return 0.1 * mscale * math.log(length_scale) + 1.0 if length_scale > 1 else 1.0


def attention_factor_formula(length_scale: float, original: int) -> float:
    """sqrt(1 + ln s / ln L), 1 for s <= 1: the value Hugging Face, llama.cpp and Phi-3 use for longrope."""
    if length_scale <= 1.0:
        return 1.0
    return math.sqrt(1.0 + math.log(length_scale) / math.log(original))


def theoretical_critical_dim(rotary_dim: int, rope_theta: float, original: int) -> int:
    """LongRoPE2's d_tcd = 2 ceil(d/2 log_b(L / 2 pi)): dimensions from here on never complete a rotation within L."""
    return 2 * math.ceil(rotary_dim / 2 * math.log(original / (2 * math.pi)) / math.log(rope_theta))
