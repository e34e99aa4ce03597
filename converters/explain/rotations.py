"""Ways to get the rotary embedding wrong, as tables that the reference can be given: each names its cause."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from longrope import rope
from longrope.factors import BoundFactors, FactorSet, RescaleFactors

Float64 = NDArray[np.float64]
# Bases that models come with, and the default that a reader takes where it finds none.
THETAS = (10_000.0, 100_000.0, 500_000.0, 1_000_000.0)
# Factors that stale keys of linear scaling have.
LINEAR = (2.0, 4.0, 8.0)
Order = Literal["kept", "apart", "together"]


@dataclass(frozen=True, eq=False)
class Rotation:
    """What rotates q and k.

    Args:
        inv_freq: [d/2] radians per position.
        attention_factor: what cos and sin are multiplied by.
        n_hat: start tokens that are not rescaled.
        order: of the rows of each head of q and k: kept, every second one first (`apart`), or the halves interleaved
            (`together`).
    """

    inv_freq: Float64
    attention_factor: float
    n_hat: int = 0
    order: Order = "kept"

    @classmethod
    def of(cls, factors: BoundFactors, name: FactorSet) -> Rotation:
        """That of one set."""
        inv_freq = rope.inv_freq(factors.rope_theta, factors.rotary_dim, factors.set(name))
        return cls(inv_freq, factors.effective_attention_factor, factors.n_hat)

    def same_as(self, other: Rotation) -> bool:
        return np.array_equal(self.inv_freq, other.inv_freq) and (self.attention_factor, self.n_hat, self.order) == (
            other.attention_factor,
            other.n_hat,
            other.order,
        )

    def scaled(self, by: float) -> Rotation:
        """Every frequency times a number."""
        return dataclasses.replace(self, inv_freq=self.inv_freq * by)

    def with_attention(self, factor: float) -> Rotation:
        return dataclasses.replace(self, attention_factor=factor)


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """One thing that may be wrong.

    Args:
        cause: a key of `converters.explain.causes.CAUSES`.
        change: in words.
        rotation: what the artifact would then compute with.
    """

    cause: str
    change: str
    rotation: Rotation


def with_theta(right: Rotation, factors: BoundFactors, theta: float) -> Rotation:
    """A rotation's factors on another base."""
    pairs = np.arange(0, factors.rotary_dim, 2) / factors.rotary_dim
    return dataclasses.replace(right, inv_freq=right.inv_freq * (theta / factors.rope_theta) ** -pairs)


def hypotheses(factors: BoundFactors, name: FactorSet, stored: RescaleFactors | None) -> list[Hypothesis]:
    """What a window may be computed with in place of one set, likelier readings of the same numbers first.

    Args:
        factors: that the artifact must carry.
        name: the set that is right for the window.
        stored: what the artifact says it carries.
    """
    right = Rotation.of(factors, name)
    found: list[Hypothesis] = []
    for each in _all(right, factors, name, stored):
        known = [right, *(other.rotation for other in found)]
        if np.isfinite(each.rotation.inv_freq).all() and not any(each.rotation.same_as(other) for other in known):
            found.append(each)
    return found


def _all(
    right: Rotation, factors: BoundFactors, name: FactorSet, stored: RescaleFactors | None
) -> Iterator[Hypothesis]:
    other: FactorSet = "short" if name == "long" else "long"
    yield Hypothesis("rope.switch", f"the {other} set", Rotation.of(factors, other))
    yield from _unscaled(right, factors)
    yield from _attention(right, factors, stored)
    yield from _thetas(right, factors, stored)
    if factors.n_hat:
        for n_hat in (0, factors.n_hat - 1, factors.n_hat + 1):
            rotation = dataclasses.replace(right, n_hat=n_hat)
            yield Hypothesis("rope.n_hat", f"n_hat {n_hat} in place of {factors.n_hat}", rotation)
    yield from _layouts(right, factors)
    yield from _other_factors(right, factors, name)
    yield from _other_methods(right, factors)
    yield from _coarse(right, factors)
    if stored is not None and stored.num_pairs == factors.num_pairs:
        for each in (name, other):
            inv_freq = rope.inv_freq(stored.rope_theta or factors.rope_theta, factors.rotary_dim, stored.set(each))
            yield Hypothesis(
                "rope.factors",
                f"the {each} set as the artifact holds it",
                dataclasses.replace(right, inv_freq=inv_freq),
            )


def _unscaled(right: Rotation, factors: BoundFactors) -> Iterator[Hypothesis]:
    plain = rope.inv_freq(factors.rope_theta, factors.rotary_dim)
    yield Hypothesis("rope.plain", "RoPE without factors", Rotation(plain, 1.0))
    yield Hypothesis(
        "rope.plain", "RoPE without factors, with the attention factor", Rotation(plain, right.attention_factor)
    )
    if factors.base is not None:
        own = rope.inv_freq(factors.rope_theta, factors.rotary_dim, factors.base_factors)
        for attention in (factors.base.attention_factor, right.attention_factor):
            yield Hypothesis("rope.plain", "the RoPE that the model came with", Rotation(own, attention))


def _attention(right: Rotation, factors: BoundFactors, stored: RescaleFactors | None) -> Iterator[Hypothesis]:
    own = right.attention_factor
    numbers = {
        "1": 1.0,
        "squared": own**2,
        "its root": own**0.5,
        "its inverse": 1.0 / own,
        "the formula's": factors.formula_attention_factor,
        "the formula of the whole scale": factors.runtime_formula or own,
        "YaRN's": rope.yarn_attention_factor(factors.length_scale),
        "times YaRN's": own * rope.yarn_attention_factor(factors.length_scale),
        "the artifact's": (stored and stored.attention_factor) or own,
    }
    for words, number in numbers.items():
        change = f"attention factor {words} ({number:.6g} in place of {own:.6g})"
        yield Hypothesis("rope.attention_factor", change, right.with_attention(number))


def _thetas(right: Rotation, factors: BoundFactors, stored: RescaleFactors | None) -> Iterator[Hypothesis]:
    for theta in (*THETAS, (stored and stored.rope_theta) or factors.rope_theta):
        change = f"theta {theta:g} in place of {factors.rope_theta:g}"
        yield Hypothesis("rope.theta", change, with_theta(right, factors, theta))


def _layouts(right: Rotation, factors: BoundFactors) -> Iterator[Hypothesis]:
    orders: tuple[tuple[Order, str], ...] = (
        ("apart", "rows of q and k not interleaved, or pairs of neighbours rotated in place of halves"),
        ("together", "rows of q and k interleaved once too often"),
    )
    for order, words in orders:
        yield Hypothesis("rope.layout", words, dataclasses.replace(right, order=order))
    half = factors.num_pairs // 2
    if half:
        fewer = np.zeros(factors.num_pairs)
        slower = rope.inv_freq(factors.rope_theta, 2 * half)
        fewer[:half] = slower * right.inv_freq[:half] / rope.inv_freq(factors.rope_theta, factors.rotary_dim)[:half]
        words = "half of the pairs rotated"
        yield Hypothesis("rope.dimensions", words, dataclasses.replace(right, inv_freq=fewer))


def _other_factors(right: Rotation, factors: BoundFactors, name: FactorSet) -> Iterator[Hypothesis]:
    own = np.asarray(factors.set(name))
    changed = {
        "in reverse": own[::-1],
        "one pair too far": np.concatenate((own[:1], own[:-1])),
        "one pair too early": np.concatenate((own[1:], own[-1:])),
        "inverted": 1.0 / own,
        "applied twice": own**2,
        "rounded to whole numbers": np.maximum(own.round(), 1.0),
    }
    for words, values in changed.items():
        inv_freq = rope.inv_freq(factors.rope_theta, factors.rotary_dim, values)
        yield Hypothesis("rope.factors", f"the {name} set {words}", dataclasses.replace(right, inv_freq=inv_freq))


def _other_methods(right: Rotation, factors: BoundFactors) -> Iterator[Hypothesis]:
    scale, dim, theta = factors.length_scale, factors.rotary_dim, factors.rope_theta
    methods = {
        "position interpolation (linear)": (rope.pi_factors(dim, scale), 1.0),
        "NTK-aware scaling": (rope.ntk_factors(dim, scale), 1.0),
        "YaRN": (
            rope.yarn_factors(dim, scale, rope_theta=theta, original=factors.original),
            rope.yarn_attention_factor(scale),
        ),
    }
    for words, (values, attention) in methods.items():
        for number in (attention, right.attention_factor):
            rotation = Rotation(rope.inv_freq(theta, dim, values), number)
            yield Hypothesis("rope.factors", f"{words} in place of the factors", rotation)
    for by in dict.fromkeys((*LINEAR, scale)):
        yield Hypothesis("rope.factors", f"linear scaling by {by:g} on top of the factors", right.scaled(1.0 / by))


def _coarse(right: Rotation, factors: BoundFactors) -> Iterator[Hypothesis]:
    plain = rope.inv_freq(factors.rope_theta, factors.rotary_dim)
    for words, rounded in (("bfloat16", _bfloat16), ("float16", _float16)):
        before = dataclasses.replace(right, inv_freq=rounded(plain) * (right.inv_freq / plain))
        yield Hypothesis("rope.precision", f"frequencies rounded to {words} before they are rescaled", before)
        after = dataclasses.replace(right, inv_freq=rounded(right.inv_freq))
        yield Hypothesis("rope.precision", f"frequencies rounded to {words}", after)


def _bfloat16(values: Float64) -> Float64:
    """Rounded to the nearest bfloat16."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)


def _float16(values: Float64) -> Float64:
    return values.astype(np.float16).astype(np.float64)
