"""The search space: bounds, grid, start-token counts, attention factor, and the known methods as points of it.

    multiplier μ ∈ [1, 1.25 s], non-decreasing, step 0.01        factors λ = base ⊙ μ

A candidate's factors and attention factor are products with the base: what the model computes with. The base is the RoPE
that the model comes with (`Checkpoint.base`: ones, or llama3, yarn, …), or the factors of a second interpolation; bounds,
grid and known methods are multipliers on it.
Source: LongRoPE (arXiv 2402.13753), section 4.2 and table 4; second interpolation: section 4.3 and the published files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from longrope import rope
from longrope.architectures import architecture_of
from longrope.base_rope import BaseRope
from longrope.checkpoint import Checkpoint, unscaled_factors
from longrope.errors import InputError
from longrope.factors import N_HAT_CHOICES, BoundFactors, RescaleFactors
from longrope.family import FamilyName, RopeFamily
from longrope.search.trial import Candidate, Float64

STEP = 0.01
UPPER_BOUND = 1.25
# YaRN's own ramp, in rotations within the original window.
YARN_BETAS = (32.0, 1.0)
# The ramp that costs least at the original window, and powers of its factors that cost less still.
MILD_BETAS, MILD_POWERS = (4.0, 0.25), (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class StartingPoint:
    """A named point to start from."""

    name: str
    candidate: Candidate


@dataclass(frozen=True)
class SearchSpace:
    """Where candidates come from.

    Args:
        unscaled: the model's original RoPE as factors for the target, from `unscaled_factors`.
        upper: largest multiplier, 1.25 s as in the paper.
        base: [d/2] factors that multipliers are put on; None for ones.
        base_length: tokens the base was made for; s = target / base_length.
        base_attention: the base's attention factor.
        n_hats: start-token counts to choose from; one number fixes it.
        attention_factor: None for the formula's, else the value candidates have (and start from, if searched).
        search_attention: whether strategies may move the attention factor.
        family: `free`, or what candidates' factors follow from: the parameters of `yarn`, or of `linear`.
        one_base: the parameters of a family keep the model's θ, for sliding layers are rotated by it, too.
    """

    unscaled: BoundFactors
    upper: float
    base: tuple[float, ...] | None = None
    base_length: int | None = None
    base_attention: float = 1.0
    n_hats: tuple[int, ...] = (0,)
    attention_factor: float | None = None
    search_attention: bool = False
    family: FamilyName = "free"
    one_base: bool = False

    @property
    def original(self) -> int:
        """L in tokens."""
        return self.unscaled.original

    @property
    def target(self) -> int:
        """L' in tokens."""
        return self.unscaled.target

    @property
    def pretraining_window(self) -> int:
        """Tokens that the model was trained on before its publisher rescaled it, where YaRN's 32 and 1 count rotations."""
        base = self.unscaled.base
        return self.original if base is None else base.pretraining_window

    @property
    def rope_theta(self) -> float:
        return self.unscaled.rope_theta

    @property
    def rotary_dim(self) -> int:
        return self.unscaled.rotary_dim

    @property
    def num_pairs(self) -> int:
        return self.unscaled.num_pairs

    @property
    def length_scale(self) -> float:
        """s of this search: target over the length the base already reaches."""
        return self.target / (self.base_length or self.original)

    @property
    def default_attention(self) -> float:
        """The attention factor of a candidate that does not say its own."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.family == "free":
            return self.unscaled.formula_attention_factor
        return rope.yarn_attention_factor(self.family_scale) if self.family == "yarn" else 1.0

    @property
    def family_scale(self) -> float:
        """s of the parameters of a family, which hold the base: from the window that the model was trained on first."""
        return self.length_scale * max(self.base or (1.0,))

    def candidate(
        self, multipliers: Float64, n_hat: int | None = None, attention_factor: float | None = None
    ) -> Candidate:
        """The candidate with these [d/2] multipliers; n_hat and attention factor are the space's own if not given."""
        rounded = np.round(multipliers, 6)
        factors = rounded if self.base is None else np.asarray(self.base) * rounded
        attention = self.attention_factor if attention_factor is None else attention_factor
        return Candidate(tuple(factors.tolist()), self.n_hats[0] if n_hat is None else n_hat, attention)

    def multipliers(self, candidate: Candidate) -> Float64:
        """[d/2] multipliers of a candidate: its factors over the base."""
        factors = np.asarray(candidate.factors)
        return factors if self.base is None else factors / np.asarray(self.base)

    def attention(self, candidate: Candidate) -> float:
        """The number a candidate's cos and sin are multiplied by."""
        return self.default_attention if candidate.attention_factor is None else candidate.attention_factor

    def on_grid(self, multipliers: Float64) -> Float64:
        """Multipliers rounded to the step, within bounds and non-decreasing."""
        rounded = np.round(np.round(multipliers / STEP) * STEP, 2)
        return np.maximum.accumulate(np.clip(rounded, 1.0, self.upper_on_grid))

    @property
    def upper_on_grid(self) -> float:
        """The largest multiplier that is a whole number of steps."""
        return round(math.floor(self.upper / STEP + 1e-9) * STEP, 2)

    def yarn(self, beta_fast: float, beta_slow: float) -> Candidate:
        """YaRN's factors with another ramp, untruncated: small heads have too few pairs for rounded ends."""
        return self.candidate(
            rope.yarn_factors(
                self.rotary_dim,
                self.length_scale,
                rope_theta=self.rope_theta,
                original=self.base_length or self.original,
                beta_fast=beta_fast,
                beta_slow=beta_slow,
                truncate=(beta_fast, beta_slow) == YARN_BETAS,
            )
        )

    def of_family(self, family: RopeFamily) -> Candidate:
        """The candidate with these parameters; a fixed attention factor of this space takes the place of YaRN's formula."""
        if family.type == "yarn" and self.attention_factor is not None and not self.search_attention:
            family = replace(family, attention_factor=self.attention_factor)
        factors = family.factors(self.rotary_dim, original=self.original, rope_theta=self.rope_theta)
        return Candidate(factors, 0, family.attention_factor, family)

    def known_methods(self) -> tuple[StartingPoint, ...]:
        """PI, NTK-aware and YaRN 32/1, the paper's three starting points; without YaRN in the linear family."""
        if self.family != "free":
            return self._known_of_family()
        return (
            StartingPoint("PI", self.candidate(rope.pi_factors(self.rotary_dim, self.length_scale))),
            StartingPoint("NTK", self.candidate(rope.ntk_factors(self.rotary_dim, self.length_scale))),
            StartingPoint("YaRN 32/1", self.yarn(*YARN_BETAS)),
        )

    def _known_of_family(self) -> tuple[StartingPoint, ...]:
        s, theta, d = self.family_scale, self.rope_theta, self.rotary_dim
        ntk = RopeFamily("linear", 1.0, theta * s ** (d / (d - 2))) if d > 2 else RopeFamily("linear", s, theta)
        fast, slow = (beta * self.original / self.pretraining_window for beta in YARN_BETAS)
        ramp = RopeFamily.yarn(s, theta, beta_fast=fast, beta_slow=slow)
        found = {"YaRN 32/1": ramp, "PI": RopeFamily("linear", s, theta), "NTK": ntk}
        if self.family == "linear":
            del found["YaRN 32/1"]
        if self.one_base:
            del found["NTK"]
        return tuple(StartingPoint(name, self.of_family(family)) for name, family in found.items())

    def mild_methods(self) -> Iterator[StartingPoint]:
        """Powers of a long YaRN ramp, from which a search with a cap at the original window can begin.

        Known methods rescale by s whatever that costs there. μ^p and, if it is searched, an attention factor up to half of
        the way (in logarithms) to the space's own lead up from what is there before the search, which keeps any cap.
        """
        ramp = self.multipliers(self.yarn(*MILD_BETAS))
        for power in MILD_POWERS:
            attention = None
            if self.search_attention:
                attention = self.base_attention ** (1 - power / 2) * self.default_attention ** (power / 2)
            yield StartingPoint(
                f"YaRN {MILD_BETAS[0]:g}/{MILD_BETAS[1]:g} ^ {power:g}", self.candidate(ramp**power, None, attention)
            )

    def adopt(self, factors: BoundFactors) -> Candidate:
        """The long set of given factors as a point here, with their n_hat and attention factor where those are searched.

        An attention factor that they leave to the formula is this space's own: the formula's value at its target.
        """
        return replace(
            Candidate.of(factors, "long"),
            n_hat=factors.n_hat if len(self.n_hats) > 1 else self.n_hats[0],
            attention_factor=factors.attention_factor if self.search_attention else self.attention_factor,
        )

    def to_factors(self, candidate: Candidate) -> BoundFactors:
        """The candidate as a single set for the target length; the way back is `Candidate.of`, or `adopt` into a space.

        An attention factor that the candidate leaves open is this space's: its fixed value, or open for the formula's.
        """
        attention = candidate.attention_factor
        return replace(
            self.unscaled,
            short_factor=candidate.factors,
            long_factor=candidate.factors,
            n_hat=candidate.n_hat,
            attention_factor=self.attention_factor if attention is None else attention,
            family=candidate.family,
        )


def make_space(
    checkpoint: Checkpoint,
    target: int,
    *,
    n_hat: int | str = 0,
    attention_factor: float | str = "formula",
    from_factors: RescaleFactors | None = None,
    family: FamilyName = "free",
) -> SearchSpace:
    """The space of a checkpoint and a target length.

    Args:
        checkpoint: gives L, theta and d.
        target: L' in tokens.
        n_hat: a fixed number of start tokens, or `search`.
        attention_factor: `formula`, `search`, or a fixed value: of the model, whatever its base has.
        from_factors: second interpolation: the factors of the extended model to put multipliers on.
        family: `free`, `yarn` or `linear`.

    Raises:
        InputError: the target is not longer than what is there, a value is out of range, or `from_factors` say no target.
        UnsupportedError: the model attends over fewer tokens than the target.
    """
    if family != "free":
        checkpoint.require_family(family)
    architecture_of({**checkpoint.config, "max_position_embeddings": target})  # refuses a shorter sliding window
    base = _start(checkpoint, target, from_factors)
    reached = base.window
    if target <= reached:
        raise InputError(f"expected a target length above {reached} tokens, which the model has already; got {target}")
    searched, unscaled = attention_factor == "search", unscaled_factors(checkpoint, target)
    if family == "yarn" and attention_factor == "formula" and not _by_formula(base):
        attention_factor = base.attention_factor
    return SearchSpace(
        unscaled=unscaled,
        upper=UPPER_BOUND * target / reached,
        base=None if set(base.long_factor) == {1.0} else base.long_factor,
        base_length=reached,
        base_attention=base.attention_factor,
        n_hats=_n_hats(n_hat, target),
        attention_factor=unscaled.formula_attention_factor if searched else _attention(attention_factor),
        search_attention=searched,
        family=family,
        one_base=checkpoint.architecture.one_base,
    )


def _start(checkpoint: Checkpoint, target: int, from_factors: RescaleFactors | None) -> BaseRope:
    """What multipliers are put on: given factors, or the RoPE that the model comes with."""
    if from_factors is None:
        return checkpoint.base
    given = checkpoint.bind(from_factors)
    return replace(
        checkpoint.base_for(target),
        window=given.target,
        long_factor=given.long_factor,
        attention_factor=given.effective_attention_factor,
    )


def _by_formula(base: BaseRope) -> bool:
    """Whether a RoPE has YaRN's attention factor, 0.1 ln s + 1; DeepSeek's and Ministral's have 1 at any scale."""
    return math.isclose(base.attention_factor, rope.yarn_attention_factor(max(base.long_factor)), rel_tol=1e-3)


def _n_hats(n_hat: int | str, target: int) -> tuple[int, ...]:
    if n_hat == "search":
        return tuple(choice for choice in N_HAT_CHOICES if choice < target)
    if not isinstance(n_hat, int) or not 0 <= n_hat < target:
        raise InputError(f"n_hat: expected `search` or a number of start tokens below {target}, got {n_hat!r}")
    return (n_hat,)


def _attention(value: float | str) -> float | None:
    if value == "formula":
        return None
    if isinstance(value, str) or not 0.1 <= value <= 10:
        raise InputError(f"attention factor: expected `formula`, `search` or a number from 0.1 to 10, got {value!r}")
    return float(value)
