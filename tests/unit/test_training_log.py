"""The log of a training stage: what a resumed run keeps of it, and curves for TensorBoard where that is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from longrope.errors import InputError
from longrope.finetune.log import LOG_NAME, StepRecord, TrainingLog, read_log


def record(step: int) -> StepRecord:
    return StepRecord(
        step=step,
        loss=3.0 / step,
        learning_rate=1e-4,
        grad_norm=0.5,
        tokens=64 * step,
        seconds=2.0,
        tokens_per_second=32.0,
    )


def test_a_resumed_log_goes_on_after_the_step_it_resumes_from(tmp_path: Path) -> None:
    with TrainingLog(tmp_path) as log:
        for step in (1, 2, 3):
            log.add(record(step))
    with (tmp_path / LOG_NAME).open("a") as file:
        file.write('{"step": 4, "lo')  # a kill
    with TrainingLog(tmp_path, after_step=2) as log:
        log.add(record(3))
    assert read_log(tmp_path / LOG_NAME) == [record(1), record(2), record(3)] == log.records


@pytest.mark.parametrize("line", ["{}", "[1]", "loss", '{"step": "1"}'])
def test_another_file_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / LOG_NAME).write_text(f"{line}\n")
    with pytest.raises(InputError, match=r"log\.jsonl, line 1.*(expected|not valid JSON)"):
        TrainingLog(tmp_path)


def test_tensorboard_gets_curves_that_are_cut_where_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[str, int]] = []
    points: list[tuple[str, float, int]] = []
    closed: list[bool] = []

    def writer(folder: str, purge_step: int) -> SimpleNamespace:
        opened.append((folder, purge_step))
        return SimpleNamespace(add_scalar=lambda *point: points.append(point), close=lambda: closed.append(True))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with TrainingLog(tmp_path, after_step=6) as log:
        log.add(record(7))
    assert opened == [(str(tmp_path / "tensorboard"), 7)]
    assert points == [
        ("train/loss", 3.0 / 7, 7),
        ("train/learning_rate", 1e-4, 7),
        ("train/grad_norm", 0.5, 7),
        ("train/tokens_per_second", 32.0, 7),
    ]
    assert closed == [True]
