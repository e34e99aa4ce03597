"""`extend` end to end on a pico model: every format, the run's files, and going on after being killed anywhere."""

from __future__ import annotations

import errno
import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from converters import registry
from converters.base import Converter, PlannedExport
from converters.gguf import blueprint
from converters.onnx.decoder_graph import DecoderGraph
from longrope.checkpoint import Checkpoint
from longrope.factors import RescaleFactors
from tests.common import PICO_BUDGET, TARGET, WINDOW, Outcome, cli_process, pico_checkpoint, run_cli


@dataclass(frozen=True)
class FinishedRun:
    folder: Path
    outcome: Outcome

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


def command(model: Path, text: Path, folder: Path, *more: object) -> list[object]:
    # In f32 and with a real short regime in llama.cpp the parity of a random model is beyond doubt.
    fixed = ["extend", model, "--target-length", TARGET, "-o", folder, "--text", text, "--formats", "hf,gguf:f32,onnx"]
    return [*fixed, *PICO_BUDGET.split(), *more]


@pytest.fixture(scope="module")
def run(pico: Checkpoint, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The undisturbed run."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    return FinishedRun(folder, run_cli(*command(pico.path, texts, folder)))


# -- an undisturbed run


def test_all_checks_pass_and_the_table_says_so(run: FinishedRun) -> None:
    assert run.outcome.code == 0, run.outcome.err
    assert "all checks passed" in run.outcome.out
    for word in ("hf", "gguf", "onnx", "PI", "NTK", "searched"):
        assert word in run.outcome.out


def test_the_folder_has_the_contracts_files_and_no_others(run: FinishedRun) -> None:
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "factors.json",
        "gguf",
        "hf",
        "journal",
        "onnx",
        "report.html",
        "run.json",
        "validation.json",
    ]


def test_the_factors_are_of_both_sets_and_complete(run: FinishedRun) -> None:
    factors = RescaleFactors.load(run.folder / "factors.json")
    assert (factors.original_max_position_embeddings, factors.target_length, factors.num_pairs) == (WINDOW, TARGET, 8)
    assert (factors.model_type, factors.rope_theta, factors.rotary_dim, factors.n_hat) == ("llama", 10_000.0, 16, 0)
    assert factors.provenance


@pytest.mark.parametrize(("name", "sets"), [("hf", "single"), ("gguf", "dual"), ("onnx", "single")])
def test_each_format_holds_the_sets_it_is_safe_with(run: FinishedRun, name: str, sets: str) -> None:
    factors = RescaleFactors.load(run.folder / "factors.json")
    (export,) = (item for item in run.json("run.json")["exports"] if item["format"].startswith(name))
    found = json.loads(run_cli("inspect", run.folder / export["path"], "--json", "-").out)
    assert found["format"] == name
    assert found["factors"]["long_factor"] == pytest.approx(factors.long_factor, rel=1e-7)
    expected = "single" if factors.factor_sets == "single" else sets
    assert found["factor_sets"] == export["factor_sets"] == expected


def test_run_json_says_what_was_done_with_what(run: FinishedRun) -> None:
    data = run.json("run.json")
    assert (data["schema_version"], data["state"], data["passed"]) == (1, "done", True)
    assert data["configuration"]["options"]["target_length"] == TARGET
    assert len(data["configuration"]["model_fingerprint"]) == 64
    assert {"torch", "transformers", "python"} <= set(data["provenance"]["versions"])
    assert 0 < data["extension"]["search"]["tokens"] <= 6 * 2 * TARGET  # --max-evals and --documents of EXTEND
    assert [export["format"] for export in data["exports"]] == ["hf", "gguf:f32", "onnx"]
    assert all(export["runtimes"] for export in data["exports"])


def test_validation_json_has_every_artifact_and_window(run: FinishedRun) -> None:
    data = run.json("validation.json")
    assert (data["schema_version"], data["passed"]) == (1, True)
    assert [artifact["format"] for artifact in data["artifacts"]] == ["hf", "gguf", "onnx"]
    for artifact in data["artifacts"]:
        lengths = {window["length"] for window in artifact["windows"]}
        assert {WINDOW, TARGET} <= lengths
        assert "crossing" in {window["regime"] for window in artifact["windows"]}
        assert all(abs(window["ppl_delta_percent"]) <= 0.01 for window in artifact["windows"])


def test_llama_cpp_is_measured_with_the_set_it_really_uses(run: FinishedRun) -> None:
    """A context is a multiple of 256 tokens: a window of 64 is beyond the original one from the start."""
    artifacts = {artifact["format"]: artifact for artifact in run.json("validation.json")["artifacts"]}
    regimes = {
        name: [window["regime"] for window in artifact["windows"] if window["length"] == WINDOW]
        for name, artifact in artifacts.items()
    }
    assert regimes["onnx"] == ["short"]
    if RescaleFactors.load(run.folder / "factors.json").factor_sets == "dual":
        assert regimes["gguf"] == ["long"]


def test_the_report_can_be_written_again(run: FinishedRun, tmp_path: Path) -> None:
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    for word in ("<svg", "gguf", "onnx", "llama.cpp"):
        assert word in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    done = run_cli("report", run.folder, "-o", tmp_path / "again.html")
    assert done.code == 0, done.err
    assert (tmp_path / "again.html").is_file()


def test_the_report_shows_non_finite_numbers_as_dashes(run: FinishedRun, tmp_path: Path) -> None:
    """A broken artifact gives NaN, which is null in JSON; its report is needed most of all."""
    folder = shutil.copytree(run.folder, tmp_path / "run")
    data = run.json("validation.json")
    scores = ("ppl_reference", "ppl", "ppl_delta_percent", "kl_mean", "kl_p99", "top1_agreement", "max_logit_diff")
    data["artifacts"][1]["windows"][0].update(dict.fromkeys(scores))
    (folder / "validation.json").write_text(json.dumps(data))
    methods = run.json("run.json")
    methods["extension"]["methods"]["rows"][0]["perplexities"][0] = None
    (folder / "run.json").write_text(json.dumps(methods))
    done = run_cli("report", folder)
    assert done.code == 0, done.err
    page = (folder / "report.html").read_text(encoding="utf-8")
    dashes = (run.folder / "report.html").read_text(encoding="utf-8").count(">–</td>")
    assert page.count(">–</td>") == dashes + len(scores) + 1
    assert not re.search(r"\b(None|nan|inf)\b", page)


def test_a_run_is_repeated_from_its_run_json(run: FinishedRun, tmp_path: Path) -> None:
    """The recipe says what differs from the defaults, with paths that hold from anywhere."""
    recipe = run.json("run.json")["recipe"]
    assert (recipe["target-length"], recipe["max-evals"], recipe["methods"]) == (TARGET, 6, ["PI", "NTK"])
    assert all(Path(text).is_absolute() for text in recipe["text"])
    assert not {"output", "resume", "overwrite", "plan", "strategy", "dtype"} & set(recipe)
    again = tmp_path / "again"
    done = run_cli("extend", run.folder / "run.json", "-o", again)
    assert done.code == 0, done.err
    mine, theirs = (RescaleFactors.load(folder / "factors.json") for folder in (again, run.folder))
    assert (mine.long_factor, mine.short_factor) == (theirs.long_factor, theirs.short_factor)
    assert json.loads((again / "run.json").read_text())["recipe"] == recipe


def test_a_finished_run_resumes_to_itself(run: FinishedRun, pico: Checkpoint, texts: Path) -> None:
    before = run.json("factors.json"), (run.folder / "gguf").stat().st_mtime_ns
    done = run_cli(*command(pico.path, texts, run.folder, "--resume", "--threads", "2"))  # another machine may go on
    assert done.code == 0, done.err
    assert (run.json("factors.json")["long_factor"], (run.folder / "gguf").stat().st_mtime_ns) == (
        before[0]["long_factor"],
        before[1],
    )
    assert len(run.json("run.json")["exports"]) == 3


def test_broken_artifacts_are_written_again(run: FinishedRun, pico: Checkpoint, texts: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run.folder, tmp_path / "again")
    (folder / "hf" / "tokenizer.json").write_text('{"version": "1.0", "mod')
    (folder / "onnx" / "model.onnx").unlink()  # not even an artifact any more
    done = run_cli(*command(pico.path, texts, folder, "--resume", "--no-crossing"))
    assert done.code == 0, done.err
    for name in ("hf/tokenizer.json", "onnx/model.onnx"):
        assert (folder / name).read_bytes() == (run.folder / name).read_bytes()


def test_dual_sets_that_were_not_found_are_written_as_one_with_a_warning(
    pico: Checkpoint, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The long set may be the best short one that the search has seen, after hours of it."""
    from longrope.extend import extend

    def without_short_set(*arguments: Any, **options: Any) -> Any:
        found = extend(*arguments, **options)
        return replace(found, factors=found.factors.as_single())

    monkeypatch.setattr("longrope_export.pipeline.extend", without_short_set)
    done = run_cli(*command(pico.path, texts, tmp_path / "run", "--no-crossing", "--factor-sets", "dual"))
    assert done.code == 0, done.err
    assert "no short set is better than the long one" in done.err
    exports = json.loads((tmp_path / "run" / "run.json").read_text())["exports"]
    assert [export["factor_sets"] for export in exports] == ["single"] * 3


def test_a_place_that_cannot_be_written_is_what_the_machine_lacks(
    pico: Checkpoint, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Path.mkdir

    def read_only(self: Path, *arguments: Any, **options: Any) -> None:
        if self.name == "run":
            raise OSError(errno.EROFS, "Read-only file system", str(self))
        make(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", read_only)
    done = run_cli(*command(pico.path, texts, tmp_path / "run"))
    assert (done.code, done.lines[-1]) == (
        3,
        f"Error: {tmp_path}/run: not writable (Read-only file system); nothing was written",
    )


def test_a_run_that_died_before_its_first_file_is_begun_again(pico: Checkpoint, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    done = run_cli(*command(pico.path, texts, tmp_path / "run", "--resume", "--no-crossing"))
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "validation.json").is_file()


def test_a_policy_judges_the_run_and_another_one_the_resumed_run(pico: Checkpoint, texts: Path, tmp_path: Path) -> None:
    policy = tmp_path / "mine.yaml"
    policy.write_text("fail_if_not_run: ['hf.parity.medium.*']\nlimits: [{compare: rounding, kl_mean: null}]\n")
    asked = command(pico.path, texts, tmp_path / "run", "--formats", "hf", "--no-crossing")
    for given, code, recorded in (
        (policy, 1, {"name": "mine.yaml", **yaml.safe_load(policy.read_text())}),
        ("strict", 0, "strict"),
    ):
        done = run_cli(*asked, "--policy", given, *(["--resume"] if (tmp_path / "run").exists() else []))
        assert done.code == code, done.err
        data = json.loads((tmp_path / "run" / "run.json").read_text())
        (entry,) = json.loads((tmp_path / "run" / "validation.json").read_text())["artifacts"]
        assert (data["configuration"]["policy"], data["passed"]) == (recorded, code == 0)
        assert data["recipe"]["policy"] == str(given)
        assert entry["policy"] == Path(given).name
        failed = [check["id"] for check in entry["checks"] if check["status"] == "fail"]
        assert failed == ["hf.parity.medium.*"][: int(code)]


def test_a_run_of_another_model_is_not_resumed(run: FinishedRun, texts: Path, tmp_path: Path) -> None:
    other = pico_checkpoint(tmp_path / "other", seed=1)
    done = run_cli(*command(other.path, texts, run.folder, "--resume"))
    assert done.code == 2
    assert "model_fingerprint" in done.err


def test_what_a_resumed_run_was_started_with_is_said(run: FinishedRun, pico: Checkpoint, texts: Path) -> None:
    done = run_cli(*command(pico.path, texts, run.folder, "--resume", "--seed", "7"))
    assert done.code == 2
    assert "options.search.seed was 0, is 7" in done.err


def test_each_export_is_planned_once(
    pico: Checkpoint, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the search; writing, reading back and validating go on with the same plan."""
    calls: list[tuple[str, str]] = []

    def counted(owner: type[Converter], method: str) -> None:
        original = getattr(owner, method)

        def call(self: Converter, *arguments: Any) -> PlannedExport:
            calls.append((self.name, method))
            return original(self, *arguments)

        monkeypatch.setattr(owner, method, call)

    def counted_part(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any) -> Any:
            calls.append((owner.__name__, name))
            return original(*arguments)

        monkeypatch.setattr(owner, name, call)

    for name in ("hf", "gguf", "onnx"):
        for method in ("plan", "plan_like"):
            counted(type(registry.converter(name)), method)
    counted_part(blueprint, "vocabulary_of")
    counted_part(DecoderGraph, "build")
    done = run_cli(*command(pico.path, texts, tmp_path / "run", "--no-crossing"))
    assert done.code == 0, done.err
    assert sorted(calls) == [
        ("DecoderGraph", "build"),
        ("converters.gguf.blueprint", "vocabulary_of"),
        ("gguf", "plan"),
        ("hf", "plan"),
        ("onnx", "plan"),
    ]


# -- killed


def records(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.is_file() else 0


KILL_POINTS: dict[str, Callable[[Path], bool]] = {
    "in the long search": lambda folder: records(folder / "journal" / "long" / "search.jsonl") >= 3,
    "in the short search": lambda folder: records(folder / "journal" / "short" / "search.jsonl") >= 3,
    "after the search": lambda folder: (folder / "factors.json").is_file(),
    "after the first artifact": lambda folder: (folder / "hf").is_dir(),
}


@pytest.mark.parametrize("point", KILL_POINTS)
def test_a_killed_run_goes_on_to_the_same_end(
    run: FinishedRun, pico: Checkpoint, texts: Path, tmp_path: Path, point: str
) -> None:
    folder = tmp_path / "killed"
    process = cli_process(*command(pico.path, texts, folder))
    deadline = time.monotonic() + 120
    while process.poll() is None and not KILL_POINTS[point](folder):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert not (folder / "validation.json").exists(), "the run ended before it was killed"
    resumed = run_cli(*command(pico.path, texts, folder, "--resume"))
    assert resumed.code == 0, resumed.err
    mine, theirs = (RescaleFactors.load(path / "factors.json") for path in (folder, run.folder))
    assert (mine.long_factor, mine.short_factor, mine.n_hat) == (theirs.long_factor, theirs.short_factor, theirs.n_hat)
    assert json.loads((folder / "run.json").read_text())["state"] == "done"
    leftovers = [path.name for path in folder.rglob(".*")]
    assert leftovers == []
