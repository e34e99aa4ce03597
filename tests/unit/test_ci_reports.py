"""JUnit XML, Markdown, annotations and step summary, of sound and hostile entries of validation.json; its schema."""

from __future__ import annotations

import html
import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import junitparser
import pytest

from longrope.errors import InputError
from longrope_export.ci import github, junit, markdown
from longrope_export.ci.suites import Suite, suites_of
from longrope_export.validation_schema import schema_text
from tests.common import REPOSITORY, junit_faults
from tests.runs import explain, run_documents, with_quality

# What strangers may put into names and messages.
HOSTILE = (
    "a|b\n<script>x</script> `c` @team ::error::\x1b[31m \x00 \ud800 \u202e &amp; ]]> 50% a,b:c http://x www.x #1 ]("
)


def check(id: str, status: str, expected: Any = None, actual: Any = None, message: str = "") -> dict[str, Any]:
    return {"id": id, "status": status, "expected": expected, "actual": actual, "message": message}


def entry(name: str, *checks: dict[str, Any], windows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    passed = all(each["status"] != "fail" for each in checks)
    return {
        "artifact": name,
        "format": "gguf",
        "reference": "org/model",
        "passed": passed,
        "checks": list(checks),
        "windows": windows or [],
    }


def window(length: int, **changes: Any) -> dict[str, Any]:
    measures = {"ppl_reference": 10.0, "ppl": 11.0, "ppl_delta_percent": 10.0, "kl_mean": 1e-3, "kl_p99": 1e-2}
    rest = {"tokens": length - 1, "regime": "short", "top1_agreement": 0.99, "max_logit_diff": 0.5, "non_finite": ""}
    return {"length": length, **measures, **rest, **changes}


def mixed(name: str = "model.gguf") -> dict[str, Any]:
    return entry(
        name,
        check("gguf.loads", "pass"),
        check("gguf.factors.long", "fail", 2.5, 1.0, "1 of 8 factors differ, the first at pair 3"),
        check("gguf.crossing", "warn", {"kl_mean": "≤ 1e-06"}, {"kl_mean": 0.25}, "the cache keeps keys"),
        check("gguf.tokenizer", "skip", message="it has none"),
        windows=[window(64), window(256, ppl_delta_percent=-40.0)],
    )


def suites(*entries: dict[str, Any]) -> list[Suite]:
    return suites_of(entries)


def parsed(text: str, tmp_path: Path) -> junitparser.JUnitXml:
    path = tmp_path / "junit.xml"
    path.write_text(text, encoding="utf-8")
    return junitparser.JUnitXml.fromfile(str(path))


# -- JUnit


def test_a_case_has_one_outcome_and_its_text(tmp_path: Path) -> None:
    found = parsed(junit.xml_text(suites(mixed())), tmp_path)
    assert (found.tests, found.failures, found.errors) == (4, 1, 0)
    (suite,) = found
    assert (suite.name, suite.tests, suite.failures, suite.skipped) == ("model.gguf", 4, 1, 1)
    cases = {case.name: case for case in suite}
    assert {name: [type(each).__name__ for each in case.result] for name, case in cases.items()} == {
        "gguf.loads": [],
        "gguf.factors.long": ["Failure"],
        "gguf.crossing": [],
        "gguf.tokenizer": ["Skipped"],
    }
    failure = cases["gguf.factors.long"].result[0]
    assert failure.message == failure.text == "Expected 2.5, found 1: 1 of 8 factors differ, the first at pair 3"
    assert "kl_mean ≤ 1e-06" in cases["gguf.crossing"].system_out
    assert {case.classname for case in suite} == {"gguf.model_gguf"}


def test_class_and_name_are_never_empty_nor_twice_the_same(tmp_path: Path) -> None:
    twice = entry("a", check("x", "pass"), check("x", "fail"), check("x (2)", "pass"), check("x", "skip"))
    found = parsed(junit.xml_text(suites(twice, twice, entry("", check("x", "pass")))), tmp_path)
    assert len({suite.name for suite in found}) == 3
    names = [(case.classname, case.name) for suite in found for case in suite]
    assert len(names) == 9
    assert max(Counter(names).values()) == 1
    assert all(class_name and name for class_name, name in names)


def test_artifacts_that_differ_in_a_dot_alone_do_not_share_a_class(tmp_path: Path) -> None:
    found = parsed(junit.xml_text(suites(entry("a.b", check("x", "pass")), entry("a_b", check("x", "pass")))), tmp_path)
    assert len({case.classname for suite in found for case in suite}) == 2


def explained(name: str) -> dict[str, Any]:
    found = {"cause": "attention_factor", "title": "The attention factor is wrong", "advice": "Export again.\x00"}
    return {**mixed(name), "explanation": {**found, "where": "layer 1", "evidence": ["KL 0.2 at every position"]}}


QUALITY = entry(
    "model.gguf",
    check("quality.inside.64", "warn", {"ppl_rise_percent": "≤ 10"}, {"ppl_rise_percent": 12.5}, "it costs too much"),
    check("quality.beyond.YaRN 32/1.256", "pass"),
    check("quality.control.differs", "fail", message="the factors are not applied"),
    check("quality.passkey.256", "skip", message="the original finds none"),
)
# Every shape of document that `validate` can be made to write.
DOCUMENTS = {
    "one": [mixed()],
    "several": [mixed(), mixed("b"), QUALITY],
    "none": [],
    "empty": [entry("a")],
    "the same name": [mixed(), mixed(), mixed("model_gguf")],
    "the same name once it is legal": [mixed("a\x00"), mixed("a"), mixed("a ")],
    "names of nothing": [entry("\x00", check("\x01", "fail"), check(" ", "pass"), check("", "skip")), entry(" \n")],
    "explained": [explained("a"), explained("b")],
    "hostile": [
        entry(HOSTILE, check(HOSTILE, status, HOSTILE, HOSTILE, HOSTILE)) for status in ("fail", "warn", "skip")
    ],
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_hold_to_the_schema(name: str) -> None:
    assert junit_faults(junit.xml_text(suites(*DOCUMENTS[name]))) == []


@pytest.mark.parametrize(
    ("sound", "broken"),
    [
        ('classname="gguf.model_gguf" name="gguf.loads"', 'name="gguf.loads"'),
        ('classname="gguf.model_gguf" name="gguf.loads"', 'classname=" " name="gguf.loads"'),
        ('name="gguf.loads"', 'name="gguf.tokenizer"'),
        ("</failure>", '</failure><skipped message=""/>'),
        ('skipped="1"', 'skipped="0"'),
        ('<testsuite name="model.gguf"', '<testsuite name="outer"><testsuite name="model.gguf"'),
        ('failures="1" errors="0">', 'failures="1" errors="0" skipped="1">'),
    ],
)
def test_the_schema_refuses_what_a_reader_would_misread(sound: str, broken: str) -> None:
    text = junit.xml_text(suites(mixed()))
    assert sound in text
    changed = text.replace(sound, broken, 1)
    if "outer" in broken:
        changed = changed.replace("</testsuite>", "</testsuite></testsuite>")
    assert junit_faults(changed)


def test_why_an_artifact_fails_is_in_every_report() -> None:
    failing = suites(explained("a"))
    said = ET.fromstring(junit.xml_text(failing)).findtext("testsuite/system-out")
    assert said is not None
    assert said.startswith("Likeliest cause: The attention factor is wrong (layer 1)\nWhat to do: Export")
    assert "The attention factor is wrong" in markdown.text(failing).split("<details>")[0]
    first, second, *_ = github.annotation_lines(failing)
    assert first == (
        "::error title=Why it fails (a)::Likeliest cause: The attention factor is wrong (layer 1)%0AWhat to do: Export "
        "again.?"
    )
    assert second.startswith("::error title=gguf.factors.long (a)::")
    many = [explained(f"m{number}") for number in range(20)]
    assert len(github.annotation_lines(suites(*many))) == 10


def test_what_no_xml_may_hold_is_left_out(tmp_path: Path) -> None:
    found = parsed(junit.xml_text(suites(entry(HOSTILE, check(HOSTILE, "fail", HOSTILE, HOSTILE, HOSTILE)))), tmp_path)
    (case,) = (case for suite in found for case in suite)
    assert "<script>x</script>" in case.result[0].text
    assert not re.search("[\x00\x1b\ud800]", case.result[0].text + case.name + case.classname)


# -- Markdown


def test_the_verdict_comes_first_failures_are_open_and_the_rest_is_folded() -> None:
    text = markdown.text(suites(mixed(), entry("other", check("hf.loads", "pass"))))
    assert text.startswith("## ❌ 1 of 2 artifacts pass; 1 check failed, 1 check warned, 1 check did not run.\n")
    opened, folded = text.split("<details>", 1)
    assert "gguf.factors.long" in opened
    assert "the first at pair 3" in opened
    assert "gguf.loads" not in opened
    assert "gguf.loads" in folded
    assert "the cache keeps keys" in folded
    assert folded.count("</details>") == 2
    row = next(line for line in opened.splitlines() if line.startswith("| <code>model.gguf"))
    assert [cell.strip() for cell in row.split("|")[3:-1]] == [
        "❌ fail",
        *("1", "1", "1", "1"),
        *("-40.0000 %", "1.0e-03", "99.00 %"),
    ]


def test_a_pass_is_a_pass_in_words() -> None:
    assert markdown.verdict(suites(entry("a", check("x", "pass")))) == "✅ The artifact passes."
    both = suites(entry("a", check("x", "pass")), entry("b", check("x", "warn"), check("y", "warn")))
    assert markdown.verdict(both) == "✅ All 2 artifacts pass; 2 checks warned."


def test_a_measure_that_is_not_finite_is_a_dash_not_the_best_of_the_others() -> None:
    broken = entry("a", check("x", "fail"), windows=[window(64), window(128, kl_mean=None, ppl_delta_percent=None)])
    row = next(line for line in markdown.text(suites(broken)).splitlines() if line.startswith("| <code>a<"))
    assert [cell.strip() for cell in row.split("|")[8:10]] == ["– %", "–"]


def test_foreign_text_has_no_meaning_in_markdown_nor_html() -> None:
    hostile = entry(
        HOSTILE, check(HOSTILE, "fail", HOSTILE, HOSTILE, HOSTILE), check("ok", "pass"), windows=[window(9)]
    )
    text = markdown.text(suites(hostile))
    for found in re.findall("<code>(.*?)</code>", text, re.DOTALL):
        assert not re.search(r"[|<>`@\[\]*_:\\!~\n\x00-\x1f\u202e]|#(?!\d)|&(?!#\d+;)|(?i:www\.)", found), found
    assert "<script>" in html.unescape(text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {11, 9}
    assert set(re.findall(r"</?(\w+)", text)) == {"code", "details", "summary"}


@pytest.mark.parametrize("limit", [0, 50, 400, 3000])
def test_a_long_report_keeps_its_verdict_and_says_what_is_left_out(limit: int) -> None:
    many = [
        entry(f"m{number}", *(check(f"x{each}", "fail", 1, 2, "y" * 200) for each in range(9))) for number in range(9)
    ]
    text = markdown.text(suites(*many), limit)
    assert len(text) <= limit
    if limit >= 400:
        assert text.startswith("## ❌ 0 of 9")
        assert re.search(r"\d+ parts of this report are left out", text)
        assert text.count("<details>") == text.count("</details>")


def measured(name: str, **changes: Any) -> dict[str, Any]:
    """An artifact whose failure is explained, with a quality that fails, too."""
    documents = run_documents()
    with_quality(documents)
    explain(documents, 1, **changes)
    found = documents["validation"]["artifacts"][1]
    failed = check("gguf.rope.freq_base", "fail", 10000, 500000), check("quality.inside.64", "fail")
    return {**mixed(name), "checks": list(failed), **{part: found[part] for part in ("quality", "explanation")}}


def test_what_an_extension_costs_and_brings_is_said_once() -> None:
    one, other = (measured(name) for name in ("a.gguf", "b.gguf"))
    text = html.unescape(markdown.text(suites(one, other)))
    assert text.count("### Quality of the extension") == 1
    assert "### Quality of the extension: <code>a.gguf</code>, <code>b.gguf</code>" in text
    assert "Perplexity inside 64 tokens against the original model: +0.80 ± 0.06 %, worse beyond noise." in text
    assert (
        "Perplexity at 256 tokens against YaRN, the best published method there: +2.02 ± 0.59 %, within noise." in text
    )
    assert "5 of 5 at 64 tokens and 3 of 5 at 256 tokens; the original model finds 5 of 5 at 64." in text
    assert "| 256 | <code>PI</code> | −63.2 ± 2.1 %, better beyond noise | 22.1980 in place of 60.3403 | – |" in text
    assert "| 64 | <code>original model</code> | +0.80 ± 0.06 %, worse beyond noise | 16.57" in text


def test_an_explanation_of_a_stranger_is_text_and_one_of_another_form_is_refused() -> None:
    texts = {"title": HOSTILE, "where": HOSTILE, "advice": HOSTILE, "evidence": [HOSTILE]}
    text = markdown.text(suites(measured(HOSTILE, **texts)))
    assert set(re.findall(r"</?(\w+)", text)) == {"code", "details", "summary"}
    assert all(line.isprintable() for line in github.annotation_lines(suites(measured(HOSTILE, **texts))))
    for wrong in ({"title": 3}, {"trials": [{}]}, {"shapes": [1]}, {"evidence": "x"}):
        with pytest.raises(InputError, match=r"m\.gguf: explanation: "):
            suites(measured("m.gguf", **wrong))


# -- GitHub


def test_failures_and_warnings_become_annotations() -> None:
    assert github.annotation_lines(suites(mixed())) == [
        "::error title=gguf.factors.long (model.gguf)::Expected 2.5, found 1: 1 of 8 factors differ, the first at pair 3",
        "::warning title=gguf.crossing (model.gguf)::Expected kl_mean ≤ 1e-06, found kl_mean 0.25: the cache keeps keys",
    ]


def test_at_most_ten_annotations_and_the_last_counts_the_rest() -> None:
    checks = [*(check(f"x{each}", "fail") for each in range(12)), *(check(f"y{each}", "warn") for each in range(3))]
    lines = github.annotation_lines(suites(entry("a", *checks)))
    assert len(lines) == 10
    assert lines[-1].startswith("::error title=longrope-export validate::3 more checks failed and 3 more warned")


def test_foreign_text_cannot_start_a_workflow_command_of_its_own() -> None:
    (line,) = github.annotation_lines(
        suites(entry(HOSTILE, check(HOSTILE, "fail", message=f"{HOSTILE}\r\n::stop-commands::x")))
    )
    assert line.isprintable()
    command, title, message = re.fullmatch(r"::(\w+) title=(.*?)::(.*)", line).groups()  # type: ignore[union-attr]
    assert command == "error"
    assert not set(title) & set(":,")
    assert "%0A::stop-commands::x" in message
    assert "50%25" in message


def test_the_summary_is_appended_and_stays_within_its_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv(github.SUMMARY_VARIABLE, str(summary))
    assert github.write_summary(suites(mixed()))
    assert summary.read_text(encoding="utf-8") == "before\n" + markdown.text(suites(mixed()))
    long = [check(f"x{each}", "fail", message="–" * 600) for each in range(1200)]
    assert github.write_summary(suites(entry("a", *long)))
    assert github.SUMMARY_BYTES - 4000 < summary.stat().st_size <= github.SUMMARY_BYTES
    monkeypatch.delenv(github.SUMMARY_VARIABLE)
    assert not github.write_summary(suites(mixed()))


# -- the schema of validation.json


def test_the_published_schema_is_the_one_that_the_types_give() -> None:
    published = (REPOSITORY / "docs" / "validation.schema.json").read_text(encoding="utf-8")
    assert published == schema_text(), "stale: run `make schema`"
    jsonschema.Draft202012Validator.check_schema(json.loads(published))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"schema_version": 2}, "not valid under any"),
        ({"passed": "yes"}, "not valid under any"),
        ({"checks": [check("x", "maybe")]}, "not valid under any"),
        ({"windows": [window(64, ppl="low")]}, "not valid under any"),
        ({"windows": [window(64, ppl=None)]}, None),
    ],
)
def test_the_schema_refuses_what_is_not_a_validation(changes: dict[str, Any], fault: str | None) -> None:
    provenance = {"versions": {}, "machine": {}, "created": "2026-01-01T00:00:00+00:00"}
    data = {"schema_version": 1, **mixed(), "provenance": provenance, **changes}
    run = {"schema_version": 1, "passed": True, "artifacts": [data]}
    faults = [
        [error.message for error in jsonschema.Draft202012Validator(json.loads(schema_text())).iter_errors(each)]
        for each in (data, run)
    ]
    assert [len(found) for found in faults] == ([0, 0] if fault is None else [1, 1])
    assert all(fault in message for found in faults for message in found) if fault else True
