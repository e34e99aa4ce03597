"""How a command ends when somebody ends it: Ctrl-C, SIGTERM and SIGHUP alike, at any moment, without litter.

first signal ──► KeyboardInterrupt in the main thread: blocks clean up, the command line says how to go on
second one, or a main thread that stays in native code for too long after SIGTERM or SIGHUP
             ──► a thread of its own removes what is unfinished, ends the worker processes and the process
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from longrope.locks import remove_mine
from longrope.unfinished import discard_mine, is_removing

SIGNALS = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if name in signal.Signals.__members__)
# Seconds; supervisors kill ten seconds after they asked a process to end (docker), or later (systemd, SLURM).
PATIENCE = 8.0
# What the system calls until the process ends.
_kept: list[object] = []


@dataclass
class Received:
    """The signals that came, in their order, and whether the work that they would end is over."""

    numbers: list[int] = field(default_factory=list)
    over: bool = False

    @property
    def exit_code(self) -> int:
        """128 and the number of the first, as shells have it; that of Ctrl-C for an error that came without a signal."""
        return 128 + (self.numbers[0] if self.numbers else signal.SIGINT)

    def hear(self, number: int, _frame: object) -> None:
        """Python's handler of a signal."""
        self.numbers.append(number)
        if len(self.numbers) > 1:
            end_at_once(number)
        if not self.over and not is_removing():  # else nobody could catch it; the watcher has heard it, too
            raise KeyboardInterrupt


@contextmanager
def ended_by_signals(*, for_good: bool) -> Iterator[Received]:
    """Let signals end a block; those that this process was told to ignore (`nohup`) stay ignored.

    Only a main thread can be interrupted; in any other the block runs as it is.

    Args:
        for_good: the process ends after the block, and no signal may disturb how it does.
    """
    received = Received()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    former = {number: signal.getsignal(number) for number in SIGNALS}
    heard = [number for number, handler in former.items() if handler not in (signal.SIG_IGN, None)]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader,), daemon=True, name="signals")
    watcher.start()
    if for_good and hasattr(signal, "SIGBUS"):
        _hear_unreadable_inputs()
    try:
        for number in heard:
            signal.signal(number, received.hear)
        yield received
    finally:
        received.over = True
        if not for_good:
            for number in heard:
                signal.signal(number, former[number])
            signal.set_wakeup_fd(wakeup)
            os.close(writer)
            watcher.join(1.0)


def _hear_unreadable_inputs() -> None:
    """Let SIGBUS end the process with a line and without litter.

    The system sends it where a file that is mapped into memory was cut or its disk fails while somebody reads it; the
    read cannot be gone on with, and a handler of Python's would never be reached. So this one is called by the system.
    """

    def end(_number: int) -> None:
        os.write(2, b"Error: an input file was cut, or can no longer be read, while it was in use\n")
        end_at_once(signal.SIGBUS, exit_code=2)

    _kept.append(handler := ctypes.CFUNCTYPE(None, ctypes.c_int)(end))
    ctypes.CDLL(None).signal(int(signal.SIGBUS), handler)


def end_at_once(number: int, *, exit_code: int | None = None) -> None:
    """Remove what is unfinished and end this process and its workers; nothing else is run."""
    with suppress(Exception):
        if (multiprocessing := sys.modules.get("multiprocessing")) is not None:
            for child in multiprocessing.active_children():
                child.kill()
    with suppress(Exception):
        discard_mine()
        remove_mine()
    os._exit(128 + number if exit_code is None else exit_code)


def _watch(reader: int) -> None:
    """End the process at the second signal, even while its main thread is in native code and hears none."""
    first, patience = 0, None
    while True:
        ready, _, _ = select.select([reader], [], [], patience)
        if not ready:
            end_at_once(first)
        numbers = os.read(reader, 16)
        if not numbers:  # nobody writes any more
            os.close(reader)
            return
        for number in filter(SIGNALS.__contains__, numbers):
            if first:
                end_at_once(number)
            first, patience = number, None if number == signal.SIGINT else PATIENCE


def _forget_in_child() -> None:
    """A forked process shares the parent's pipe; its signals are not the parent's."""
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
