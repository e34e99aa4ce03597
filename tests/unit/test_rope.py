"""The rotary maths against transformers' own functions and against plain arithmetic of more digits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from longrope import rope
from longrope.errors import InputError
from longrope.rope import Float64, attention_factor_formula

DIM, THETA, ORIGINAL, SCALE = 128, 10_000.0, 4096, 8.0
# The paper's extremes: LLaMA2 and its 2048k window.
LAST_POSITION = 2**21 - 1


def theirs(rope_type: str, *, seq_len: int | None = None, dim: int = DIM, **parameters: Any) -> tuple[Float64, float]:
    """transformers' inverse frequencies and attention factor of a rope type."""
    config = LlamaConfig(
        hidden_size=dim * 2,
        num_attention_heads=2,
        max_position_embeddings=parameters.pop("max_position_embeddings", ORIGINAL),
        rope_parameters={"rope_type": rope_type, "rope_theta": THETA, **parameters},
    )
    if rope_type == "default":
        inv_freq, attention_factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        inv_freq, attention_factor = ROPE_INIT_FUNCTIONS[rope_type](config, seq_len=seq_len)
    return inv_freq.double().numpy(), attention_factor


def ours(factors: Float64) -> Float64:
    return rope.inv_freq(THETA, 2 * len(factors), factors)


def assert_equal_frequencies(actual: Float64, expected: Float64) -> None:
    """Equal up to what transformers loses by computing in float32."""
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=0)


# -- every rope type of transformers


def test_every_rope_type_is_known_here() -> None:
    """A new type in transformers must be looked at: does a method of ours correspond to it?"""
    counterparts = {"linear", "dynamic", "yarn", "longrope"}
    without = {"llama3", "proportional"}  # fixed recipes of one vendor each; no factors of ours stand for them
    assert set(ROPE_INIT_FUNCTIONS) == counterparts | without


@pytest.mark.parametrize("dim", [16, 64, 96, 128])
def test_default_is_unscaled(dim: int) -> None:
    expected, attention_factor = theirs("default", dim=dim)
    assert_equal_frequencies(ours(rope.unscaled_factors(dim)), expected)
    assert_equal_frequencies(rope.inv_freq(THETA, dim), expected)
    assert attention_factor == 1.0


@pytest.mark.parametrize("scale", [1.0, 2.0, 8.0, 512.0])
def test_linear_is_pi(scale: float) -> None:
    assert_equal_frequencies(ours(rope.pi_factors(DIM, scale)), theirs("linear", factor=scale)[0])


@pytest.mark.parametrize("scale", [1.0, 2.0, 8.0, 512.0])
def test_dynamic_is_ntk_at_its_length(scale: float) -> None:
    """At s·L tokens transformers' base grows by ((f·s - (f - 1))^(d/(d-2)); with f = 1 that is NTK by s."""
    expected, _ = theirs("dynamic", factor=1.0, seq_len=int(scale * ORIGINAL))
    assert_equal_frequencies(ours(rope.ntk_factors(DIM, scale)), expected)


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("betas", [(32, 1), (128, 2), (1000, 4), (2, 1.9)])
@pytest.mark.parametrize(("dim", "original", "scale"), [(128, 4096, 8.0), (64, 8192, 64.0), (16, 64, 4.0)])
def test_yarn(dim: int, original: int, scale: float, betas: tuple[float, float], truncate: bool) -> None:
    fast, slow = betas
    expected, attention_factor = theirs(
        "yarn",
        dim=dim,
        max_position_embeddings=int(original * scale),
        factor=scale,
        original_max_position_embeddings=original,
        beta_fast=fast,
        beta_slow=slow,
        truncate=truncate,
    )
    actual = rope.yarn_factors(
        dim, scale, rope_theta=THETA, original=original, beta_fast=fast, beta_slow=slow, truncate=truncate
    )
    assert_equal_frequencies(ours(actual), expected)
    assert rope.yarn_attention_factor(scale) == pytest.approx(attention_factor, rel=1e-12)


@pytest.mark.parametrize(("seq_len", "name"), [(ORIGINAL, "short"), (ORIGINAL + 1, "long")])
def test_longrope_both_sets(seq_len: int, name: str) -> None:
    sets = {"short": np.linspace(1, 1.5, DIM // 2), "long": rope.ntk_factors(DIM, SCALE) * 1.07}
    expected, attention_factor = theirs(
        "longrope",
        seq_len=seq_len,
        max_position_embeddings=int(SCALE * ORIGINAL),
        factor=SCALE,
        original_max_position_embeddings=ORIGINAL,
        short_factor=sets["short"].tolist(),
        long_factor=sets["long"].tolist(),
    )
    assert_equal_frequencies(ours(sets[name]), expected)
    assert attention_factor_formula(SCALE, ORIGINAL) == pytest.approx(attention_factor, rel=1e-12)


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_no_attention_factor_without_extension(scale: float) -> None:
    assert rope.yarn_attention_factor(scale) == attention_factor_formula(scale, ORIGINAL) == 1.0


# -- the known methods by their definitions


def test_ntk_keeps_the_fastest_pair_and_slows_the_slowest_by_s() -> None:
    factors = rope.ntk_factors(DIM, SCALE)
    assert factors[0] == 1.0
    assert factors[-1] == pytest.approx(SCALE, rel=1e-15)
    assert (np.diff(factors) > 0).all()
    assert rope.ntk_factors(2, SCALE).tolist() == [SCALE]


def test_yarn_keeps_what_turns_often_and_slows_what_does_not_turn_once() -> None:
    factors = rope.yarn_factors(DIM, SCALE, rope_theta=THETA, original=ORIGINAL)
    turns = ORIGINAL * rope.inv_freq(THETA, DIM) / (2 * math.pi)
    assert (factors[turns > 40] == 1.0).all()
    assert factors[turns < 0.9] == pytest.approx(SCALE)
    assert (np.diff(factors) >= 0).all()


@pytest.mark.parametrize(
    ("dim", "theta", "original", "expected"),
    [(128, 10_000.0, 4096, 92), (128, 500_000.0, 8192, 70), (64, 10_000.0, 2048, 42)],
    ids=["LLaMA2", "LLaMA3", "small heads"],
)
def test_theoretical_critical_dim(dim: int, theta: float, original: int, expected: int) -> None:
    """LongRoPE2 gives 92 for LLaMA2; from that dimension on no pair completes a turn within the window, before it all do."""
    critical = rope.theoretical_critical_dim(dim, theta, original)
    assert critical == expected
    turns = original * rope.inv_freq(theta, dim) / (2 * math.pi)
    assert (turns[critical // 2 :] < 1).all()
    assert (turns[: critical // 2] > 1).all()


# -- tables, against more digits

FAR_POSITIONS = (0, 1, 3, 4, 5, 4095, 4096, 131_071, 1_000_003, LAST_POSITION)


def exact_table(function: Callable[[Any], Any], factors: Float64, n_hat: int, attention_factor: float) -> Float64:
    """cos or sin of every position and pair in 40 digits, straight from the definition."""
    with mpmath.workdps(40):
        return np.array(
            [
                [
                    float(attention_factor * function(n * mpmath.mpf(THETA) ** (-mpmath.mpf(2 * i) / DIM) / factor))
                    for i, factor in enumerate(
                        [mpmath.mpf(1 if n < n_hat else float(value)) for value in factors],
                    )
                ]
                for n in FAR_POSITIONS
            ]
        )


@pytest.mark.parametrize("n_hat", [0, 4])
def test_tables_are_exact_to_two_million_tokens(n_hat: int) -> None:
    factors = rope.ntk_factors(DIM, 512.0) * 1.0123
    cos, sin = rope.cos_sin(
        FAR_POSITIONS,
        ours(factors),
        attention_factor=1.25,
        n_hat=n_hat,
        unscaled_frequencies=rope.inv_freq(THETA, DIM),
    )
    np.testing.assert_allclose(cos, exact_table(mpmath.cos, factors, n_hat, 1.25), atol=2e-9, rtol=0)
    np.testing.assert_allclose(sin, exact_table(mpmath.sin, factors, n_hat, 1.25), atol=2e-9, rtol=0)


def test_start_tokens_are_those_before_n_hat() -> None:
    frequencies, unscaled = ours(rope.pi_factors(DIM, SCALE)), rope.inv_freq(THETA, DIM)
    cos, sin = rope.cos_sin(range(8), frequencies, n_hat=4, unscaled_frequencies=unscaled)
    start, rest = rope.cos_sin(range(4), unscaled), rope.cos_sin(range(4, 8), frequencies)
    assert np.array_equal(cos, np.concatenate((start[0], rest[0])))
    assert np.array_equal(sin, np.concatenate((start[1], rest[1])))


def test_n_hat_without_unscaled_frequencies_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="unscaled"):
        rope.cos_sin(range(8), ours(rope.pi_factors(DIM, SCALE)), n_hat=4)


# -- wrong use


@pytest.mark.parametrize("dim", [0, -2, 7])
def test_an_odd_rotary_dim_is_refused(dim: int) -> None:
    with pytest.raises(InputError, match=f"expected an even number above 0, got {dim}"):
        rope.inv_freq(THETA, dim)


def test_another_number_of_factors_is_refused() -> None:
    with pytest.raises(InputError, match="expected 64 factors for rotary_dim 128, got 63"):
        rope.inv_freq(THETA, DIM, [1.0] * 63)
