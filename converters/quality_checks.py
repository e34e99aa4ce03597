"""Checks of what an extension costs and brings, from what was measured and from a policy. Pure, and without torch.

    inside     paired by window ──ppl_rise_percent, kl_mean──► quality.inside.LENGTH
    beyond     paired by window ──ppl_rise_percent───────────► quality.beyond.METHOD.LENGTH
    passkey    counts ───────────passkey_drop────────────────► quality.passkey.LENGTH
    controls   ──────────────────────────────────────────────► quality.control.differs, …same, …reference

A limit is broken where the whole interval of 95 % lies beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.base import Check
from converters.policy import Compared, Policy
from longrope.intervals import mean_interval, standard_error, wilson
from longrope.measures import BeyondScore, PasskeyScore, Quality, WindowScore
from longrope.metrics import mean_perplexity, perplexity

Judged = Iterator[tuple[Check, bool]]
# Of mean NLLs of one window, in nats: what float32 angles in place of float64 ones may change.
_SAME_NLL = 1e-3
_ONE_WINDOW = "one window does not tell a difference from noise; measure more of them"


def quality_checks(quality: Quality, windows: Sequence[WindowScore], policy: Policy) -> Judged:
    """Every check, and whether what it is about is finite.

    Args:
        quality: what was measured of the extension.
        windows: an artifact against the reference, which the extended model has to be.
        policy: limits.
    """
    for score in quality.inside:
        yield _inside(score, _limits(policy, "inside", score.regime))
    for beyond in quality.beyond:
        for method in beyond.methods:
            yield _beyond(beyond, method, _limits(policy, "beyond", "long"))
    yield from _passkeys(quality.passkey, policy)
    if quality.controls:
        yield from _controls(quality.controls["differs"], quality.controls["same"])
    if (check := _reference(quality.beyond, windows)) is not None:
        yield check, True
    for name, reason in quality.left_out.items():
        yield Check(f"quality.{name}", "skip", message=reason), True


def _limits(policy: Policy, compare: Compared, regime: str) -> dict[str, float]:
    return policy.limits_for(compare, "", "", regime)


@dataclass(frozen=True)
class Rise:
    """How far one perplexity is above another on the same windows, in percent.

    Args:
        percent: of the means.
        error: its standard error; NaN of one window.
        low, high: the ends of its interval; infinite of one window.
    """

    percent: float
    error: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Sequence[float], other: Sequence[float]) -> Rise:
        """Of mean NLLs by window, `ours` above the other."""
        with np.errstate(over="ignore", invalid="ignore"):  # of absurd losses in somebody's file
            differences = np.subtract(ours, other)
            ratio, error = perplexity(float(differences.mean())), standard_error(differences)
            low, high = (100.0 * (perplexity(end) - 1.0) for end in mean_interval(differences))
        return cls(100.0 * (ratio - 1.0), 100.0 * ratio * error, low, high)

    @property
    def words(self) -> str:
        """Whether it is more than noise: `worse`, `better`, `within noise`, `the same`; empty of one window."""
        if not math.isfinite(self.error):
            return ""
        if self.low == self.high == 0:
            return "the same"
        return "worse" if self.low > 0 else "better" if self.high < 0 else "within noise"

    def to_json(self) -> dict[str, float]:
        return {"ppl_rise_percent": self.percent, "standard_error": self.error}


def _judged(
    id: str, limits: Mapping[str, float], actual: Mapping[str, Any], lows: Mapping[str, float], fault: str, note: str
) -> Check:
    """A check whose limits are broken where the low ends of intervals lie above them."""
    expected = {name: f"≤ {limit:g}" for name, limit in limits.items()}
    is_broken = any(not lows[name] <= limit for name, limit in limits.items())
    return Check(id, "fail" if is_broken else "pass", expected or None, dict(actual), fault if is_broken else note)


def _inside(score: WindowScore, limits: Mapping[str, float]) -> tuple[Check, bool]:
    id = f"quality.inside.{score.length}"
    losses, before = [text.nll for text in score.texts], [text.nll_reference for text in score.texts]
    actual = {"ppl": score.ppl, "ppl_original": score.ppl_reference, "kl_mean": score.kl_mean}
    if score.non_finite or not all(map(math.isfinite, (*losses, *before, score.kl_mean))):
        return Check(id, "fail", None, actual, score.non_finite or "a measure is non-finite"), False
    rise = Rise.of(losses, before)
    fault = "the extension costs too much inside the original window"
    lows = {"ppl_rise_percent": rise.low, "kl_mean": score.kl_mean_low}
    note = "" if len(before) > 1 else _ONE_WINDOW
    return _judged(id, limits, {**actual, **rise.to_json()}, lows, fault, note), True


def _beyond(score: BeyondScore, method: str, limits: Mapping[str, float]) -> tuple[Check, bool]:
    id, losses = f"quality.beyond.{method}.{score.length}", score.methods[method]
    actual = {"ppl": mean_perplexity(score.extended), "ppl_method": mean_perplexity(losses)}
    if not all(map(math.isfinite, score.extended)):
        return Check(id, "fail", None, actual, "the extended model's perplexity is non-finite"), False
    if not all(map(math.isfinite, losses)):
        return Check(id, "pass", None, actual, f"{_name(method)} has no finite perplexity"), True
    rise = Rise.of(score.extended, losses)
    fault = f"{_name(method)} has a lower perplexity than the extended model, beyond noise"
    note = "" if len(losses) > 1 else _ONE_WINDOW
    return _judged(id, limits, {**actual, **rise.to_json()}, {"ppl_rise_percent": rise.low}, fault, note), True


def _name(method: str) -> str:
    return "the model without its extension" if method == "original" else method


def _passkeys(scores: Sequence[PasskeyScore], policy: Policy) -> Judged:
    """The extended model's shares against the original's inside its window."""
    before = next((score for score in scores if score.rope == "original"), None)
    for score in scores:
        if before is not None and score is not before:
            yield _passkey(score, before, _limits(policy, "passkey", "long")), True


def _passkey(score: PasskeyScore, before: PasskeyScore, limits: Mapping[str, float]) -> Check:
    low, high = wilson(score.found, score.samples)
    drop = before.found / before.samples - score.found / score.samples
    # Newcombe's interval of a difference of two shares (Statistics in Medicine 17, 1998).
    below = before.found / before.samples - wilson(before.found, before.samples)[0]
    above = high - score.found / score.samples
    actual = {
        "found": f"{score.found} of {score.samples}",
        "interval": [low, high],
        "original": f"{before.found} of {before.samples} at {before.length} tokens",
        "passkey_drop": drop,
    }
    lows = {"passkey_drop": drop - math.hypot(below, above)}
    fault = "fewer passkeys are found than the original model finds inside its window"
    return _judged(f"quality.passkey.{score.length}", limits, actual, lows, fault, "")


def _controls(differs: WindowScore, same: WindowScore) -> Judged:
    """Without its extension the model has to give other logits beyond its window; twice the same model the same ones."""
    apart, noise = differs.max_logit_diff, same.max_logit_diff
    fault = "the factors change nothing: they are not applied, or rescale nothing"
    yield _control("quality.control.differs", differs, noise < apart, f"> {noise:g}", fault)
    fault = "the same model gives other logits the second time, so that no difference can be trusted"
    yield _control("quality.control.same", same, noise == 0.0, "0", fault)


def _control(id: str, score: WindowScore, holds: bool, expected: str, fault: str) -> tuple[Check, bool]:
    actual = {"max_logit_diff": score.max_logit_diff, "length": score.length}
    message = score.non_finite or ("" if holds else fault)
    return Check(id, "fail" if message else "pass", {"max_logit_diff": expected}, actual, message), not score.non_finite


def _reference(scores: Sequence[BeyondScore], windows: Sequence[WindowScore]) -> Check | None:
    """The extended model has to be the reference that artifacts were held to; None where they share no window."""
    held = {score.length: [text.nll_reference for text in score.texts] for score in windows if score.regime == "long"}
    pairs = [(score.extended, held[score.length]) for score in scores if score.length in held]
    apart = [
        float(np.abs(np.subtract(ours, theirs)).max())
        for ours, theirs in pairs
        if len(ours) == len(theirs) and all(map(math.isfinite, (*ours, *theirs)))
    ]
    if not apart:
        return None
    is_same = max(apart) <= _SAME_NLL
    return Check(
        "quality.control.reference",
        "pass" if is_same else "fail",
        {"nll_difference": f"≤ {_SAME_NLL:g}"},
        {"nll_difference": max(apart)},
        "" if is_same else "the reference that artifacts were held to is not the extended model",
    )
