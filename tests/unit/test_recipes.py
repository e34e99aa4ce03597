"""Recipes: what they mean, what they refuse, and the schema that editors check them with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from longrope.errors import InputError
from longrope.finetune.stages import StagePlan
from longrope.options import build, declared
from longrope_export import recipes
from longrope_export.commands.extend import ExtendRequest, schema_text
from tests.common import REPOSITORY, pico_factors, run_cli

OPTIONS = declared(ExtendRequest)
SCHEMA = REPOSITORY / "docs" / "recipe.schema.json"
EXAMPLES = sorted((REPOSITORY / "docs" / "recipes").glob("*.yaml"))

FULL = """
model: default
target_length: 2k
output: run
text: books
test-text: [a.txt, b.txt]
formats: [hf, "gguf:f16"]
window-share: [[512, 10%]]
short-budget: 1%
learning: 3
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def read(folder: Path, text: str) -> dict[str, Any]:
    return recipes.read_recipe(written(folder, text), OPTIONS)


def printed(*arguments: object) -> dict[str, Any]:
    """What `--print-recipe` makes of a command line."""
    done = run_cli("extend", *arguments, "--print-recipe")
    assert done.code == 0, done.err
    assert done.out.startswith("# ")
    assert "longrope-export extend" in done.out.splitlines()[0]
    found: dict[str, Any] = yaml.safe_load(done.out)
    return found


# -- what a recipe means


def test_keys_are_the_options_and_values_are_read_as_on_the_command_line(tmp_path: Path) -> None:
    values = read(tmp_path, FULL.replace("learning: 3", "n-hat: search\nattention_factor: 1.2\ncrossing: false"))
    request = build(ExtendRequest, values)
    assert (request.model, request.target_length, request.crossing) == ("default", 2048, False)
    assert request.formats == ("hf", "gguf:f16")
    assert request.options.search.window_shares == ((512, 0.1),)
    assert request.options.search.short_budget == 0.01
    assert (request.options.search.n_hat, request.options.search.attention_factor) == ("search", 1.2)


def test_another_original_window_is_in_the_recipe() -> None:
    assert printed("default", "--target-length", "1k", "--original", 128)["original"] == 128


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    pico_factors().save(tmp_path / "f.json")
    values = read(tmp_path, "model: model\ntext: [books, /far/away]\nfrom: f.json\noutput: run\nstages: plan.toml\n")
    assert values["model"] == str(tmp_path / "model")
    assert values["text"] == (tmp_path / "books", Path("/far/away"))
    assert values["output"] == tmp_path / "run"
    assert values["stages"] == str(tmp_path / "plan.toml")
    assert (
        build(ExtendRequest, {"target-length": 512, **{k: v for k, v in values.items() if k != "stages"}}) is not None
    )


def test_a_policy_is_a_preset_or_a_file_beside_the_recipe(tmp_path: Path) -> None:
    for name in ("mine.yaml", "strict"):
        (tmp_path / name).write_text("extends: strict\n")
    policies = [
        read(tmp_path, f"model: default\npolicy: {name}")["policy"] for name in ("mine.yaml", "strict", "elsewhere")
    ]
    assert policies == [str(tmp_path / "mine.yaml"), "strict", "elsewhere"]


def test_a_recipe_that_is_kept_holds_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names stay names; a plan of tables has whole paths already."""
    (tmp_path / "mine.yaml").write_text("{}")
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    text = "model: model\ntext: books\npolicy: mine.yaml\nwindow-share: [[512, 10%]]\nmax-evals: 8\ncrossing: false\n"
    values = recipes.with_recipe({"model": str(written(Path(), text))}, OPTIONS)
    kept = recipes.recipe_of(recipes.absolute(values, OPTIONS), OPTIONS)
    assert kept == {
        "model": str(tmp_path / "model"),
        "text": [str(tmp_path / "books")],
        "policy": str(tmp_path / "mine.yaml"),
        "window-share": [[512, 0.1]],
        "max-evals": 8,
        "crossing": False,
    }
    names = {"model": "default", "stages": "default", "policy": "strict"}
    assert recipes.absolute(names, OPTIONS) == names
    plan = read(tmp_path, "model: default\nstages: [{length: 1k, steps: 4, texts: [books]}, {length: 2k}]")["stages"]
    assert recipes.absolute({"stages": plan}, OPTIONS) == {"stages": plan}


def test_stages_are_a_preset_a_file_or_tables(tmp_path: Path) -> None:
    assert read(tmp_path, "model: default\nstages: default")["stages"] == "default"
    tables = "stages:\n- {length: 1k, steps: 4, short-share: 25%, texts: [books], factors: f.json}\n- length: 2048"
    plan = read(tmp_path, f"model: default\n{tables}")["stages"]
    assert isinstance(plan, StagePlan)
    first, second = plan.stages
    assert (first.length, first.steps, first.short_share) == (1024, 4, 0.25)
    assert (first.texts, first.factors) == ((tmp_path / "books",), str(tmp_path / "f.json"))
    assert (second.length, second.steps) == (2048, 0)


def test_the_command_line_wins(tmp_path: Path) -> None:
    recipe = written(tmp_path, "model: default\ntarget-length: 2k\nseed: 3\nformats: hf\nlora: 4\nstages: default\n")
    found = printed(recipe, "--seed", 5, "-o", "here", "--formats", "gguf")
    assert (found["seed"], found["formats"], found["output"], found["lora"]) == (5, ["gguf"], "here", 4)


def test_what_is_printed_says_only_what_differs_and_means_the_same(tmp_path: Path) -> None:
    arguments = ("default", "--target-length", "2k", "--window-share", 512, "10%", "--strategy", "auto", "--seed", 0)
    more = ("--methods", "none,PI", "--no-crossing", "--dtype", "bfloat16", "--text", "a.txt", "--text", "b")
    found = printed(*arguments, *more)
    assert found == {
        "model": "default",
        "target-length": 2048,
        "window-share": [[512, 0.1]],
        "methods": ["none", "PI"],
        "dtype": "bfloat16",
        "text": ["a.txt", "b"],
        "crossing": False,
    }
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(found))
    assert printed(again) == {**found, "text": [str(tmp_path / "a.txt"), str(tmp_path / "b")]}


def test_printed_stages_are_tables_again(tmp_path: Path) -> None:
    text = "model: default\ntarget-length: 4k\nstages:\n- length: 1024\n  steps: 4\n  texts: [books]\n- length: 2048\n"
    found = printed(written(tmp_path, text))
    assert found["stages"] == [
        {"length": 1024, "steps": 4, "texts": [str(tmp_path / "books")]},
        {"length": 2048},
    ]
    assert printed(written(tmp_path, yaml.safe_dump(found))) == found


def test_a_recipe_prints_nothing_but_itself(tmp_path: Path) -> None:
    printed("default", "--target-length", "2k", "-o", tmp_path / "run")
    assert not list(tmp_path.iterdir())


# -- what is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: x\ntarget-lenght: 3", "recipe.yaml: unknown key target-lenght; did you mean target-length?"),
        ("model: x\nmodle: y", "recipe.yaml: unknown key modle; did you mean model?"),
        ("model: x\noverwrite: true", "recipe.yaml: overwrite: expected on the command line"),
        ("model: x\nseed: 1\nseed: 2", "seed is there twice"),
        ("model: x\ntarget-length: 1\ntarget_length: 2", "target-length: given twice"),
        ("model: x\nseed: many", "recipe.yaml: seed: expected a whole number from 0 to 4294967295, got 'many'"),
        ("model: x\nmax-evals: true", "recipe.yaml: max-evals: expected a whole number of 1 or more, got True"),
        ("model: x\nmax-evals: 1.5", "max-evals: expected a whole number of 1 or more, got 1.5"),
        ("model: x\nshort-budget: -3", "short-budget: expected a fraction of 0 or more, like 1% or 0.01, got -3"),
        ("model: x\ncrossing: 'no'", "crossing: expected true or false, got 'no'"),
        ("model: x\nstrategy: [a]", "strategy: expected text, got ['a']"),
        ("model: x\ntext: 3", "text: expected a path, got 3"),
        ("model: x\nobjective: noodle", "objective: expected perplexity, needle or mixed, got 'noodle'"),
        ("model: x\nwindow-share: [512, 10%]", "window-share: expected a number of tokens"),
        ("model: x\ntarget-length:", "target-length: expected a number of tokens above 0"),
        ("model: x\nstages: [{steps: 3}]", "recipe.yaml: stages, stage 1: expected a length in tokens"),
        ("model: x\nstages: [{length: 8, steeps: 3}]", "stage 1: unknown key steeps; did you mean steps?"),
        ("model: x\nstages: [3]", "stage 1: expected a table of settings, got 3"),
        ("model: x\nstages: 3", "stages: expected one of paper-llama2"),
        ("target-length: 3", "expected a model, such as `model: default`"),
        ("- model", "expected a table of options, such as `target-length: 32k`, got list"),
        ("", "expected a table of options"),
        ("a: [", "not a readable YAML file"),
        ("a: !!python/object/apply:os.getcwd []", "not a readable YAML file"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(tmp_path: Path, text: str, message: str) -> None:
    done = run_cli("extend", written(tmp_path, text), "-o", tmp_path / "run")
    assert (done.code, message in done.err, len(done.lines)) == (2, True, 1), done.err
    assert not (tmp_path / "run").exists()


def test_what_a_recipe_leaves_out_must_be_on_the_command_line(tmp_path: Path) -> None:
    done = run_cli("extend", written(tmp_path, "model: default"), "-o", tmp_path / "run")
    assert (done.code, "Missing option '--target-length'" in done.err) == (2, True)
    done = run_cli("extend", written(tmp_path, "model: default\ntarget-length: 2k"))
    assert (done.code, "Missing option '--output' / '-o'" in done.err) == (2, True), done.err
    assert run_cli("extend", tmp_path / "none.yaml").code == 2


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"recipe": 3}', '{"recipe": {}}'])
def test_a_run_json_without_a_recipe_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json(: recipe: expected|: expected| is not valid JSON)"):
        recipes.read_recipe(tmp_path / "run.json", OPTIONS)


# -- the schema


def test_the_published_schema_is_the_one_that_the_options_give() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(), "stale: run `make schema`"


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(schema_text()))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_recipes_hold_to_the_schema_and_can_be_read(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text()), json.loads(schema_text()))
    assert printed(path)["model"] == "default"


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 2


@pytest.mark.parametrize(
    "table",
    [
        {"model": "x", "target-lenght": 3},
        {"target-length": 3},
        {"model": "x", "seed": "many"},
        {"model": "x", "max-evals": 0},
        {"model": "x", "objective": "noodle"},
        {"model": "x", "stages": [{"steps": 3}]},
        {"model": "x", "crossing": "no"},
    ],
)
def test_the_schema_refuses_what_the_program_refuses(tmp_path: Path, table: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(table, json.loads(schema_text()))
    with pytest.raises(InputError):
        read(tmp_path, yaml.safe_dump(table))


@pytest.mark.parametrize(
    "table",
    [
        {"model": "x", "target-length": "32k", "windows": [8, "16k"], "formats": "hf,gguf"},
        {"model": "x", "n-hat": "search", "attention-factor": 1.2, "short-budget": "1%", "methods": ["none"]},
        {"model": "x", "stages": "default", "lora": 8, "checkpointing": True, "text": ["a", "b"], "from": "f"},
    ],
)
def test_the_schema_takes_what_the_program_takes(tmp_path: Path, table: dict[str, Any]) -> None:
    jsonschema.validate(table, json.loads(schema_text()))
    read(tmp_path, yaml.safe_dump(table))
