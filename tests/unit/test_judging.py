"""Measured values under policies: levels, limits, intervals, what is not finite; earlier releases; to JSON and back."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from converters import check_table
from converters import policy as policies
from converters.base import Check
from converters.baseline import Subject, baseline_of
from converters.explain.causes import Explanation, Part, Shape, Trial
from converters.judging import judge, judged
from converters.measurements import Validation, measured_of
from converters.own_weights import WeightKind
from converters.policy import PRESETS, Policy, policy_of, read_policy
from longrope.errors import InputError
from longrope.files import json_text
from longrope.intervals import mean_interval, quantile_low, wilson
from longrope.measures import TextScore, WindowScore
from tests.common import REPOSITORY

DEFAULT = PRESETS["default"]
Q4 = WeightKind("q4_0", rounded=True, arithmetic="int8")
F32 = WeightKind("f32", rounded=False, arithmetic="f32")


def score(kl: float = 0.0, **changes: Any) -> WindowScore:
    """Windows of 255 predictions that are sure of what they say."""
    text = TextScore(tokens=255, nll_reference=2.0, nll=2.0, kl_mean=kl, top1_agreement=1.0)
    values: dict[str, Any] = {
        "length": 256,
        "regime": "long",
        "tokens": 255,
        "ppl_reference": math.exp(2),
        "ppl": math.exp(2),
        "ppl_delta_low": 0.0,
        "ppl_delta_high": 0.0,
        **dict.fromkeys(("kl_mean", "kl_mean_low", "kl_median", "kl_median_low", "kl_p99", "kl_p99_low", "kl_max"), kl),
        "top1_agreement": 1.0,
        "tied": 0,
        "decided_agreements": 255,
        **dict.fromkeys(("max_logit_diff", "logit_diff_mean", "logit_diff_median", "logit_diff_p99"), 0.0),
        "non_finite": "",
        "non_finite_positions": 0,
        "texts": (text,),
    }
    return WindowScore(**{**values, **changes})


def test_a_rounded_reference_widens_the_limits_of_parity_and_of_nothing_else() -> None:
    """Its own arithmetic counts where it loses more than the runtime's; rows of a batch never meet the reference."""

    def failed(dtype: str, kl: float, kind: WeightKind = F32) -> set[str]:
        found = validation(kind, windows=[score(kl)], batch=[score(kl)])
        found = dataclasses.replace(found, reference_dtype=dtype)
        return {check.id for check in judge(found, DEFAULT) if check.status == "fail"}

    assert failed("float32", 5e-4) == {"gguf.parity.long.256", "gguf.batch"}
    assert failed("bfloat16", 5e-4) == {"gguf.batch"}
    assert failed("float16", 5e-4) == {"gguf.parity.long.256", "gguf.batch"}  # its median is held to 2e-5
    assert failed("bfloat16", 5e-2) == {"gguf.parity.long.256", "gguf.batch"}
    assert failed("bfloat16", 5e-3, WeightKind("f32", rounded=False, arithmetic="int8")) == set()


def validation(kind: WeightKind | None = F32, *findings: Check, **scores: list[WindowScore]) -> Validation:
    return Validation("a.gguf", "gguf", "model", findings=list(findings), weights=kind, **scores)  # type: ignore[arg-type]


def statuses(result: Validation, policy: Policy = DEFAULT) -> dict[str, str]:
    return {check.id: check.status for check in judge(result, policy)}


# -- limits


def test_the_runtime_is_held_to_its_arithmetic_and_rounding_to_its_type() -> None:
    """KL of 0.03: far beyond what int8 products lose, well within what four bits cost."""
    small, large = score(1e-4), score(0.03)
    sound = validation(Q4, windows=[large], runtime=[small], rounding=[large])
    assert statuses(sound) == {"gguf.parity.long.256": "pass", "gguf.rounding.long.256": "pass"}
    faulty = validation(Q4, windows=[large], runtime=[large], rounding=[small])
    assert statuses(faulty) == {"gguf.parity.long.256": "fail", "gguf.rounding.long.256": "pass"}
    coarse = validation(Q4, windows=[large], runtime=[small], rounding=[score(2.0)])
    assert statuses(coarse)["gguf.rounding.long.256"] == "fail"


def test_without_its_own_weights_an_artifact_is_held_to_both_limits_together() -> None:
    kl = DEFAULT.limits_for("runtime", "q4_0", "int8", "long")["kl_mean"]
    kl += DEFAULT.limits_for("rounding", "q4_0", "int8", "long")["kl_mean"]
    for value, status in ((0.99 * kl, "pass"), (1.01 * kl, "fail")):
        assert statuses(validation(Q4, windows=[score(value)])) == {"gguf.parity.long.256": status}


def test_the_same_runtime_has_to_give_the_same_numbers_but_through_a_cache() -> None:
    same = WeightKind("bf16", rounded=False, arithmetic="same")
    found = [score(), dataclasses.replace(score(1e-9, length=72), regime="crossing"), score(1e-9, length=64)]
    assert list(statuses(validation(same, windows=found)).values()) == ["pass", "pass", "fail"]


def test_ties_do_not_count() -> None:
    """Of 100 disagreements all are ties; of three, none is."""
    tied = score(top1_agreement=155 / 255, tied=100, decided_agreements=155)
    decided = score(top1_agreement=252 / 255, decided_agreements=252)
    assert statuses(validation(windows=[tied])) == {"gguf.parity.long.256": "pass"}
    assert statuses(validation(windows=[decided])) == {"gguf.parity.long.256": "fail"}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"ppl": 8.0, "ppl_delta_low": -3.0, "ppl_delta_high": 20.0}, "pass"),
        ({"ppl": 8.0, "ppl_delta_low": 7.0, "ppl_delta_high": 9.0}, "fail"),
        ({"kl_mean": 1e-3, "kl_mean_low": 0.0}, "pass"),
        ({"kl_mean": 1e-3, "kl_mean_low": 0.9e-3}, "fail"),
        ({"tokens": 16, "decided_agreements": 16}, "pass"),
        ({"tokens": 255, "decided_agreements": 254}, "pass"),
        ({"tokens": 255, "decided_agreements": 250}, "fail"),
    ],
)
def test_a_failure_needs_the_whole_interval_beyond_its_limit(changes: dict[str, Any], status: str) -> None:
    assert statuses(validation(windows=[score(**changes)])) == {"gguf.parity.long.256": status}


@pytest.mark.parametrize(
    "changes",
    [{"kl_mean": math.nan}, {"ppl": math.inf}, {"max_logit_diff": math.nan}, {"non_finite": "the artifact's"}],
)
def test_what_is_not_finite_fails_whatever_the_policy_says(changes: dict[str, Any]) -> None:
    lax = Policy(levels={"*": "off"})
    for scores in ({"windows": [score(**changes)]}, {"batch": [score(**changes)]}):
        assert set(statuses(validation(F32, **scores), lax).values()) == {"fail"}  # type: ignore[arg-type]
        again = json.loads(json_text(judged(validation(F32, **scores), lax).to_json()))  # type: ignore[arg-type]
        assert set(statuses(measured_of(again, "a"), lax).values()) == {"fail"}


def test_a_crossing_that_a_stale_cache_explains_warns() -> None:
    crossing = score(0.5, regime="crossing", length=72)
    explained = validation(F32, windows=[crossing], stale=[score(1e-8, regime="crossing", length=72)])
    assert statuses(explained) == {"gguf.parity.crossing.72": "warn"}
    unexplained = validation(F32, windows=[crossing], stale=[score(0.5, regime="crossing", length=72)])
    assert statuses(unexplained) == {"gguf.parity.crossing.72": "fail"}


# -- levels


FOUND = (
    Check("hf.weights", "fail", message="others"),
    Check("hf.tokenizer.texts", "warn", message="odd"),
    Check("hf.files", "pass"),
    Check("hf.generation_config", "skip", message="it has none"),
)


def test_levels_are_by_pattern_and_the_last_one_wins() -> None:
    policy = policy_of({"checks": {"hf.*": "warn", "hf.tokenizer*": "error", "hf.fi*": "error"}}, "mine.yaml")
    assert list(statuses(validation(F32, *FOUND), policy).values()) == ["warn", "fail", "pass", "skip"]
    off = policy_of({"checks": {"*": "off"}}, "mine.yaml")
    assert list(statuses(validation(F32, *FOUND), off).values()) == ["skip", "skip", "pass", "skip"]
    assert list(statuses(validation(F32, *FOUND)).values()) == ["fail", "warn", "pass", "skip"]


def test_a_check_that_did_not_run_has_not_passed() -> None:
    policy = policy_of(
        {"fail_if_not_run": ["hf.generation*", "*.parity.long.*", "hf.files", "onnx.parity.*"]}, "mine.yaml"
    )
    result = dataclasses.replace(validation(F32, *FOUND), format="hf")
    failed = [check for check in judge(result, policy) if check.status == "fail"]
    assert [check.id for check in failed] == ["hf.weights", "hf.generation_config", "*.parity.long.*"]
    assert "did not run: it has none" in failed[1].message


# -- policy files


def test_policies_are_read_from_yaml_toml_and_json(tmp_path: Path) -> None:
    table = {
        "extends": "quantized",
        "checks": {"*.rounding.*": "warn"},
        "limits": [{"compare": "rounding", "kl_max": 3}],
    }
    (tmp_path / "p.json").write_text(json.dumps(table))
    (tmp_path / "p.yaml").write_text(
        "extends: quantized\nchecks: {'*.rounding.*': warn}\nlimits:\n- {compare: rounding, kl_max: 3}\n"
    )
    (tmp_path / "p.toml").write_text(
        'extends = "quantized"\nchecks = {"*.rounding.*" = "warn"}\nlimits = [{compare = "rounding", kl_max = 3}]\n'
    )
    read = [dataclasses.replace(read_policy(str(file)), name="") for file in sorted(tmp_path.iterdir())]
    assert read[0] == read[1] == read[2]
    limits = read[0].limits_for("rounding", "q4_0", "int8", "long")
    assert limits == {**PRESETS["quantized"].limits_for("rounding", "q4_0", "int8", "long"), "kl_max": 3.0}


def test_later_limits_win_by_statistic_and_null_lifts_one() -> None:
    rules = [
        {"compare": "rounding", "weights": "q4*", "regime": "long", "kl_mean": 0.01},
        {"compare": "rounding", "weights": "q4*", "ppl_delta_percent": None},
    ]
    policy = policy_of({"limits": rules}, "mine")
    assert policy.limits_for("rounding", "q4_0", "int8", "long") == {"kl_mean": 0.01}
    assert policy.limits_for("rounding", "q8_0", "int8", "long") == DEFAULT.limits_for(
        "rounding", "q8_0", "int8", "long"
    )
    assert policy.limits_for("rounding", "q4_0", "int8", "short")["kl_mean"] > 0.01


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"check": {}}, "p: unknown key check; did you mean checks"),
        ({"checks": {"hf.weights": "fatal"}}, "p: checks: hf.weights: got 'fatal'"),
        ({"extends": "strickt"}, "did you mean strict"),
        (
            {"limits": [{"compare": "rounding", "kl_men": 1}]},
            r"p: limits\[0\]: unknown key kl_men; did you mean kl-mean",
        ),
        (
            {"limits": [{"kl_mean": 1}]},
            "compare: expected one of runtime, rounding, inside, beyond, passkey, found none",
        ),
        ({"limits": [{"compare": "runtime", "kl_mean": "low"}]}, "expected a number"),
        ({"limits": [{"compare": "runtime", "top1_agreement": 2}]}, "expected a number from 0 to 1"),
        ({"limits": {"kl_mean": 1}}, "limits: expected a list"),
        ({"limits": [{"compare": "runtime"}]}, r"limits\[0\]: expected a limit, such as kl_mean: 0\.1"),
        ({"limits": [{"compare": "beyond", "regime": "long"}]}, r"expected a limit, such as ppl_rise_percent"),
        ({"limits": [{"compare": "runtime", "kl_mean": math.inf}]}, "expected a number of 0 or more, got inf"),
        ({"limits": [{"compare": "runtime", "kl_mean": 10**400}]}, "expected a number of 0 or more, got 1000"),
        ({"limits": [{"compare": "runtime", "regime": "lnog", "kl_mean": 1}]}, "regime: got 'lnog'; did you mean long"),
        ({"limits": [{"compare": "beyond", "regime": "short", "ppl_rise_percent": 1}]}, "expected one of long"),
        ({"limits": [{"compare": "runtime", "arithmetic": "fp16", "kl_mean": 1}]}, "did you mean f16"),
        ({"limits": [{"compare": "rounding", "weights": "Q4_K", "kl_mean": 1}]}, "in small letters"),
        (
            {"limits": [{"compare": "rounding", "weights": "q4_k_m", "kl_mean": 1}]},
            "such as q4_k, which a q4_k_m file has",
        ),
        ({"fail_if_not_run": [3]}, "expected patterns of check ids"),
        ([], "expected"),
    ],
)
def test_what_is_no_policy_is_refused_by_name(table: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        policy_of(table, "p")


@pytest.mark.parametrize(
    "pattern",
    [
        *("gguf.paritty.*", "*.paritty.*", "ggfu.parity.*", "gguf.tensors.missin", "quality.bejond.*", "nothing.*"),
        *("", "[", "hf.x", "x" * 201, 1, None, True, datetime.date(2026, 1, 1)),
    ],
)
def test_patterns_that_no_check_can_fit_are_refused(pattern: Any) -> None:
    """A typing error would switch a check off, or ask for one, in vain."""
    for table in ({"checks": {pattern: "off"}}, {"fail_if_not_run": [pattern]}):
        with pytest.raises(InputError, match=r"no check is called so|expected patterns of check ids"):
            policy_of(table, "p")


@pytest.mark.parametrize(
    "pattern",
    [
        *("*", "*.parity.*", "*parity*", "hf.parity.medium.*", "gguf.*", "g*", "gguf.rope.scaling.?", "hf.[wv]eights"),
        *(
            "quality.*",
            "quality.beyond.YaRN.*",
            "*.baseline.*",
            "gguf.vocab.*",
            "factors.unverified",
            "onnx.genai_config",
        ),
    ],
)
def test_patterns_of_checks_are_taken(pattern: str) -> None:
    assert policy_of({"checks": {pattern: "off"}}, "p").level(pattern.replace("[wv]", "w")) == "off"


def test_every_row_of_the_table_can_be_named() -> None:
    names = ("hf", "gguf", "onnx")
    for id in check_table.ids_of(names):
        assert check_table.names_a_check(id, names)
        assert check_table.names_a_check(id.replace("*", "x"), names)
    assert not check_table.names_a_check("toy.anything", names)
    assert check_table.names_a_check("toy.anything", (*names, "toy"))


def test_a_hint_names_the_nearest_check() -> None:
    with pytest.raises(
        InputError, match=r"p: checks: 'gguf.paritty.\*': no check is called so; did you mean gguf.parity"
    ):
        policy_of({"checks": {"gguf.paritty.*": "off"}}, "p")


def test_a_file_is_not_called_like_a_preset(tmp_path: Path) -> None:
    (tmp_path / "strict").write_text("extends: quantized\n")
    assert read_policy(str(tmp_path / "strict")).name == "the file strict"


@pytest.mark.parametrize(
    ("kind", "measured", "compare"),
    [
        (WeightKind("q9_0", rounded=True, arithmetic="int8"), "rounding", "rounding"),
        (WeightKind("f32", rounded=False, arithmetic="fp4"), "windows", "runtime"),
        (WeightKind("q9_0", rounded=True, arithmetic="int8"), "windows", "rounding"),
    ],
)
def test_what_no_rule_speaks_of_is_a_warning(kind: WeightKind, measured: str, compare: str) -> None:
    """Without limits nothing could fail; a limit that a policy lifts is said, and passes."""
    found = validation(kind, **{measured: [score(3.0)]})
    (check,) = judge(found, DEFAULT)
    assert check.status == "warn"
    assert f"no limits of `{compare}`" in check.message
    assert set(statuses(found, PRESETS["strict"]).values()) >= {"fail"}
    rules = [{"compare": each, "kl_mean": None} for each in ("rounding", "runtime")]
    assert set(statuses(found, policy_of({"limits": rules}, "p")).values()) == {"pass"}


def test_a_policy_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="no such file; did you mean default"):
        read_policy("defaults")


def test_the_published_schema_takes_what_the_reader_takes() -> None:
    published = json.loads((REPOSITORY / "docs" / "policy.schema.json").read_text(encoding="utf-8"))
    assert published == policies.policy_schema(), "stale: run `make schema`"
    jsonschema.Draft202012Validator.check_schema(published)
    rule = {"compare": "rounding", "weights": "q4*", "kl_mean": 0.1, "ppl_delta_percent": None}
    whole = {"extends": "strict", "checks": {"*": "off"}, "fail_if_not_run": ["*"], "limits": [rule]}
    jsonschema.validate(whole, published)
    policy_of(whole, "p")
    for wrong in ({"more": 1}, {"limits": [{**rule, "kl": 1}]}, {"checks": {"*": "fatal"}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, published)


# -- kept, and judged again


def test_a_result_is_judged_again_as_it_was_the_first_time() -> None:
    """Through JSON, under another policy, and back under the first one."""
    own = Check("gguf.own_weights", "skip", "q4_0", None, "no room")
    first = validation(Q4, *FOUND, own, windows=[score(0.3)], runtime=[score(1e-3)], rounding=[score(2.0)])
    default = judged(first, DEFAULT)
    strict = judged(measured_of(json.loads(json_text(default.to_json())), "a"), PRESETS["strict"])
    again = judged(measured_of(json.loads(json_text(strict.to_json())), "a"), DEFAULT)
    assert again.checks == default.checks
    assert strict.checks != default.checks
    assert {each.id for each in strict.failures} > {"gguf.own_weights", "hf.tokenizer.texts", "*.readable"}


def test_a_result_of_an_earlier_version_is_refused() -> None:
    with pytest.raises(InputError, match="kept too little"):
        measured_of({"schema_version": 1, "artifact": "a", "checks": []}, "old.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda entry: entry.update(runtime=3), "a: runtime: expected a list, got 3"),
        (lambda entry: entry.update(weights="q4"), "a: weights: expected an object"),
        (lambda entry: entry.update(provenance=[]), "a: provenance: expected an object"),
        (lambda entry: entry["windows"][0].update(texts=3), "a: windows: texts: expected a list"),
        (lambda entry: entry["windows"][0].update(decided_agreements=300), "expected no more agreements and ties"),
        (lambda entry: entry["windows"][0].update(tied=-1), "expected no more agreements and ties"),
        (lambda entry: entry["windows"].append("x"), "a: windows: expected an object"),
        (lambda entry: entry["checks"][0].update(found="maybe"), "found: expected"),
    ],
)
def test_a_result_of_a_stranger_is_read_with_care(change: Callable[[Any], object], said: str) -> None:
    entry = json.loads(json_text(judged(validation(Q4, *FOUND, windows=[score()]), DEFAULT).to_json()))
    measured_of(entry, "a")
    change(entry)
    with pytest.raises(InputError, match=said):
        measured_of(entry, "a")


# -- an earlier release


def release(*nll: float, kl: float = 1e-3, texts: str = "x") -> Validation:
    each = tuple(
        TextScore(tokens=255, nll_reference=2.0 + i, nll=value + i, kl_mean=kl, top1_agreement=1.0)
        for i, value in enumerate(nll)
    )
    made = validation(Q4, windows=[score(texts=each)])
    return dataclasses.replace(made, provenance={"text_fingerprint": texts})


@pytest.mark.parametrize(
    ("now", "status", "said"),
    [
        ((2.02, 2.021, 2.019, 2.02), "warn", "perplexity +2.02 % (+1.89 to +2.15), worse"),
        ((1.98, 1.981, 1.979, 1.98), "pass", "better"),
        ((2.2, 1.9, 2.05, 1.95), "pass", "within noise"),
        ((2.5,), "skip", "not measured on these windows"),
    ],
)
def test_a_release_is_paired_with_the_earlier_one(now: tuple[float, ...], status: str, said: str) -> None:
    """Texts differ by far more than releases do: only pairing sees two percent."""
    before, after = release(2.0, 2.0, 2.0, 2.0), release(*now)
    (check,) = [each for each in judge(after, DEFAULT, before) if ".baseline.long." in each.id]
    assert (check.id, check.status) == ("gguf.baseline.long.256", status)
    assert said in check.message
    strict = [each.status for each in judge(after, PRESETS["strict"], before) if ".baseline.long." in each.id]
    assert strict == ["fail" if status == "warn" else status]


def test_one_window_does_not_tell_change_from_noise() -> None:
    (check,) = [each for each in judge(release(2.5), DEFAULT, release(2.0)) if ".baseline.long." in each.id]
    assert check.status == "pass"
    assert "one window does not tell" in check.message


def test_a_release_on_other_texts_or_of_another_format_is_refused() -> None:
    now = [Subject.of(release(2.0))]
    with pytest.raises(InputError, match="measured on other texts"):
        baseline_of(now, [release(2.0, texts="y")], "old.json")
    other = dataclasses.replace(release(2.0), format="hf")
    with pytest.raises(InputError, match="expected one gguf artifact"):
        baseline_of(now, [other], "old.json")


def test_of_several_artifacts_the_one_of_the_same_name_is_the_earlier_one(tmp_path: Path) -> None:
    """A result holds names without folders."""
    twice = [dataclasses.replace(release(2.0), artifact=name) for name in ("b.gguf", "a.gguf")]
    for artifact in ("a.gguf", str(tmp_path / "a.gguf")):
        assert baseline_of([Subject(artifact, "gguf", "x")], twice, "old.json") == [twice[1]]
    with pytest.raises(InputError, match=r"expected one gguf artifact to compare c\.gguf with, found 2"):
        baseline_of([Subject("c.gguf", "gguf", "x")], twice, "old.json")


def test_what_cannot_be_compared_is_said() -> None:
    """Another model, and windows that were measured of one release alone."""
    before, now = release(2.0, 2.0), release(2.0, 2.0)
    before = dataclasses.replace(before, provenance={**before.provenance, "reference_fingerprint": "0"})
    found = {each.id: each for each in judge(now, DEFAULT, before) if ".baseline." in each.id}
    assert found["gguf.baseline.reference"].status == "warn"
    assert found["gguf.baseline.long.256"].status == "pass"
    nothing = dataclasses.replace(now, windows=[])
    statuses = {each.id: each.status for each in judge(nothing, DEFAULT, before) if ".baseline." in each.id}
    assert statuses == {"gguf.baseline.reference": "warn", "gguf.baseline.long.256": "skip"}


def test_losses_whose_mean_overflows_are_no_noise() -> None:
    (check,) = [each for each in judge(release(1e308, 1e308), DEFAULT, release(0, 0)) if ".baseline.long." in each.id]
    assert check.status == "fail"


# -- intervals


def test_intervals_hold_what_they_are_intervals_of() -> None:
    """In 95 % of draws: of a mean of five, of a share of 40, of a median of 30 from below."""
    rng = np.random.default_rng(0)
    means = [mean_interval(rng.normal(1.0, 2.0, 5)) for _ in range(2000)]
    assert np.mean([low <= 1.0 <= high for low, high in means]) == pytest.approx(0.95, abs=0.015)
    shares = [wilson(int(rng.binomial(40, 0.9)), 40) for _ in range(2000)]
    assert np.mean([low <= 0.9 <= high for low, high in shares]) == pytest.approx(0.95, abs=0.03)
    medians = [quantile_low(np.sort(rng.normal(0.0, 1.0, 30)), 0.5) for _ in range(2000)]
    assert np.mean([low <= 0.0 for low in medians]) > 0.96


def test_intervals_at_their_ends() -> None:
    assert wilson(16, 16)[1] == 1.0
    assert wilson(0, 16)[0] == 0.0
    assert wilson(0, 0) == (0.0, 1.0)
    assert mean_interval([3.0]) == (-math.inf, math.inf)
    assert mean_interval([3.0, 3.0]) == (3.0, 3.0)
    assert math.isnan(quantile_low(np.array([1.0, math.nan]), 0.5))
    assert quantile_low(np.array([1.0, 2.0]), 0.99) == 1.0


def test_an_explanation_is_kept_as_long_as_the_artifact_fails() -> None:
    """Its sentences name no folder of the machine."""
    why = Explanation(
        cause="rope.theta",
        title="The base of the rotary frequencies is another.",
        advice="Write the reference's theta.",
        evidence=("its runtime does not open it: /home/me/a.gguf: 4 factors",),
        shapes=(Shape(64, "long", math.nan, (0, 1), (0.0, 0.5), (0.0, 2.0), "from position 1 on"),),
        trials=(Trial("rope.theta", "theta 5 in place of 1", 64, 0.1, 0.5),),
        parts=(Part("layer 0", 0.2, 0.0, True),),
    )
    wrong = Check("gguf.rope.freq_base", "fail", 1, 5)
    failing = judged(Validation("/home/me/a.gguf", "gguf", "model", findings=[wrong], explanation=why), DEFAULT)
    text = json_text(failing.to_json())
    assert "/home" not in text
    again = judged(measured_of(json.loads(text), "result.json"), DEFAULT)
    assert again.explanation is not None
    expected = dataclasses.replace(why, evidence=("its runtime does not open it: a.gguf: 4 factors",))
    assert json_text(dataclasses.asdict(again.explanation)) == json_text(dataclasses.asdict(expected))
    assert hash(again.explanation.shapes), "lists became tuples"
    harmless = policy_of({"checks": {"gguf.rope.freq_base": "warn"}}, "harmless")
    assert judged(again, harmless).explanation is None
