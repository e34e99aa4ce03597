"""Files of somebody else, read once and checked where they are read: every fault is one line that names file and field.

file ──read_json, read_lines, read_toml, read_yaml, read_utf8──► value: UTF-8, one value a key, bounded in size and depth
value ──check_fields──► the types that its known fields are declared with (`Kind`)
library(file) ──said_by──► whatever a library raises while it reads, as the same kind of line
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import stat
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from longrope.errors import InputError, LongRopeError, is_out_of_memory

# A tokenizer.json of 256k tokens has 35 MB; nothing that is read here nests deeper than a dozen levels.
MAX_BYTES = 256 << 20
MAX_DEPTH = 64
# Of files that people write by hand, such as recipes; parsers of YAML take seconds for a megabyte.
MAX_WRITTEN = 1 << 20
# Values in such a file, those that a YAML alias repeats counted as often as they stand there.
_MAX_VALUES = 100_000
# Of a whole number: 10**30 stands for "no limit" in tokenizer_config.json, and a double holds no more than 309.
_MAX_DIGITS = 40
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


# -- JSON


def read_json(path: Path, name: str | None = None, *, non_finite: bool = False) -> Any:
    """The value in a JSON file.

    Args:
        path: the file.
        name: what messages call it; None for the path.
        non_finite: take NaN and Infinity, which are no JSON, as configurations of transformers and our own logs hold them.

    Raises:
        InputError: no such file, too large, not UTF-8 or not JSON, nested too deep, a key twice, half a surrogate pair, a
            number that a double does not hold.
    """
    name = name or str(path)
    return parsed_json(read_bytes(path, name), name, non_finite=non_finite)


def parsed_json(content: bytes | str, name: str, *, non_finite: bool = False) -> Any:
    """As `read_json`, of what has been read."""
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        data = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_whole,
            parse_float=_real,
            parse_constant=float if non_finite else _refuse_constant,
        )
        if _SURROGATE.search(text):
            json.dumps(data, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise InputError(f"{name} is nested too deep; expected at most {MAX_DEPTH} levels") from None
    except ValueError as error:  # of JSON, of UTF-8, and those below
        raise InputError(f"{name} is not valid JSON ({error})") from None
    _check_tree(data, name)
    return data


def read_object(path: Path, name: str | None = None, *, non_finite: bool = False) -> dict[str, Any]:
    """`read_json` of a file that must hold an object."""
    return as_object(read_json(path, name, non_finite=non_finite), name or str(path))


def as_object(data: Any, name: str) -> dict[str, Any]:
    """What was read as the object that it must be. Raises InputError."""
    if not isinstance(data, dict):
        raise InputError(f"{name}: expected an object, got {shown(data)}")
    return data


def read_lines(path: Path, *, non_finite: bool = False) -> Iterator[tuple[str, Any]]:
    """(name of the line, value) of every line of a JSONL file that is not empty. Raises as `read_json`."""
    # splitlines would cut at U+2028 inside a string
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", parsed_json(line, f"{path}, line {number}", non_finite=non_finite)


def _whole(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"expected whole numbers of at most {_MAX_DIGITS} digits, got one of {len(digits)}")
    return int(digits)


def _real(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"expected finite numbers, got {digits[:20]}")
    return value


def _refuse_constant(word: str) -> float:
    raise ValueError(f"expected finite numbers, got {word}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"key {shown(_twice(name for name, _ in pairs))} is there twice")
    return found


def _twice(names: Iterable[Any]) -> Any:
    """The first name that has been there before."""
    seen: set[Any] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def _check_tree(data: Any, name: str, most: int | None = None) -> None:
    """Refuse what nests deeper than `MAX_DEPTH`, or holds more than `most` values; level by level, without recursion."""
    level, counted = [data] if isinstance(data, dict | list) else [], 1
    for _ in range(MAX_DEPTH + 1):
        following: list[Any] = []
        for item in level:
            inner = item.values() if isinstance(item, dict) else item
            counted += len(inner)
            if most is not None and counted > most:
                raise InputError(f"{name}: expected at most {most} values, got more")
            following += [value for value in inner if isinstance(value, dict | list)]
        level = following
    if level:
        raise InputError(f"{name} is nested too deep; expected at most {MAX_DEPTH} levels")


# -- what people write


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises InputError: not readable, not TOML, too large or too deep, numbers not finite."""
    import tomllib  # which few commands need

    name = str(path)
    try:
        data = tomllib.loads(read_utf8(path, limit=MAX_WRITTEN), parse_float=_real)
    except RecursionError:
        raise InputError(f"{name} is nested too deep; expected at most {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise InputError(f"{name}: not a readable TOML file ({one_line(error)})") from None
    _check_tree(data, name, _MAX_VALUES)
    return data


def read_yaml(path: Path) -> Any:
    """The document of a YAML file. Raises as `parsed_yaml`."""
    return parsed_yaml(read_utf8(path, limit=MAX_WRITTEN), str(path))


def parsed_yaml(text: str, name: str) -> Any:
    """A YAML document of plain values, in which no key may be there twice.

    Raises:
        InputError: not YAML, too deep, or too many values, those that an alias repeats counted each time.
    """
    import yaml

    try:
        data = yaml.load(text, _yaml_loader())
    except RecursionError:
        raise InputError(f"{name} is nested too deep; expected at most {MAX_DEPTH} levels") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError) as error:
        raise InputError(f"{name}: not a readable YAML file ({one_line(error)})") from None
    _check_tree(data, name, _MAX_VALUES)
    return data


@cache
def _yaml_loader() -> type[Any]:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Refuses a second value for a key, which YAML forbids and PyYAML takes."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            twice = _twice(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            if twice is not None:
                raise yaml.constructor.ConstructorError(None, None, f"{twice} is there twice", node.start_mark)
            mapping: dict[Any, Any] = super().construct_mapping(node, deep)
            return mapping

    return Loader


def read_utf8(path: Path, limit: int = MAX_BYTES) -> str:
    """A text, without its byte order mark. Raises InputError: not readable, too large, or not UTF-8."""
    try:
        return read_bytes(path, str(path), limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def read_bytes(path: Path, name: str, limit: int = MAX_BYTES) -> bytes:
    """The bytes of a file. Raises InputError: not readable, too large, or a Git LFS pointer."""
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a name that no file can have
        raise InputError(f"{name!r}: cannot be read ({error})") from None
    if len(content) > limit:
        raise InputError(f"{name}: expected at most {limit >> 20} MB")
    refuse_pointer(content, name)
    return content


# -- a model's folder


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
    return read_utf8(own_file(folder, name))


def refuse_pointer(start: bytes, name: str) -> None:
    """Raise InputError for the first bytes of a file that Git LFS has not fetched."""
    if start.startswith(LFS_POINTER):
        raise InputError(
            f"{name} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull` in its folder"
        )


# -- messages


@contextmanager
def said_by(library: str, name: str, work: str = "read it") -> Iterator[None]:
    """A block in which a library reads somebody else's file: whatever it raises is one line that names the file.

    Args:
        library: who reads.
        name: of the file.
        work: what the library does not do, for the message.

    Raises:
        InputError: for every error of the block that is none of ours and no lack of memory.
    """
    try:
        yield
    except (LongRopeError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        if is_out_of_memory(error):
            raise
        raise InputError(f"{name}: {library} does not {work}: {one_line(error)}") from error


def one_line(error: object) -> str:
    """What an error says, on one line of printable characters."""
    return cut(visible(" ".join(str(error).split())) or type(error).__name__, 300)


def visible(text: str) -> str:
    """A text that a terminal may be given: control characters and escape sequences become question marks."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def shown(value: object, limit: int = 60) -> str:
    """A value of a foreign file for a message, on one line, not longer than `limit`."""
    if isinstance(value, str | list | tuple):
        value = value[: limit + 1]
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of more digits than Python converts
        text = "a whole number of thousands of digits"
    text = text.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair
    return cut(text, limit)


def cut(text: str, limit: int) -> str:
    """A text of at most `limit` characters, the last one an ellipsis where there were more."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


# -- fields and their types


Parts = Iterator[tuple[str, Any, "Kind"]]


@dataclass(frozen=True)
class Kind:
    """A type that a field is declared with.

    Args:
        words: what messages call it, after "expected".
        fits: whether a value is of it.
        parts: what a value of it holds that has a kind of its own: where it stands in it, and the value.
    """

    words: str
    fits: Callable[[Any], bool]
    parts: Callable[[Any], Parts] = lambda _: iter(())

    def or_null(self) -> Kind:
        """The same where null stands for "not said"; it is not offered as a way out."""
        return Kind(
            self.words,
            lambda value: value is None or self.fits(value),
            lambda value: iter(()) if value is None else self.parts(value),
        )


def list_of(kind: Kind, least: int = 0) -> Kind:
    """A list of values of one kind."""
    words = "a list" if not least else f"a list of {least} or more"
    return Kind(
        words,
        lambda value: isinstance(value, list | tuple) and len(value) >= least,
        lambda value: ((f"[{number}]", item, kind) for number, item in enumerate(value)),
    )


def table_of(kind: Kind) -> Kind:
    """An object whose values are of one kind, whatever they are called."""
    return Kind(
        "an object",
        lambda value: isinstance(value, dict),
        lambda value: ((f".{printable(name)}", item, kind) for name, item in value.items()),
    )


def record(required: Mapping[str, Kind], optional: Mapping[str, Kind] | None = None) -> Kind:
    """An object with fields of their own kinds; others may be there, too.

    Args:
        required: fields that must be there.
        optional: fields that may.
    """

    def parts(value: Mapping[str, Any]) -> Parts:
        for field, kind in required.items():
            yield f".{field}", value.get(field, MISSING), kind
        for field, kind in (optional or {}).items():
            if field in value:
                yield f".{field}", value[field], kind

    return Kind("an object", lambda value: isinstance(value, dict), parts)


# Stands for a field that is not there; fits no kind.
MISSING = object()


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
# Tables are made of these before weights are looked at; the largest models have 16,384 and 512.
WIDTH = Kind("a whole number from 1 to 1048576", lambda value: COUNT.fits(value) and value <= 1 << 20)
HEAD_WIDTH = Kind("a whole number from 1 to 65536", lambda value: COUNT.fits(value) and value <= 1 << 16)
COUNT_OR_ZERO = Kind("a whole number of 0 or more", _is_count)
COUNTS = Kind("a whole number of 0 or more", _are_counts)
WHOLE = Kind("a whole number", lambda value: _is_whole(value) and abs(value) < _LARGEST)
REAL = Kind("a number", lambda value: _is_number(value) or isinstance(value, float))
NUMBER = Kind("a finite number", _is_number)
POSITIVE = Kind("a finite number above 0", lambda value: _is_number(value) and value > 0)
BOOLEAN = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a string", lambda value: isinstance(value, str))
ANYTHING = Kind("a value", lambda value: value is not MISSING)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
LIST = Kind("a list", lambda value: isinstance(value, list))
TOKEN_IDS = Kind("a token id or a list of them", _are_ids)


@cache
def kind_of(hint: Any) -> Kind:
    """The kind of what a type hint says, for files that are dataclasses of ours written as they are.

    Args:
        hint: a dataclass, int, float, str, bool, Any, a Literal, or a tuple, list, mapping or union of such. Fields with a
            default may be missing, floats may be NaN or infinite.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint)
        fields = {field.name: (field, kind_of(hints[field.name])) for field in dataclasses.fields(hint)}
        required = {name: kind for name, (field, kind) in fields.items() if not _has_default(field)}
        return record(required, {name: kind for name, (_, kind) in fields.items() if name not in required})
    if origin is Literal:
        return Kind(f"one of {', '.join(map(str, arguments))}", lambda value: value in arguments)
    if origin in (Union, types.UnionType):
        kinds = [kind_of(argument) for argument in arguments if argument is not type(None)]
        return (
            kinds[0].or_null()
            if len(kinds) == 1
            else Kind(" or ".join(kind.words for kind in kinds), lambda value: any(kind.fits(value) for kind in kinds))
        )
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return table_of(kind_of(arguments[1]))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return list_of(kind_of(arguments[0]))
    return _PLAIN[hint]


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return not (field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING)


_PLAIN: Mapping[Any, Kind] = {
    int: WHOLE,
    float: REAL,
    str: TEXT,
    bool: BOOLEAN,
    Any: ANYTHING,
}


def check_fields(data: Mapping[str, Any], kinds: Mapping[str, Kind], name: str) -> None:
    """Hold the fields that are there against their types; a field that is missing is no fault.

    Args:
        data: an object of a JSON file.
        kinds: by field.
        name: of the file, for messages.

    Raises:
        InputError: names the file, the field, what was expected and what was found.
    """
    check(data, record({}, kinds), name)


def check(data: Any, kind: Kind, name: str) -> Any:
    """A value that has been held against its type, with all that it holds.

    Raises:
        InputError: names the file, the field, what was expected and what was found.
    """
    if (fault := next(_faults(data, kind, ""), None)) is not None:
        place, words, value = fault
        found = "found none" if value is MISSING else f"got {shown(value)}"
        raise InputError(f"{name}: {place.lstrip('.')}{': ' if place else ''}expected {words}, {found}")
    return data


def _faults(value: Any, kind: Kind, place: str) -> Iterator[tuple[str, str, Any]]:
    if not kind.fits(value):
        yield place, kind.words, value
        return
    for step, inner, its_kind in kind.parts(value):
        yield from _faults(inner, its_kind, place + step)


def printable(text: str) -> str:
    """A name out of a foreign file as it may stand in a message."""
    return text if text.isprintable() and len(text) <= 60 else shown(text)
