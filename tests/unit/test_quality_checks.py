"""What an extension costs and brings, under policies: pairs of windows, counts, controls, what was left out; kept in JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from converters.base import Check
from converters.judging import judge, judged
from converters.measurements import Validation, measured_of
from converters.policy import PRESETS, Policy, policy_of
from longrope.errors import InputError
from longrope.files import json_text
from longrope.measures import BeyondScore, PasskeyScore, Quality, TextScore, WindowScore

DEFAULT, STRICT = PRESETS["default"], PRESETS["strict"]
# NLL of four texts that differ by far more than two RoPEs do.
TEXTS = (2.0, 3.0, 2.5, 4.0)
Losses = tuple[float, ...]


def losses(*rises: float) -> Losses:
    """NLL of so many of the texts, each risen by so many nats."""
    return tuple(before + rise for before, rise in zip(TEXTS, rises, strict=False))


def window(nll: Losses, length: int = 64, **changes: Any) -> WindowScore:
    """The extended model against the original."""
    zeros = {each.name: 0 for each in dataclasses.fields(WindowScore)}
    before = TEXTS[: len(nll)]
    texts = tuple(TextScore(63, old, new, 0.1, 1.0) for old, new in zip(before, nll, strict=True))
    means = {"ppl_reference": math.exp(np.mean(before)), "ppl": math.exp(np.mean(nll)), "kl_mean": 0.1}
    about = {"length": length, "regime": "short", "tokens": 63 * len(nll), "non_finite": "", "texts": texts}
    return WindowScore(**{**zeros, **means, **about, **changes})  # type: ignore[arg-type]


def validation(**parts: Any) -> Validation:
    return Validation("a.gguf", "gguf", "model", quality=Quality(**parts))


def checks(result: Validation, policy: Policy = DEFAULT) -> dict[str, Check]:
    return {check.id: check for check in judge(result, policy) if check.id.startswith("quality.")}


def statuses(result: Validation, policy: Policy = DEFAULT) -> dict[str, str]:
    return {id.removeprefix("quality."): check.status for id, check in checks(result, policy).items()}


@pytest.mark.parametrize(
    ("rises", "default", "strict", "percent"),
    [
        ((0.02, 0.021, 0.019, 0.02), "pass", "pass", 2.02),
        ((0.2, 0.21, 0.19, 0.2), "warn", "fail", 22.1),
        ((0.5, -0.1, 0.4, 0.0), "pass", "pass", 22.1),
        ((-0.5, -0.5, -0.5, -0.5), "pass", "pass", -39.3),
        ((0.9,), "pass", "pass", 146.0),
    ],
)
def test_the_cost_inside_is_paired_by_window(rises: Losses, default: str, strict: str, percent: float) -> None:
    """22 % that every window shows are a finding, those of two windows of four are not; nor is one window alone."""
    result = validation(inside=(window(losses(*rises)),))
    assert statuses(result) == {"inside.64": default}
    assert statuses(result, STRICT) == {"inside.64": strict}
    check = checks(result)["quality.inside.64"]
    assert check.actual["ppl_rise_percent"] == pytest.approx(percent, rel=0.01)
    assert ("one window" in check.message) == (len(rises) == 1)
    if len(rises) > 1:
        expected = math.exp(np.mean(rises)) * 100 * np.std(rises, ddof=1) / 2
        assert check.actual["standard_error"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ours", "status"),
    [((0.0, 0.0, 0.0, 0.0), "pass"), ((0.01, 0.011, 0.009, 0.01), "warn"), ((0.1, -0.08, 0.05, 0.0), "pass")],
)
def test_a_method_that_needs_no_search_is_not_to_be_better(ours: Losses, status: str) -> None:
    methods = {"original": losses(3.0, 3.0, 3.0, 3.0), "YaRN": losses(0.0, 0.0, 0.0, 0.0)}
    result = validation(beyond=(BeyondScore(256, losses(*ours), methods),))
    assert statuses(result) == {"beyond.original.256": "pass", "beyond.YaRN.256": status}


def test_a_policy_sets_limits_and_levels_of_quality() -> None:
    result = validation(
        inside=(window(losses(0.02, 0.021, 0.019, 0.02), kl_mean_low=0.09),),
        beyond=(BeyondScore(256, losses(0.02, 0.02), {"PI": losses(0.0, 0.0), "NTK": losses(0.0, 0.0)}),),
    )
    policy = policy_of(
        {
            "checks": {"quality.inside.*": "error", "quality.beyond.PI.*": "off"},
            "limits": [
                {"compare": "inside", "regime": "short", "ppl_rise_percent": None, "kl_mean": 0.05},
                {"compare": "beyond", "ppl_rise_percent": 2.5},
            ],
        },
        "mine",
    )
    assert statuses(result, policy) == {"inside.64": "fail", "beyond.PI.256": "pass", "beyond.NTK.256": "pass"}
    assert checks(result, policy)["quality.inside.64"].expected == {"kl_mean": "≤ 0.05"}
    assert statuses(result)["beyond.PI.256"] == "warn"


@pytest.mark.parametrize(
    "rule",
    [
        {"compare": "runtime", "ppl_rise_percent": 1},
        {"compare": "rounding", "passkey_drop": None},
        {"compare": "inside", "kl_p99": 1},
        {"compare": "beyond", "kl_mean": None},
        {"compare": "passkey", "weights": "q4*", "passkey_drop": 0.1},
    ],
)
def test_a_limit_that_nothing_is_held_to_is_refused(rule: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"limits\[0\]: \w+: `{rule['compare']}` has none; it has "):
        policy_of({"limits": [rule]}, "mine")


@pytest.mark.parametrize(("found", "status"), [(5, "pass"), (3, "pass"), (1, "warn"), (0, "warn")])
def test_passkeys_are_counted_with_intervals(found: int, status: str) -> None:
    original, extended = PasskeyScore("original", 64, 5, 5), PasskeyScore("extended", 256, 5, found)
    result = validation(passkey=(original, extended))
    assert statuses(result) == {"passkey.256": status}
    actual = checks(result)["quality.passkey.256"].actual
    assert actual["found"] == f"{found} of 5"
    assert actual["interval"][0] <= found / 5 <= actual["interval"][1]


@pytest.mark.parametrize(
    ("differs", "same", "expected"),
    [
        ({"max_logit_diff": 3.0}, {}, ("pass", "pass")),
        ({}, {}, ("fail", "pass")),
        ({"max_logit_diff": 3.0}, {"max_logit_diff": 1e-6}, ("pass", "fail")),
        ({"max_logit_diff": math.inf, "non_finite": "the artifact's"}, {}, ("fail", "pass")),
    ],
)
def test_controls(differs: dict[str, Any], same: dict[str, Any], expected: tuple[str, str]) -> None:
    scores = {"differs": window(losses(0.0), 128, **differs), "same": window(losses(0.0), 128, **same)}
    found = statuses(validation(controls=scores))
    assert (found["control.differs"], found["control.same"]) == expected


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_fails_whatever_the_policy_says(value: float) -> None:
    """A method that is not finite is worse than ours, and no fault of it."""
    lax = Policy(levels={"*": "off"})
    finite = losses(0.0, 0.0)
    result = validation(
        inside=(window((2.0, value)),),
        beyond=(BeyondScore(128, finite, {"PI": (2.0, value)}), BeyondScore(256, (2.0, value), {"PI": finite})),
    )
    again = measured_of(json.loads(json_text(judged(result, lax).to_json())), "a")
    for each in (result, again):
        assert statuses(each, lax) == {"inside.64": "fail", "beyond.PI.128": "pass", "beyond.PI.256": "fail"}


def test_what_was_left_out_has_not_passed() -> None:
    result = validation(left_out={"beyond.256": "the texts are too short"})
    assert statuses(result) == {"beyond.256": "skip"}
    wanted = policy_of({"fail_if_not_run": ["quality.beyond.*"]}, "mine")
    assert statuses(result, wanted) == {"beyond.256": "fail"}
    unmeasured = dataclasses.replace(result, quality=None)
    assert statuses(unmeasured) == {}
    assert statuses(unmeasured, wanted) == {"beyond.*": "fail"}


WHOLE = {
    "inside": (window(losses(0.2, 0.21, 0.19, 0.2)),),
    "beyond": (BeyondScore(256, losses(0.0, 0.0), {"original": losses(1.0, 1.0)}),),
    "passkey": (PasskeyScore("original", 64, 5, 5), PasskeyScore("extended", 256, 5, 0)),
    "controls": {"differs": window(losses(0.0), 128, max_logit_diff=1.0), "same": window(losses(0.0), 128)},
    "left_out": {"passkey.64": "no room"},
}


def test_quality_is_judged_again_as_it_was_the_first_time() -> None:
    first = judged(validation(**WHOLE), DEFAULT)
    strict = judged(measured_of(json.loads(json_text(first.to_json())), "a"), STRICT)
    again = judged(measured_of(json.loads(json_text(strict.to_json())), "a"), DEFAULT)
    assert again.checks == first.checks
    assert again.quality == first.quality
    assert {"quality.inside.64", "quality.passkey.256"} <= {each.id for each in strict.failures}


@pytest.mark.parametrize(
    "change",
    [
        lambda quality: quality.update(inside=3),
        lambda quality: quality["beyond"][0].update(extended="x"),
        lambda quality: quality["beyond"][0].update(extended=[1.0]),
        lambda quality: quality["beyond"][0].update(extended=[]),
        lambda quality: quality["passkey"][0].update(samples=0),
        lambda quality: quality["passkey"][1].update(found=6),
        lambda quality: quality["controls"].pop("same"),
        lambda quality: quality["inside"][0].update(texts=[]),
    ],
)
def test_a_quality_of_a_stranger_is_read_with_care(change: Any) -> None:
    entry = json.loads(json_text(judged(validation(**WHOLE), DEFAULT).to_json()))
    change(entry["quality"])
    with pytest.raises(InputError, match="a: quality"):
        measured_of(entry, "a")
