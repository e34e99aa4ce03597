"""`longrope-export eval`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from longrope.errors import InputError
from longrope.machine import AUTO, Dtype, device_option, seed_option, threads_option
from longrope.options import Counts, Depths, Lengths, Words, option
from longrope_export import options


@dataclass(frozen=True, kw_only=True)
class EvalRequest:
    """The options of `eval`."""

    artifact: str = option(argument=True, help="Artifact or model to measure: a folder, a GGUF file, or a Hub id.")
    texts: tuple[Path, ...] = options.texts(required=False)
    windows: Lengths = option((), section="Input", help="Lengths to measure perplexity at, in tokens.")
    passkey: Lengths = option((), section="Input", help="Lengths to measure passkey retrieval at, in tokens.")
    needle: Lengths = option((), section="Input", help="Lengths to measure retrieval of a sentence at, in tokens.")
    many_shot: Path | None = option(
        None, section="Input", help="JSONL of input and output, for accuracy by number of examples."
    )
    qa: Path | None = option(
        None, section="Input", help="JSONL of context, question and answers, for exact match and F1."
    )
    summarize: Path | None = option(None, section="Input", help="JSONL of document and summary, for ROUGE.")
    tasks: Words | None = option(
        None,
        name="lm-eval",
        section="Input",
        help="Tasks of lm-evaluation-harness, such as ruler (pip install lm_eval).",
    )
    heat_map: Path | None = option(
        None, section="Output", help="Picture of the retrieval by length and depth: .png or .svg."
    )
    json_path: str | None = options.json_file()
    dtype: Dtype = option(AUTO, section="Machine", help="Precision of a Hugging Face folder's forward passes.")
    device: str = device_option()
    threads: int | None = threads_option()
    seed: int = seed_option()
    isolate: options.Isolate = options.isolate()
    windows_per_length: int = options.windows_per_length()
    depths: Depths = option((0.0, 0.25, 0.5, 0.75, 1.0), help="Depths of what is hidden, 0 (first) to 1 (last).")
    samples: int = option(2, minimum=1, help="Retrieval prompts for each length and depth.")
    generate: bool = option(False, help="Answer retrieval prompts by greedy decoding, too.")
    shots: Counts = option((0, 1, 4, 16), help="Numbers of examples before a many-shot query.")
    queries: int = option(16, minimum=1, help="Many-shot queries, the last lines of the file.")
    task_windows: Lengths = option(
        (), unset="the model's", help="Windows that prompts and answers of tasks must fit, in tokens."
    )
    truncate: bool = option(False, help="Cut the middle out of documents that do not fit the window.")
    max_new_tokens: int = option(64, minimum=1, help="Largest number of tokens of an answer or summary.")
    include: Path | None = option(
        None, name="lm-eval-include", help="Folder of further tasks for lm-evaluation-harness."
    )
    limit: int | None = option(
        None, name="lm-eval-limit", minimum=1, unset="all", help="Documents of each task of lm-evaluation-harness."
    )

    def __post_init__(self) -> None:
        if self.tasks is None and (self.include is not None or self.limit is not None):
            raise InputError("--lm-eval-include and --lm-eval-limit: expected --lm-eval TASKS beside them")
        if self.heat_map is not None and not (self.passkey or self.needle):
            raise InputError("--heat-map shows --passkey or --needle: expected lengths N,N for one of them")

    @property
    def lengths(self) -> tuple[int, ...]:
        """Every length that needs texts."""
        return (*self.windows, *self.passkey, *self.needle)

    @property
    def task_files(self) -> dict[str, Path]:
        """JSONL files by task."""
        named = {"many-shot": self.many_shot, "qa": self.qa, "summarize": self.summarize}
        return {task: path for task, path in named.items() if path is not None}


@options.command(EvalRequest)
def command(request: EvalRequest) -> int:
    """Measure ARTIFACT (or a model) in its own runtime.

    Perplexity by window; retrieval by length and depth; many-shot learning, questions and summaries on your own JSONL;
    tasks of the lm-evaluation-harness.
    """
    from longrope_export.console import ConsoleProgress, write_json
    from longrope_export.evaluation import evaluate
    from longrope_export.plots import check_picture, plot_retrieval
    from longrope_export.tables import print_evaluation

    if request.heat_map is not None:
        check_picture(request.heat_map)
    result = evaluate(request, ConsoleProgress())
    if request.json_path != "-":
        print_evaluation(result)
    if request.heat_map is not None:
        plot_retrieval(result.retrieval, request.heat_map)
    write_json(result.to_json(), request.json_path)
    return 0
