"""`judge`: checks from what was found and measured, and from a policy. Pure, and without torch.

    windows  (weights not rounded)   artifact ↔ reference              ──runtime limits──► FORMAT.parity.REGIME.LENGTH
    runtime                          artifact ↔ its weights' reference ──runtime limits──► FORMAT.parity.REGIME.LENGTH
    rounding     its weights' reference ↔ reference                    ──rounding limits─► FORMAT.rounding.REGIME.LENGTH
    windows  (weights unknown)       artifact ↔ reference        ──the sum of both limits► FORMAT.parity.REGIME.LENGTH

What is not finite fails whatever the policy says.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

from converters.base import Check, Status
from converters.baseline import baseline_findings
from converters.measurements import NOT_RUN, Validation, window_id
from converters.own_weights import WeightKind
from converters.policy import ARITHMETICS, AT_LEAST, Compared, Policy
from converters.quality_checks import quality_checks
from longrope.intervals import wilson
from longrope.measures import WindowScore

# Where an artifact does not say its weight type, which other checks report.
_UNKNOWN = WeightKind("f32", rounded=False, arithmetic="f32")
# What a reference loses by its own type: as much as an artifact whose runtime multiplies in it.
REFERENCE_ARITHMETIC = {"float32": "same", "float16": "f16", "bfloat16": "bf16"}
# Statistics in words.
_WORDS: Mapping[str, str] = {
    "kl_mean": "mean KL",
    "kl_median": "median KL",
    "kl_p99": "99th percentile of KL",
    "kl_max": "largest KL",
    "ppl_delta_percent": "change of perplexity",
    "top1_agreement": "top-1 agreement",
    "max_logit_diff": "largest logit difference",
    "logit_diff_median": "median logit difference",
}
# What is measured whatever the limits are, and has to be finite.
_ALWAYS = ("ppl_delta_percent", "kl_mean", "top1_agreement", "max_logit_diff")
_STALE = "the cache keeps keys of the short set past the original window: re-prefill there, or use a single set"


def judge(validation: Validation, policy: Policy, before: Validation | None = None) -> list[Check]:
    """Every check of a validation under a policy, those that it requires and did not find among them.

    Args:
        validation: what was found and measured.
        policy: what counts.
        before: the same of an earlier release; None compares with none.
    """
    found = [dataclasses.replace(check, found=check.status) for check in validation.findings]
    found += baseline_findings(validation, before) if before is not None else ()
    checks = [
        *(_levelled(check, policy) for check in found),
        *(_levelled(check, policy) if is_finite else check for check, is_finite in _decided(validation, policy)),
    ]
    return [*checks, *_missing(validation.format, checks, policy)]


def judged(validation: Validation, policy: Policy, before: Validation | None = None) -> Validation:
    """The validation with the checks of a policy; of one that passes there is no failure to explain."""
    result = dataclasses.replace(validation, policy=policy.name, checks=judge(validation, policy, before))
    return dataclasses.replace(result, explanation=None) if result.passed else result


# -- levels


def _levelled(check: Check, policy: Policy) -> Check:
    """A check as a policy counts it."""
    if check.status == "skip":
        wanted = any(fnmatchcase(check.id, pattern) for pattern in policy.fail_if_not_run)
        return dataclasses.replace(check, status="fail", message=NOT_RUN + check.message) if wanted else check
    level = policy.level(check.id)
    if level is None or check.status == "pass":
        return check
    status: Mapping[str, Status] = {"off": "skip", "warn": "warn", "error": "fail"}
    return dataclasses.replace(check, status=status[level])


def _missing(format_name: str, checks: list[Check], policy: Policy) -> Iterator[Check]:
    """Required checks that no check is; those of other formats are not asked of this one."""
    for pattern in policy.fail_if_not_run:
        mine = any(fnmatchcase(name, pattern.partition(".")[0]) for name in (format_name, "quality"))
        if mine and not any(fnmatchcase(check.id, pattern) for check in checks):
            yield Check(pattern, "fail", "a check of this name", None, f"{NOT_RUN}there is none")


# -- limits


def _decided(validation: Validation, policy: Policy) -> Iterator[tuple[Check, bool]]:
    """A check for each measurement, and whether what it is about is finite."""
    for check, score in _by_limits(validation, validation.weights or _UNKNOWN, policy):
        yield check, not non_finite(score)
    if validation.quality is not None:
        yield from quality_checks(validation.quality, validation.windows, policy)


def _by_limits(validation: Validation, kind: WeightKind, policy: Policy) -> Iterator[tuple[Check, WindowScore]]:
    for score in validation.batch:
        yield _batch(validation, score, kind, policy), score
    kind = dataclasses.replace(kind, arithmetic=_coarser(kind.arithmetic, validation.reference_dtype))
    own = {(each.regime, each.length): each for each in validation.runtime}
    for window in validation.windows:
        mine = own.get((window.regime, window.length))
        if mine is not None:
            found = _parity(validation, mine, runtime_limits(kind, mine, policy))
            yield _ruled(found, kind, mine, policy, "runtime"), mine
            continue
        limits = runtime_limits(kind, window, policy)
        if kind.rounded:
            limits = _together(limits, rounding_limits(kind, window, policy))
        found = _ruled(_parity(validation, window, limits), kind, window, policy, "runtime")
        yield _ruled(found, kind, window, policy, "rounding") if kind.rounded else found, window
    for score in validation.rounding:
        id = window_id(validation.format, "rounding", score)
        fault = f"rounding to {kind.name} costs too much"
        found = _window_check(id, score, rounding_limits(kind, score, policy), fault)
        yield _ruled(found, kind, score, policy, "rounding"), score


def _ruled(check: Check, kind: WeightKind, score: WindowScore, policy: Policy, compare: Compared) -> Check:
    """A check that passes because the policy says nothing of such weights, or of such a runtime, is a warning."""
    if check.status != "pass" or policy.has_rule(compare, kind.name, kind.arithmetic, score.regime):
        return check
    message = (
        f"the policy has no limits of `{compare}` for weights {kind.name} in arithmetic {kind.arithmetic}; give it some"
    )
    return dataclasses.replace(check, status="warn", message=message)


def _coarser(arithmetic: str, reference_dtype: str) -> str:
    """The arithmetic, of a runtime and of its reference, that loses more; one that is not known stays."""
    if arithmetic not in ARITHMETICS:
        return arithmetic
    return max(arithmetic, REFERENCE_ARITHMETIC.get(reference_dtype, "same"), key=ARITHMETICS.index)


def runtime_limits(kind: WeightKind, score: WindowScore, policy: Policy) -> dict[str, float]:
    """Limits of a runtime that has the reference's weights; a cache changes the order of its sums."""
    arithmetic = "f32" if kind.arithmetic == "same" and score.regime == "crossing" else kind.arithmetic
    return policy.limits_for("runtime", kind.name, arithmetic, score.regime)


def rounding_limits(kind: WeightKind, score: WindowScore, policy: Policy) -> dict[str, float]:
    """Limits of what a weight type costs."""
    return policy.limits_for("rounding", kind.name, kind.arithmetic, score.regime)


def _together(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Limits of both together, of the statistics that both limit."""
    shared = {name: one[name] + other[name] for name in one if name in other}
    if AT_LEAST in shared:
        shared[AT_LEAST] -= 1.0
    return shared


def _batch(validation: Validation, score: WindowScore, kind: WeightKind, policy: Policy) -> Check:
    """Rows of a batch against each text alone, in one runtime: by the limits of KL."""
    arithmetic = "f32" if kind.arithmetic == "same" else kind.arithmetic
    limits = policy.limits_for("runtime", kind.name, arithmetic, score.regime)
    limits = {name: value for name, value in limits.items() if name.startswith("kl_")}
    fault = "rows of a batch, or padding, reach into one another"
    return _window_check(f"{validation.format}.batch", score, limits, fault)


def _parity(validation: Validation, score: WindowScore, limits: Mapping[str, float]) -> Check:
    """One check a window. A crossing may fail by its cache alone, which is no fault of the file."""
    id = window_id(validation.format, "parity", score)
    check = _window_check(id, score, limits, "not the reference's model")
    if check.status != "fail" or score.regime != "crossing" or non_finite(score):
        return check
    explained = any(not broken(stale, limits) and not non_finite(stale) for stale in validation.stale)
    return dataclasses.replace(check, status="warn", message=_STALE) if explained else check


def _window_check(id: str, score: WindowScore, limits: Mapping[str, float], fault: str) -> Check:
    names = [*limits, *(name for name in _ALWAYS if name not in limits)] if non_finite(score) else list(limits)
    expected = {name: f"{'≥' if name == AT_LEAST else '≤'} {limits[name]:g}" for name in limits}
    actual = {name: _value(score, name) for name in names}
    if words := non_finite(score):
        return Check(id, "fail", expected, actual, words)
    out = [_WORDS[name] for name in broken(score, limits)]
    message = f"{fault}: {', '.join(out)} beyond {'its limit' if len(out) == 1 else 'their limits'}" if out else ""
    return Check(id, "fail" if out else "pass", expected, actual, message)


def non_finite(score: WindowScore) -> str:
    """In words, that logits or measures are not finite; empty where all are."""
    if score.non_finite:
        return score.non_finite
    return "" if all(math.isfinite(_value(score, name)) for name in _ALWAYS) else "a measure is non-finite"


def broken(score: WindowScore, limits: Mapping[str, float]) -> list[str]:
    """The statistics whose interval lies beyond their limit."""
    return [name for name, limit in limits.items() if _is_beyond(score, name, limit)]


def _is_beyond(score: WindowScore, name: str, limit: float) -> bool:
    if name == AT_LEAST:
        return wilson(score.decided_agreements, score.tokens - score.tied)[1] < limit
    return not _least(score, name) <= limit


def _least(score: WindowScore, name: str) -> float:
    """The end of a statistic's interval that is nearer to none; the value itself of those that have no interval."""
    if name == "ppl_delta_percent":
        low, high = score.ppl_delta_low, score.ppl_delta_high
        if math.isnan(low) or math.isnan(high) or low <= 0.0 <= high:  # unbounded ends are null in a file
            return 0.0
        return min(abs(low), abs(high))
    low = getattr(score, f"{name}_low", getattr(score, name))
    return -math.inf if math.isnan(low) else low


def _value(score: WindowScore, name: str) -> float:
    if name == AT_LEAST and score.tokens > score.tied:
        return score.decided_agreements / (score.tokens - score.tied)
    value: float = getattr(score, name)
    return value
