"""`longrope-export extend`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from longrope_export import options


@click.command()
@click.argument("model")
@click.option("--target-length", required=True, type=options.TOKENS, help="Window after extension, in tokens.")
@click.option("-o", "--output", required=True, type=options.PATH, metavar="RUN_DIR", help="Folder of the run.")
@options.texts(required=False)
@click.option(
    "--test-text", "test_texts", multiple=True, type=options.PATH, help="Held-out text.  [default: part of --text]"
)
@click.option(
    "--formats", default="hf,gguf,onnx", show_default=True, help="Formats, each with a weight type: gguf:f16."
)
@options.factor_sets
@click.option("--windows", type=options.LENGTHS, default=(), help="Lengths to validate.  [default: original, target]")
@click.option("--windows-per-length", type=click.IntRange(1), default=4, show_default=True, help="At most so many.")
@click.option("--crossing/--no-crossing", default=True, help="Decode across the original window through the cache.")
@options.search_options
@click.option("--short-evals", type=click.IntRange(1), default=64, show_default=True, help="Budget of the short set.")
@click.option(
    "--short-windows", type=click.IntRange(1), default=40, show_default=True, help="Windows it is measured on."
)
@click.option(
    "--test-windows", type=click.IntRange(1), default=8, show_default=True, help="Held-out windows of methods."
)
@click.option("--methods", help="Known methods to compare with: none,PI,NTK,YaRN 32/1 …  [default: all]")
@click.option(
    "--stages",
    "stages_name",
    metavar="PLAN",
    help="Fine-tune in stages: paper-llama2, paper-mistral, longrope2, default, or a TOML file.",
)
@options.train_dtype("--train-dtype")
@options.training_options
@click.option("--plan", is_flag=True, help="Print tokens, memory and time of searches and training, and stop.")
@click.option("--resume", is_flag=True, help="Go on with the run in RUN_DIR.")
@click.option("--overwrite", is_flag=True, help="Replace the run in RUN_DIR.")
@options.compute
def command(plan: bool, **arguments: Any) -> int:
    """Extend MODEL (a folder, a Hub id, a .gguf file, or `default`), export every format, prove each against the original.

    The run's folder gets factors.json, the artifacts, validation.json and report.html. Interrupted, it goes on with
    --resume. Exit code 1 when a check fails. With torchrun, all processes share the training of --stages.
    """
    from longrope_export.console import ConsoleProgress
    from longrope_export.pipeline import extend_plan_lines, run_extend
    from longrope_export.requests import extend_request
    from longrope_export.tables import print_methods, print_parity

    folder: Path = arguments["output"]
    request = extend_request(**arguments)
    if plan:
        for line in extend_plan_lines(request, ConsoleProgress()):
            click.echo(line)
        return 0
    outcome = run_extend(request, ConsoleProgress())
    if outcome is None:  # another process tells it
        return 0
    print_methods(outcome.methods)
    print_parity(outcome.validations)
    verdict = "all checks passed" if outcome.passed else "some checks FAILED"
    click.echo(f"{verdict}; report: {folder / 'report.html'}")
    return 0 if outcome.passed else 1
