"""The RoPE that a model comes with, as rescale factors in closed form: what an extension starts from.

    config.json ──base_rope──► BaseRope: θ, d, window, factors of a short and a long sequence, attention factor

    rope_type      λ_i                                                       attention factor
    default        1                                                         1
    linear         s                                                         1
    dynamic        1 up to the window; α^(2i/(d-2)) where `alpha` is given   1
    llama3         1 for short wavelengths, s for long ones, a mixture of    1
                   the frequencies between (Llama 3.1, arXiv 2407.21783)
    yarn           NTK by parts (arXiv 2309.00071)                           given, or of s, mscale, mscale_all_dim
    longrope, su   the lists of the file; the short one alone where that     given, or sqrt(1 + ln s / ln L0)
                   serves the whole window (MiniCPM3)
    proportional   1 for the rotated pairs, 1e30 for those that are not      1

Everything is float64: factors taken from a built model's float32 frequencies cost 1.3e-2 in the logits of Llama 3.2 at
position 129,350, the closed form 4e-5. The formulas are those of transformers' `modeling_rope_utils`; tests compare both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np

from longrope import rope
from longrope.errors import FactorError, InputError, UnsupportedError
from longrope.reading import POSITIVE, check, kind_of, printable, shown

# A pair that is not rotated: its angle stays 0 at every position that a float32 can hold.
NOT_ROTATED = 1e30
DEFAULT_THETA = 10_000.0
LONGROPE = ("longrope", "su")
Factors = tuple[float, ...]


@dataclass(frozen=True)
class BaseRope:
    """A model's own rotary embedding.

    Args:
        rope_type: as in config.json, `default` where it says nothing.
        rope_theta: base θ of the rotary frequencies.
        rotary_dim: d, dimensions of a head that are rotated.
        window: L in tokens, the window that the model was released with.
        pretraining_window: tokens it was trained on before its publisher rescaled it; `window` where nothing was.
        short_factor: [d/2] factors of sequences up to `pretraining_window` (rope_type longrope), else as `long_factor`.
        long_factor: [d/2] factors of sequences up to `window`.
        attention_factor: what cos and sin are multiplied by.
    """

    rope_type: str
    rope_theta: float
    rotary_dim: int
    window: int
    pretraining_window: int
    short_factor: Factors
    long_factor: Factors
    attention_factor: float = 1.0

    @property
    def is_plain(self) -> bool:
        """Whether nothing is rescaled."""
        return set(self.long_factor) | set(self.short_factor) == {1.0} and self.attention_factor == 1.0

    @property
    def is_longrope(self) -> bool:
        """Whether its factors are a list in config.json, as an extension leaves them behind."""
        return self.rope_type in LONGROPE

    @property
    def before(self) -> int:
        """Tokens of the window that the publisher rescaled; `window` where nothing was, or where nothing says it."""
        if self.rope_type != "linear":
            return self.pretraining_window
        return round(self.window / self.long_factor[0])

    @property
    def switch(self) -> int:
        """Tokens up to which the short set is used; `window` where there is one set."""
        return self.pretraining_window if self.is_longrope else self.window

    def __str__(self) -> str:
        """For a person: `llama3, factors 1 … 8 (trained at 8192, released with 131072 tokens), attention factor 1`."""
        if self.is_plain:
            if self.rope_type != "default":
                return f"{self.rope_type}, which is plain RoPE up to its window of {self.window} tokens"
            return f"plain RoPE, window {self.window} tokens"
        rotated = [factor for factor in self.long_factor if factor < NOT_ROTATED]
        trained = f"trained at {self.pretraining_window}, " if self.pretraining_window != self.window else ""
        rest = len(self.long_factor) - len(rotated)
        return (
            f"{self.rope_type}, factors {min(rotated):.6g} … {max(rotated):.6g} ({trained}released with {self.window} tokens"
            f"{f', {rest} pairs are not rotated' if rest else ''}), attention factor {self.attention_factor:.6g}"
        )

    def equals(self, other: BaseRope) -> bool:
        """Whether both rotate alike, up to the last digits."""
        mine, theirs = (
            (each.rope_theta, each.attention_factor, *each.short_factor, *each.long_factor) for each in (self, other)
        )
        return len(mine) == len(theirs) and all(map(partial(math.isclose, rel_tol=1e-6), mine, theirs))

    def can_start(self, other: BaseRope) -> bool:
        """Whether a model of this RoPE may be extended from `other`: itself, from a window that it reaches, or the plain one
        before its publisher's rescaling (`Checkpoint.from_original`)."""
        if other.equals(self):
            return other.window <= self.window
        return other.equals(plain_rope(self.rope_theta, self.rotary_dim, self.before)) and other.window == self.before

    @staticmethod
    def from_json(data: Any, source: str) -> BaseRope:
        """What `dataclasses.asdict` made, parsed. Raises InputError."""
        check(data, kind_of(BaseRope), f"{source}: base")
        if unknown := sorted(set(data) - {field.name for field in fields(BaseRope)}):
            raise InputError(f"{source}: base: unknown field {printable(unknown[0])}")
        sets = {name: tuple(map(float, data[name])) for name in ("short_factor", "long_factor")}
        return BaseRope(**{**data, **sets})


def base_rope(config: Mapping[str, Any], parameters: Mapping[str, Any], *, rotary_dim: int, window: int) -> BaseRope:
    """The RoPE of a configuration.

    Args:
        config: parsed config.json of the text model.
        parameters: its rotary parameters: `rope_scaling` and `rope_parameters` merged, of the layers that see everything.
        rotary_dim: d.
        window: L in tokens, max_position_embeddings.

    Raises:
        InputError: a parameter is missing, of another type or out of range; names it.
        UnsupportedError: a rope_type that has no closed form here.
    """
    kind = parameters.get("rope_type", parameters.get("type")) or "default"
    if not isinstance(kind, str):
        raise InputError(f"config.json: rope_type: expected a name, got {kind!r}")
    reader = _Parameters(config, parameters, rotary_dim, window)
    if kind not in _KINDS:
        raise UnsupportedError(f"rope_type {kind!r}: expected one of {', '.join(_KINDS)}")
    short, long, attention = _KINDS[kind](reader)
    pretraining = reader.pretraining_window if kind in ("llama3", "yarn", *LONGROPE) else window
    return BaseRope(kind, reader.theta, rotary_dim, window, pretraining, short, long, attention)


@dataclass(frozen=True)
class _Parameters:
    """Rotary parameters, each checked where it is read."""

    config: Mapping[str, Any]
    values: Mapping[str, Any]
    rotary_dim: int
    window: int

    @property
    def num_pairs(self) -> int:
        return self.rotary_dim // 2

    @property
    def theta(self) -> float:
        given = self.values.get("rope_theta", self.config.get("rope_theta"))
        return DEFAULT_THETA if given is None else _positive("rope_theta", given)

    @property
    def pretraining_window(self) -> int:
        """The top-level value wins over the nested one, as in transformers."""
        name = "original_max_position_embeddings"
        given = self.config.get(name) or self.values.get(name) or self.window
        if not isinstance(given, int) or isinstance(given, bool) or given < 1:
            raise InputError(f"config.json: {name}: expected a whole number of tokens above 0, got {given!r}")
        return given

    def number(self, name: str, default: float | None = None) -> float:
        given = self.values.get(name)
        if given is None and default is None:
            raise InputError(f"config.json: the rotary parameters have no {name}, which their rope_type needs")
        return float(default or 0.0) if given is None else _positive(name, given)

    def factor(self) -> float:
        """s; where it is missing, the ratio of the released window to the one before."""
        return self.number("factor", self.window / self.pretraining_window)

    def numbers(self, name: str) -> Factors:
        given = self.values.get(name)
        if not isinstance(given, list | tuple) or len(given) != self.num_pairs:
            found = f"{len(given)}" if isinstance(given, list | tuple) else repr(given)
            raise FactorError(
                f"config.json: {name}: expected {self.num_pairs} numbers, got {found}; these factors belong to another model"
            )
        return tuple(_positive(f"{name}[{index}]", value) for index, value in enumerate(given))


Sets = tuple[Factors, Factors, float]


def _same(factors: rope.Float64, attention_factor: float = 1.0) -> Sets:
    values = tuple(factors.tolist())
    return values, values, attention_factor


def _default(given: _Parameters) -> Sets:
    return _same(np.ones(given.num_pairs))


def _linear(given: _Parameters) -> Sets:
    return _same(np.full(given.num_pairs, given.number("factor")))


def _dynamic(given: _Parameters) -> Sets:
    """Up to the window nothing is rescaled, unless a fixed `alpha` stretches θ to θ α^(d/(d-2)) (Hunyuan)."""
    if given.values.get("alpha") is None:
        return _default(given)
    return _same(rope.ntk_factors(given.rotary_dim, given.number("alpha")))


def _llama3(given: _Parameters) -> Sets:
    scale, low, high = (given.number(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    if not low < high:
        raise InputError(f"config.json: low_freq_factor {low:g}: expected less than high_freq_factor {high:g}")
    turns = given.pretraining_window * rope.inv_freq(given.theta, given.rotary_dim) / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)  # part of the original frequency that stays
    return _same(1.0 / ((1.0 - kept) / scale + kept))


def _yarn(given: _Parameters) -> Sets:
    scale = given.factor()
    factors = rope.yarn_factors(
        given.rotary_dim,
        scale,
        rope_theta=given.theta,
        original=given.pretraining_window,
        beta_fast=given.number("beta_fast", 32.0),
        beta_slow=given.number("beta_slow", 1.0),
        truncate=given.values.get("truncate", True) is not False,
    )
    return _same(factors, _yarn_attention(given, scale))


def _yarn_attention(given: _Parameters, scale: float) -> float:
    """Given, or 0.1 ln s + 1, or the quotient of both mscales' (DeepSeek)."""
    if given.values.get("attention_factor") is not None:
        return given.number("attention_factor")
    above, below = (given.values.get(name) for name in ("mscale", "mscale_all_dim"))
    if above and below:
        above, below = given.number("mscale"), given.number("mscale_all_dim")
        return rope.yarn_attention_factor(scale, above) / rope.yarn_attention_factor(scale, below)
    return rope.yarn_attention_factor(scale)


def _longrope(given: _Parameters) -> Sets:
    attention = given.values.get("attention_factor")
    formula = rope.attention_factor_formula(given.factor(), given.pretraining_window)
    factor = formula if attention is None else given.number("attention_factor")
    short, long = given.numbers("short_factor"), given.numbers("long_factor")
    return short, long if given.window > given.pretraining_window else short, factor


def _proportional(given: _Parameters) -> Sets:
    """Gemma 4: the angles of the first pairs are those of the whole head, the others are not rotated."""
    rotated = int(given.number("partial_rotary_factor", 1.0) * given.rotary_dim // 2)
    factors = np.full(given.num_pairs, NOT_ROTATED)
    factors[:rotated] = given.number("factor", 1.0)
    return _same(factors)


_KINDS = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,
    "proportional": _proportional,
}


def plain_rope(rope_theta: float, rotary_dim: int, window: int) -> BaseRope:
    """RoPE as it was published: nothing is rescaled."""
    ones = (1.0,) * (rotary_dim // 2)
    return BaseRope("default", rope_theta, rotary_dim, window, window, ones, ones)


def _positive(name: str, value: object) -> float:
    if not POSITIVE.fits(value):
        raise InputError(f"config.json: {name}: expected {POSITIVE.words}, got {shown(value)}")
    return float(value)  # type: ignore[arg-type]
