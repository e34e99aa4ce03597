"""The report of a run and the comparison of two as pages: sound, self-contained, readable by everybody, true."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope_export.report import write_comparison, write_report
from longrope_export.report.chart import MAX_SERIES, Axis, Chart, Series, Table, apart, ticks
from longrope_export.words import perplexity, share, signed, tiny, value_words
from tests.common import REPOSITORY, pico_factors, run_cli
from tests.runs import (
    TARGET,
    WINDOW,
    Documents,
    changed,
    check_of,
    explain,
    fail,
    run_documents,
    with_quality,
    write_run,
)

SVG = "{http://www.w3.org/2000/svg}"
LARGEST = 1_000_000
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}{% raw %}`</code>`"
HOSTILE += "\x1b[31m\N{RIGHT-TO-LEFT OVERRIDE}"


def tree_of(path: Path) -> ElementTree.Element:
    """The page, which is XML as well as HTML; its scripts and styles hold neither `<` nor `&`."""
    text = path.read_text(encoding="utf-8").removeprefix("<!DOCTYPE html>")
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script is not None
    return ElementTree.fromstring(text.replace(script[1], ""))


def texts(element: ElementTree.Element) -> str:
    """All that a reader sees, spaces made plain."""
    for each in element.iter():
        if each.tag == "style":
            each.text = ""
        elif each.tag in ("td", "th"):
            each.tail = " "
    return " ".join("".join(element.itertext()).replace("\N{NO-BREAK SPACE}", " ").split())


def report_of(folder: Path, documents: Documents) -> Path:
    return write_report(write_run(folder, documents))


def said(folder: Path, documents: Documents) -> str:
    return texts(tree_of(report_of(folder, documents)))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report with everything passed, one with failures and little measured, a comparison of the two."""
    room = tmp_path_factory.mktemp("report")
    good, bad = run_documents(), run_documents(dual=False)
    fail(bad, 1, "gguf.factors.long", actual=[1.0] * 8, message="8 of 8 factors differ, the first at pair 0")
    for documents in (good, bad):
        with_quality(documents)
    explain(bad, 1)
    check_of(bad, 1, f"gguf.parity.crossing.{WINDOW + 8}").update(status="warn", message="stale keys")
    check_of(bad, 2, "onnx.switch").update(status="skip", message="not run")
    bad["validation"]["artifacts"][1]["windows"][1].update(dict.fromkeys(("ppl", "ppl_delta_percent", "kl_mean")))
    bad["run"]["extension"] |= {"search": None, "stages": [], "recovery": None}
    bad["run"]["configuration"]["options"]["search"]["max_evals"] = 48
    bad["run"]["provenance"]["versions"]["torch"] = "2.14.1"
    del bad["evaluation"]
    first, second = write_run(room / "good", good), write_run(room / "bad", bad)
    return {
        "good": write_report(first),
        "bad": write_report(second),
        "comparison": write_comparison(first, second, room / "both.html"),
    }


PAGES = pytest.mark.parametrize("name", ["good", "bad", "comparison"])


@PAGES
def test_a_page_is_one_sound_file_that_asks_for_no_other(pages: dict[str, Path], name: str) -> None:
    text = pages[name].read_text(encoding="utf-8")
    assert len(text.encode()) < LARGEST
    tree = tree_of(pages[name])
    addresses = [
        value
        for element in tree.iter()
        for key, value in element.attrib.items()
        if key.rpartition("}")[2] in ("src", "href", "srcset", "action", "data", "poster")
    ]
    assert addresses
    assert all(address.startswith("#") for address in addresses)
    assert not re.search(r"url\(|@import|https?://", text.replace('xmlns="http://www.w3.org/2000/svg"', ""))
    assert "default-src 'none'" in text


@PAGES
def test_a_page_speaks_no_python(pages: dict[str, Path], name: str) -> None:
    found = texts(tree_of(pages[name]))
    assert not re.search(r"\b(None|nan|inf|True|False|Undefined)\b|\{'|\['|\[\]|\{\}", found), found
    assert not re.search(r"\b0\.0000\b|[+−]0\.0+ %", found)


@PAGES
def test_a_page_is_built_for_keyboards_and_screen_readers(pages: dict[str, Path], name: str) -> None:
    tree = tree_of(pages[name])
    assert tree.get("lang") == "en"
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for link in tree.iter("a"):
        assert str(link.get("href"))[1:] in ids
    levels = [int(element.tag[1]) for element in tree.iter() if re.fullmatch(r"h\d", str(element.tag))]
    assert levels[0] == 1 == levels.count(1)
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for region in tree.iter("div"):
        if region.get("class") == "scroll":
            assert (region.get("tabindex"), region.get("role")) == ("0", "group")
            assert region.get("aria-label")
    for table in tree.iter("table"):
        assert table.findtext("caption")
        assert all(row.find("th") is not None for row in table.iter("tr"))
        assert all(texts(header) for header in table.iter("th"))


@PAGES
def test_every_chart_has_a_title_a_description_and_its_values_as_a_table(pages: dict[str, Path], name: str) -> None:
    tree = tree_of(pages[name])
    ids = {element.get("id"): element for element in tree.iter() if element.get("id")}
    figures = list(tree.iter("figure"))
    assert figures
    for figure in figures:
        charts = [svg for svg in figure.findall(f"{SVG}svg") if svg.get("role") == "img"]
        assert len(charts) == 2
        for chart in charts:
            title, description = (ids[part] for part in str(chart.get("aria-labelledby")).split())
            assert (title.tag, description.tag) == (f"{SVG}title", f"{SVG}desc")
            assert len(description.text or "") > len(title.text or "") > 0
        rows = figure.findall("details//tbody/tr")
        assert rows
        shown = texts(figure.findall("details")[0])
        drawn = charts[0].findall(f".//{SVG}g[@class='readout']/{SVG}text[@class='']")
        assert drawn, "values on hover"
        assert any(str(text.text).split("  ")[0] in shown for text in drawn)


def test_a_large_run_is_a_page_below_a_megabyte(tmp_path: Path) -> None:
    """256 rotary dimensions, 5,000 evaluations, three stages of 2,000 steps, 20 methods, eight formats of 60 checks."""
    documents = run_documents()
    factors = pico_factors(256, original_max_position_embeddings=WINDOW, target=TARGET)
    documents["factors"] = factors.to_json()
    extension, validation = documents["run"]["extension"], documents["validation"]
    extension["search"]["history"] = [{"tokens": 1000 * n, "perplexity": 30 - n / 1000} for n in range(1, 5001)]
    extension["methods"]["rows"] += [{"name": f"method {n}", "perplexities": [20.0 + n, 30.0]} for n in range(15)]
    stage = extension["stages"][0]
    stage["training"] |= {"steps": list(range(2000)), "loss": [2.5] * 2000, "learning_rate": [1e-4] * 2000}
    extension["stages"] = [stage] * 3
    entry = validation["artifacts"][1]
    entry["checks"] += [entry["checks"][1] | {"id": f"gguf.check{n}", "actual": [1.0] * 128} for n in range(52)]
    validation["artifacts"] = [entry | {"artifact": f"gguf:q{n}_0"} for n in range(1, 9)]
    folder = write_run(tmp_path / "run", documents)
    assert write_report(folder).stat().st_size < LARGEST
    tree_of(folder / "report.html")
    assert write_comparison(folder, folder, tmp_path / "both.html").stat().st_size < LARGEST


def test_the_page_runs_its_own_script_and_no_other(pages: dict[str, Path]) -> None:
    text = pages["good"].read_text(encoding="utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    (allowed,) = re.findall(r"script-src 'sha256-([^']+)'", text)
    assert [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts] == [allowed]


# -- colours


def palettes(page: str) -> Iterator[dict[str, str]]:
    """Colours by name, of the light and of the dark theme."""
    blocks = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    light = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", blocks[0]))
    yield light
    yield light | dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", blocks[1]))


def contrast(first: str, second: str) -> float:
    """Of two colours, 1 to 21, as WCAG 2.2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def mixed(first: str, second: str, share: float) -> str:
    parts = [(int(first[at : at + 2], 16), int(second[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in parts)


def test_text_and_lines_stand_out_in_both_themes(pages: dict[str, Path]) -> None:
    """4.5 for text, 3 for lines, markers and bars (WCAG AA)."""
    themes = list(palettes(pages["good"].read_text(encoding="utf-8")))
    assert themes[0]["page"] != themes[1]["page"]
    for theme in themes:
        for ground in ("page", "panel"):
            for ink in ("ink", "quiet", "accent", "pass", "warn", "fail"):
                assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground, theme)
            for number in range(9):
                assert contrast(theme[f"s{number}"], theme[ground]) >= 3, (number, ground, theme)
        for level in range(11):
            assert contrast(theme["ink"], mixed(theme["heat"], theme["panel"], level / 10)) >= 4.5, (level, theme)


# -- charts


def chart_of(series: tuple[Series, ...], **changes: Any) -> Chart:
    axes = {"x": Axis("tokens", str, base=2), "y": Axis("perplexity", str, base=10)} | changes
    return Chart("c", "title", "summary of it", series=series, table=Table("t", ("a",), ()), **axes)


def test_lines_are_told_apart_without_colour() -> None:
    """By dash and marker, in the key and in the drawing."""
    chart = chart_of(tuple(Series(f"{n}", ((1.0, n + 1.0), (2.0, n + 2.0)), look=n) for n in range(MAX_SERIES)))
    looks = [
        tuple(re.findall(r'stroke-dasharray="([^"]*)"|class="dot[^"]*" d="([^"]*)"', str(sample)))
        for sample, _ in chart.key()
    ]
    assert len(set(looks)) == MAX_SERIES
    dashes = re.findall(r'class="line[^"]*" stroke-dasharray="([^"]*)"', str(chart.wide()))
    assert sorted(dashes) == sorted(dash for (dash, _), _ in looks)


def test_names_at_the_ends_of_lines_do_not_touch() -> None:
    chart = chart_of(tuple(Series(f"name {n}", ((1.0, 20.0), (2.0, 20.0 + n / 1000))) for n in range(MAX_SERIES)))
    places = [float(y) for y in re.findall(r'<text [^>]*y="([\d.]+)" class="name', str(chart.wide()))]
    assert len(places) == MAX_SERIES
    assert min(b - a for a, b in pairwise(sorted(places))) >= 14
    assert not re.search(r'class="name', str(chart.narrow())), "its key stands outside"


@given(st.lists(st.floats(0, 300), max_size=12))
def test_labels_are_pushed_apart_within_bounds(wanted: list[float]) -> None:
    places = apart(sorted(wanted), 15, 0, 300)
    assert all(b - a >= 15 - 1e-9 for a, b in pairwise(places))
    assert all(-1e-9 <= place <= 300 for place in places)


@given(st.floats(1e-12, 1e12), st.floats(1e-9, 1e9), st.sampled_from([None, 2, 10]), st.integers(4, 8))
def test_ticks_are_few_and_within_the_axis(low: float, factor: float, base: int | None, places: int) -> None:
    high = low * (1 + factor)
    found = ticks(low, high, base, places)
    assert found == sorted(found)
    assert all(low * (1 - 1e-9) <= value <= high * (1 + 1e-9) for value in found)
    assert len(found) <= 2 * places


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-320, 1e308, 25.0])
def test_what_has_no_place_on_an_axis_is_left_out(value: float) -> None:
    drawn = str(chart_of((Series("a", ((1.0, value), (2.0, value))), Series("b", ()))).wide())
    assert "nan" not in drawn
    assert "inf" not in drawn
    assert ("<svg" in drawn) == (value == 25.0)


# -- what the words say


def test_the_verdict_is_a_sentence_with_the_figures(tmp_path: Path) -> None:
    found = said(tmp_path / "dual", run_documents())
    assert "4× longer; +1.00 % perplexity inside 64 tokens; every format is the same model." in found
    assert "At 256 tokens the perplexity is 20.000; without the extension it is 80.000." in found
    assert "The best published method there, YaRN 32/1, has 21.000 (5.00 % higher)." in found
    assert "The passkey was found in 75 % of 24 prompts of up to 256 tokens." in found
    assert "All 24 checks passed." in found
    assert "+4.00 %" in said(tmp_path / "single", run_documents(dual=False))


def quantized(documents: Documents) -> None:
    documents["validation"]["artifacts"][1]["windows"][0]["ppl_delta_percent"] = -0.47


def two_failures(documents: Documents) -> None:
    fail(documents, 1, "gguf.readable")
    fail(documents, 1, "gguf.factors.long", message="8 of 8 factors differ")


def nothing_ran(documents: Documents) -> None:
    for entry in documents["validation"]["artifacts"]:
        entry["windows"] = []
        entry["provenance"]["text_fingerprint"] = None


def beaten(documents: Documents) -> None:
    documents["run"]["extension"]["methods"]["rows"][3]["perplexities"][1] = 19.0


def only_short(documents: Documents) -> None:
    for entry in documents["validation"]["artifacts"]:
        entry["windows"] = entry["windows"][:1]


def mixed_sets(documents: Documents) -> None:
    documents["run"]["exports"][0]["factor_sets"] = "single"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (quantized, "every format is the same model, within 0.47 % of perplexity."),
        (quantized, "is −0.47 % (gguf:f16, short window of 64 tokens)"),
        (two_failures, "2 checks of gguf:f16 failed."),
        (two_failures, "gguf:f16: gguf.factors.long failed: 8 of 8 factors differ"),
        (nothing_ran, "hf, gguf:f16 and onnx were checked without being run."),
        (beaten, "19.000 (5.00 % lower: this run does not beat it)"),
        (beaten, "YaRN 32/1 has a lower perplexity at the target; a longer search (--max-evals) may"),
        (only_short, "hf, gguf:f16 and onnx: compared with the reference up to 64 tokens, not up to 256"),
        (mixed_sets, "+1.00 to +4.00 % perplexity inside 64 tokens"),
        (mixed_sets, "16.160 with the short set (+1.00 %, used by gguf:f16 and onnx) and 16.640 with the long set"),
        (lambda d: d["validation"].update(artifacts=[]), "no format was checked."),
        (lambda d: d.pop("evaluation"), "Retrieval was not measured; eval --passkey does."),
        (lambda d: d["run"]["extension"]["methods"].update(lengths=[], rows=[]), "No method was measured"),
    ],
)
def test_what_is_not_well_is_said(tmp_path: Path, change: Callable[[Documents], None], words: str) -> None:
    assert words in said(tmp_path / "run", changed(run_documents(), change))


def test_failures_are_open_and_what_passed_is_folded(pages: dict[str, Path]) -> None:
    tree = tree_of(pages["bad"])
    folded = " ".join(texts(details) for details in tree.iter("details"))
    everything = texts(tree)
    for id in ("gguf.factors.long", f"gguf.parity.crossing.{WINDOW + 8}", "onnx.switch"):
        assert f"{id} " in everything
        assert f"{id} " not in folded
    assert "gguf.tensors.missing ✓ passed Expected none, found none." in folded


def test_a_window_has_the_worst_verdict_of_its_checks(tmp_path: Path) -> None:
    documents = run_documents()
    checks = documents["validation"]["artifacts"][1]["checks"]
    checks.append(checks[0] | {"id": f"gguf.rounding.long.{TARGET}", "status": "warn"})
    fail(documents, 2, f"onnx.parity.short.{WINDOW}")
    found = said(tmp_path / "run", documents)
    assert "gguf:f16 short 64 ✓ passed 16.160" in found
    assert "gguf:f16 long 256 ! warning 16.160" in found
    assert "onnx short 64 ✗ failed 16.160" in found


def test_what_an_entry_says_of_itself_is_held_against_its_checks(tmp_path: Path) -> None:
    documents = run_documents()
    check_of(documents, 1, "gguf.readable")["status"] = "fail"
    check_of(documents, 0, "hf.readable")["status"] = "of a later version"
    documents["validation"]["artifacts"][2]["passed"] = False
    found = said(tmp_path / "run", documents)
    assert "1 check of gguf:f16 and onnx failed." in found
    assert "✗ checks failed" in found
    assert "hf.readable of a later version" in found


def test_commands_are_ready_to_paste(pages: dict[str, Path]) -> None:
    blocks = [block.text or "" for block in tree_of(pages["good"]).iter("pre")]
    assert f"vllm serve ./hf --max-model-len {TARGET}" in blocks
    assert f"llama-cli -m ./gguf/m-f16.gguf -c {TARGET}" in blocks
    assert any(block.startswith("lms get ORG/NAME\n") for block in blocks)
    assert any('dtype: "fp32"' in block for block in blocks)
    assert any("target-length: 256" in block and "books" in block and "somebody" not in block for block in blocks)
    assert not any("$" in block for block in blocks)


def test_a_path_that_a_shell_would_read_is_not_put_into_commands(tmp_path: Path) -> None:
    documents = run_documents()
    documents["run"]["exports"][0]["path"] = "hf; rm -rf ~"
    blocks = [block.text or "" for block in tree_of(report_of(tmp_path / "run", documents)).iter("pre")]
    assert not any("rm -rf" in block for block in blocks)
    assert f"vllm serve ./PATH --max-model-len {TARGET}" in blocks


# -- quality, and why an artifact fails


def measured(change: Callable[[Documents], object] = lambda _: None) -> Documents:
    documents = run_documents()
    with_quality(documents)
    change(documents)
    return documents


def another_extension(documents: Documents) -> None:
    """The first artifact has one set, which costs more."""
    texts = documents["validation"]["artifacts"][0]["quality"]["inside"][0]["texts"]
    for each in texts:
        each["nll"] += 0.1


def one_window(documents: Documents) -> None:
    for entry in documents["validation"]["artifacts"]:
        quality = entry["quality"]
        quality["inside"][0]["texts"] = quality["inside"][0]["texts"][:1]
        for score in quality["beyond"]:
            score |= {"extended": [3.0], "methods": {"original": [4.4], "PI": [None]}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: None, "4× longer; +0.80 % perplexity inside 64 tokens; every format is the same model."),
        (lambda _: None, "Perplexity inside 64 tokens against the original model: +0.80 ± 0.06 %, worse beyond noise."),
        (lambda _: None, "against YaRN, the best published method there: +2.02 ± 0.59 %, within noise."),
        (
            lambda _: None,
            "Passkeys found: 5 of 5 at 64 tokens and 3 of 5 at 256 tokens; the original model finds 5 of 5",
        ),
        (lambda _: None, "hf, gguf:f16 and onnx: quality.beyond.YaRN.256 warned: no"),
        (lambda _: None, "64 (inside) original model +0.80 ± 0.06 % worse ✓ passed 16.577 16.440"),
        (
            lambda _: None,
            "The extended model is 1.0e-02 nats per token (mean KL) from the original one inside 64 tokens",
        ),
        (lambda _: None, "256 PI −63.2 ± 2.1 % better – 22.198 60.340"),
        (lambda _: None, "Not measured: beyond.512: no text is that long"),
        (another_extension, "+0.80 to +11.4 % perplexity inside 64 tokens"),
        (another_extension, "gguf:f16 and onnx: perplexity inside 64 tokens against the original model: +0.80"),
        (another_extension, "hf: perplexity inside 64 tokens against the original model: +11.4"),
        (another_extension, "model finds 5 of 5 at 64. The passkey was found in"),
        (one_window, "Perplexity inside 64 tokens against the original model: +0.70 %, one window."),
        (one_window, "256 PI – one window – 20.086 –"),
        (lambda d: d["run"]["extension"]["methods"].update(lengths=[], rows=[]), "+0.80 % perplexity inside 64 tokens"),
        (lambda d: d.pop("evaluation"), "Quality: what the extension costs and brings"),
    ],
)
def test_what_the_extension_costs_and_brings_is_said(
    tmp_path: Path, change: Callable[[Documents], None], words: str
) -> None:
    found = said(tmp_path / "run", measured(change))
    assert words in found
    assert "Retrieval was not measured" not in found, "passkeys were"


def test_a_failure_that_is_explained_says_why_first_and_beside_its_checks(tmp_path: Path) -> None:
    documents = run_documents()
    fail(documents, 1, "gguf.readable")
    explain(documents, 1)
    tree = tree_of(report_of(tmp_path / "run", documents))
    found, folded = texts(tree), " ".join(texts(details) for details in tree.iter("details"))
    title = "the base of the rotary frequencies is another: theta 500000 in place of 10000"
    assert f"gguf:f16 is not the same model; likely cause: {title}." in found
    assert f"gguf:f16: likely cause: {title} (at every length). Write the reference's theta." in found
    beside = found[found.index("gguf:f16: ✗ 1 check failed") : found.index("gguf:f16: failed")]
    for words in ("Likely cause: The base", "What to do: Write", "KL 0.38, from position 2 on", "256 tokens, long set"):
        assert words in beside
        assert words not in folded or words == "256 tokens, long set"
    assert "theta 500000 in place of 10000 256 0.34 3.0e-04 0.08824 %".replace("0.34", "3.4e-01") in folded
    assert "layer 0 18 % 0.99 % yes" in folded


def two_explained(documents: Documents) -> None:
    fail(documents, 2, "onnx.readable")
    explain(documents, 2)


def nothing_found(documents: Documents) -> None:
    explain(
        documents, 1, cause="unknown", title="The cause was not found.", shapes=[], trials=[], parts=[], evidence=[]
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (two_explained, "every format"),
        (two_explained, "gguf:f16 and onnx are not the same model."),
        (nothing_found, "1 check of gguf:f16 failed."),
    ],
)
def test_the_headline_names_one_cause_at_most(tmp_path: Path, change: Callable[[Documents], None], words: str) -> None:
    documents = run_documents()
    fail(documents, 1, "gguf.readable")
    explain(documents, 1)
    change(documents)
    found = said(tmp_path / "run", documents)
    assert (words in found) == (words != "every format")


def test_a_report_takes_what_validate_wrote_elsewhere(tmp_path: Path) -> None:
    """Its artifacts go by their files' names; the others keep what the run says of them."""
    folder, documents, result = write_run(tmp_path / "run", run_documents()), measured(), tmp_path / "result.json"
    entry = documents["validation"]["artifacts"][1] | {"artifact": "m-f16.gguf"}
    result.write_text(json.dumps(entry), encoding="utf-8")
    done = run_cli("report", folder, "--validation", result, "-o", tmp_path / "page.html")
    assert done.code == 0, done.err
    found = texts(tree_of(tmp_path / "page.html"))
    assert "gguf:f16: ! 9 checks passed, 1 did not" in found
    assert "onnx: ✓ 8 checks passed" in found
    assert "+0.80 % perplexity inside 64 tokens" in found
    result.write_text(json.dumps(entry | {"artifact": "another.gguf"}), encoding="utf-8")
    refused = run_cli("report", folder, "--validation", result)
    assert (refused.code, "it is about another.gguf" in refused.err) == (2, True)
    other = entry | {"provenance": entry["provenance"] | {"files": {"model.gguf": "00", "added.json": "11"}}}
    documents["validation"]["artifacts"][1]["provenance"]["files"] = {"model.gguf": "22"}
    result.write_text(json.dumps(other), encoding="utf-8")
    refused = run_cli("report", write_run(tmp_path / "of others", documents), "--validation", result)
    assert (refused.code, "model.gguf of gguf:f16 is not the file" in refused.err) == (2, True)
    refused = run_cli("report", folder, folder, "--validation", result)
    assert (refused.code, "about one run" in refused.err) == (2, True)


def test_artifacts_that_validation_json_is_not_about_are_named(tmp_path: Path) -> None:
    """As where `validate --json` of one artifact was written over it."""
    documents = measured()
    documents["validation"] = documents["validation"]["artifacts"][0]
    assert "gguf:f16 and onnx: not validated" in said(tmp_path / "run", documents)


def later(documents: Documents, more: float, *, windows: bool = True) -> None:
    """A later release, a little worse on every window of the long length."""
    for entry in documents["validation"]["artifacts"]:
        score = entry["quality"]["beyond"][0]
        score["extended"] = [loss + more * (1 + n / 10) for n, loss in enumerate(score["extended"])]
        for window in entry["windows"] if windows else ():
            window["texts"] = [{"nll": 2.7 + more * n} for n in (1.0, 1.1, 1.2)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: later(d, 0.02), "Worse beyond noise: hf short 64 tokens (+2.22 ± 0.12 %)"),
        (lambda d: later(d, 0.02), "the extended model at 256 tokens (+2.22 ± 0.12 %)"),
        (lambda d: later(d, -0.02), "Better beyond noise: hf short 64"),
        (
            lambda d: later(d, 0.0, windows=False),
            "On the same windows no perplexity changed beyond noise (2 comparisons).",
        ),
        (one_window, "One window of each length was measured, which does not tell a change from noise."),
    ],
)
def test_a_comparison_says_what_got_worse_beyond_noise(
    tmp_path: Path, change: Callable[[Documents], None], words: str
) -> None:
    first, second = measured(lambda d: later(d, 0.0)), measured(change)
    if change is one_window:
        one_window(first)
    room = [write_run(tmp_path / name, each) for name, each in (("a", first), ("b", second))]
    assert words in texts(tree_of(write_comparison(*room)))


def test_windows_of_other_texts_are_not_paired(tmp_path: Path) -> None:
    first, second = measured(), measured(lambda d: later(d, 0.5))
    for entry in second["validation"]["artifacts"]:
        entry["provenance"]["text_fingerprint"] = "0ther"
    found = texts(tree_of(write_comparison(write_run(tmp_path / "a", first), write_run(tmp_path / "b", second))))
    assert "beyond noise" not in found
    assert "256 tokens, against YaRN +2.02 ± 0.59 % +" in found


# -- two runs


def test_a_comparison_says_what_differs(pages: dict[str, Path]) -> None:
    found = texts(tree_of(pages["comparison"]))
    cause = "gguf:f16 is not the same model; likely cause: the base of the rotary frequencies is another: theta 500000"
    assert f"bad against good: {cause} in place of 10000; +2.97 % perplexity at 64 tokens (16.160 → 16.640)" in found
    assert "the same perplexity at 256 tokens (20.000 → 20.000); 3 checks changed." in found
    assert "good: every format is the same model. bad: gguf:f16 is not the same model; likely cause: the base" in found
    assert "options.search.max_evals 24 48 versions.torch 2.13.0 2.14.1" in found
    rows = [texts(row) for row in tree_of(pages["comparison"]).iter("tr")]
    at = [
        next(n for n, row in enumerate(rows) if id in row and "✓" in row)
        for id in ("factors.long", "crossing", "switch")
    ]
    assert at == sorted(at), "what has got worst stands first"
    assert "Are they comparable?" not in found


def test_checks_that_one_run_alone_has_are_folded_where_they_are_well(tmp_path: Path) -> None:
    first, second = run_documents(), run_documents()
    checks = second["validation"]["artifacts"][1]["checks"]
    checks += [checks[0] | {"id": "gguf.new"}, checks[0] | {"id": "gguf.odd", "status": "warn"}]
    tree = tree_of(write_comparison(write_run(tmp_path / "a", first), write_run(tmp_path / "b", second)))
    folded = " ".join(texts(details) for details in tree.iter("details"))
    assert "1 check that one run alone has" in folded
    assert "gguf:f16: gguf.new not there ✓ passed" in folded
    assert "gguf.odd" not in folded
    assert "gguf:f16: gguf.odd not there ! warning" in texts(tree)
    assert "1 check changed" in texts(tree)


def test_runs_of_other_models_and_texts_are_not_compared_in_silence(tmp_path: Path) -> None:
    first, second = run_documents(), run_documents()
    second["run"]["configuration"] |= {"model_fingerprint": "other", "test_fingerprint": "other"}
    second["run"]["configuration"]["options"]["test_windows"] = 8
    both = write_comparison(write_run(tmp_path / "a", first), write_run(tmp_path / "b", second))
    assert both == tmp_path / "b" / "comparison.html"
    found = texts(tree_of(both))
    for words in ("The models are not the same", "The held-out texts are not the same", "over 2 and 8 windows"):
        assert words in found


def test_a_run_does_not_differ_from_itself(tmp_path: Path) -> None:
    one, other = (write_run(tmp_path / name / "run", measured()) for name in "ab")
    found = texts(tree_of(write_comparison(one, other)))
    assert "no check changed" in found
    assert "256 tokens, against YaRN +2.02 ± 0.59 % +2.02 ± 0.59 % 0 % the same" in found
    assert "no perplexity changed beyond noise (2 comparisons)" in found
    assert "The settings are the same." in found
    assert "run (B) against run (A)" in found


def test_the_command_writes_a_report_or_a_comparison(tmp_path: Path) -> None:
    one, other = (write_run(tmp_path / name, run_documents()) for name in "ab")
    assert run_cli("report", one, other).code == 0
    assert (other / "comparison.html").is_file()
    assert run_cli("report", one, "-o", tmp_path / "page.html").code == 0
    assert (tmp_path / "page.html").is_file()
    assert (run_cli("report", one, tmp_path / "none").code, run_cli("report", one, other, one).code) == (2, 2)


def test_a_report_needs_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", run_documents())
    code = (
        "import sys; from pathlib import Path; from longrope_export.report import write_report; "
        "write_report(Path(sys.argv[1])); print({'torch', 'matplotlib', 'transformers', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.stdout, done.stderr) == ("set()\n", "")


# -- files of strangers


def with_every_text(data: Any, text: str) -> Any:
    """The same with another text in the place of each one that may be anything, and in keys that may."""
    match data:
        case dict():
            return {
                key: value if key in ("status", "state", "rope", "regime") else with_every_text(value, text)
                for key, value in data.items()
            }
        case list():
            return [with_every_text(value, text) for value in data]
        case str():
            return text
        case _:
            return data


def test_names_from_files_are_text_and_nothing_else(tmp_path: Path) -> None:
    documents = {name: with_every_text(data, HOSTILE) for name, data in all_documents().items()}
    documents["factors"] = run_documents()["factors"] | {"method": HOSTILE}
    documents["run"]["configuration"][HOSTILE] = {HOSTILE: HOSTILE}
    documents["validation"]["artifacts"][0]["checks"][0]["expected"] = {HOSTILE: [HOSTILE]}
    folder = write_run(tmp_path / "run", documents)
    for page in (write_report(folder), write_comparison(folder, folder, tmp_path / "both.html")):
        tree = tree_of(page)
        assert len(list(tree.iter("script"))) == 1
        assert not list(tree.iter("img"))
        assert not any(key.startswith("on") for element in tree.iter() for key in element.attrib)
        text = page.read_text(encoding="utf-8")
        assert "{{ 7 * 7 }}" in text
        assert not re.search(r"\x1b|\N{RIGHT-TO-LEFT OVERRIDE}", text)


NUMBERS = st.one_of(st.none(), st.sampled_from([0, -1, 1e-300, 1e300, 3]), st.floats(-1e308, 1e308))


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where numbers stand."""
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from places(value, (*path, key))
    elif isinstance(data, int | float) and not isinstance(data, bool):
        yield path


def all_documents() -> Documents:
    """A run whose artifacts have all that validate writes."""
    documents = run_documents()
    with_quality(documents)
    explain(documents, 1)
    return documents


PLACES = [(name, path) for name, data in all_documents().items() for path in places(data)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES), NUMBERS), min_size=1, max_size=6))
def test_any_number_gives_a_sound_page_or_a_line(tmp_path_factory: pytest.TempPathFactory, edits: list[Any]) -> None:
    documents = all_documents()
    for (name, path), value in edits:
        at: Any = documents[name]
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
    folder = write_run(tmp_path_factory.mktemp("edited") / "run", documents)
    done = run_cli("report", folder)
    assert done.code in (0, 2), (done.err, edits)
    if done.code == 0:
        assert not re.search(r"\b(nan|inf|None)\b", texts(tree_of(folder / "report.html")))
        assert run_cli("report", folder, folder).code == 0


# -- words


def test_figures_have_the_digits_that_they_deserve() -> None:
    assert [signed(value) for value in (0.0, 2e-5, -0.00123, 0.832, -12.34, 448.2, 1.5e7, None, math.nan)] == [
        *("0 %", "< 0.0001 %", "−0.0012 %", "+0.83 %", "−12.3 %", "+448 %", "+1.5e+07 %", "–", "–")
    ]
    assert (share(0.998), share(1.0), share(None)) == ("99.8 %", "100 %", "–")
    assert (perplexity(20.7240), perplexity(123456.0), perplexity(None)) == ("20.724", "1.235e+05", "–")
    assert (tiny(0.0), tiny(2.64e-7), tiny(None)) == ("0", "2.6e-07", "–")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "nothing"),
        (True, "yes"),
        ([], "none"),
        ({}, "none"),
        (2.5, "2.5"),
        (10000.0, "10000"),
        (1 + 2**-52, "1.0000000000000002"),
        (math.nan, "–"),
        ("\x1b[31m", "?[31m"),
        ({"kl_mean": "≤ 1e-06", "found": 0.25}, "kl_mean ≤ 1e-06, found 0.25"),
        (["input_ids: int64", [1, 2], {}], "input_ids: int64, (2 values), (none)"),
        (["x" * 500], "x" * 159 + "…"),
    ],
)
def test_values_are_said_in_words(value: Any, words: str) -> None:
    assert value_words(value) == words


def test_a_validation_with_fields_of_later_versions_is_shown(tmp_path: Path) -> None:
    documents = json.loads(json.dumps(run_documents()))
    entry = documents["validation"]["artifacts"][0]
    entry |= {"policy": {"name": "default"}, "qualities": [1, 2]}
    entry["windows"][0] |= {"kl_median": 1e-9, "positions": [0.0] * 64}
    entry["checks"][0] |= {"severity": "error"}
    assert "every format is the same model" in said(tmp_path / "run", documents)


def test_themes_differ_in_every_colour_of_a_line(pages: dict[str, Path]) -> None:
    light, dark = palettes(pages["good"].read_text(encoding="utf-8"))
    assert all(light[f"s{number}"] != dark[f"s{number}"] for number in range(9))
    assert all(light[f"s{a}"] != light[f"s{b}"] for a, b in combinations(range(9), 2))
