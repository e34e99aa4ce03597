"""What an artifact or model can do in its own runtime: perplexity by window, retrieval by length and depth, tasks.

artifact ──recognize──► its runtime (LogitSource) ─┬─ windows ──► PerplexityRow
texts ────tokenizer──► Corpus (also the filler) ───┼─ passkey, needle × depths ──► RetrievalRow
JSONL ────tokenizer──► prompts ────────────────────┴─ many-shot, questions, summaries ──► TaskRow
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from converters import registry
from converters.isolation import Isolate, open_source, workplace_for
from longrope import retrieval
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError
from longrope.machine import AUTO, Dtype, resolve
from longrope.metrics import perplexity
from longrope.progress import Progress
from longrope.provenance import provenance, published_name
from longrope.retrieval import RetrievalRow
from longrope.scoring import LogitSource, first_non_finite, nll
from longrope.tasks import TaskRow, TaskRunner, read_records
from longrope.text import Corpus, TokenIds, load_corpus
from longrope_export.commands.eval import EvalRequest
from longrope_export.lm_harness import require_harness, run_harness
from longrope_export.models import artifact_path

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class PerplexityRow:
    """Perplexity at one length."""

    length: int
    windows: int
    ppl: float


@dataclass(frozen=True)
class Evaluation:
    """What `eval` found."""

    artifact: str
    perplexity: tuple[PerplexityRow, ...] = ()
    passkey: tuple[RetrievalRow, ...] = ()
    needle: tuple[RetrievalRow, ...] = ()
    tasks: tuple[TaskRow, ...] = ()
    lm_eval: Mapping[str, Any] | None = None
    text_fingerprint: str | None = None
    seed: int = 0

    @property
    def retrieval(self) -> dict[str, tuple[RetrievalRow, ...]]:
        """Rows by task, of the tasks that were measured."""
        return {name: rows for name, rows in (("passkey", self.passkey), ("needle", self.needle)) if rows}

    def to_json(self) -> dict[str, Any]:
        """The versioned result; a perplexity that is no finite number is null."""
        facts = asdict(self)
        facts["artifact"] = published_name(self.artifact)
        made = provenance(text_fingerprint=facts.pop("text_fingerprint"), seed=facts.pop("seed"))
        return {"schema_version": SCHEMA_VERSION, **facts, "provenance": dict(made)}


def evaluate(request: EvalRequest, progress: Progress) -> Evaluation:
    """Measure; see `EvalRequest`.

    Raises:
        InputError: nothing was asked, texts are missing or too short, or a task's file or prompts cannot be used.
        RuntimeFailedError: the artifact's runtime ended its process.
        MissingRequirementError: the harness was asked for and is not installed.
    """
    records = {task: read_records(path, task) for task, path in request.task_files.items()}
    if not request.lengths and not records and request.tasks is None:
        raise InputError(
            "expected --windows, --passkey or --needle with lengths N,N, a file for --many-shot, --qa or --summarize, "
            "or --lm-eval TASKS"
        )
    if request.tasks is not None:
        require_harness()
    if request.lengths and not request.texts:
        raise InputError("--windows, --passkey and --needle need --text PATH")
    if (shortest := min(request.windows, default=2)) < 2:
        raise InputError(f"--windows {shortest}: expected 2 tokens or more, of which the first predicts the second")
    lengths = (*request.lengths, *request.task_windows)
    opened = open_artifact(
        request.artifact, lengths, request.threads, request.device, request.dtype, isolate=request.isolate
    )
    try:
        corpus = load_corpus(request.texts, opened.checkpoint.encode) if request.texts else Corpus(())
        return Evaluation(
            request.artifact,
            _perplexities(request, corpus, opened.source, progress),
            _retrieval("passkey", request.passkey, request, opened, corpus, progress),
            _retrieval("needle", request.needle, request, opened, corpus, progress),
            _tasks(request, records, opened, progress),
            _harness(request, opened, progress),
            corpus.fingerprint if request.texts else None,
            request.seed,
        )
    finally:
        opened.source.close()


@dataclass(frozen=True)
class Opened:
    """An artifact in its runtime.

    Args:
        checkpoint: holds its tokenizer.
        source: its logits.
        window: what it was extended to, or its own.
    """

    checkpoint: Checkpoint
    source: LogitSource
    window: int


def open_artifact(
    name: str,
    lengths: Sequence[int] = (),
    threads: int | None = None,
    device: str = AUTO,
    dtype: Dtype = AUTO,
    isolate: Isolate = "auto",
) -> Opened:
    """Open a path, a Hub id or `default` for windows of these lengths and of the model's own.

    Args:
        isolate: whether its runtime gets a process of its own; closing the source ends it.

    Raises:
        InputError: another device or dtype is asked of a runtime that chooses them itself.
        RuntimeFailedError: its runtime ended the process.
    """
    path = artifact_path(name)
    converter = registry.recognize(path)
    if not converter.runs_in_torch and not {device, dtype} <= {AUTO, "cpu", "float32"}:
        raise InputError(
            f"--device {device}, --dtype {dtype}: {name} is {converter.name}, whose runtime chooses by itself"
        )
    converter.check_requirements()
    checkpoint = converter.tokenizer_source(path)
    in_torch: dict[str, Any] = {}
    if converter.runs_in_torch:
        in_torch = dict(zip(("device", "dtype"), resolve(device, dtype, checkpoint), strict=True))
    factors = None
    if found := converter.read_factors(path):
        factors = checkpoint.bind(found, target=found.target_length or checkpoint.max_position_embeddings)
    window = factors.target if factors else checkpoint.window
    source = open_source(
        converter,
        path,
        factors,
        max_length=max((*lengths, window)),
        threads=threads,
        workplace=workplace_for(converter, path, isolate),
        options=in_torch,
    )
    return Opened(checkpoint, source, window)


def _perplexities(
    request: EvalRequest, corpus: Corpus, source: LogitSource, progress: Progress
) -> tuple[PerplexityRow, ...]:
    rows = []
    with progress.task("perplexity", sum(request.windows)) as task:
        for length in request.windows:
            windows = corpus.windows(length, request.windows_per_length)
            found = perplexity(nll(source, windows, source.set_for(length)))
            rows.append(PerplexityRow(length, len(windows), found))
            task.advance(length, f"{found:.3f} at {length}")
            if not math.isfinite(found):
                progress.warn(
                    f"the perplexity of windows of {length} tokens is not finite ({found}): {_where(source, windows)}"
                )
    return tuple(rows)


def _where(source: LogitSource, windows: Sequence[TokenIds]) -> str:
    """The first logits that are not finite."""
    for number, ids in enumerate(windows, start=1):
        position = first_non_finite(source, ids, source.set_for(len(ids)))
        if position is not None:
            return f"the logits are NaN or infinite from position {position} of window {number} on; try --dtype float32"
    return "every logit is finite, and the text is as good as impossible for this model"


def _retrieval(
    task_name: str,
    lengths: Sequence[int],
    request: EvalRequest,
    opened: Opened,
    corpus: Corpus,
    progress: Progress,
) -> tuple[RetrievalRow, ...]:
    """One row per length and depth. Late statements come first: the next prompt then shares its start with the last one."""
    if not lengths:
        return ()
    start = opened.checkpoint.added_around[0]
    filler = np.concatenate([document.ids[len(start) :] for document in corpus.documents])
    rows = []
    with progress.task(task_name, sum(lengths) * len(request.depths) * request.samples) as task:
        for length in lengths:
            for depth in sorted(request.depths, reverse=True):
                samples = retrieval.samples_of(
                    task_name,
                    opened.checkpoint.encode_plain,
                    filler,
                    length,
                    depth,
                    request.samples,
                    request.seed,
                    start,
                )
                note = f"{length} tokens, depth {depth:g}"
                rows.append(
                    retrieval.measure(
                        opened.source,
                        list(samples),
                        generate=request.generate,
                        on_sample=lambda length=length, note=note: task.advance(length, note),  # type: ignore[misc]
                    )
                )
    return tuple(sorted(rows, key=lambda row: (row.length, row.depth)))


def _tasks(
    request: EvalRequest,
    records: Mapping[str, Sequence[Mapping[str, Any]]],
    opened: Opened,
    progress: Progress,
) -> tuple[TaskRow, ...]:
    """One row per task and window, of many-shot one for each number of shots."""
    windows = request.task_windows or (opened.window,)
    counts = {
        task: request.queries * len(request.shots) if task == "many-shot" else len(lines)
        for task, lines in records.items()
    }
    rows: list[TaskRow] = []
    if not records:
        return ()
    with progress.task("tasks", sum(counts.values()) * len(windows)) as bar:
        runner = TaskRunner(
            opened.source,
            opened.checkpoint,
            max_new_tokens=request.max_new_tokens,
            truncate=request.truncate,
            on_prompt=lambda: bar.advance(1),
        )
        for window in windows:
            for task, lines in records.items():
                if task == "many-shot":
                    rows += [
                        runner.many_shot(lines, shots, window, queries=request.queries, seed=request.seed)
                        for shots in request.shots
                    ]
                else:
                    rows.append(runner.questions(lines, window) if task == "qa" else runner.summaries(lines, window))
    return tuple(rows)


def _harness(request: EvalRequest, opened: Opened, progress: Progress) -> dict[str, Any] | None:
    if request.tasks is None:
        return None
    return run_harness(request, opened.checkpoint, opened.source, opened.window, progress)
