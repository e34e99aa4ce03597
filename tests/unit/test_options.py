"""Options as data: how values are read, and how a dataclass is built of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from longrope.errors import InputError
from longrope.options import (
    Counts,
    Depths,
    Fraction,
    Lengths,
    ModelName,
    Share,
    Tokens,
    Words,
    build,
    check_declared,
    declared,
    model_name,
    nested,
    option,
    read_table,
    schema_of,
)


@dataclass(frozen=True)
class Engine:
    seed: int = option(0, minimum=0, maximum=9, help="Seed of it.")
    rate: float = option(0.5, above=0, help="Rate of it.")
    hidden: int = 7

    def __post_init__(self) -> None:
        check_declared(self)


@dataclass(frozen=True, kw_only=True)
class Asked:
    model: ModelName = option(argument=True, help="Model of it.")
    length: Tokens | None = option(None, help="Length of it.")
    lengths: Lengths = option((), help="Lengths of it.")
    share: Share = option(0.0, help="Share of it.")
    rise: Fraction = option(0.0, help="Rise of it.")
    depths: Depths = option((), help="Depths of it.")
    counts: Counts = option((), help="Counts of it.")
    words: Words = option((), help="Words of it.")
    pairs: tuple[tuple[Tokens, Share], ...] = option((), name="pair", help="Pairs of it.")
    start: int | Literal["search"] = option(0, minimum=0, help="Start of it.")
    choice: Literal["a", "b"] = option("a", help="Choice of it.")
    flag: bool = option(False, help="Flag of it.")
    files: tuple[Path, ...] = option((), help="Files of it.")
    first: Engine = nested(Engine(seed=3))
    second: Engine = nested(Engine(), rename={"rate": "second-rate"})


GIVEN: list[tuple[str, Any, Any]] = [
    ("length", "8k", 8192),
    ("length", 8192, 8192),
    ("lengths", "8,1k,8", (8, 1024, 8)),
    ("lengths", [8, "1k"], (8, 1024)),
    ("share", "1%", 0.01),
    ("share", 0.5, 0.5),
    ("share", 1, 1.0),
    ("depths", "0,0.5,1,0.5", (0.0, 0.5, 1.0)),
    ("counts", "0,4", (0, 4)),
    ("words", "none, YaRN 32/1", ("none", "YaRN 32/1")),
    ("rise", "250%", 2.5),
    ("pair", [["8k", "10%"]], ((8192, 0.1),)),
    ("start", "search", "search"),
    ("start", "17", 17),
    ("start", 17, 17),
    ("choice", "b", "b"),
    ("flag", True, True),
    ("files", ["a", "b"], (Path("here/a"), Path("here/b"))),
    ("files", "a", (Path("here/a"),)),
    ("rate", "2e-5", 2e-5),
]


@pytest.mark.parametrize(("key", "value", "expected"), GIVEN)
def test_values_are_read(key: str, value: Any, expected: Any) -> None:
    (found,) = read_table(declared(Asked), {key: value}, "file", Path("here")).values()
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(("key", "value", "expected"), GIVEN)
def test_what_was_read_is_read_again_as_it_is(key: str, value: Any, expected: Any) -> None:
    (option,) = (each for each in declared(Asked) if each.key == key)
    assert option.read(option.read(value)) == option.read(value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("length", "0"),
        ("length", -8),
        ("length", "8kk"),
        ("length", True),
        ("length", 8.5),
        ("lengths", "8,"),
        ("share", "101%"),
        ("share", -0.1),
        ("share", True),
        ("share", "nan"),
        ("rise", -1),
        ("rise", "inf"),
        ("depths", "0,2"),
        ("counts", "-1"),
        ("counts", "a"),
        ("words", "a,,b"),
        ("pair", [["8k"]]),
        ("pair", ["8k", "10%"]),
        ("start", -1),
        ("start", "seek"),
        ("choice", "c"),
        ("choice", ["a"]),
        ("flag", "yes"),
        ("flag", 1),
        ("files", ""),
        ("files", 3),
        ("seed", 10),
        ("seed", 1.0),
        ("rate", 0),
        ("rate", "nan"),
        ("rate", True),
    ],
)
def test_other_values_are_refused_with_what_was_expected(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"file: {key}: expected .* got"):
        read_table(declared(Asked), {key: value}, "file", Path())


def test_nested_options_that_share_a_name_are_one_and_others_are_renamed() -> None:
    keys = [each.key for each in declared(Asked)]
    assert keys.count("seed") == 1
    assert {"rate", "second-rate"} <= set(keys)
    assert "hidden" not in keys
    made = build(Asked, {"model": "x", "seed": 5, "rate": 0.1})
    assert (made.first, made.second) == (Engine(5, 0.1), Engine(5, 0.5))


def test_a_nested_ones_defaults_are_the_outers() -> None:
    made = build(Asked, {"model": "x", "rate": 0.1})
    assert made.first == Engine(3, 0.1)
    assert next(each.default for each in declared(Asked) if each.key == "seed") == 3


def test_only_some_fields_of_a_nested_one_are_options() -> None:
    @dataclass(frozen=True)
    class Narrow:
        engine: Engine = nested(Engine(), only=("rate",), expert=("rate",))

    Narrow.__annotations__["engine"] = Engine  # a local class's text annotations cannot be looked up
    assert [(each.key, each.about.section) for each in declared(Narrow)] == [("rate", "Expert")]


def test_a_dataclass_refuses_what_its_options_could_not_be() -> None:
    with pytest.raises(InputError, match="seed: expected a whole number from 0 to 9, got 10"):
        Engine(seed=10)
    with pytest.raises(InputError, match="rate: expected a number above 0, got 0"):
        Engine(rate=0)


def test_a_schema_describes_every_option() -> None:
    schema = schema_of(declared(Asked), required=("model",))
    assert set(schema["properties"]) == {each.key for each in declared(Asked)}
    assert schema["required"] == ["model"]
    assert schema["properties"]["seed"] == {
        "description": "Seed of it.",
        "type": "integer",
        "minimum": 0,
        "maximum": 9,
        "default": 3,
    }


def test_a_model_whose_name_no_file_can_have_is_left_to_whoever_opens_it(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert model_name("here", tmp_path) == str(tmp_path / "here")
    assert model_name("é" * 200, tmp_path) == "é" * 200
