"""Files that are whole or not there: partial name, flush to disk, rename. Folders are exchanged in one call."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from longrope.errors import InputError, LongRopeError, MissingRequirementError
from longrope.exchange import exchange
from longrope.locks import LOCK, alone_at, is_lock, remove_stale
from longrope.owners import Owner
from longrope.unfinished import (
    PARTIAL,
    WHOLE,
    is_abandoned,
    is_partial,
    name_set,
    partial,
    remove,
    sweep,
    sweep_temporaries,
)

# What a machine lacks, by the codes that its system says it with.
_LACKS = {
    "no room left on the disk": (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    "not writable": (errno.EACCES, errno.EPERM, errno.EROFS),
    "the disk fails": (errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT),
    "out of memory": (errno.ENOMEM,),
    "too many open files": (errno.EMFILE, errno.ENFILE),
    "the disk knows no such operation": (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK),
}
# Ends the name of what was moved aside for something new, where the system cannot exchange the two.
REPLACED = ".replaced"


def refuse_folder(path: Path) -> None:
    """Raise InputError where a file is to be written and a folder is."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected the name of a file")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` so that `path` either keeps its old content or has all of the new."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    refuse_folder(path)
    with errors_of_writing(path):
        _make_parent(path)
        sweep(path)
        with partial(path) as temporary:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)


def json_text(data: Any, *, keep_non_finite: bool = False) -> str:
    """Indented JSON with paths as text.

    Args:
        data: dictionaries, lists and scalars.
        keep_non_finite: write NaN and infinity as Python's words for them, as some configurations of transformers hold
            them; else as null, for JSON has no word for either.
    """
    plain = data if keep_non_finite else _plain(data)
    return json.dumps(plain, indent=2, ensure_ascii=False) + "\n"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, data: Any, *, keep_non_finite: bool = False) -> None:
    """Write `json_text` so that `path` either keeps its old content or has all of the new."""
    write_atomically(path, json_text(data, keep_non_finite=keep_non_finite))


def _plain(value: Any) -> Any:
    """What the json module can write, without the words NaN and Infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def is_empty(folder: Path) -> bool:
    """Whether nothing is in a folder."""
    return not any(folder.iterdir())


def refuse_foreign(path: Path, is_ours: Callable[[Path], bool]) -> None:
    """Raise InputError when `path` is a folder of something that this program did not write."""
    if path.is_dir() and not is_empty(path) and not is_ours(path):
        raise InputError(
            f"{path} is a folder of something else than what this program wrote, and is not replaced; choose another "
            "output, or remove it yourself"
        )


@contextmanager
def staged(path: Path, *, overwrite: bool = False, is_ours: Callable[[Path], bool] = is_empty) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` when the block ends well, and vanishes when it does not.

    The block may create a file or a folder under the yielded name, or files of one set beside it: the first of them by name
    gets its name last, so that a loader never meets a set that is not complete. Nobody else may write to `path` meanwhile.

    Args:
        path: the name that it becomes.
        overwrite: replace what is there, a file or a folder.
        is_ours: whether a folder that is there may be replaced: by default only an empty one.

    Raises:
        InputError: `path` exists and may not be replaced, or another process is writing it.
        MissingRequirementError: the disk is full or not writable.
    """
    refuse_existing(path, overwrite=overwrite)
    with errors_of_writing(path):
        _make_parent(path)
        with alone_at(path, again=True):
            finish_replacing(path)
            sweep(path)
            refuse_existing(path, overwrite=overwrite)
            refuse_foreign(path, is_ours)
            with partial(path) as room:
                room.mkdir(mode=0o700)
                yield room / path.name
                _give_names(room, path, overwrite=overwrite)
                sync(path.parent)


def _give_names(room: Path, path: Path, *, overwrite: bool) -> None:
    """Put everything that was made in `room` beside `path`, once it is on the disk."""
    made = sorted(room.iterdir())
    if not made:
        raise FileNotFoundError(errno.ENOENT, "nothing was written", str(path))
    for new in made:
        refuse_existing(path.parent / new.name, overwrite=overwrite)
    for new in made:
        _sync_tree(new)
    if len(made) == 1:
        _replace(made[0], path.parent / made[0].name)
        return
    write_atomically(room / WHOLE, "")
    sync(room)
    name_set(room)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk; a rename is not safe from a power cut before."""
    windows = os.name == "nt"
    if windows and path.is_dir():  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # folders of some network disks
            raise
    finally:
        os.close(descriptor)


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise InputError when `path` exists and may not be replaced; what dead processes left is removed all the same."""
    if (path.exists() or path.is_symlink()) and not overwrite:
        sweep(path)  # one may have died between giving the name and clearing up
        sweep_temporaries()
        raise InputError(f"{path} exists; choose another output, or replace it", option="overwrite")


def put_back(aside: Path) -> None:
    """`finish_replacing` for what was moved aside, by the name under which it waits."""
    finish_replacing(aside.with_name(aside.name.removeprefix(".").removesuffix(REPLACED)))


def remove_partial(folder: Path) -> None:
    """Remove what has not been finished under a folder that is ours, but for what a process that is alive is writing.

    Locks of dead processes go, too.
    """
    for path in list(folder.rglob(f".*{PARTIAL}")):
        owner = Owner.named_in(path.name)
        if owner is None or owner.state != "alive":
            remove(path)
    for path in list(folder.rglob(f".*{REPLACED}")):
        put_back(path)
    for path in filter(is_lock, list(folder.rglob(f".*{LOCK}"))):
        remove_stale(path)


@contextmanager
def alone_in(place: Path, *, again: bool = False) -> Iterator[None]:
    """`alone_at` a run's folder or file, with the folders above it made.

    Raises:
        InputError: another process works there.
        MissingRequirementError: it cannot be written.
    """
    make_folder(place.parent)
    with ExitStack() as held:
        with errors_of_writing(place):
            held.enter_context(alone_at(place, again=again))
        yield


def is_stillborn(folder: Path) -> bool:
    """Whether a folder holds nothing but what dead processes have not finished, if anything."""
    return folder.is_dir() and all(is_partial(path) and is_abandoned(path) for path in folder.iterdir())


def make_folder(folder: Path) -> None:
    """Make a folder with those above it. Raises MissingRequirementError where it cannot be written."""
    with errors_of_writing(folder):
        _make_parent(folder)
        folder.mkdir(exist_ok=True)


def remove_all(folder: Path) -> None:
    """Remove a folder so that at every moment it is there as it was, or not there."""
    with errors_of_writing(folder), partial(folder) as gone:
        folder.replace(gone)


def lack(error: OSError) -> str:
    """What a machine lacks, in words, where the system refused something for that; empty for other errors.

    numpy's `tofile`, which other libraries call, says without a code that less was written than it wanted to.
    """
    said = error.strerror or str(error)
    if error.errno is None:
        return f"no room left on the disk ({said})" if " requested and " in str(error) else ""
    return next((f"{words} ({said})" for words, codes in _LACKS.items() if error.errno in codes), "")


def _sync_tree(path: Path) -> None:
    """`sync` a file, or a folder and all that is in it."""
    for inside in path.rglob("*"):
        sync(inside)
    sync(path)


def _replace(new: Path, path: Path) -> None:
    """Put `new` where `path` is; a folder that is there, or is put over a file, is exchanged in one call where that can be.

    Where it cannot, what is there is moved aside under a name from which `finish_replacing` puts it back.
    """
    if not path.exists() or not (path.is_dir() or new.is_dir()):
        new.replace(path)
    elif not exchange(new, path):
        path.replace(_aside(path))
        try:
            new.replace(path)
        finally:
            finish_replacing(path)


def finish_replacing(path: Path) -> None:
    """Put back what was moved aside for something that then never came, or remove it if that is there."""
    old = _aside(path)
    try:
        old.lstat()
    except OSError:  # not there, or a name as long as names can be
        return
    if path.exists():
        remove(old)
    else:
        old.replace(path)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}{REPLACED}")


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{path}: {path.parent} is not a folder") from None


@contextmanager
def errors_of_writing(path: Path) -> Iterator[None]:
    """What the machine cannot do (`lack`) as a MissingRequirementError that names `path`."""
    try:
        yield
    except LongRopeError:
        raise
    except (OSError, SafetensorError) as raised:
        error = raised if isinstance(raised, OSError) else _said_by_safetensors(raised)
        if words := lack(error):
            raise MissingRequirementError(f"{path}: {words}; nothing was written") from raised
        raise


def _said_by_safetensors(error: Exception) -> OSError:
    """What the system said to safetensors, which passes it on as text: `… I/O error: File too large (os error 27)`."""
    found = re.search(r"I/O error: (.*) \(os error (\d+)\)", str(error))
    return OSError(int(found[2]), found[1]) if found else OSError(0, str(error))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
