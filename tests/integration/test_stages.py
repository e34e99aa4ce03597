"""`extend --stages`: search, train, search on top, recover, export; killed and resumed; plans."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from longrope import rope
from longrope.checkpoint import Checkpoint, open_folder
from longrope.errors import FactorError
from longrope.factors import RescaleFactors
from longrope.finetune.log import read_log
from longrope.finetune.progressive import known_stage_factors, rescaled
from longrope.finetune.stages import Stage
from tests.common import PICO_BUDGET, REPOSITORY, cli_process, pico_factors, pico_text, run_cli
from tests.processes import skip_without_sharding

PLAN = """
[[stage]]
length = 128
steps = 3
learning_rate = 3e-3
batch = 2
short_share = 0.3
max_evals = 3
[[stage]]
length = 192
steps = 2
learning_rate = 3e-3
batch = 2
factors = "rescale"
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    file = tmp_path / "plan.toml"
    file.write_text(PLAN)
    return file


def arguments(pico: Checkpoint, texts: Path, plan: Path, out: Path) -> list[Any]:
    target = (
        "--target-length",
        256,
        "-o",
        out,
        "--text",
        texts,
        "--stages",
        plan,
        "--formats",
        "hf",
        "--save-every",
        1,
    )
    return ["extend", pico.path, *target, *PICO_BUDGET.split(), "--no-crossing"]


def test_stages_run_to_the_end(pico: Checkpoint, texts: Path, plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run_cli(*arguments(pico, texts, plan, out))
    assert done.code == 0, done.err
    assert "all stages: about" in done.err, "the plan is told before it starts"
    run = json.loads((out / "run.json").read_text())["extension"]
    assert [stage["stage"]["length"] for stage in run["stages"]] == [128, 192, 256]
    assert [bool(stage["search"]) for stage in run["stages"]] == [True, False, True]
    first, second, last = (pico.bind(RescaleFactors.from_json(stage["factors"])) for stage in run["stages"])
    assert first.short_factor == (1.0,) * 8, "mixed training trains the original RoPE"
    assert second.long_factor == pytest.approx(rescaled(first, 192).long_factor)
    assert all(after >= before for before, after in zip(second.long_factor, last.long_factor, strict=True))
    assert [len(stage["training"]["loss"]) if stage["training"] else 0 for stage in run["stages"]] == [3, 2, 0]
    names = [row["name"] for row in run["recovery"]["comparison"]]
    assert names == ["searched", "original RoPE", "stage factors at 128", "stage factors at 192", "long set (single)"]
    assert [row["name"] for row in run["methods"]["rows"]][-2:] == ["searched", "searched, short set"]
    check_artifact(out, pico)
    report = (out / "report.html").read_text()
    assert "Training at 128 tokens" in report
    assert "Short window: what wins" in report


def check_artifact(out: Path, pico: Checkpoint) -> None:
    """The artifact holds the trained weights and both sets, and was compared with the trained model."""
    made = open_folder(out / "hf")
    assert made.factors is not None
    assert made.factors.factor_sets == "dual"
    assert made.factors.target == 256
    trained = open_folder(out / "stages" / "2-192" / "training" / "model")
    assert made.weight_files[0].read_bytes() == trained.weight_files[0].read_bytes()
    assert trained.fingerprint != pico.fingerprint
    (validation,) = json.loads((out / "validation.json").read_text())["artifacts"]
    assert all(window["kl_mean"] == 0 for window in validation["windows"])


def test_a_killed_run_of_stages_goes_on(pico: Checkpoint, texts: Path, plan: Path, tmp_path: Path) -> None:
    """Killed in the second stage's training; the first is not trained again."""
    out = tmp_path / "run"
    process = cli_process(*arguments(pico, texts, plan, out))
    log = out / "stages" / "2-192" / "training" / "log.jsonl"
    while not read_log(log):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = out / "stages" / "1-128" / "training" / "model" / "model.safetensors"
    before = first.stat().st_mtime_ns
    done = run_cli(*arguments(pico, texts, plan, out), "--resume")
    assert done.code == 0, done.err
    assert first.stat().st_mtime_ns == before
    assert [record.step for record in read_log(log)] == [1, 2]
    check_artifact(out, pico)


def test_processes_share_the_training_and_nothing_else(
    pico: Checkpoint, texts: Path, plan: Path, tmp_path: Path
) -> None:
    """torchrun: the first process searches, recovers and exports, both train; the same factors and curves as of one."""
    skip_without_sharding()
    one, two = tmp_path / "one", tmp_path / "two"
    program = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "longrope_export")
    told = subprocess.run(
        [*program, *map(str, arguments(pico, texts, plan, two))],
        check=True,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert told.stdout.count("all checks passed") == 1
    assert told.stderr.count("all stages: about") == 1
    done = run_cli(*arguments(pico, texts, plan, one))
    assert done.code == 0, done.err
    for stage in ("1-128", "2-192"):
        log = Path("stages") / stage / "training" / "log.jsonl"
        losses = [[record.loss for record in read_log(run / log)] for run in (one, two)]
        assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    first = [open_folder(run / "stages" / "1-128" / "training" / "model") for run in (one, two)]
    assert first[0].config == first[1].config
    factors = [RescaleFactors.load(run / "stages" / "1-128" / "factors.json") for run in (one, two)]
    assert factors[0] == factors[1]
    check_artifact(two, pico)


@pytest.mark.parametrize(
    ("world_size", "change", "message"),
    [
        (2, (), "shared by --workers"),
        (1, ("--stages", "PLAN", "--sequence-parallel", 2), "expected a divisor of the number of processes"),
        (3, ("--stages", "PLAN"), "expected a batch that 3 processes share"),
    ],
)
def test_what_processes_cannot_share_is_refused(
    pico: Checkpoint,
    texts: Path,
    plan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    world_size: int,
    change: tuple[Any, ...],
    message: str,
) -> None:
    monkeypatch.setattr("longrope_export.preflight.WORLD_SIZE", world_size)
    asked = ("--target-length", 256, "-o", tmp_path / "run", "--text", texts)
    done = run_cli("extend", pico.path, *asked, *(plan if word == "PLAN" else word for word in change))
    assert (done.code, message in done.err) == (2, True), done.err
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def long_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two documents of more than 8192 tokens each."""
    folder = tmp_path_factory.mktemp("long")
    for seed in range(2):
        (folder / f"{seed}.txt").write_text(pico_text(300, seed), encoding="utf-8")
    return folder


def test_a_plan_is_told_and_nothing_done(
    pico: Checkpoint, long_texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = ("--target-length", 8192, "--text", long_texts, "-o", tmp_path / "run", "--plan", "--threads", 1)
    done = run_cli("extend", pico.path, *target, "--stages", "paper-llama2")
    assert done.code == 0, done.err
    assert "1. 2048 tokens, searched factors, 400 steps of 32 rows of 2048, 2e-05 linear" in done.out
    assert "2. 4096 tokens, searched factors, 600 steps" in done.out
    assert "3. 8192 tokens, searched factors, no training" in done.out
    assert done.out.count("training: ") == 2
    assert "all stages: about" in done.out
    plain = run_cli("extend", pico.path, *target)
    assert "budget:" in plain.out
    refused = run_cli("extend", pico.path, *target, "--strategy", "cma", "--n-hat", "search")
    assert (refused.code, "does not search the n_hat" in refused.err) == (2, True)
    for out in (done.out, plain.out):
        assert f"short set: budget: 64 evaluations, {64 * 40 * pico.window / 1e6:.2f}M tokens, about" in out
        assert f"table of methods at 8192: up to {8 * 8 * 8192 / 1e6:.2f}M tokens, about" in out
        assert "then hf, gguf, onnx: written and validated" in out
    assert "run out of memory" not in done.out
    monkeypatch.setattr("longrope.estimates.memory.free_memory", lambda device: 1 << 20)
    tight = run_cli("extend", pico.path, *target, "--stages", "paper-llama2")
    assert tight.out.count("  training: may run out of memory") == 2
    assert tight.out.count("  search: does not fit: the search would be refused") == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (("--window-share", 1, "50%"), 2, "a window share of 1 tokens: expected 2 to the target's"),
        (("--strategy", "cma", "--n-hat", "search"), 2, "does not search the n_hat"),
        (("--stages", "papper"), 2, "one of paper-llama2"),
        (("--stages", "paper-llama2"), 2, "beyond the target length of 256"),
        (("--optimizer", "adamw8bit"), 3, "bitsandbytes"),
        (("--train-dtype", "float8"), 2, "float8"),
    ],
)
def test_mistakes_are_told_before_the_run(
    pico: Checkpoint, texts: Path, plan: Path, tmp_path: Path, change: tuple[str, ...], code: int, message: str
) -> None:
    done = run_cli(*arguments(pico, texts, plan, tmp_path / "run"), *change)
    assert (done.code, message in done.err) == (code, True), done.err
    assert not (tmp_path / "run").exists()


def test_texts_too_short_for_a_stage_are_told_before_the_run(
    pico: Checkpoint, texts: Path, plan: Path, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text("Only a few words.")
    plan.write_text(PLAN.replace("max_evals = 3", 'texts = ["short.txt"]'))
    done = run_cli(*arguments(pico, texts, plan, tmp_path / "run"))
    assert done.code == 2
    assert "at least 126 tokens to train on" in done.err
    assert not (tmp_path / "run").exists()


def test_rescaling_keeps_known_methods_what_they_are(pico: Checkpoint) -> None:
    for method in (rope.pi_factors, rope.ntk_factors):
        at_two, at_four = (
            pico.bind(pico_factors(long_factor=tuple(method(16, s)), short_factor=tuple(method(16, s)), target=64 * s))
            for s in (2, 4)
        )
        assert rescaled(at_two, 256).long_factor == pytest.approx(at_four.long_factor)
    assert rescaled(at_two, 256).target == 256


@pytest.mark.parametrize("given", [1.05, None])
def test_rescaling_keeps_an_attention_factor_that_was_given(pico: Checkpoint, given: float | None) -> None:
    first = pico.bind(pico_factors(target=128, attention_factor=given))
    assert rescaled(first, 256).attention_factor == given


def test_given_factors_must_be_the_stages(pico: Checkpoint, factors_file: Path) -> None:
    found = known_stage_factors(pico, Stage(256, factors=str(factors_file)), None)
    assert found.target == 256
    with pytest.raises(FactorError, match="for target length 256, 512 was asked for"):
        known_stage_factors(pico, Stage(512, factors=str(factors_file)), None)
