"""What strategies and evaluators exchange: candidates, trials and their outcomes. No torch here.

strategy ──ask──► Trial(candidate, windows) ──► one Job per window ──► Measurement ──► Outcome ──tell──► strategy
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from longrope.factors import BoundFactors, FactorSet
from longrope.family import RopeFamily

Float64 = NDArray[np.float64]

# A gradient costs a forward and a backward pass, and a backward pass as much as two forwards.
GRADIENT_FORWARDS = 3


@dataclass(frozen=True)
class Candidate:
    """One point of the search: the genome.

    Args:
        factors: [d/2] rescale factors, final ones (for a second interpolation: base times multiplier).
        n_hat: start tokens that are not rescaled.
        attention_factor: what cos and sin are multiplied by; None for the search space's own.
        family: parameters that the factors follow from; None for free ones.
    """

    factors: tuple[float, ...]
    n_hat: int = 0
    attention_factor: float | None = None
    family: RopeFamily | None = None

    @classmethod
    def of(cls, factors: BoundFactors, name: FactorSet) -> Candidate:
        """One set of bound factors; the way back is `SearchSpace.to_factors`."""
        return cls(factors.set(name), factors.n_hat, factors.effective_attention_factor, factors.family)

    def to_json(self) -> dict[str, Any]:
        data = {"factors": list(self.factors), "n_hat": self.n_hat, "attention_factor": self.attention_factor}
        return data if self.family is None else {**data, "family": self.family.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Candidate:
        family = RopeFamily.from_json(data["family"]) if data.get("family") else None
        return cls(tuple(data["factors"]), data["n_hat"], data["attention_factor"], family)


@dataclass(frozen=True)
class Job:
    """The unit of work, of the cache and of the journal: one candidate on one window."""

    candidate: Candidate
    window: int
    gradient: bool = False


@dataclass(frozen=True)
class Measurement:
    """What one job found.

    Args:
        nll: mean negative log-likelihood of the window's counted tokens, nats; infinite when the job failed.
        tokens: tokens forwarded; a gradient counts as three forwards.
        gradient: [d/2 + 1] derivative of `nll` by ln factor[i] and, last, by ln attention_factor; None if not asked for, if
            there is no memory for it, and where the job failed.
        seconds: wall time of the measurement.
    """

    nll: float
    tokens: int
    gradient: tuple[float, ...] | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Trial:
    """What a strategy asks for: a candidate on some windows, with gradients if wanted.

    Args:
        candidate: the genome.
        windows: indices into the objective's windows.
        label: where the candidate comes from, e.g. `NTK`, `mutation`.
        gradient: ask for derivatives too.
        known: a known method or given factors, as they are: a seed.
    """

    candidate: Candidate
    windows: tuple[int, ...]
    label: str
    gradient: bool = False
    known: bool = False

    @property
    def jobs(self) -> list[Job]:
        return [Job(self.candidate, window, self.gradient) for window in self.windows]


@dataclass(frozen=True)
class Outcome:
    """What a strategy receives.

    Args:
        trial: what was asked.
        loss: the objective over the trial's windows: what is minimised, nats per token.
        losses: mean NLL of each of the trial's windows.
        gradient: [d/2 + 1] derivative of `loss` (see `Measurement`); None if not asked for or not to be had.
        excess: nats above the cap on the short side; 0 without a cap.
    """

    trial: Trial
    loss: float
    losses: tuple[float, ...]
    gradient: Float64 | None = None
    excess: float = 0.0

    @property
    def rank(self) -> tuple[bool, float]:
        """As `Objective.rank`."""
        return self.excess > 0, self.loss

    @property
    def lost_gradient(self) -> bool:
        """Whether a derivative was asked for and did not fit into memory; the next one will not either."""
        return self.trial.gradient and self.gradient is None and math.isfinite(self.loss)

    @property
    def candidate(self) -> Candidate:
        return self.trial.candidate


Plan = Generator[Sequence[Trial], Sequence[Outcome], None]
"""A strategy written as a generator: it yields trials and is sent their outcomes, in the same order."""


class Strategy(Protocol):
    """The ask/tell interface. Given a seed and the same outcomes, it asks for the same trials."""

    def ask(self) -> Sequence[Trial]:
        """The next trials; none when the search is over."""
        ...

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """The outcomes of the last trials, in their order."""
        ...


class Planned:
    """A `Plan` as a `Strategy`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._next: Sequence[Trial] = next(plan, ())

    def ask(self) -> Sequence[Trial]:
        return self._next

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        try:
            self._next = self._plan.send(outcomes)
        except StopIteration:
            self._next = ()
