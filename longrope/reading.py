"""JSON of somebody else, read once and checked where it is read: every fault is one line that names file and field.

file ──read_json──► value: UTF-8, one value a key, bounded in size and depth
object ──check_fields──► the types that its known fields are declared with
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrope.errors import InputError

# A tokenizer.json of 256k tokens has 35 MB; nothing that is read here nests deeper than a dozen levels.
MAX_BYTES = 256 << 20
MAX_DEPTH = 64
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path, name: str | None = None) -> Any:
    """The value in a JSON file; NaN and Infinity are read as Python's json module does.

    Args:
        path: the file.
        name: what messages call it; None for the path.

    Raises:
        InputError: no such file, too large, not UTF-8 or not JSON, nested too deep, a key twice, half a surrogate pair.
    """
    name = name or str(path)
    return parsed_json(_read(path, name), name)


def parsed_json(content: bytes, name: str) -> Any:
    """As `read_json`, of bytes that have been read."""
    try:
        text = content.decode("utf-8")
        data = json.loads(text, object_pairs_hook=_unique)
        if _SURROGATE.search(text):
            json.dumps(data, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise InputError(f"{name} is nested too deep; expected at most {MAX_DEPTH} levels") from None
    except ValueError as error:  # of JSON, of UTF-8, and of whole numbers that Python does not convert
        raise InputError(f"{name} is not valid JSON ({error})") from None
    if _depth_exceeds(data, MAX_DEPTH):
        raise InputError(f"{name} is nested too deep; expected at most {MAX_DEPTH} levels")
    return data


def read_object(path: Path, name: str | None = None) -> dict[str, Any]:
    """`read_json` of a file that must hold an object."""
    data = read_json(path, name)
    if not isinstance(data, dict):
        raise InputError(f"{name or path}: expected an object, got {type(data).__name__}")
    return data


def own_file(folder: Path, name: str) -> Path:
    """A file of a model's folder, which may be a link within that folder or its repository in the Hub's cache only.

    What is read or copied from a stranger's folder must be the stranger's: a link could point at anything of the user's.

    Raises:
        InputError: a link that leads elsewhere, or a hard link to a private file.
    """
    home = folder.resolve()
    root = home.parents[1] if home.parent.name == "snapshots" and len(home.parents) > 1 else home
    if not (folder / name).resolve().is_relative_to(root):
        raise InputError(
            f"{folder / name} is a link to a file outside of the model's folder; refused. Copy the file itself there if "
            "it is meant"
        )
    _refuse_private(folder / name)
    return folder / name


def _refuse_private(file: Path) -> None:
    """Raise InputError for a second name of a file that only its owner may read, as keys and passwords are kept."""
    try:
        facts = file.stat()
    except OSError:  # missing, which the reader says
        return
    if stat.S_ISREG(facts.st_mode) and facts.st_nlink > 1 and not facts.st_mode & 0o077 and os.name != "nt":
        raise InputError(
            f"{file} is a hard link to a file that only its owner may read; refused. Copy the file itself there if it is "
            "meant"
        )


def read_text(folder: Path, name: str) -> str:
    """A text of a model's folder, such as a chat template. Raises InputError for one that is not UTF-8, or not its own."""
    file = own_file(folder, name)
    try:
        return _read(file, str(file)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: cannot be read as UTF-8 text ({error})") from None


def _read(path: Path, name: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from None
    if len(content) > MAX_BYTES:
        raise InputError(f"{name}: expected at most {MAX_BYTES >> 20} MB of JSON")
    refuse_pointer(content, name)
    return content


def refuse_pointer(start: bytes, name: str) -> None:
    """Raise InputError for the first bytes of a file that Git LFS has not fetched."""
    if start.startswith(LFS_POINTER):
        raise InputError(
            f"{name} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull` in its folder"
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {shown(twice)} is there twice")
    return found


def _depth_exceeds(data: Any, limit: int) -> bool:
    """Whether objects and lists lie deeper than `limit` in one another; level by level, so without recursion."""
    level = [data]
    for _ in range(limit):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def visible(text: str) -> str:
    """A text that a terminal may be given: control characters and escape sequences become question marks."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def shown(value: object, limit: int = 60) -> str:
    """A value of a foreign file for a message, on one line, not longer than `limit`."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python converts
        text = "a whole number of thousands of digits"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


# -- fields and their types


@dataclass(frozen=True)
class Kind:
    """A type that a field is declared with.

    Args:
        words: what messages call it, after "expected".
        fits: whether a value is of it.
    """

    words: str
    fits: Callable[[Any], bool]

    def or_null(self) -> Kind:
        """The same where null stands for "not said"; it is not offered as a way out."""
        return Kind(self.words, lambda value: value is None or self.fits(value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _are_ids(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, list) and all(map(_is_whole, value)))


def _are_counts(value: Any) -> bool:
    return all(map(_is_count, value)) if isinstance(value, list) else _is_count(value)


def _is_count(value: Any) -> bool:
    return _is_whole(value) and 0 <= value < _LARGEST


_LARGEST = 1 << 48  # above every size there is, and small enough to be multiplied by another without harm

COUNT = Kind("a whole number above 0", lambda value: _is_count(value) and value > 0)
COUNTS = Kind("a whole number of 0 or more", _are_counts)
NUMBER = Kind("a finite number", _is_number)
POSITIVE = Kind("a finite number above 0", lambda value: _is_number(value) and value > 0)
BOOLEAN = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a string", lambda value: isinstance(value, str))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
LIST = Kind("a list", lambda value: isinstance(value, list))
TOKEN_IDS = Kind("a token id or a list of them", _are_ids)


def check_fields(data: Mapping[str, Any], kinds: Mapping[str, Kind], name: str) -> None:
    """Hold the fields that are there against their types; a field that is missing is no fault.

    Args:
        data: an object of a JSON file.
        kinds: by field.
        name: of the file, for messages.

    Raises:
        InputError: names the file, the field, what was expected and what was found.
    """
    for field, kind in kinds.items():
        if field in data and not kind.fits(data[field]):
            raise InputError(f"{name}: {field}: expected {kind.words}, got {shown(data[field])}")
