"""`longrope-export finetune`."""

from __future__ import annotations

from typing import Any

import click

from longrope.finetune.stages import MAX_DISTRACTORS
from longrope_export import options


@click.command()
@click.argument("model")
@click.option("--factors", type=options.PATH, help="factors.json to train with.  [default: the model's own]")
@options.texts(required=True)
@options.output("Hugging Face folder to write; the run is kept in OUTPUT.training.")
@click.option("--steps", type=click.IntRange(1), default=400, show_default=True, help="Optimizer steps.")
@click.option("--length", type=options.TOKENS, help="Tokens of a training row.  [default: the factors' target]")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=2e-5, show_default=True, help="Peak.")
@click.option(
    "--schedule",
    type=click.Choice(["linear", "cosine", "constant"]),
    default="linear",
    show_default=True,
    help="After the warm-up.",
)
@click.option("--warmup", type=click.IntRange(0), default=0, show_default=True, help="Steps up to the peak.")
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Rows a step, of all processes.")
@click.option(
    "--short-share", type=options.SHARE, default=0.0, help="Rows of short sequences, which train the short set."
)
@click.option("--distil-short", is_flag=True, help="They learn from the model before extension, not from the text.")
@click.option("--teacher", metavar="MODEL", help="That model, where MODEL has been trained before.  [default: MODEL]")
@click.option("--retrieval-share", type=options.SHARE, default=0.0, help="Rows of passkeys hidden in the texts.")
@click.option(
    "--retrieval-distractors",
    type=click.FloatRange(0, MAX_DISTRACTORS),
    default=0.0,
    help="Other numbers in those texts, per 1,024 tokens.",
)
@click.option("--answer-share", type=options.SHARE, default="10%", help="Of their loss that the answers make.")
@options.factor_sets
@options.train_dtype("--dtype")
@options.training_options
@click.option("--plan", is_flag=True, help="Print tokens, memory and time, and stop.")
@click.option("--resume", is_flag=True, help="Go on with the run in OUTPUT.training.")
@options.compute
def command(plan: bool, **arguments: Any) -> int:
    """Train MODEL with its rescale factors and write a Hugging Face folder with the factors inside.

    With torchrun, weights are spread over all processes (FSDP2). Interrupted, it goes on with --resume.
    """
    from longrope_export.console import ConsoleProgress
    from longrope_export.finetuning import finetune_plan_lines, run_finetune
    from longrope_export.requests import finetune_request

    request = finetune_request(**arguments)
    if plan:
        for line in finetune_plan_lines(request):
            click.echo(line)
        return 0
    run_finetune(request, ConsoleProgress())
    return 0
