"""convert, validate, inspect, factors, eval, recover and doctor as a user runs them, their JSON against the contract."""

from __future__ import annotations

import json
import math
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import junitparser
import numpy as np
import pytest

from longrope.checkpoint import Checkpoint
from longrope.errors import InputError
from longrope.factors import RescaleFactors
from longrope.hf_config import extended_config
from longrope.rope import ntk_factors
from longrope_export import plots
from tests.common import REPOSITORY, TARGET, WINDOW, pico_factors, run_cli

Json = dict[str, Any]
NUMBER = (int, float)
# The contract's validation.json: key → type of its value.
CHECK = {"id": str, "status": str, "expected": object, "actual": object, "message": str}
WINDOW_SCORE = {
    "length": int,
    "regime": str,
    "tokens": int,
    "ppl_reference": NUMBER,
    "ppl": NUMBER,
    "ppl_delta_percent": NUMBER,
    "kl_mean": NUMBER,
    "kl_p99": NUMBER,
    "top1_agreement": NUMBER,
    "max_logit_diff": NUMBER,
}
VALIDATION = {
    "schema_version": int,
    "artifact": str,
    "format": str,
    "reference": str,
    "passed": bool,
    "checks": list,
    "windows": list,
    "provenance": dict,
}


def assert_schema(data: Json, schema: dict[str, Any]) -> None:
    missing = set(schema) - set(data)
    assert not missing, missing
    wrong = {name: data[name] for name, kind in schema.items() if not isinstance(data[name], kind)}
    assert wrong == {}


def assert_published_schema(data: Json) -> None:
    """Holds to docs/validation.schema.json, which names every field that was written."""
    schema = json.loads((REPOSITORY / "docs" / "validation.schema.json").read_text())
    jsonschema.validate(data, schema)
    for part, found in (("artifact", [data]), ("check", data["checks"]), ("window", data["windows"])):
        named = set(schema["$defs"][part]["properties"])
        assert [set(each) - named for each in found] == [set()] * len(found)
    assert set(data["provenance"]) <= set(schema["$defs"]["artifact"]["properties"]["provenance"]["properties"])


@pytest.fixture(scope="module")
def artifacts(pico: Checkpoint, factors_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every format, written by `convert` with both sets."""
    room = tmp_path_factory.mktemp("artifacts")
    paths = {"hf": room / "hf", "gguf": room / "model.gguf", "onnx": room / "onnx"}
    for name, path in paths.items():
        fixed = ("--to", name, "--factors", factors_file, "--factor-sets", "dual", "-o", path)
        done = run_cli("convert", pico.path, *fixed, *(("--outtype", "f32") if name == "gguf" else ()))
        assert done.code == 0, done.err
        assert "read-back checks passed" in done.err
        assert done.out == ""
    return paths


@pytest.fixture(scope="module")
def text(texts: Path) -> Path:
    return texts / "0.txt"


# -- convert


@pytest.mark.parametrize(("name", "sets"), [("hf", "single"), ("gguf", "dual"), ("onnx", "single")])
def test_auto_chooses_the_safe_sets(pico: Checkpoint, factors_file: Path, tmp_path: Path, name: str, sets: str) -> None:
    output = tmp_path / "model.gguf" if name == "gguf" else tmp_path / name
    assert run_cli("convert", pico.path, "--to", name, "--factors", factors_file, "-o", output).code == 0
    assert json.loads(run_cli("inspect", output, "--json", "-").out)["factor_sets"] == sets


@pytest.mark.parametrize("source", ["hf", "gguf"])
@pytest.mark.parametrize("target", ["hf", "gguf", "onnx"])
def test_an_extended_model_converts_with_its_own_factors(
    artifacts: dict[str, Path], tmp_path: Path, source: str, target: str
) -> None:
    output = tmp_path / "model.gguf" if target == "gguf" else tmp_path / target
    done = run_cli("convert", artifacts[source], "--to", target, "--factor-sets", "dual", "-o", output)
    assert done.code == 0, done.err
    found = json.loads(run_cli("factors", "show", output, "--json", "-").out)
    assert found["long_factor"] == pytest.approx(pico_factors().long_factor, rel=1e-7)
    assert found["short_factor"] == pytest.approx(pico_factors().short_factor, rel=1e-7)


@pytest.fixture(scope="module")
def rescaled(pico: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that its publisher rescaled from a quarter of its window."""
    folder = tmp_path_factory.mktemp("rescaled") / "model"
    shutil.copytree(pico.path, folder)
    config = json.loads((folder / "config.json").read_text())
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": WINDOW // 4, "rope_theta": 1e4}
    (folder / "config.json").write_text(json.dumps({**config, "rope_parameters": rope, "rope_scaling": None}))
    return folder


@pytest.mark.parametrize("name", ["hf", "gguf", "onnx"])
def test_another_original_window_is_in_every_format_and_known_without_the_option(
    rescaled: Path, texts: Path, tmp_path: Path, name: str
) -> None:
    factors, output = tmp_path / "factors.json", tmp_path / ("model.gguf" if name == "gguf" else name)
    pico_factors(original_max_position_embeddings=None).save(factors)
    given = ("--to", name, "--factors", factors, "--factor-sets", "dual", "--original", WINDOW // 4, "-o", output)
    assert (done := run_cli("convert", rescaled, *given)).code == 0, done.err
    found = json.loads(run_cli("inspect", output, "--json", "-").out)
    assert found["factors"]["original_max_position_embeddings"] == found["base"]["window"] == WINDOW // 4
    assert found["base"]["rope_type"] == "default"
    assert found["factors"]["long_factor"] == pytest.approx(pico_factors().long_factor, rel=1e-6)
    done = run_cli(
        "validate", output, "--reference", rescaled, "--text", texts, "--windows", 16, "--windows-per-length", 1
    )
    assert done.code == 0, done.out + done.err


def test_a_search_from_another_window_records_it(rescaled: Path, texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "factors.json"
    fixed = ("--target-length", TARGET, "--text", texts, "--max-evals", 2, "--device", "cpu", "-o", output)
    assert (done := run_cli("search", rescaled, *fixed, "--original", WINDOW // 4)).code == 0, done.err
    found = json.loads(output.read_text())
    assert (found["original_max_position_embeddings"], found["base"]["rope_type"]) == (WINDOW // 4, "default")
    refused = run_cli("search", rescaled, *fixed, "--original", 2 * WINDOW, "--overwrite")
    assert refused.code == 2
    assert "its max_position_embeddings" in refused.err


# -- validate


@pytest.mark.parametrize("name", ["hf", "gguf", "onnx"])
def test_validate_writes_the_contracts_json(
    artifacts: dict[str, Path], pico: Checkpoint, text: Path, tmp_path: Path, name: str
) -> None:
    output = tmp_path / "validation.json"
    done = run_cli(
        "validate", artifacts[name], "--reference", pico.path, "--text", text, "--threads", 1, "--json", output
    )
    assert done.code == 0, done.err
    assert name in done.out or str(artifacts[name]) in done.out
    data = json.loads(output.read_text())
    assert_schema(data, VALIDATION)
    assert_published_schema(data)
    assert (data["schema_version"], data["format"], data["passed"]) == (1, name, True)
    assert data["checks"]
    for check in data["checks"]:
        assert_schema(check, CHECK)
        assert check["status"] in ("pass", "fail", "warn", "skip")
    for window in data["windows"]:
        assert_schema(window, WINDOW_SCORE)
        assert window["regime"] in ("short", "long", "crossing")
        assert window["ppl_delta_percent"] == pytest.approx(100 * (window["ppl"] / window["ppl_reference"] - 1))
    assert {window["length"] for window in data["windows"]} >= {WINDOW, TARGET}
    assert {"versions", "reference_fingerprint", "text_fingerprint", "seed", "machine"} <= set(data["provenance"])


def test_a_dual_artifact_is_warned_of_at_the_crossing(artifacts: dict[str, Path], pico: Checkpoint, text: Path) -> None:
    """transformers keeps keys of the short set in its cache: not a fault of the file, but a user must know."""
    arguments = ("--reference", pico.path, "--text", text, "--threads", 1, "--json", "-")
    data = json.loads(run_cli("validate", artifacts["hf"], *arguments).out)
    (crossing,) = (check for check in data["checks"] if ".parity.crossing." in check["id"])
    assert crossing["status"] == "warn"
    assert "single" in crossing["message"]
    assert data["passed"]


def test_the_json_is_never_mixed_with_the_table(artifacts: dict[str, Path], pico: Checkpoint, text: Path) -> None:
    done = run_cli(
        "validate", artifacts["hf"], "--reference", pico.path, "--text", text, "--windows", WINDOW, "--json", "-"
    )
    json.loads(done.out)
    assert "verdict" in done.err


def test_nothing_that_is_no_number_gets_into_the_json(
    artifacts: dict[str, Path], pico: Checkpoint, text: Path, tmp_path: Path
) -> None:
    """NaN is no JSON; strict readers refuse the file."""
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(artifacts["hf"], tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][:] = math.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    done = run_cli("validate", broken, "--reference", pico.path, "--text", text, "--windows", WINDOW, "--json", "-")
    assert done.code == 1

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} in JSON")

    data = json.loads(done.out, parse_constant=refuse)
    assert data["windows"][0]["ppl"] is None
    assert_published_schema(data)


def test_validate_writes_what_pipelines_read(
    artifacts: dict[str, Path], pico: Checkpoint, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing artifact, reported everywhere at once; standard output holds the JSON alone."""
    broken = shutil.copytree(artifacts["hf"], tmp_path / "broken")
    (broken / "generation_config.json").write_text('{"eos_token_id": 7}')
    summary, xml, page = (tmp_path / name for name in ("summary.md", "junit.xml", "comment.md"))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    measured = (
        "--reference",
        pico.path,
        "--text",
        text,
        "--windows",
        WINDOW,
        "--windows-per-length",
        1,
        "--no-crossing",
    )
    files = ("--json", "-", "--junit", xml, "--markdown", page, "--github")
    done = run_cli("validate", broken, *measured, *files)
    assert done.code == 1, done.err
    data = json.loads(done.out)
    (suite,) = junitparser.JUnitXml.fromfile(str(xml))
    assert {case.name: bool(case.result) for case in suite} == {
        check["id"]: check["status"] in ("fail", "skip") for check in data["checks"]
    }
    assert [line for line in done.err.splitlines() if line.startswith("::error title=hf.generation_config ")]
    assert page.read_text(encoding="utf-8") == summary.read_text(encoding="utf-8")
    assert page.read_text(encoding="utf-8").startswith("## ❌ The artifact fails; 1 check failed")
    assert str(tmp_path) not in page.read_text(encoding="utf-8") + xml.read_text(encoding="utf-8")


# -- inspect


@pytest.mark.parametrize("name", ["hf", "gguf", "onnx"])
def test_inspect_says_what_is_inside_and_who_uses_it(artifacts: dict[str, Path], name: str) -> None:
    data = json.loads(run_cli("inspect", artifacts[name], "--json", "-").out)
    assert (data["format"], data["factor_sets"]) == (name, "dual")
    factors = RescaleFactors.from_json(data["factors"])
    assert (factors.original_max_position_embeddings, factors.target_length, factors.num_pairs) == (WINDOW, TARGET, 8)
    assert data["runtimes"]
    for use in data["runtimes"]:
        assert_schema(use, {"runtime": str, "uses": str, "safe": bool, "advice": str})
    said = run_cli("inspect", artifacts[name])
    assert said.code == 0
    for word in ("dual", f"{WINDOW} → {TARGET}", data["runtimes"][0]["runtime"]):
        assert word in said.out


# -- factors


@pytest.mark.parametrize("name", ["hf", "gguf", "onnx"])
def test_factors_come_back_from_every_artifact(artifacts: dict[str, Path], tmp_path: Path, name: str) -> None:
    output = tmp_path / "factors.json"
    done = run_cli("factors", "import", artifacts[name], "-o", output)
    assert done.code == 0, done.err
    found, wrote = RescaleFactors.load(output), pico_factors()
    tolerance = 1e-7 if name == "gguf" else 0  # GGUF tensors are float32
    assert found.long_factor == pytest.approx(wrote.long_factor, rel=tolerance, abs=0)
    assert found.short_factor == pytest.approx(wrote.short_factor, rel=tolerance, abs=0)
    assert (found.original_max_position_embeddings, found.target_length) == (WINDOW, TARGET)


def test_a_csv_becomes_both_sets_unless_another_is_given(tmp_path: Path) -> None:
    (tmp_path / "long.csv").write_text("1,2,4\n1,2,4\n")
    (tmp_path / "short.csv").write_text("1\n1.5\n2\n")
    lengths = ("--original", 64, "--target", 256)
    assert run_cli("factors", "import", tmp_path / "long.csv", "-o", tmp_path / "one.json", *lengths).code == 0
    two = run_cli(
        "factors", "import", tmp_path / "long.csv", "--short", tmp_path / "short.csv", "-o", tmp_path / "two.json"
    )
    assert two.code == 0
    one = json.loads((tmp_path / "one.json").read_text())
    assert one["long_factor"] == one["short_factor"] == [1, 2, 4]
    assert (one["original_max_position_embeddings"], one["target_length"], one["rope_theta"]) == (64, 256, None)
    data = json.loads((tmp_path / "two.json").read_text())
    assert (data["short_factor"], data["target_length"]) == ([1, 1.5, 2], None)


def test_odd_factors_are_imported_with_a_word(tmp_path: Path) -> None:
    (tmp_path / "odd.csv").write_text("1,3,2,5\n")
    lengths = ("--original", 64, "--target", 256)
    done = run_cli("factors", "import", tmp_path / "odd.csv", "-o", tmp_path / "f.json", *lengths)
    assert done.code == 0
    assert "Warning: long_factor is not monotone" in done.err
    assert "above the length scale 4" in done.err


def test_a_config_json_is_a_factor_file(artifacts: dict[str, Path], pico: Checkpoint) -> None:
    done = run_cli("factors", "show", artifacts["hf"] / "config.json", "--json", "-")
    assert json.loads(done.out)["long_factor"] == list(pico_factors().long_factor)
    assert run_cli("factors", "show", pico.path / "config.json").code == 2


def test_show_puts_the_known_methods_beside(factors_file: Path) -> None:
    done = run_cli("factors", "show", factors_file)
    assert done.code == 0
    for word in ("PI", "NTK", "attention_factor: not said"):
        assert word in done.out


def test_diff_is_1_when_they_differ(factors_file: Path, tmp_path: Path) -> None:
    same = run_cli("factors", "diff", factors_file, factors_file)
    assert (same.code, "same factors" in same.out) == (0, True)
    pico_factors(n_hat=4).save(tmp_path / "other.json")
    other = run_cli("factors", "diff", factors_file, tmp_path / "other.json")
    assert (other.code, "n_hat" in other.out) == (1, True)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plot(factors_file: Path, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"plot.{suffix}"
    assert run_cli("factors", "plot", factors_file, "-o", output).code == 0
    if suffix == "svg":
        assert ET.parse(output).getroot().tag.endswith("svg")
    else:
        assert output.read_bytes().startswith(b"\x89PNG")
    assert run_cli("factors", "plot", factors_file, "-o", tmp_path / "plot.txt").code == 2


def test_shapes_of_other_models_are_brought_to_one_size() -> None:
    here = pico_factors(dual=False)
    theirs = {"original_max_position_embeddings": 4096, "target_length": 262_144}
    pi = RescaleFactors((64.0,) * 64, (64.0,) * 64, **theirs)
    points = plots.rescaled_shape("PI", pi, here)
    assert (points[0][0], points[-1][0], len(points)) == (0, here.num_pairs - 1, 64)
    np.testing.assert_allclose([value for _, value in points], here.length_scale)
    ntk = RescaleFactors((1.0,) * 64, tuple(ntk_factors(128, 64.0)), **theirs)
    np.testing.assert_allclose([value for _, value in plots.rescaled_shape("NTK", ntk, ntk)], ntk.long_factor)
    with pytest.raises(InputError, match="a longer window than the original"):
        plots.rescaled_shape("same", RescaleFactors((1.0,), (1.0,), 0, 64, 64), here)


def test_plot_beside_a_file_that_leaves_its_scale_open(factors_file: Path, tmp_path: Path) -> None:
    csv, known = tmp_path / "theirs.csv", tmp_path / "theirs.json"
    csv.write_text("1,2,4,8")
    picture = tmp_path / "plot.svg"
    refused = run_cli("factors", "plot", factors_file, "--beside", csv, "-o", picture)
    assert (refused.code, picture.exists()) == (2, False)
    assert "theirs.csv: expected factors that say their window and target" in refused.err
    assert run_cli("factors", "import", csv, "-o", known, "--original", 64, "--target", 512).code == 0
    assert run_cli("factors", "plot", factors_file, "--beside", known, "-o", picture).code == 0
    assert "theirs.json" in picture.read_text()


# -- search


def test_search_draws_what_it_found(pico: Checkpoint, texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "factors.json"
    asked = [
        "search",
        pico.path,
        "--target-length",
        TARGET,
        "--text",
        texts,
        "-o",
        output,
        "--plots",
        tmp_path / "plots",
    ]
    budget = ["--strategy", "evolution", "--max-evals", 6, "--documents", 1, "--threads", 1]
    found = run_cli(*asked, *budget, "--short-budget", "5%", "--attention-factor", 1.2)
    assert found.code == 0, found.err
    assert "vLLM ignores the key" in found.err
    assert "Pareto front" in found.err
    assert "(chosen)" in found.err
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert names == [f"{name}.{kind}" for name in ("convergence", "factors", "pareto") for kind in ("png", "svg")]
    output.unlink()
    assert "factors.png" in run_cli(*asked, *budget).err, "pictures are not replaced unasked"
    anew = run_cli(*asked, *budget, "--short-budget", "0%", "--overwrite")
    assert re.search(r": perplexity [\d.]+, [\d.]+ % above the short budget", anew.err), anew.err


def test_places_that_cannot_be_written_are_refused_before_the_search(
    pico: Checkpoint, texts: Path, tmp_path: Path
) -> None:
    asked = ["search", pico.path, "--target-length", TARGET, "--text", texts, "--max-evals", 2, "--documents", 1]
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for arguments, words in (
        (("-o", tmp_path / "f.json", "--plots", tmp_path / "file"), "is a file; expected a folder"),
        (("-o", tmp_path / "f.json", "--plots", tmp_path / "file" / "below"), "is a file; expected a folder"),
        (("-o", tmp_path / "folder", "--overwrite"), "is a folder; expected the name of a file"),
        (("-o", tmp_path / "file", "--resume"), "--overwrite"),
    ):
        refused = run_cli(*asked, *arguments)
        assert (refused.code, words in refused.err) == (2, True), refused.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_model_that_does_not_load_leaves_no_journal(pico: Checkpoint, texts: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(pico.path, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    asked = ["search", broken, "--target-length", TARGET, "--text", texts, "-o", tmp_path / "factors.json"]
    assert run_cli(*asked, "--max-evals", 3, "--documents", 1).code == 2
    assert not (tmp_path / "factors.json.journal").exists()


def test_overwrite_starts_a_search_anew(pico: Checkpoint, texts: Path, tmp_path: Path) -> None:
    output, budget = tmp_path / "factors.json", ("--strategy", "evolution", "--max-evals", 4, "--documents", 1)
    asked = ["search", pico.path, "--target-length", TARGET, "--text", texts, "-o", output, *budget, "--threads", 1]
    assert run_cli(*asked).code == 0
    first = RescaleFactors.load(output)
    refused = run_cli(*asked)
    assert (refused.code, "--overwrite" in refused.err) == (2, True)
    assert run_cli(*asked, "--overwrite", "--seed", 1).code == 0
    assert RescaleFactors.load(output).provenance["settings"]["seed"] == 1
    assert first.provenance["settings"]["seed"] == 0


def test_a_search_is_planned_without_texts(pico: Checkpoint, tmp_path: Path) -> None:
    others = tmp_path / "others.json"
    replace(pico_factors(), short_factor=(1.0,) * 3, long_factor=(2.0,) * 3).save(others)
    planned = run_cli("search", pico.path, "--target-length", TARGET, "--plan")
    assert planned.code == 0, planned.err
    assert "budget: 32 evaluations" in planned.out
    for arguments, code, words in (
        (("--target-length", 1), 2, "more than the model's window of 64"),
        (("--target-length", TARGET, "--strategy", "cma", "--n-hat", "search"), 2, "does not search the n_hat"),
        (("--target-length", TARGET, "--window-share", 512, "50%"), 2, "expected 2 to the target's 256"),
        (("--target-length", TARGET, "--window-share", 64, "100%"), 2, "below 1 in all"),
        (("--target-length", TARGET, "--start-from", others), 2, "3"),
    ):
        refused = run_cli("search", pico.path, *arguments, "--plan")
        assert (refused.code, words in refused.err) == (code, True), refused.err
    config = json.loads((pico.path / "config.json").read_text())
    extended = tmp_path / "extended"
    shutil.copytree(pico.path, extended)
    (extended / "config.json").write_text(json.dumps(extended_config(config, pico.bind(pico_factors()))))
    for target, code in ((2 * TARGET, 0), (TARGET, 2)):  # on top of what it reaches already
        planned = run_cli("search", extended, "--target-length", target, "--plan")
        assert planned.code == code, planned.err
    refused = run_cli("search", pico.path, "--target-length", TARGET, "--text", tmp_path)
    assert (refused.code, "Missing option '-o' / '--output'" in refused.err) == (2, True)


@pytest.mark.parametrize(("device", "code"), [("cuda", 3), ("gpu", 2)])
def test_a_device_that_is_not_there(pico: Checkpoint, texts: Path, tmp_path: Path, device: str, code: int) -> None:
    asked = ("--target-length", TARGET, "--text", texts, "-o", tmp_path / "run", "--device", device)
    for command in ("search", "extend"):
        done = run_cli(command, pico.path, *asked)
        assert (done.code, "device" in done.err) == (code, True), done.err
        assert not (tmp_path / "run").exists()


# -- eval, recover, doctor


@pytest.mark.parametrize("name", ["hf", "gguf", "onnx"])
def test_eval_measures_perplexity_in_the_artifacts_runtime(artifacts: dict[str, Path], text: Path, name: str) -> None:
    arguments = ("--text", text, "--windows", f"{WINDOW},{TARGET}", "--windows-per-length", 1, "--threads", 1)
    done = run_cli("eval", artifacts[name], *arguments, "--json", "-")
    assert done.code == 0, done.err
    data = json.loads(done.out)
    assert [row["length"] for row in data["perplexity"]] == [WINDOW, TARGET]
    assert all(1 < row["ppl"] < 1e5 for row in data["perplexity"])


def test_recover_puts_a_short_set_beside_the_long_one(artifacts: dict[str, Path], texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "recovered.json"
    arguments = ("--window", WINDOW, "--text", texts, "-o", output, "--max-evals", 4, "--threads", 1)
    pico_factors(dual=False).save(tmp_path / "stage.json")
    stages = ("--from", tmp_path / "stage.json")
    done = run_cli("recover", artifacts["hf"], *arguments, *stages, "--json")
    assert done.code == 0, done.err
    data = json.loads(done.out)
    names = ["searched", "original RoPE", "stage.json", "long set (single)"]
    assert [row["name"] for row in data["comparison"]] == names
    assert data["winner"] in names
    assert (data["schema_version"], data["window"]) == (1, WINDOW)
    assert data["dual"]["perplexity"] <= data["single"]["perplexity"]
    assert f"{data['winner']} wins" in done.err
    assert RescaleFactors.load(output).long_factor == pico_factors().long_factor
    (tmp_path / "other").mkdir()
    pico_factors(dual=False).save(tmp_path / "other" / "stage.json")
    more = ("--from", tmp_path / "other" / "stage.json")
    changed = run_cli("recover", artifacts["hf"], *arguments, *stages, *more, "--resume")
    assert (changed.code, "stages" in changed.err) == (2, True), changed.err
    both = run_cli("recover", artifacts["hf"], *arguments, *stages, *more, "--overwrite", "--json")
    names = [row["name"] for row in json.loads(both.out)["comparison"]]
    assert names[2:4] == [str(tmp_path / "stage.json"), str(tmp_path / "other" / "stage.json")]


def test_a_recovery_goes_on_with_its_journal(artifacts: dict[str, Path], texts: Path, tmp_path: Path) -> None:
    """Cut after some evaluations, as a kill would, it measures the rest and ends with the same factors."""
    output, journal = tmp_path / "recovered.json", tmp_path / "recovered.json.journal"
    ask = (
        "recover",
        artifacts["hf"],
        "--window",
        WINDOW,
        "--text",
        texts,
        "-o",
        output,
        "--max-evals",
        24,
        "--threads",
        1,
    )
    assert run_cli(*ask).code == 0
    whole = RescaleFactors.load(output)
    (file,) = journal.glob("*.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[: len(lines) // 2]))
    output.unlink()
    done = run_cli(*ask, "--resume")
    assert done.code == 0, done.err
    assert RescaleFactors.load(output).short_factor == whole.short_factor
    assert len(file.read_text().splitlines()) == len(lines)
    assert "seed was 0, is 1" in run_cli(*ask, "--resume", "--seed", 1).err


def test_doctor_finds_everything_that_setup_installs() -> None:
    done = run_cli("doctor", "--json", "-")
    findings = {found["what"]: found for found in json.loads(done.out)}
    for what in ("torch", "transformers", "extra gguf", "extra onnx", "extra report"):
        assert findings[what]["state"] == "ok", findings[what]
    assert set(findings["torch"]) == {"what", "state", "detail", "required", "command"}
    odd = {name: found["state"] for name, found in findings.items() if found["state"] != "ok"}
    assert odd.pop("GPU path", None) in ("untested", None)  # where there is no GPU
    assert set(odd.values()) <= {"missing"}  # ray is left out
    assert "float32, bfloat16, float16" in findings["GPU path"]["detail"]
    assert "GiB free on cpu" in findings["memory"]["detail"]


# -- patch


def test_patch_gives_a_plain_file_what_convert_writes(
    artifacts: dict[str, Path], factors_file: Path, tmp_path: Path
) -> None:
    single = tmp_path / "single.gguf"
    done = run_cli(
        "convert", artifacts["hf"], "--to", "gguf", "--factor-sets", "single", "--outtype", "f32", "-o", single
    )
    assert done.code == 0, done.err
    patched = tmp_path / "patched.gguf"
    done = run_cli("patch", single, "--factors", factors_file, "-o", patched)
    assert done.code == 0, done.err
    assert run_cli("factors", "diff", patched, artifacts["gguf"]).code == 0
    assert run_cli("factors", "diff", patched, single).code == 1


def test_patch_wants_exactly_one_place_to_write(artifacts: dict[str, Path], factors_file: Path) -> None:
    done = run_cli("patch", artifacts["gguf"], "--factors", factors_file)
    assert done.code == 2
    assert "--in-place" in done.err


def test_json_without_a_name_goes_to_standard_output(artifacts: dict[str, Path]) -> None:
    done = run_cli("inspect", artifacts["gguf"], "--json")
    assert json.loads(done.out)["format"] == "gguf"
