"""Several artifacts in one call, judged again from the result, and against an earlier release, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from longrope.checkpoint import Checkpoint
from tests.common import TARGET, WINDOW, junit_faults, run_cli

Json = dict[str, Any]


@pytest.fixture(scope="module")
def result(pico: Checkpoint, factors_file: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """validation.json of a q4 file and a cast folder, on one pass of the reference."""
    room = tmp_path_factory.mktemp("result")
    for name, kind, outtype in (("a.gguf", "gguf", "q4_0"), ("cast", "hf", "bf16")):
        where = ("--to", kind, "--factors", factors_file, "--outtype", outtype, "-o", room / name)
        assert run_cli("convert", pico.path, *where).code == 0
    known = ("--reference", pico.path, "--factors", factors_file, "--text", texts, "--threads", 1, "--isolate", "off")
    measure = ("--windows", f"{WINDOW},{TARGET}", "--json", room / "result.json", "--junit", room / "junit.xml")
    done = run_cli("validate", room / "a.gguf", room / "cast", *known, *measure)
    assert done.code == 0, done.err + done.out
    assert junit_faults((room / "junit.xml").read_text(encoding="utf-8")) == []
    return room / "result.json"


def entries(path: Path) -> dict[str, Json]:
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["schema_version"] == 1
    assert data["passed"] == all(entry["passed"] for entry in data["artifacts"])
    return {entry["format"]: entry for entry in data["artifacts"]}


def statuses(entry: Json) -> dict[str, str]:
    return {check["id"]: check["status"] for check in entry["checks"]}


def rewritten(source: Path, target: Path, change: Any) -> Path:
    data = json.loads(source.read_text(encoding="utf-8"))
    change(data)
    target.write_text(json.dumps(data), encoding="utf-8")
    return target


def test_the_runtime_is_compared_with_the_weights_it_has(result: Path) -> None:
    """Four bits cost hundreds of times what the runtime loses; a cast in transformers loses nothing beside its rounding."""
    found = entries(result)
    assert {window["length"] for window in found["gguf"]["windows"]} == {WINDOW, TARGET, WINDOW + 8}
    for entry in found.values():
        assert len(entry["windows"]) == len(entry["runtime"]) == len(entry["rounding"]) == 3
        assert entry["weights"]["rounded"]
    for runtime, rounding in zip(found["gguf"]["runtime"], found["gguf"]["rounding"], strict=True):
        assert runtime["kl_mean"] < 0.05 * rounding["kl_mean"]
    assert all(score["kl_max"] == 0 for score in found["hf"]["runtime"] if score["regime"] != "crossing")
    assert all(score["kl_mean"] > 0 for score in found["hf"]["rounding"])
    assert statuses(found["gguf"])["gguf.own_weights"] == "pass"


def test_a_result_is_judged_again_by_another_policy(result: Path, tmp_path: Path) -> None:
    policy = tmp_path / "mine.yaml"
    policy.write_text(
        "checks: {'gguf.parity.*': off}\nfail_if_not_run: ['hf.parity.medium.*']\n"
        "limits: [{compare: rounding, weights: q4*, regime: long, kl_mean: 1.0e-6}]\n"
    )
    again = tmp_path / "again.json"
    done = run_cli("validate", "--from", result, "--policy", policy, "--json", again)
    assert done.code == 1, done.err
    found = entries(again)
    gguf = statuses(found["gguf"])
    assert {status for id, status in gguf.items() if ".parity." in id} <= {"pass", "skip"}
    assert gguf[f"gguf.rounding.long.{TARGET}"] == "fail"
    failed = {id for id, status in statuses(found["hf"]).items() if status == "fail"}
    assert failed == {"hf.parity.medium.*"}
    assert found["gguf"]["policy"] == "mine.yaml"
    assert run_cli("validate", "--from", again, "--json", tmp_path / "back.json").code == 0
    assert entries(tmp_path / "back.json") == entries(result)


def test_judging_again_loads_no_torch(result: Path) -> None:
    code = (
        "import sys; from longrope_export.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "heavy = {'torch', 'transformers', 'onnx', 'gguf', 'llama_cpp'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "validate", "--from", result], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "verdict" in done.stdout


def test_a_release_is_compared_with_an_earlier_one(result: Path, tmp_path: Path) -> None:
    def better(data: Json) -> None:
        for entry in data["artifacts"]:
            for window in entry["windows"]:
                for text in window["texts"]:
                    text["nll"] -= 0.05

    earlier = rewritten(result, tmp_path / "earlier.json", better)
    compared = tmp_path / "compared.json"
    assert run_cli("validate", "--from", result, "--baseline", earlier, "--json", compared).code == 0
    found = entries(compared)["gguf"]
    (check,) = (check for check in found["checks"] if check["id"] == f"gguf.baseline.long.{TARGET}")
    assert check["status"] == "warn"
    assert "perplexity +5.13 %" in check["message"]
    assert "worse" in check["message"]
    strict = run_cli("validate", "--from", result, "--baseline", result, "--policy", "default", "--json", compared)
    assert strict.code == 0
    assert {status for id, status in statuses(entries(compared)["hf"]).items() if ".baseline." in id} == {"pass"}


def test_results_that_cannot_be_used_are_refused(result: Path, pico: Checkpoint, tmp_path: Path) -> None:
    def other_texts(data: Json) -> None:
        for entry in data["artifacts"]:
            entry["provenance"]["text_fingerprint"] = "0"

    def old(data: Json) -> None:
        for entry in data["artifacts"]:
            del entry["rounding"]

    def odd(data: Json) -> None:
        data["artifacts"][0]["windows"][0]["tokens"] = "many"

    def nothing(data: Json) -> None:
        data["artifacts"] = []

    def unfound(data: Json) -> None:
        for entry in data["artifacts"]:
            entry.update({key: [] for key in ("checks", "windows", "runtime", "rounding", "stale", "batch")})

    def impossible(data: Json) -> None:
        data["artifacts"][0]["windows"][0]["ppl"] = 0

    (tmp_path / "policy.json").write_text('{"check": {}}')
    cases = {
        (
            "--from",
            result,
            "--baseline",
            rewritten(result, tmp_path / "t.json", other_texts),
        ): "measured on other texts",
        ("--from", rewritten(result, tmp_path / "o.json", old)): "earlier version",
        ("--from", rewritten(result, tmp_path / "n.json", odd)): "tokens: expected",
        (
            "--from",
            rewritten(result, tmp_path / "e.json", nothing),
        ): "artifacts: expected one or more, got an empty list",
        ("--from", rewritten(result, tmp_path / "u.json", unfound)): "an entry without any",
        ("--from", rewritten(result, tmp_path / "i.json", impossible)): "expected perplexities above 0, got 0",
        ("--from", result, "--junit", tmp_path): "is a folder; expected the name of a file",
        ("--from", result, "--junit", tmp_path / "x", "--json", tmp_path / "x"): "expected a file for each",
        ("--from", result, "--policy", tmp_path / "policy.json"): "unknown key check",
        ("--from", result, "--policy", "lax"): "no such file",
        ("--from", result, "--reference", pico.path): "expected no artifact",
        ("--reference", pico.path): "expected an artifact",
        ("--from", result, "--factors", result): "beside it; got --factors",
        ("--from", result, "--no-crossing", "--windows-per-length", 2): "got --windows-per-length, --crossing",
        (pico.path, "--reference", pico.path, "--static", "--no-crossing"): "beside --static; got --crossing",
        (pico.path, "--reference", pico.path, "--static", "--baseline", result): "static checks measure nothing",
    }
    for arguments, said in cases.items():
        done = run_cli("validate", *arguments)
        assert done.code == 2, (arguments, done.err)
        assert said in " ".join(done.err.split()), done.err


def test_an_earlier_release_that_cannot_be_used_is_refused_before_anything_is_measured(
    result: Path, pico: Checkpoint, factors_file: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one of several artifacts of a format is found by its name, wherever it lies now."""
    known = ("--reference", pico.path, "--factors", factors_file, "--threads", 1, "--isolate", "off")
    few = ("--windows", WINDOW, "--windows-per-length", 1, "--no-crossing")
    monkeypatch.chdir(result.parent.parent)
    artifact = Path(result.parent.name) / "a.gguf"
    done = run_cli("validate", artifact, *known, *few, "--text", texts / "0.txt", "--baseline", result)
    assert (done.code, "measured on other texts" in done.err, "validate 64" in done.err) == (2, True, False)

    def twice(data: Json) -> None:
        data["artifacts"].append({**data["artifacts"][0], "artifact": "b.gguf"})

    earlier = rewritten(result, tmp_path / "twice.json", twice)
    measured = ("--text", texts, "--baseline", earlier, "--json", tmp_path / "now.json")
    done = run_cli("validate", artifact, *known, *few, *measured)
    assert done.code == 0, done.err
    found = statuses(json.loads((tmp_path / "now.json").read_text()))
    baseline = {id: status for id, status in found.items() if ".baseline." in id}
    crossing = f"gguf.baseline.crossing.{WINDOW + 8}"
    assert baseline == {
        "gguf.baseline.reference": "pass",
        f"gguf.baseline.long.{WINDOW}": "skip",  # measured on more texts then
        f"gguf.baseline.long.{TARGET}": "skip",
        crossing: "skip",
    }
