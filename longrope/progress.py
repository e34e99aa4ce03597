"""How long work tells a person where it stands, without the engine knowing about terminals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One bar: `advance` by units of work; `note` is shown beside it, e.g. the best value so far.

    `before`: the work was done by an earlier run; it says nothing of this one's speed.
    """

    def advance(self, units: float = 1, note: str | None = None, *, before: bool = False) -> None: ...


class Progress(Protocol):
    """Where tasks and single lines are shown."""

    def task(self, title: str, total: float) -> AbstractContextManager[Task]: ...

    def line(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...


class Silent:
    """Shows nothing; keeps warnings for whoever asks."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    @contextmanager
    def task(self, title: str, total: float) -> Iterator[Task]:
        yield self

    def advance(self, units: float = 1, note: str | None = None, *, before: bool = False) -> None: ...

    def line(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        self.warnings.append(text)
