"""What a person sees: bars and tables on a terminal, plain lines elsewhere. Everything but results goes to stderr."""

from __future__ import annotations

import math
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Column, Table
from rich.text import Text

from longrope.files import json_text, write_atomically
from longrope.reading import visible

# Between two plain lines of one task, where there is no terminal, lie so many seconds and such a share of it.
PLAIN_SECONDS, PLAIN_SHARE = 10.0, 0.05
NUMBER = re.compile(r"[-+]?[\d.]*(e[-+]?\d+)?( %)?|–( %)?")
VERDICT_STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


def log_console() -> Console:
    """The console of logs and bars."""
    return Console(stderr=True, highlight=False)


class ConsoleProgress:
    """`longrope.progress.Progress` on stderr: a bar with time left on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.console = log_console()

    @contextmanager
    def task(self, title: str, total: float) -> Iterator[_Bar | _Lines]:
        """Show one task until the block ends."""
        title = visible(title)
        if not self.console.is_terminal:
            lines = _Lines(self.console, title, total)
            yield lines
            lines.finish()
            return
        columns: list[ProgressColumn] = [
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            _TimeLeft(),
            _Note(),
        ]
        with Progress(*columns, console=self.console, transient=False) as progress:
            yield _Bar(progress, progress.add_task(title, total=total, note=""))

    def line(self, text: str) -> None:
        self.console.print(visible(text), markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        self.console.print(Text(visible(f"Warning: {text}"), style="yellow"), soft_wrap=True)


class _Note(ProgressColumn):
    """The best value so far, on one line."""

    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=True, overflow="ellipsis"))

    def render(self, task: Task) -> Text:
        return Text(visible(str(task.fields.get("note", ""))), style="cyan")


class _TimeLeft(ProgressColumn):
    """By the speed since the task began: rich's own column forgets after half a minute, less than a long window takes."""

    def render(self, task: Task) -> Text:
        left = _time_left(task.elapsed or 0.0, task.completed, task.total or 0.0, task.fields.get("before", 0.0))
        return Text(left, style="progress.remaining")


class _Bar:
    def __init__(self, progress: Progress, id: Any) -> None:
        self._progress, self._id = progress, id
        self._before = 0.0

    def advance(self, units: float = 1, note: str | None = None, *, before: bool = False) -> None:
        self._before += units if before else 0.0
        self._progress.update(self._id, advance=units, before=self._before)
        if note is not None:
            self._progress.update(self._id, note=note)


class _Lines:
    """The same without a terminal: title, share done, time left, note."""

    def __init__(self, console: Console, title: str, total: float) -> None:
        self._console, self._title, self._total = console, title, max(total, 1e-9)
        self._done, self._before, self._note = 0.0, 0.0, ""
        self._start = self._last = time.monotonic()
        self._shown = 0.0

    def advance(self, units: float = 1, note: str | None = None, *, before: bool = False) -> None:
        self._done += units
        self._before += units if before else 0.0
        self._note = self._note if note is None else note
        now, share = time.monotonic(), self._done / self._total
        if now - self._last >= PLAIN_SECONDS and self._shown + PLAIN_SHARE - 1e-9 < share < 1:
            self._last, self._shown = now, share
            left = _time_left(now - self._start, self._done, self._total, self._before)
            self._print(f"{100 * share:.0f} %, {left} left")

    def finish(self) -> None:
        self._print(f"done in {_clock(time.monotonic() - self._start)}")

    def _print(self, state: str) -> None:
        note = f" ({self._note})" if self._note else ""
        self._console.print(visible(f"{self._title}: {state}{note}"), markup=False, soft_wrap=True)


def _time_left(spent: float, done: float, total: float, before: float) -> str:
    """What the rest takes at the speed so far; `before` units were done by an earlier run and say nothing of that."""
    here = done - before
    return _clock(spent * max(total - done, 0.0) / here) if here > 0 else "-:--"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"


def say(text: str, *, err: bool = False) -> None:
    """Print a line that may hold names of somebody else's files: no escape sequence of theirs reaches the terminal."""
    click.echo(visible(text), err=err)


def say_indented(text: str, indent: int) -> None:
    """`say`, indented; on a terminal wrapped at its width, with the lines after the first indented further."""
    blank, width = " " * indent, shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    whole = {"break_long_words": False, "break_on_hyphens": False}
    lines = textwrap.wrap(visible(text), width, initial_indent=blank, subsequent_indent=blank + "  ", **whole)  # type: ignore[arg-type]
    click.echo("\n".join(lines))


def print_lines(lines: Sequence[Text]) -> None:
    """Styled lines, none wrapped, none cut."""
    console = Console(highlight=False)
    for line in lines:
        console.print(line, soft_wrap=True)


def said(value: object) -> str:
    """A value in words; what a file leaves open is `not said`."""
    return "not said" if value is None else str(value)


def number(value: float | None, pattern: str) -> str:
    """A formatted number, such as `.3f`; a dash for what is missing or non-finite."""
    return "–" if value is None or not math.isfinite(value) else format(value, pattern)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, err: bool = False) -> None:
    """A table: columns of numbers to the right, of text to the left; verdict words are coloured."""
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for name, *cells in zip(header, *rows, strict=True):
        numeric = all(NUMBER.fullmatch(cell) for cell in cells)
        table.add_column(Text(name), justify="right" if numeric else "left", no_wrap=numeric)
    for row in rows:
        table.add_row(*(Text(visible(cell), style=VERDICT_STYLES.get(cell, "")) for cell in row))
    console = Console(stderr=err, highlight=False)
    if not console.is_terminal:
        console.width = 1000  # a log has no width of its own: nothing is wrapped or cut
    console.print(table)


def write_json(data: Any, path: str | None) -> None:
    """Write JSON to a file or, for `-`, to standard output; None writes nothing."""
    if path is None:
        return
    text = json_text(data)
    if path == "-":
        click.echo(text, nl=False, file=sys.stdout)
    else:
        write_atomically(Path(path), text)
