"""`longrope-export finetune`: what it writes, refuses and reports."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from longrope.checkpoint import Checkpoint, open_folder
from longrope.factors import RescaleFactors
from longrope.finetune.log import read_log
from longrope.modeling import build_model
from tests.common import REPOSITORY, cli_process, pico_factors, run_cli
from tests.processes import skip_without_sharding

FAST = ("--steps", 3, "--batch", 2, "--learning-rate", 3e-3, "--threads", 1)


@pytest.fixture(scope="module")
def single_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("single") / "factors.json"
    pico_factors(dual=False).save(file)
    return file


def test_it_writes_a_folder_with_the_factors_inside(
    pico: Checkpoint, single_file: Path, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tuned"
    done = run_cli("finetune", pico.path, "--factors", single_file, "--text", texts, "-o", out, *FAST)
    assert done.code == 0, done.err
    assert "in 3 steps" in done.err
    made = open_folder(out)
    assert made.factors is not None
    assert made.factors.long_factor == RescaleFactors.load(single_file).long_factor
    assert made.factors.factor_sets == "single"
    with torch.inference_mode():
        logits = build_model(made)(input_ids=torch.ones(1, 200, dtype=torch.long)).logits
    assert torch.isfinite(logits).all()
    run = tmp_path / "tuned.training"
    assert len(read_log(run / "log.jsonl")) == 3
    assert (run / "loss.svg").read_text().count("<svg")
    again = run_cli("finetune", pico.path, "--factors", single_file, "--text", texts, "-o", out, *FAST)
    assert again.code == 2
    assert "--overwrite" in again.err


def test_mixed_training_keeps_both_sets(pico: Checkpoint, single_file: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "mixed"
    arguments = ("--factors", single_file, "--text", texts, "-o", out, "--short-share", "50%", "--length", 128, *FAST)
    done = run_cli("finetune", pico.path, *arguments)
    assert done.code == 0, done.err
    factors = open_folder(out).factors
    assert factors is not None
    assert factors.short_factor == (1.0,) * 8
    assert factors.factor_sets == "dual"
    assert read_log(tmp_path / "mixed.training" / "log.jsonl")[-1].tokens == 3 * 2 * 128


def test_an_interrupted_run_goes_on(pico: Checkpoint, single_file: Path, texts: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "tuned", tmp_path / "tuned.training" / "log.jsonl"
    arguments = ("finetune", pico.path, "--factors", single_file, "--text", texts, "-o", out, "--save-every", 1)
    many = ("--steps", 40, "--batch", 1, "--threads", 1)
    process = cli_process(*arguments, *many)
    while len(read_log(log)) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert not out.exists()
    done = run_cli(*arguments, *many, "--resume")
    assert done.code == 0, done.err
    assert "Going on after step" in done.err
    assert [record.step for record in read_log(log)] == list(range(1, 41))
    other = run_cli(*arguments, "--steps", 7, "--batch", 1, "--resume", "--overwrite")
    assert other.code == 2
    assert "the run has changed: stage.steps was 40, is 7" in other.err


def test_a_plan_tells_tokens_memory_and_time(pico: Checkpoint, single_file: Path, texts: Path, tmp_path: Path) -> None:
    arguments = ("--factors", single_file, "--text", texts, "-o", tmp_path / "never", "--plan", "--threads", 1)
    done = run_cli("finetune", pico.path, *arguments)
    assert done.code == 0, done.err
    assert "400 steps of 32 rows of 256 tokens" in done.out
    assert "3.28M tokens" in done.out
    assert "memory about" in done.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--length", "512"), 2, "at most the factors' target of 256"),
        (("--optimizer", "adamw8bit"), 3, "pip install bitsandbytes"),
        (("--sequence-parallel", "2"), 2, "expected a divisor of the number of processes"),
        (("--text", "missing"), 2, "no such file"),
        (("--short-share", "60%", "--retrieval-share", "50%"), 2, "short_share: expected room for text"),
        (("--teacher", "default"), 2, "--teacher default: expected --distil-short beside it"),
        (("--factor-sets", "dual"), 4, "short_factor equals long_factor"),
        (("--warmup", "9"), 2, "at most the 3 steps"),
    ],
)
def test_mistakes_are_told_before_any_work(
    pico: Checkpoint,
    single_file: Path,
    texts: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    done = run_cli(
        "finetune", pico.path, "--factors", single_file, "--text", texts, "-o", tmp_path / "out", *FAST, *arguments
    )
    assert (done.code, message in done.err) == (code, True), done.err
    assert not list(tmp_path.iterdir())


def test_a_model_without_factors_is_refused(pico: Checkpoint, texts: Path, tmp_path: Path) -> None:
    done = run_cli("finetune", pico.path, "--text", texts, "-o", tmp_path / "out")
    assert done.code == 2
    assert "pass --factors" in done.err


def test_a_tuned_model_is_tuned_further(pico: Checkpoint, single_file: Path, texts: Path, tmp_path: Path) -> None:
    """The second run takes the factors that are in the folder."""
    first, second = tmp_path / "first", tmp_path / "second"
    run_cli("finetune", pico.path, "--factors", single_file, "--text", texts, "-o", first, *FAST)
    done = run_cli("finetune", first, "--text", texts, "-o", second, *FAST)
    assert done.code == 0, done.err
    configs: list[Any] = [json.loads((folder / "config.json").read_text()) for folder in (first, second)]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("extra", [(), ("--sequence-parallel", "2")], ids=["weights in parts", "sequences in parts"])
def test_torchrun_gives_the_curve_of_one_process(
    pico: Checkpoint, single_file: Path, texts: Path, tmp_path: Path, extra: tuple[str, ...]
) -> None:
    """Mixed windows, so that ranks whose positions start beyond L must not guess the set."""
    skip_without_sharding()
    mixed = ("--short-share", "30%", "--retrieval-share", "20%", "--text", texts, "--factors", single_file)
    assert run_cli("finetune", pico.path, *mixed, *FAST, "-o", tmp_path / "one").code == 0
    program = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "longrope_export")
    arguments = ("finetune", pico.path, *mixed, *FAST, "-o", tmp_path / "two", *extra)
    subprocess.run([*program, *map(str, arguments)], check=True, cwd=REPOSITORY, capture_output=True)
    one, two = ([r.loss for r in read_log(tmp_path / f"{name}.training" / "log.jsonl")] for name in ("one", "two"))
    assert two == pytest.approx(one, abs=1e-5)
    assert open_folder(tmp_path / "two").config == open_folder(tmp_path / "one").config
