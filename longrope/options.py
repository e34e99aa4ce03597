"""Options as data: a dataclass field says how its value is read, what it means and where help shows it.

    type hint ──────kind_of──► Kind ─┐
                                     ├─ declared(cls) ──► Option … ──► command-line options, recipe keys, JSON Schema
    field = option(default, help=…) ─┘                    └─ read_table, check_declared

A dataclass that holds another one with `nested` has its options, too; two that share a name share one option.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from functools import cache, partial
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from longrope.errors import InputError, choices
from longrope.reading import printable, shown

Section = Literal["Input", "Search", "Factors", "Training", "Output", "Machine", "Expert"]
# What a file or a command line gives, and the folder that its paths are relative to.
Parse = Callable[[object, Path], Any]
Built = TypeVar("Built")


@dataclass(frozen=True, eq=False)
class Kind:
    """How a value is read from text or from a file.

    Args:
        name: stands for the value in help: `N`.
        expected: what a message says was expected.
        parse: gives the value, of what it gave itself, too. Raises ValueError for anything else.
        schema: JSON Schema of what a file may hold.
        load: makes what the dataclass holds of the value, such as the factors of a path; None for the value itself.
        parts: words of the command line that make one value.
    """

    name: str
    expected: str
    parse: Parse
    schema: Mapping[str, Any]
    load: Callable[[Any], Any] | None = None
    parts: int = 1


@dataclass(frozen=True)
class About:
    """What is said of an option beside its kind and default.

    Args:
        help: a whole sentence.
        section: of the help.
        name: on the command line; None for the field's own with dashes.
        short: a one-letter flag.
        metavar: stands for the value in help; None for the kind's.
        unset: in words, what None means.
        minimum, maximum, above: bounds of a number.
        argument: positional; several for a tuple.
        alone: the value when the option is given without one.
        once: concerns one call, and is no part of a recipe.
    """

    help: str
    section: Section = "Expert"
    name: str | None = None
    short: str | None = None
    metavar: str | None = None
    unset: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    argument: bool = False
    alone: str | None = None
    once: bool = False


@dataclass(frozen=True)
class _Nested:
    """What `nested` was given."""

    only: frozenset[str] | None
    rename: Mapping[str, str]
    expert: frozenset[str]


@dataclass(frozen=True)
class Option:
    """One option of a dataclass, its nested ones included.

    Args:
        key: its name on the command line without dashes, and in a recipe.
        paths: where the value goes: field names from the outermost dataclass on.
        kind: of the value, of one of them if `many`.
        many: a tuple of values, given one by one.
        default: MISSING for a required one.
        about: what else `option` was given.
    """

    key: str
    paths: tuple[tuple[str, ...], ...]
    kind: Kind
    many: bool
    default: Any
    about: About

    @property
    def name(self) -> str:
        """A Python name for it."""
        return self.key.replace("-", "_")

    @property
    def is_switch(self) -> bool:
        return self.kind is SWITCH

    def read(self, value: object, folder: Path = Path()) -> Any:
        """The value out of a file or of Python. Raises ValueError with what was expected."""
        if value is None and self.default is None:
            return None
        if not self.many:
            return self.kind.parse(value, folder)
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(self.kind.parse(item, folder) for item in items)

    def load(self, value: Any) -> Any:
        """What the dataclass holds for a value."""
        if self.kind.load is None or value is None:
            return value
        return tuple(map(self.kind.load, value)) if self.many else self.kind.load(value)


# -- declaring


def option(default: Any = MISSING, *, help: str, section: Section = "Expert", **about: Any) -> Any:
    """A field that is an option; without a default it is required. `about`: further fields of `About`."""
    return _field(default, option=About(help, section, **about))


def _field(default: Any, **metadata: Any) -> Any:
    return field(**({} if default is MISSING else {"default": default}), metadata=metadata)


def nested(
    default: Any = MISSING,
    *,
    only: Iterable[str] | None = None,
    rename: Mapping[str, str] | None = None,
    expert: Iterable[str] = (),
) -> Any:
    """A field that is a dataclass whose options belong to the outer one.

    Args:
        default: gives the defaults; none where the dataclass has a required option.
        only: its fields that are options here; None for all.
        rename: other names on the command line, by field.
        expert: fields to show in the help's last section.
    """
    return _field(default, nested=_Nested(None if only is None else frozenset(only), rename or {}, frozenset(expert)))


def declared(cls: Any) -> tuple[Option, ...]:
    """The options of a dataclass in their order, each key once."""
    return _declared(cls)


@cache
def _declared(cls: Hashable) -> tuple[Option, ...]:
    found: dict[str, Option] = {}
    for new in _walk(cls, MISSING, ()):
        old = found.get(new.key)
        found[new.key] = new if old is None else dataclasses.replace(old, paths=(*old.paths, *new.paths))
    return tuple(found.values())


def _walk(cls: Any, default: Any, path: tuple[str, ...]) -> Iterator[Option]:
    hints = get_type_hints(cls, include_extras=True)
    for item in dataclasses.fields(cls):
        here = (*path, item.name)
        value = item.default if default is MISSING else getattr(default, item.name)
        if about := item.metadata.get("option"):
            kind, many = kind_of(hints[item.name], about)
            key = about.name or item.name.replace("_", "-")
            yield Option(key, (here,), kind, many, value, about)
        elif inner := item.metadata.get("nested"):
            for each in _walk(hints[item.name], value, here):
                name = each.paths[0][-1]
                if inner.only is None or name in inner.only:
                    about = dataclasses.replace(each.about, section="Expert") if name in inner.expert else each.about
                    yield dataclasses.replace(each, key=inner.rename.get(name, each.key), about=about)


# -- using


def build(cls: type[Built], values: Mapping[str, Any]) -> Built:
    """The dataclass, with its nested ones, of values by key; what is missing keeps its default.

    Raises:
        InputError: a file cannot be loaded, or the dataclass refuses a value.
    """
    tree: dict[str, Any] = {}
    for each in declared(cls):
        if each.key in values:
            for path in each.paths:
                node = tree
                for name in path[:-1]:
                    node = node.setdefault(name, {})
                node[path[-1]] = each.load(values[each.key])
    return _built(cls, MISSING, tree)


def _built(cls: type[Built], default: Any, tree: Mapping[str, Any]) -> Built:
    hints = get_type_hints(cls)
    defaults = {item.name: item.default for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {
        name: _built(hints[name], defaults[name], value) if dataclasses.is_dataclass(hints[name]) else value
        for name, value in tree.items()
    }
    return cls(**values) if default is MISSING else dataclasses.replace(default, **values)


def check_declared(instance: Any) -> None:
    """Raise InputError where a field holds what its option could not be."""
    for each in declared(type(instance)):
        name = each.paths[0][0]
        value = getattr(instance, name)
        if len(each.paths[0]) == 1 and value is not None and each.kind.load is None:
            try:
                each.read(value)
            except ValueError:
                raise InputError(f"{name}: expected {each.kind.expected}, got {value!r}") from None


def read_table(options: Sequence[Option], table: Mapping[Any, Any], where: str, folder: Path) -> dict[str, Any]:
    """Values by key out of a table of a file; keys may be spelled with underscores.

    Raises:
        InputError: an unknown key, with the nearest known one, or a value of another kind.
    """
    known = {each.key: each for each in options}
    values: dict[str, Any] = {}
    for written, value in table.items():
        key = str(written).replace("_", "-")
        if key not in known:
            raise InputError(f"{where}: unknown key {printable(str(written))}; {choices(key, known)}")
        if key in values:
            raise InputError(f"{where}: {key}: given twice")
        try:
            values[key] = known[key].read(value, folder)
        except ValueError:
            raise InputError(f"{where}: {written}: expected {known[key].kind.expected}, got {shown(value)}") from None
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    return values


def plain(value: Any) -> Any:
    """A value as a file holds it: numbers, text, lists and tables."""
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def schema_of(options: Sequence[Option], *, required: Sequence[str] = (), underscores: bool = False) -> dict[str, Any]:
    """JSON Schema of a table of these options."""
    properties = {each.name if underscores else each.key: _schema(each) for each in options}
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _schema(each: Option) -> dict[str, Any]:
    item = dict(each.kind.schema)
    if each.many:
        item = {"anyOf": [item, {"type": "array", "items": item}]}
    default = {} if each.default in (MISSING, None, ()) else {"default": plain(each.default)}
    return {"description": each.about.help, **item, **default}


# -- kinds of values


def tokens(value: object) -> int:
    """A length in tokens; `128k` is 131072. Raises ValueError."""
    text = str(value).strip().lower()
    number, unit = (text[:-1], 1024) if text.endswith("k") else (text, 1)
    if isinstance(value, bool) or not number.isdecimal() or int(number) == 0:
        raise ValueError(value)
    return int(number) * unit


def _fraction(value: object, _: Path = Path()) -> float:
    """0.01 or 1%; 0 or more."""
    text = str(value).strip()
    fraction = _real(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if isinstance(value, bool) or not 0 <= fraction < math.inf:
        raise ValueError(value)
    return fraction


def _share(value: object, _: Path) -> float:
    if (share := _fraction(value)) > 1:
        raise ValueError(value)
    return share


def _list(item: Callable[[Any], Any], value: object, _: Path) -> tuple[Any, ...]:
    """A list, or text with commas."""
    items = list(value) if isinstance(value, list | tuple) else str(value).split(",")
    return tuple(item(part) for part in items)


def _distinct(item: Callable[[Any], Any], value: object, folder: Path) -> tuple[Any, ...]:
    """The same; each value counts once."""
    return tuple(dict.fromkeys(_list(item, value, folder)))


def _depth(value: object) -> float:
    depth = _real(value)
    if not 0 <= depth <= 1:
        raise ValueError(value)
    return depth


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral | str):
        raise ValueError(value)
    return int(value)


def _count(value: object) -> int:
    return int(_bounded(_whole(value), 0))


def _real(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real | str):
        raise ValueError(value)
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(value) from None
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def _text(value: object, _: Path = Path()) -> str:
    """Words; a number in a file is taken as it is written."""
    if isinstance(value, bool) or not isinstance(value, str | Real):
        raise ValueError(value)
    return str(value).strip()


def _path(value: object, folder: Path) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError(value)
    return folder / Path(value).expanduser()


def model_name(value: object, folder: Path) -> str:
    """A path, which is taken from the folder of the file that names it, or a Hub id or built-in name as it stands."""
    name = _text(value)
    try:
        return str(folder / name) if (folder / name).exists() else name
    except OSError:  # no file can be called so
        return name


def _seconds(value: object, _: Path = Path()) -> float:
    """A time: a number of seconds, or one with its unit, like 90s, 10m or 1.5h."""
    word = _text(value)
    unit = _UNITS.get(word[-1:])
    seconds = float(word[:-1]) * unit if unit else float(word)
    if not 0 < seconds < math.inf:
        raise ValueError(value)
    return seconds


def _switch(value: object, _: Path) -> bool:
    if not isinstance(value, bool):
        raise ValueError(value)
    return value


def _word(value: object) -> str:
    word = _text(value)
    if not word:
        raise ValueError(value)
    return word


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_LIST = {"type": "array"}
_LENGTH: dict[str, Any] = {
    "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": "^[0-9]+[kK]?$"}],
}
_SHARE: dict[str, Any] = {
    "anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "string", "pattern": "^[0-9.]+%?$"}],
}
_TEXT: dict[str, Any] = {"type": "string"}


def _or_commas(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [{**_LIST, "items": dict(item)}, _TEXT, item]}


TEXT = Kind("TEXT", "text", _text, _TEXT)
SWITCH = Kind("", "true or false", _switch, {"type": "boolean"})
PATH = Kind("PATH", "a path", _path, _TEXT)
TOKENS = Kind("N", "a number of tokens above 0, like 8192 or 8k", lambda value, _: tokens(value), _LENGTH)
SHARE = Kind("SHARE", "a share like 1% or 0.01", _share, _SHARE)

SECONDS = Kind(
    "TIME",
    "a time like 90s, 10m or 1.5h",
    _seconds,
    {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": "^[0-9.]+[smh]?$"}]},
)

Tokens = Annotated[int, TOKENS]
Seconds = Annotated[float, SECONDS]
Share = Annotated[float, SHARE]
Fraction = Annotated[
    float, Kind("SHARE", "a fraction of 0 or more, like 1% or 0.01", _fraction, {"type": ["number", "string"]})
]
Lengths = Annotated[
    tuple[int, ...],
    Kind(
        "N,N,…", "a number of tokens above 0, like 8192 or 8k, or several", partial(_list, tokens), _or_commas(_LENGTH)
    ),
]
Depths = Annotated[
    tuple[float, ...],
    Kind("D,D,…", "numbers from 0 to 1 like 0,0.5,1", partial(_distinct, _depth), _or_commas({"type": "number"})),
]
Counts = Annotated[
    tuple[int, ...],
    Kind(
        "N,N,…",
        "whole numbers like 0,1,4",
        partial(_list, _count),
        _or_commas({"type": "integer"}),
    ),
]
Words = Annotated[tuple[str, ...], Kind("NAME,NAME,…", "names, by comma", partial(_list, _word), _or_commas(_TEXT))]
ModelName = Annotated[str, Kind("MODEL", "a path or a Hub id", model_name, _TEXT)]


def kind_of(hint: Any, about: About) -> tuple[Kind, bool]:
    """The kind of a field, and whether it holds many values."""
    arguments, origin = get_args(hint), get_origin(hint)
    if origin is Annotated:
        return next(each for each in arguments if isinstance(each, Kind)), False
    if origin in (Union, types.UnionType):
        members = [member for member in arguments if member is not type(None)]
        if len(members) == 1:
            return kind_of(members[0], about)
        return _number_or_word(members, about), False
    if origin is tuple and arguments[-1] is Ellipsis:
        return kind_of(arguments[0], about)[0], True
    if origin is tuple:
        return _together([kind_of(argument, about)[0] for argument in arguments]), False
    if origin is Literal:
        return _choice(arguments), False
    if hint is bool:
        return SWITCH, False
    if hint in (int, float):
        return _number(hint, about), False
    return {Path: PATH, str: TEXT}[hint], False


def _bounded(
    number: Any, minimum: float | None = None, maximum: float | None = None, above: float | None = None
) -> Any:
    too_low = (minimum is not None and number < minimum) or (above is not None and number <= above)
    if too_low or (maximum is not None and number > maximum) or number != number:
        raise ValueError(number)
    return number


def _number(hint: type, about: About) -> Kind:
    bounds = {"minimum": about.minimum, "maximum": about.maximum, "above": about.above}
    read = _whole if hint is int else _real
    words = "a whole number" if hint is int else "a number"
    if bounds["minimum"] is not None and bounds["maximum"] is not None:
        words += f" from {bounds['minimum']} to {bounds['maximum']}"
    elif bounds["minimum"] is not None:
        words += f" of {bounds['minimum']} or more"
    elif bounds["above"] is not None:
        words += f" above {bounds['above']}"
    names = {"minimum": "minimum", "maximum": "maximum", "above": "exclusiveMinimum"}
    limits = {names[name]: bound for name, bound in bounds.items() if bound is not None}
    schema = {"type": "integer" if hint is int else "number", **limits}
    return Kind("N" if hint is int else "X", words, lambda value, _: _bounded(read(value), **bounds), schema)


def _choice(words: Sequence[str]) -> Kind:
    def parse(value: object, _: Path) -> str:
        if value not in words:
            raise ValueError(value)
        return str(value)

    return Kind("|".join(words), _either(words), parse, {"enum": list(words)})


def _number_or_word(members: Sequence[Any], about: About) -> Kind:
    """`int | Literal["search"]`."""
    number = next(_number(member, about) for member in members if member in (int, float))
    word = next(_choice(get_args(member)) for member in members if get_origin(member) is Literal)

    def parse(value: object, folder: Path) -> Any:
        try:
            return word.parse(value, folder)
        except ValueError:
            return number.parse(value, folder)

    schema = {"anyOf": [number.schema, word.schema]}
    return Kind(
        f"{word.name}|{number.name}", f"{word.expected.replace(' or ', ', ')} or {number.expected}", parse, schema
    )


def _together(kinds: Sequence[Kind]) -> Kind:
    """`tuple[Tokens, Share]`: so many words in a row, a list in a file."""

    def parse(value: object, folder: Path) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or len(value) != len(kinds):
            raise ValueError(value)
        return tuple(kind.parse(part, folder) for kind, part in zip(kinds, value, strict=True))

    schema = {**_LIST, "prefixItems": [kind.schema for kind in kinds], "minItems": len(kinds), "maxItems": len(kinds)}
    names = " ".join(kind.name for kind in kinds)
    return Kind(names, " and ".join(kind.expected for kind in kinds), parse, schema, parts=len(kinds))


def _either(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
