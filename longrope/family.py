"""Rescalings that engines compute from a few parameters: YaRN, and linear interpolation on a changed base.

    type     factor of pair i, relative to the model's own θ                    cos and sin
    linear   (θ'/θ)^(2i/d) · s                                                  × 1
    yarn     (θ'/θ)^(2i/d) · NTK by parts of θ' (`rope.yarn_factors`)           × attention_factor

θ' is the base that the engine is given; NTK-aware scaling is `linear` with s = 1 and θ' = θ s^(d/(d-2)). YaRN's ramp is the
same in every engine only where three things hold, and the search keeps to them: its ends are rounded to whole pairs
(llama.cpp always does), they are in order, and beta_fast = 32 beta_slow (most architectures of llama.cpp read neither; the
ramp is moved by the original window instead, see `converters.gguf.factors`).

Sources: PI (arXiv 2306.15595), NTK-aware (bloc97, 2023), YaRN (arXiv 2309.00071).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from longrope import rope
from longrope.errors import FactorError
from longrope.reading import POSITIVE, printable, shown

FamilyName = Literal["free", "yarn", "linear"]
# YaRN's own betas, and the only quotient of both that llama.cpp computes everywhere.
BETA_FAST, BETA_SLOW = 32.0, 1.0
# Largest relative difference of factors from those of their parameters.
CLOSED_FORM = 1e-6
_FIELDS = {
    "linear": ("factor", "rope_theta"),
    "yarn": ("factor", "rope_theta", "beta_fast", "beta_slow", "truncate", "attention_factor"),
}


@dataclass(frozen=True)
class RopeFamily:
    """The parameters that some factors follow from.

    Args:
        type: the engines' rope_type.
        factor: s, what the slowest pairs are slowed by.
        rope_theta: θ', the base that engines are given with these parameters; the factors are relative to the model's θ.
        attention_factor: what cos and sin are multiplied by; 1 for `linear`.
        beta_fast: rotations in L from which a pair keeps its frequency (yarn).
        beta_slow: rotations in L up to which a pair is interpolated in full (yarn).
        truncate: the ends of the ramp are whole pairs (yarn).

    Raises:
        FactorError: a value is out of range.
    """

    type: Literal["yarn", "linear"]
    factor: float
    rope_theta: float
    attention_factor: float = 1.0
    beta_fast: float = BETA_FAST
    beta_slow: float = BETA_SLOW
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.type not in _FIELDS:
            raise FactorError(f"family: type: expected one of {', '.join(_FIELDS)}, got {self.type!r}")
        least = {"factor": 1.0, "rope_theta": 1.0, "attention_factor": 0.0, "beta_fast": 0.0, "beta_slow": 0.0}
        for name, bound in least.items():
            value = getattr(self, name)
            if not POSITIVE.fits(value) or value < bound:
                raise FactorError(f"family: {name}: expected a finite number of {bound:g} or more, got {shown(value)}")
        if not self.beta_slow < self.beta_fast:
            raise FactorError(f"family: expected beta_fast {self.beta_fast:g} above beta_slow {self.beta_slow:g}")
        if not isinstance(self.truncate, bool):
            raise FactorError(f"family: truncate: expected true or false, got {shown(self.truncate)}")
        if self.type == "linear" and self.attention_factor != 1.0:
            raise FactorError("family: linear interpolation has no attention factor; expected 1")

    @classmethod
    def yarn(
        cls,
        factor: float,
        rope_theta: float,
        *,
        beta_fast: float = BETA_FAST,
        beta_slow: float = BETA_SLOW,
        attention_factor: float | None = None,
    ) -> Self:
        """YaRN's parameters; the attention factor is 0.1 ln s + 1 where none is given, which every engine computes."""
        attention = rope.yarn_attention_factor(factor) if attention_factor is None else attention_factor
        return cls("yarn", factor, rope_theta, attention, beta_fast, beta_slow)

    @property
    def formula_attention_factor(self) -> float:
        """What engines compute when none is given: 0.1 ln s + 1, or 1 for linear interpolation."""
        return rope.yarn_attention_factor(self.factor) if self.type == "yarn" else 1.0

    def factors(self, rotary_dim: int, *, original: int, rope_theta: float) -> tuple[float, ...]:
        """[d/2] rescale factors on the model's own θ, for YaRN with L = `original`."""
        base = (self.rope_theta / rope_theta) ** (np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
        if self.type == "linear":
            return tuple((base * self.factor).tolist())
        ramp = rope.yarn_factors(
            rotary_dim,
            self.factor,
            rope_theta=self.rope_theta,
            original=original,
            beta_fast=self.beta_fast,
            beta_slow=self.beta_slow,
            truncate=self.truncate,
        )
        return tuple((base * ramp).tolist())

    def check(self, factors: tuple[float, ...], rotary_dim: int, *, original: int, rope_theta: float) -> None:
        """Raise FactorError unless the factors follow from these parameters."""
        expected = np.array(self.factors(rotary_dim, original=original, rope_theta=rope_theta))
        worst = float(np.max(np.abs(np.array(factors) / expected - 1.0)))
        if not worst <= CLOSED_FORM:
            raise FactorError(
                f"the factors do not follow from their {self.type} parameters: they differ by up to {worst:.1e}, relatively"
            )

    def to_json(self) -> dict[str, Any]:
        """The type and the parameters that it has."""
        return {"type": self.type, **{name: getattr(self, name) for name in _FIELDS[self.type]}}

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Build from a parsed object. Raises FactorError: unknown, missing or invalid parameters."""
        kind = data.get("type") if isinstance(data, Mapping) else None
        if not isinstance(kind, str) or kind not in _FIELDS:
            raise FactorError(
                f"family: expected an object whose type is one of {', '.join(_FIELDS)}, got {shown(data)}"
            )
        given = set(data) - {"type"}
        if odd := sorted(given ^ set(_FIELDS[kind])):
            what = "unknown" if odd[0] in given else "missing"
            raise FactorError(f"family: {what} parameter {printable(odd[0])}; expected {', '.join(_FIELDS[kind])}")
        return cls(**data)

    def __str__(self) -> str:
        shown = ", ".join(
            f"{name} {value:.6g}" for name, value in self.to_json().items() if name not in ("type", "truncate")
        )
        return f"{self.type} ({shown})"
