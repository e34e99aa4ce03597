"""What the scorer measures, as plain numbers: kept in validation.json, and judged without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Regime = Literal["short", "long", "crossing"]


@dataclass(frozen=True)
class TextScore:
    """One window of text: what a later validation is paired with.

    Args:
        tokens: that were predicted.
        nll_reference, nll: mean negative log-likelihood in nats per token, of the reference and of the artifact.
        kl_mean: KL(reference || artifact) in nats per token.
        top1_agreement: share of positions where both predict the same token.
    """

    tokens: int
    nll_reference: float
    nll: float
    kl_mean: float
    top1_agreement: float


@dataclass(frozen=True)
class WindowScore:
    """How an artifact compares with a reference on windows of one length.

    Names that end in `_low` and `_high` are ends of an interval of 95 %. A position is tied where the reference's two
    likeliest tokens lie closer together than twice the median over positions of the largest logit difference: there the
    likeliest token says nothing.

    Args:
        length: of the windows, in tokens.
        regime: the set that is measured, or the crossing of the original window.
        tokens: predicted ones, of all windows.
        ppl_reference, ppl: exp of the mean negative log-likelihood, weighted by tokens.
        ppl_delta_low, ppl_delta_high: of the change of perplexity in percent, paired by position.
        kl_mean, kl_median, kl_p99, kl_max: of KL(reference || artifact) over positions, in nats.
        top1_agreement: share of positions where both predict the same token.
        tied: positions that are tied.
        decided_agreements: of the others, those where both predict the same token.
        max_logit_diff: largest difference of any logit.
        logit_diff_mean, logit_diff_median, logit_diff_p99: of each position's largest difference.
        non_finite: whose logits hold NaN or infinity, and from where on; empty where all are finite.
        non_finite_positions: with NaN or infinity in either's logits.
        texts: the windows one by one.
    """

    length: int
    regime: Regime
    tokens: int
    ppl_reference: float
    ppl: float
    ppl_delta_low: float
    ppl_delta_high: float
    kl_mean: float
    kl_mean_low: float
    kl_median: float
    kl_median_low: float
    kl_p99: float
    kl_p99_low: float
    kl_max: float
    top1_agreement: float
    tied: int
    decided_agreements: int
    max_logit_diff: float
    logit_diff_mean: float
    logit_diff_median: float
    logit_diff_p99: float
    non_finite: str
    non_finite_positions: int
    texts: tuple[TextScore, ...]

    @property
    def ppl_delta_percent(self) -> float:
        return 100.0 * (self.ppl / self.ppl_reference - 1.0)


@dataclass(frozen=True)
class BeyondScore:
    """The extended model beside the same model under other RoPEs, on the same windows of one length.

    Args:
        length: of the windows, in tokens, more than the original window has.
        extended: mean NLL of each window in nats per token.
        methods: the same of others: `original`, `PI`, `NTK`, `YaRN`.
    """

    length: int
    extended: tuple[float, ...]
    methods: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class PasskeyScore:
    """Passkeys found at one length, the statement standing at other depths each time.

    Args:
        rope: `original` or `extended`.
        length: of the prompts, in tokens.
        samples: prompts.
        found: those whose whole answer is the likeliest, token by token.
    """

    rope: Literal["original", "extended"]
    length: int
    samples: int
    found: int


@dataclass(frozen=True)
class Quality:
    """What an extension costs inside the original window and brings beyond it.

    Args:
        inside: the extended model against the original one, by length; `ppl_reference` is the original's.
        beyond: against the original and published methods, by length.
        passkey: of the original inside its window, and of the extended model at every length.
        controls: `differs`: the extended model against the original beyond its window; `same`: against itself.
        left_out: what was not measured, by the name of its check without `quality.`, and why.
    """

    inside: tuple[WindowScore, ...] = ()
    beyond: tuple[BeyondScore, ...] = ()
    passkey: tuple[PasskeyScore, ...] = ()
    controls: Mapping[str, WindowScore] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
