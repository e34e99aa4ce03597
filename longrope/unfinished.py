"""What is not finished yet, known by its name: partial files beside their targets, and temporary folders.

    .model.gguf.5e0c3a1b-4711-88213-0.partial     beside model.gguf, of a process that its owner's name identifies
    longrope-gguf-5e0c3a1b-4711-88213-x7k2        in the system's folder for temporary files

A process removes its own when it ends, however it ends, but for `kill -9`, a power cut and the like. What those leave is
found by its name and removed at the next start; what belongs to a process that is alive is left alone.
"""

from __future__ import annotations

import atexit
import itertools
import os
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from longrope.owners import OWNER, Owner

# Ends the name of everything that is not finished.
PARTIAL = ".partial"
# In the folder of a set of files that is whole and on the disk: what is left of it only has to be renamed.
WHOLE = ".whole"
TEMPORARY = "longrope-"
# Bytes of a target's name that its partial name repeats; file systems allow 255 in all.
_NAME_BYTES = 150

_serial = itertools.count()
_mine: set[tuple[int, Path]] = set()
_swept: set[tuple[int, Path]] = set()
_removing: list[Path] = []


@contextmanager
def partial(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` for a file or a folder; whatever bears it when the block ends is removed.

    The name is known before anything has it, so that no moment is left in which it could be forgotten.
    """
    name = path.with_name(f".{shortened(path.name)}.{Owner.current().text}-{next(_serial)}{PARTIAL}")
    entry = (os.getpid(), name)
    _mine.add(entry)
    try:
        yield name
    finally:
        remove(name)
        _mine.discard(entry)


class TemporaryFolder:
    """A folder that is removed with this object: at the end of its block, when nobody holds it any more, or with the process.

    Unlike tempfile's, its removal fails in silence, for the next start finishes it, and no signal interrupts it: Python
    would print what is raised while it collects objects, and go on.

    Args:
        path: a folder that is there.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.cleanup = weakref.finalize(self, _remove_undisturbed, path)

    def __enter__(self) -> str:
        return self.name

    def __exit__(self, *_: object) -> None:
        self.cleanup()


def temporary_folder(purpose: str) -> TemporaryFolder:
    """A folder for what only this process needs; those that dead processes left are removed first."""
    entry = (os.getpid(), Path(tempfile.gettempdir()))
    if entry not in _swept:
        _swept.add(entry)
        sweep_temporaries()
    return TemporaryFolder(Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{purpose}-{Owner.current().text}-")))


def sweep_temporaries() -> None:
    """Remove the temporary folders of this user's dead processes."""
    for folder in abandoned_temporaries(Path(tempfile.gettempdir())):
        remove(folder)


def is_removing() -> bool:
    """Whether a temporary folder is being removed right now, which must not be interrupted."""
    return bool(_removing)


def _remove_undisturbed(path: Path) -> None:
    _removing.append(path)
    try:
        remove(path)
    finally:
        _removing.remove(path)


def remove(path: Path) -> None:
    """Remove a partial file or folder; a set of files that was whole gets its names instead."""
    if path.is_dir() and not path.is_symlink():
        finish_set(path)
        for _ in range(3):  # a thread may still be writing into it
            shutil.rmtree(path, ignore_errors=True)
            if not path.exists():
                return
            time.sleep(0.01)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def finish_set(room: Path) -> None:
    """Give the files of a dead process's set that was marked as whole their names.

    Where somebody has put a file there after the set was made whole, that file stays, and the set is given up.
    """
    mark = room / WHOLE
    if not mark.is_file():
        return
    made = mark.stat().st_mtime_ns
    there = [room.parent / file.name for file in _set_in(room) if (room.parent / file.name).exists()]
    if all(file.stat().st_mtime_ns <= made for file in there):
        name_set(room)


def name_set(room: Path) -> None:
    """Move the files of a set beside the folder that they were made in, the first by name last."""
    for file in reversed(_set_in(room)):
        file.replace(room.parent / file.name)


def _set_in(room: Path) -> list[Path]:
    return sorted(file for file in room.iterdir() if file.name != WHOLE)


def discard_mine() -> None:
    """Remove all that this process has not finished; for its end, which no block may have seen coming."""
    for pid, path in list(_mine):
        if pid == os.getpid():
            remove(path)
    with suppress(OSError, MemoryError):  # a process that ends because it has no memory says so itself
        for folder in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*-{Owner.current().text}-*"):
            remove(folder)


def sweep(path: Path) -> None:
    """Remove what dead processes left of `path`, beside it."""
    beginning = f".{shortened(path.name)}."
    with suppress(OSError):  # a folder that cannot be listed may still be written to
        for each in _entries(path.parent):
            if each.name.startswith(beginning) and _OWNED.fullmatch(each.name[len(beginning) :]) and is_abandoned(each):
                remove(each)


def is_abandoned(path: Path) -> bool:
    """Whether a partial or temporary name belongs to a process that has ended."""
    owner = Owner.named_in(path.name)
    return owner is not None and owner.state == "dead"


def is_partial(path: Path) -> bool:
    """Whether a name is that of something unfinished."""
    return path.name.startswith(".") and path.name.endswith(PARTIAL)


def abandoned_temporaries(place: Path) -> list[Path]:
    """Temporary folders of this user's dead processes."""
    found = (each for each in place.glob(f"{TEMPORARY}*") if is_abandoned(each))
    return sorted(each for each in found if not hasattr(os, "getuid") or each.lstat().st_uid == os.getuid())


_OWNED = re.compile(rf"{OWNER}-\d+{re.escape(PARTIAL)}")


def _entries(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if entry.name.endswith(PARTIAL)]


def shortened(name: str) -> str:
    """As much of a name as leaves room for what is added to it."""
    return name.encode()[:_NAME_BYTES].decode(errors="ignore")


atexit.register(discard_mine)
