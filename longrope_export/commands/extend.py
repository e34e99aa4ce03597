"""`longrope-export extend MODEL …` and `longrope-export extend RECIPE.yaml …`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from longrope.extend_options import ExtendOptions
from longrope.files import json_text
from longrope.options import Lengths, ModelName, Tokens, Words, declared, nested, option
from longrope.search.processes import import_ahead
from longrope_export import options as shared
from longrope_export import recipes

if TYPE_CHECKING:
    from longrope_export.pipeline import Outcome

NOWHERE = Path()


@dataclass(frozen=True, kw_only=True)
class ExtendRequest:
    """The options of `extend`.

    Args:
        recipe: what repeats the run, by key; kept in run.json.
    """

    model: ModelName = option(argument=True, help="Model to extend: a folder, a Hub id, a GGUF file, or default.")
    options: ExtendOptions = nested()
    texts: tuple[Path, ...] = shared.texts(required=False)
    test_texts: tuple[Path, ...] = shared.test_texts()
    original: Tokens | None = shared.original()
    factor_sets: shared.FactorSetsWish = shared.factor_sets()
    output: Path = shared.output("Folder of the run, which gets every file that it writes.")
    formats: Words = option(
        ("hf", "gguf", "onnx"), section="Output", help="Formats to export, each with a weight type if wanted: gguf:f16."
    )
    windows: Lengths = shared.windows("Lengths to validate at, in tokens.")
    plan: bool = shared.plan("Print the tokens, memory and time that the run takes, and stop.")
    print_recipe: bool = option(
        False, section="Output", once=True, help="Print the command line as a recipe in YAML, and stop."
    )
    resume: bool = shared.resume("Go on with the run in the output folder.")
    overwrite: bool = shared.overwrite()
    windows_per_length: int = shared.windows_per_length()
    crossing: bool = shared.crossing()
    policy: shared.PolicyName = shared.policy()
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def target_length(self) -> int:
        return self.options.target_length

    @property
    def sets(self) -> shared.FactorSetsWish:
        """`factor_sets`; of mixed training, which trains both sets, `auto` exports both, and a family is one set."""
        if self.factor_sets == "auto" and self.options.search.family != "free":
            return "single"
        return "dual" if self.factor_sets == "auto" and self.options.mixed else self.factor_sets


def _values(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was given, with the recipe's values; a recipe is printed without an output, too."""
    values = recipes.with_recipe(given, declared(ExtendRequest))
    return {"output": NOWHERE, **values} if values.get("print-recipe") else values


@shared.command(ExtendRequest, more=_values)
def command(request: ExtendRequest) -> int:
    """Extend MODEL (a folder, a Hub id, a .gguf file, or `default`), export every format, prove each against the original.

    MODEL may be a recipe, RECIPE.yaml or the run.json of a run, whose keys are the options' names; options on the command
    line win. The run's folder gets factors.json, the artifacts, validation.json and report.html. Interrupted, it goes on
    with --resume. Exit code 1 when a check fails. With torchrun, all processes share the training of --stages.
    """
    values = click.get_current_context().obj
    if request.print_recipe:
        without = ("output",) if request.output == NOWHERE else ()
        click.echo(recipes.to_yaml(recipes.recipe_of(values, declared(ExtendRequest), without)), nl=False)
        return 0
    if not request.plan and "RANK" not in os.environ:  # of torchrun's processes, one searches
        import_ahead(request.options.search)
    from longrope_export.console import ConsoleProgress
    from longrope_export.pipeline import extend_plan_lines, run_extend

    if request.plan:
        for line in extend_plan_lines(request, ConsoleProgress()):
            click.echo(line)
        return 0
    recipe = recipes.recipe_of(
        recipes.absolute(values, declared(ExtendRequest)), declared(ExtendRequest), without=("output",)
    )
    outcome = run_extend(replace(request, recipe=recipe), ConsoleProgress())
    if outcome is None:  # another process reports it
        return 0
    print_outcome(outcome, request.output)
    return 0 if outcome.passed else 1


def print_outcome(outcome: Outcome, folder: Path) -> None:
    """Methods, parity of every artifact, and the verdict."""
    from longrope_export.tables import print_methods, print_parity

    print_methods(outcome.methods)
    print_parity(outcome.validations)
    verdict = "all checks passed" if outcome.passed else "some checks FAILED"
    click.echo(f"{verdict}; report: {folder / 'report.html'}")


def schema_text() -> str:
    """docs/recipe.schema.json; `make schema` writes it."""
    return json_text(recipes.recipe_schema(declared(ExtendRequest)))
