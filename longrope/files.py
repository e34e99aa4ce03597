"""Files that are whole or not there: temporary name, flush to disk, rename."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from longrope.errors import InputError, LongRopeError, MissingRequirementError

# Ends the name of everything that is not finished; what a killed process leaves is known by it.
PARTIAL = ".partial"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` so that `path` either keeps its old content or has all of the new."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected the name of a file")
    with errors_of_writing(path):
        _make_parent(path)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o666 & ~_umask())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


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


@contextmanager
def staged(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` when the block ends well, and vanishes when it does not.

    The block may create a file or a folder under the yielded name.

    Raises:
        InputError: `path` exists and `overwrite` is off.
        MissingRequirementError: the disk is full or not writable.
    """
    refuse_existing(path, overwrite=overwrite)
    with errors_of_writing(path):
        _make_parent(path)
        room = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent))
        try:
            yield room / path.name
            made = sorted(room.iterdir())
            if not made:
                raise FileNotFoundError(errno.ENOENT, "nothing was written", str(path))
            for new in made:
                refuse_existing(path.parent / new.name, overwrite=overwrite)
            for new in made:
                _sync_tree(new)
            for new in made:
                _replace(new, path.parent / new.name)
            sync(path.parent)
        finally:
            shutil.rmtree(room, ignore_errors=True)


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
    """Raise InputError when `path` exists and may not be replaced."""
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise InputError(f"{path} exists; choose another output, or replace it", option="overwrite")


def remove_partial(folder: Path) -> None:
    """Remove what killed writers left under a folder that is ours."""
    for path in list(folder.rglob(f".*{PARTIAL}")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def is_disk_full(error: OSError) -> bool:
    """Whether the system refused to write more; numpy's `tofile`, which other libraries call, says so without a code."""
    said_by_numpy = error.errno is None and " requested and " in str(error)
    return said_by_numpy or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _sync_tree(path: Path) -> None:
    """`sync` a file, or a folder and all that is in it."""
    for inside in path.rglob("*"):
        sync(inside)
    sync(path)


def _replace(new: Path, path: Path) -> None:
    """Put `new` where `path` is; what is there is moved aside first where a folder is one of the two."""
    if path.exists() and (path.is_dir() or new.is_dir()):
        old = new.with_name(new.name + ".old")
        path.replace(old)
        try:
            new.replace(path)
        except OSError:
            old.replace(path)
            raise
    else:
        new.replace(path)


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{path}: {path.parent} is not a folder") from None


@contextmanager
def errors_of_writing(path: Path) -> Iterator[None]:
    """A full disk, or one that may not be written, as a MissingRequirementError that names `path`."""
    try:
        yield
    except LongRopeError:
        raise
    except (OSError, SafetensorError) as raised:
        error = raised if isinstance(raised, OSError) else _said_by_safetensors(raised)
        if is_disk_full(error):
            raise MissingRequirementError(
                f"{path}: no room left on the disk ({error.strerror or error}); nothing was written"
            ) from raised
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise MissingRequirementError(f"{path}: not writable ({error.strerror})") from raised
        raise


def _said_by_safetensors(error: Exception) -> OSError:
    """What the system said to safetensors, which passes it on as text: `… I/O error: File too large (os error 27)`."""
    found = re.search(r"I/O error: (.*) \(os error (\d+)\)", str(error))
    return OSError(int(found[2]), found[1]) if found else OSError(0, str(error))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
