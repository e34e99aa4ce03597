"""Recipes of `extend`: the options by name, in a file that people keep in git.

    RECIPE.yaml or run.json ──read_recipe──► values by key ──command line wins──► ExtendRequest ──recipe_of──► run.json

Paths in a recipe are relative to its folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from longrope.errors import InputError
from longrope.finetune.stages import StagePlan, stage_table
from longrope.options import Option, plain, read_table, schema_of
from longrope.reading import OBJECT, check, read_object, read_yaml, record
from longrope_export.run_files import RUN

SUFFIXES = (".yaml", ".yml")
SCHEMA = "https://json-schema.org/draft/2020-12/schema"
HOW_TO_RUN = (
    "# Save this as recipe.yaml, paths being relative to its folder, and run: longrope-export extend recipe.yaml"
)


def is_recipe(name: str) -> bool:
    """Whether the argument of `extend` is a recipe, or the run.json of a run, and no model."""
    return Path(name).suffix.lower() in SUFFIXES or Path(name).name == RUN


def with_recipe(given: Mapping[str, Any], options: Sequence[Option]) -> dict[str, Any]:
    """What a command line means: its own values, and those of the recipe that it names as the model."""
    name = given.get("model")
    if name is None or not is_recipe(name):
        return dict(given)
    return {**read_recipe(Path(name), options), **{key: value for key, value in given.items() if key != "model"}}


def read_recipe(path: Path, options: Sequence[Option]) -> dict[str, Any]:
    """Values by key.

    Raises:
        InputError: not readable, no model in it, a key that is unknown or there twice, or a value of another kind.
    """
    table = _read_run(path) if path.name == RUN else read_yaml(path)
    if not isinstance(table, Mapping):
        raise InputError(
            f"{path}: expected a table of options, such as `target-length: 32k`, got {type(table).__name__}"
        )
    once = {each.key for each in options if each.about.once}
    if wrong := [key for key in table if str(key).replace("_", "-") in once]:
        raise InputError(f"{path}: {wrong[0]}: expected on the command line, for it concerns one run, not what is run")
    values = read_table(_kept(options), table, str(path), path.parent)
    if "model" not in values:
        raise InputError(f"{path}: expected a model, such as `model: default`")
    return values


def recipe_of(values: Mapping[str, Any], options: Sequence[Option], without: Iterable[str] = ()) -> dict[str, Any]:
    """The recipe that repeats values: all that differ from the defaults, as a file holds them."""
    return {
        each.key: _plain(values[each.key])
        for each in _kept(options)
        if each.key in values and values[each.key] != each.default and each.key not in without
    }


def absolute(values: Mapping[str, Any], options: Sequence[Option]) -> dict[str, Any]:
    """The same values with paths that hold from any folder."""
    known = {each.key: each for each in options}
    return {key: known[key].read(value, Path.cwd()) for key, value in values.items()}


def to_yaml(recipe: Mapping[str, Any]) -> str:
    """A recipe as a file, with a line that says how to run it."""
    import yaml

    text: str = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True, width=120)
    return f"{HOW_TO_RUN}\n{text}"


def recipe_schema(options: Sequence[Option]) -> dict[str, Any]:
    """JSON Schema of recipes, for editors."""
    return {
        "$schema": SCHEMA,
        "title": "Recipe of longrope-export extend",
        **schema_of(_kept(options), required=("model",)),
    }


def _kept(options: Sequence[Option]) -> list[Option]:
    return [each for each in options if not each.about.once]


def _plain(value: Any) -> Any:
    return [stage_table(stage) for stage in value.stages] if isinstance(value, StagePlan) else plain(value)


def _read_run(path: Path) -> Any:
    return check(read_object(path, non_finite=True), record({"recipe": OBJECT}), str(path))["recipe"]
