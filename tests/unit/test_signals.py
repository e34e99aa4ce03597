"""Ctrl-C, SIGTERM, SIGHUP and what ends a process at once: the exit code, one line, nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from longrope.unfinished import temporary_folder
from longrope_export.signals import SIGNALS, ended_by_signals
from tests.common import REPOSITORY

# A command that writes, and then does what a case says.
PROCESS = """
import mmap, os, sys, time
from pathlib import Path
from typing import Any
from longrope.files import staged
from longrope.unfinished import temporary_folder
from longrope_export import cli, signals

def work():
    room = temporary_folder("test")
    with staged(Path("out")) as temporary:
        temporary.write_text("half")
        print("writing", flush=True)
        CASE

def command(*_, **__):
    work()
    print("written", flush=True)
    return 0

cli.cli.main = command
signals.PATIENCE = 0.3
cli.main()
"""
# Native code that hears no signal: the main thread runs no bytecode.
DEAF = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"


def started(room: Path, case: str, ignored: signal.Signals | None = None) -> subprocess.Popen[str]:
    """The process, once it is writing; Ctrl-C reaches it even where the tests run in the background."""

    def signals() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if ignored is not None:
            signal.signal(ignored, signal.SIG_IGN)

    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS.replace("CASE", case)],
        cwd=room,
        env={**os.environ, "TMPDIR": str(room), "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=signals,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def finished(process: subprocess.Popen[str], given: str = "") -> tuple[str, str]:
    """What it printed and said by its end, which is near."""
    try:
        return process.communicate(given, timeout=60)
    finally:
        process.kill()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_one_line_its_exit_code_and_no_litter(tmp_path: Path, number: signal.Signals) -> None:
    process = started(tmp_path, "time.sleep(60)")
    process.send_signal(number)
    _, said = finished(process)
    assert process.returncode == 128 + number
    assert [line for line in said.splitlines() if line] == [
        "Interrupted. A run of `extend`, `search`, `finetune` or `recover` goes on with --resume, `publish` by itself."
    ]
    assert list(tmp_path.iterdir()) == []


STUBBORN = """while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                pass"""
THREADED = "import threading; threading.Thread(target=time.sleep, args=(60,)).start(); time.sleep(60)"


@pytest.mark.parametrize(
    ("case", "number", "once"),
    [
        (DEAF, signal.SIGINT, False),
        (DEAF, signal.SIGTERM, True),
        (THREADED, signal.SIGHUP, True),
        (STUBBORN, signal.SIGINT, False),
    ],
    ids=["native code, again", "native code, out of patience", "a thread that goes on", "swallowed, again"],
)
def test_a_process_that_does_not_end_is_ended_without_litter(
    tmp_path: Path, case: str, number: signal.Signals, *, once: bool
) -> None:
    process = started(tmp_path, case)
    process.send_signal(number)
    while not once and process.poll() is None:  # two at the same time are one to the system
        time.sleep(0.1)
        process.send_signal(number)
    finished(process)
    assert process.returncode in (128 + number, -number)  # the latter at the very end, when Python hears none any more
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    process = started(tmp_path, "sys.stdin.readline()", ignored=signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    out, _ = finished(process, "\n")
    assert (process.returncode, out) == (0, "written\n")


def test_an_input_that_is_cut_while_it_is_mapped_is_a_line_and_no_litter(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(bytes(1 << 16))
    case = "file = open('input', 'r+b'); mapped = mmap.mmap(file.fileno(), 0); os.truncate('input', 0); print(mapped[5000])"
    process = started(tmp_path, case)
    _, said = finished(process)
    assert (process.returncode, said) == (
        2,
        "Error: an input file was cut, or can no longer be read, while it was in use\n",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["input"]


def test_handlers_are_those_of_before_after_a_block() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with ended_by_signals(for_good=False) as received:
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert received.numbers == []


def test_a_signal_while_a_temporary_folder_is_removed_is_not_raised_where_nobody_could_catch_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    remove_folder = os.rmdir

    def interrupted(*arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(os, "rmdir", remove_folder)
        signal.raise_signal(signal.SIGTERM)
        remove_folder(*arguments, **options)

    with ended_by_signals(for_good=False) as received:
        folder = temporary_folder("test")
        monkeypatch.setattr(os, "rmdir", interrupted)
        del folder
    assert received.numbers == [signal.SIGTERM]
    assert not list(tmp_path.iterdir())
    assert "Traceback" not in capsys.readouterr().err
