"""Who measures: the process itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from longrope.checkpoint import Checkpoint
from longrope.search.measure import Machine, WindowModel
from longrope.search.objective import Objective
from longrope.search.trial import Job, Measurement


class Evaluator(Protocol):
    """Measures jobs; results do not depend on how many workers there are."""

    def measure(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Measurement]]:
        """Every job once, in the order they finish."""
        ...

    def close(self) -> None:
        """Free models and processes."""
        ...


class LocalEvaluator:
    """One model in this process, loaded at the first job."""

    def __init__(
        self, checkpoint: Checkpoint, objective: Objective, machine: Machine, default_attention: float
    ) -> None:
        self._checkpoint, self._objective, self._machine = checkpoint, objective, machine
        self._attention = default_attention
        self._model: WindowModel | None = None

    def measure(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Measurement]]:
        if self._model is None:
            self._model = WindowModel(self._checkpoint, self._machine, self._attention)
        for job in jobs:
            yield job, self._model.measure(job, self._objective.windows[job.window])

    def close(self) -> None:
        self._model = None
