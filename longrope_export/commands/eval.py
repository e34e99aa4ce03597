"""`longrope-export eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from longrope_export import options


@click.command()
@click.argument("artifact")
@options.texts(required=False)
@click.option("--windows", type=options.LENGTHS, default=(), help="Lengths to measure perplexity at.")
@click.option("--passkey", type=options.LENGTHS, default=(), help="Lengths to measure passkey retrieval at.")
@click.option("--needle", type=options.LENGTHS, default=(), help="Lengths to measure retrieval of a sentence at.")
@click.option(
    "--depths", type=options.DEPTHS, default="0,0.25,0.5,0.75,1", show_default=True, help="Of what is hidden."
)
@click.option("--samples", type=click.IntRange(1), default=2, show_default=True, help="Prompts per length and depth.")
@click.option("--generate", is_flag=True, help="Put retrieval prompts to greedy decoding, too.")
@click.option("--heat-map", type=options.PATH, help="Picture of retrieval by length and depth: .png or .svg.")
@click.option("--windows-per-length", type=click.IntRange(1), default=4, show_default=True, help="At most so many.")
@click.option("--many-shot", type=options.PATH, help="JSONL of input, output: accuracy by number of examples.")
@click.option("--shots", type=options.COUNTS, default="0,1,4,16", show_default=True, help="Examples before a query.")
@click.option(
    "--queries", type=click.IntRange(1), default=16, show_default=True, help="Many-shot: the file's last lines."
)
@click.option("--qa", type=options.PATH, help="JSONL of context, question, answers: exact match and F1.")
@click.option("--summarize", type=options.PATH, help="JSONL of document, summary: ROUGE.")
@click.option("--task-windows", type=options.LENGTHS, default=(), help="Windows of the three.  [default: the model's]")
@click.option("--truncate", is_flag=True, help="Cut the middle out of documents that do not fit the window.")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=64, show_default=True, help="Of an answer or summary."
)
@click.option(
    "--lm-eval", "tasks", help="Tasks of lm-evaluation-harness, by comma, such as ruler. Needs pip install lm_eval."
)
@click.option("--lm-eval-include", "include", type=options.PATH, help="Folder of further tasks for the harness.")
@click.option("--lm-eval-limit", "limit", type=click.IntRange(1), help="Documents of each task of the harness.")
@options.dtype("float32", "Of a Hugging Face folder's forward passes.")
@options.compute
@options.json_output
def command(
    heat_map: Path | None,
    json_path: str | None,
    tasks: str | None,
    include: Path | None,
    limit: int | None,
    **arguments: Any,
) -> int:
    """Measure ARTIFACT (or a model) in its own runtime.

    Perplexity by window; retrieval by length and depth; many-shot learning, questions and summaries on your own JSONL;
    tasks of the lm-evaluation-harness.
    """
    from longrope.errors import InputError
    from longrope_export.console import ConsoleProgress, write_json
    from longrope_export.evaluation import EvalRequest, evaluate
    from longrope_export.lm_harness import HarnessRequest
    from longrope_export.plots import check_picture, plot_retrieval
    from longrope_export.tables import print_evaluation

    if tasks is None and (include is not None or limit is not None):
        raise InputError("--lm-eval-include and --lm-eval-limit: expected --lm-eval TASKS beside them")
    lengths = arguments["task_windows"]
    harness = HarnessRequest(tuple(tasks.split(",")), include, limit, lengths) if tasks else None
    request = EvalRequest(**arguments, harness=harness)
    if heat_map is not None:
        if not (request.passkey or request.needle):
            raise InputError("--heat-map shows --passkey or --needle: expected lengths N,N for one of them")
        check_picture(heat_map)
    result = evaluate(request, ConsoleProgress())
    if json_path != "-":
        print_evaluation(result)
    if heat_map is not None:
        plot_retrieval(result.retrieval, heat_map)
    write_json(result.to_json(), json_path)
    return 0
