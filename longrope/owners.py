"""Which process something belongs to, in a word that fits into a file's name, and whether that process is still alive.

5e0c3a1b-4711-88213     host and process namespace, process id, when it was started
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

# What `Owner.text` makes.
OWNER = r"[0-9a-f]{8}-\d+-\d+"
State = Literal["alive", "dead", "elsewhere"]


@dataclass(frozen=True)
class Owner:
    """A process on some machine.

    Args:
        host: eight digits that stand for the machine, and on Linux for the namespace that its process ids count in.
        pid: process id.
        started: on Linux ticks since the machine was booted, which no step of its clock changes; elsewhere hundredths
            of a second.
    """

    host: str
    pid: int
    started: int

    @classmethod
    def current(cls) -> Owner:
        """This process."""
        pid = os.getpid()
        return cls(_host(), pid, _started(pid) or 0)

    @classmethod
    def named_in(cls, name: str) -> Owner | None:
        """The owner that a file's name contains; None where it contains none."""
        found = re.search(rf"(?<![0-9a-f]){OWNER}", name)
        if found is None:
            return None
        host, pid, started = found[0].split("-")
        return cls(host, int(pid), int(started))

    @property
    def text(self) -> str:
        return f"{self.host}-{self.pid}-{self.started}"

    @property
    def state(self) -> State:
        """Whether it still runs. Nobody can say that of a process on another machine, or in another container."""
        if self.host != _host():
            return "elsewhere"
        return "alive" if _started(self.pid) == self.started else "dead"


@cache
def _host() -> str:
    try:
        namespace = Path("/proc/self/ns/pid").readlink().name
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:8]


def _started(pid: int) -> int | None:
    """When a process was started; None for one that is not there, or has ended and waits for its parent."""
    if not Path("/proc/self/stat").exists():
        return _started_by_psutil(pid)
    try:
        state, *fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        )
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else int(fields[18])


def _started_by_psutil(pid: int) -> int | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(100 * process.create_time())
    except psutil.Error:
        return None
