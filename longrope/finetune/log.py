"""What a training run writes down at every step: JSON lines, and TensorBoard's files where it is installed.

A resumed run goes on after the step of its checkpoint: lines beyond it, which a killed run left, are dropped, so that the
file is always one curve.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from longrope.files import errors_of_writing, write_atomically
from longrope.reading import check, kind_of, parsed_json, read_utf8

LOG_NAME = "log.jsonl"


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step.

    Args:
        step: from 1.
        loss: mean NLL of the step's tokens by their weights, nats; before the update.
        learning_rate: of the update.
        grad_norm: before clipping.
        tokens: read since the start of the stage.
        seconds: of the step.
        tokens_per_second: of all processes.
        mfu: model FLOPs (no recomputation) per second over the devices' peak; None where the peak is unknown.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    seconds: float
    tokens_per_second: float
    mfu: float | None = None


class TrainingLog:
    """The log of one stage, open for appending."""

    def __init__(self, folder: Path, after_step: int = 0) -> None:
        self.path = folder / LOG_NAME
        self.records = [record for record in read_log(self.path) if record.step <= after_step]
        write_atomically(self.path, "".join(_line(record) for record in self.records))
        self._file = self.path.open("a", encoding="utf-8")
        self._board = _tensorboard(folder / "tensorboard", after_step)

    def add(self, record: StepRecord) -> None:
        """Write one step."""
        self.records.append(record)
        with errors_of_writing(self.path):
            self._file.write(_line(record))
            self._file.flush()
        if self._board is not None:
            for name in ("loss", "learning_rate", "grad_norm", "tokens_per_second"):
                self._board.add_scalar(f"train/{name}", getattr(record, name), record.step)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_log(path: Path) -> list[StepRecord]:
    """The steps of a log; none where there is no file. A last line that a kill cut is dropped.

    Raises:
        InputError: another line is not a step.
    """
    if not path.is_file():
        return []
    whole, _, _ = read_utf8(path).rpartition("\n")
    return [_step(line, f"{path}, line {number}") for number, line in enumerate(whole.splitlines(), start=1)]


def _step(line: str, where: str) -> StepRecord:
    data = check(parsed_json(line, where, non_finite=True), kind_of(StepRecord), where)
    known = {field.name for field in fields(StepRecord)}
    return StepRecord(**{name: value for name, value in data.items() if name in known})


def _line(record: StepRecord) -> str:
    return json.dumps(asdict(record)) + "\n"


def _tensorboard(folder: Path, after_step: int) -> Any:
    """A writer, or None without TensorBoard; curves of a killed run are cut where this one goes on."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=after_step + 1)
