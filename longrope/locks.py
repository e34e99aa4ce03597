"""One process at a time at one place: a lock file beside it that says who holds it.

    runs/demo              the place: a run's folder, an artifact, a journal
    runs/.demo.lock        locked while somebody works there; the system frees it when that process dies

Where a file system refuses such locks (some network disks), the lock file itself is the lock, and is known to be left over
by the process and the host that stand in it.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrope.errors import InputError, MissingRequirementError
from longrope.reading import cut
from longrope.unfinished import shortened

if TYPE_CHECKING:
    from filelock import BaseFileLock  # imported where it is used: it takes as long as writing a small file

LOCK = ".lock"
SOFT = ".soft"
# What `flock` says where there is none: not known, not supported, no service for locks on a network disk.
_REFUSED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_COMMAND_LENGTH = 100


@dataclass
class _Hold:
    """A lock that this process holds, or is about to; how many blocks are within it."""

    lock: BaseFileLock | None = None
    count: int = 0


_held: dict[tuple[int, Path], _Hold] = {}


@contextlib.contextmanager
def alone_at(path: Path, *, again: bool = False) -> Iterator[None]:
    """Work at a file or a folder as the only one that does.

    Args:
        path: need not exist; its parent does.
        again: enter although this process holds the lock already, as a step of the work that took it.

    Raises:
        InputError: another process works there; says which, on which machine, since when.
        OSError: the lock file cannot be written.
    """
    place = path.parent.resolve() / path.name if path.is_symlink() and not path.exists() else path.resolve()
    entry = (os.getpid(), place)
    if entry in _held and not again:
        _acquire(place)  # which refuses
    hold = _held.setdefault(entry, _Hold())
    try:
        hold.count += 1
        if hold.lock is None:
            hold.lock = _acquire(place)
        yield
    finally:
        hold.count -= 1
        if not hold.count:
            _drop(entry)


def refuse_occupied(path: Path) -> None:
    """Raise InputError when another process works at a place, and write nothing to find that out."""
    file = lock_file(path.resolve())
    if file.exists() or _soft(file).exists():
        with alone_at(path, again=True):
            return


def lock_file(path: Path) -> Path:
    """Where the lock of a place is."""
    return path.with_name(f".{shortened(path.name)}{LOCK}")


def is_lock(file: Path) -> bool:
    """Whether a file was made by this module."""
    try:
        with file.open("rb") as opened:
            opened.seek(1)
            return bool(json.loads(opened.read(4096)).keys() >= {"pid", "host", "since"})
    except (OSError, ValueError, AttributeError):
        return False


def is_held(file: Path) -> bool:
    """Whether somebody holds a lock file; one that is not there nobody does."""
    if not (file.exists() or _soft(file).exists()):
        return False
    from filelock import Timeout

    try:
        _taken(file).release()
    except (Timeout, OSError):
        return True
    return False


def remove_stale(file: Path) -> None:
    """Remove a lock file that nobody holds."""
    from filelock import Timeout

    with contextlib.suppress(Timeout, OSError):
        _release(_taken(file))


def remove_mine() -> None:
    """Give up every lock that this process holds, for its end, which no block may have seen coming."""
    for entry in list(_held):
        if entry[0] == os.getpid():
            _drop(entry)


def _drop(entry: tuple[int, Path]) -> None:
    """Give up a lock, and what is left of one that was interrupted while it was taken."""
    hold, (_, place) = _held[entry], entry
    if hold.lock is not None:
        _release(hold.lock)
    else:
        remove_stale(lock_file(place))
    _held.pop(entry, None)


def _acquire(place: Path) -> BaseFileLock:
    from filelock import Timeout

    file = lock_file(place)
    try:
        return _taken(file)
    except Timeout:
        _refuse_unwritable(file, place)
        raise InputError(f"{place}: another run is at work here ({_holder(file)}); wait for it or stop it") from None


def _refuse_unwritable(file: Path, place: Path) -> None:
    """Raise MissingRequirementError where no file can be made, which filelock takes for a lock of somebody else."""
    try:
        file.open("xb").close()
        file.unlink()
    except FileExistsError:
        return
    except OSError as error:
        if not _soft(file).exists():
            raise MissingRequirementError(f"{place}: not writable ({error.strerror}); nothing was written") from None


def _taken(file: Path) -> BaseFileLock:
    from filelock import FileLock

    native = FileLock(file, thread_local=False, on_acquired=_sign)
    try:
        native.acquire(blocking=False)
    except KeyboardInterrupt:
        native.release(force=True)
        raise
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        from filelock import SoftFileLock

        file.unlink(missing_ok=True)
        soft = SoftFileLock(_soft(file), thread_local=False)
        soft.acquire(blocking=False)
        return soft
    return native


def _soft(file: Path) -> Path:
    """The lock file where its existence is the lock."""
    return file.with_name(f"{file.name}{SOFT}")


def _release(lock: BaseFileLock) -> None:
    """Remove the file while it is locked, so that nobody waits at one that has no name any more."""
    with contextlib.suppress(OSError):  # Windows removes no open file; there the library does on release
        Path(lock.lock_file).unlink()
    lock.release()


def _sign(descriptor: int) -> None:
    """Write who holds the lock, behind the one byte that Windows lets nobody else read."""
    signed = {"pid": os.getpid(), "host": platform.node(), "command": _command(), "since": time.time()}
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, f"\n{json.dumps(signed)}".encode())


def _command() -> str:
    """What was called, as a person would recognize it."""
    program = Path(sys.argv[0] if sys.argv else sys.executable)
    name = program.parent.name if program.name == "__main__.py" else program.name
    line = " ".join([name, *sys.argv[1:]])
    return cut(line, _COMMAND_LENGTH)


def _holder(file: Path) -> str:
    """Who holds a lock, in words."""
    try:
        with file.open("rb") as opened:
            opened.seek(1)
            signed: dict[str, Any] = json.loads(opened.read())
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(signed["since"]))
        return f"process {signed['pid']} on {signed['host']} since {since}: {_printable(signed['command'])}"
    except FileNotFoundError:
        return _soft_holder(_soft(file))
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return "which has not signed yet"


def _soft_holder(file: Path) -> str:
    """Of a lock file that is the lock itself: a process id and a host, one per line."""
    with contextlib.suppress(OSError, ValueError):
        pid, host, *_ = file.read_text(encoding="utf-8").split()
        return f"process {int(pid)} on {_printable(host)}"
    return "which has just ended"


def _printable(text: Any) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))


atexit.register(remove_mine)
