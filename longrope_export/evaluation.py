"""What an artifact or model can do in its own runtime: perplexity by window, retrieval by length and depth, tasks.

artifact ──recognize──► its runtime (LogitSource) ─┬─ windows ──► PerplexityRow
texts ────tokenizer──► Corpus (also the filler) ───┼─ passkey, needle × depths ──► RetrievalRow
JSONL ────tokenizer──► prompts ────────────────────┴─ many-shot, questions, summaries ──► TaskRow
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters import registry
from longrope import retrieval
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError
from longrope.progress import Progress
from longrope.provenance import provenance
from longrope.retrieval import RetrievalRow
from longrope.scoring import LogitSource, nll, perplexity
from longrope.search.windows import encode_plain
from longrope.text import Corpus, load_corpus
from longrope_export.models import open_model

SCHEMA_VERSION = 1
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class EvalRequest:
    """The arguments of `eval`.

    Args:
        texts: documents for `windows`, and filler for `passkey` and `needle`.
        windows: lengths to measure perplexity at.
        passkey, needle: lengths to measure retrieval at.
        depths: places of the statement, 0 (first) to 1 (last).
        samples: prompts per length and depth.
        generate: put retrieval prompts to greedy decoding, too.
    """

    artifact: str
    texts: Sequence[Path]
    windows: tuple[int, ...] = ()
    passkey: tuple[int, ...] = ()
    needle: tuple[int, ...] = ()
    windows_per_length: int = 4
    depths: tuple[float, ...] = DEPTHS
    samples: int = 2
    generate: bool = False
    threads: int | None = None
    seed: int = 0

    @property
    def lengths(self) -> tuple[int, ...]:
        """Every length that is asked for."""
        return (*self.windows, *self.passkey, *self.needle)


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
    text_fingerprint: str | None = None
    seed: int = 0

    @property
    def retrieval(self) -> dict[str, tuple[RetrievalRow, ...]]:
        """Rows by task, of the tasks that were measured."""
        return {name: rows for name, rows in (("passkey", self.passkey), ("needle", self.needle)) if rows}

    def to_json(self) -> dict[str, Any]:
        """The versioned result; a perplexity that is no finite number is null."""
        facts = _finite(asdict(self))
        made = provenance(text_fingerprint=facts.pop("text_fingerprint"), seed=facts.pop("seed"))
        return {"schema_version": SCHEMA_VERSION, **facts, "provenance": dict(made)}


def retrieval_rows(data: Mapping[str, Any]) -> dict[str, tuple[RetrievalRow, ...]]:
    """Rows by task out of `Evaluation.to_json`. Raises InputError when they are not such rows."""
    try:
        found = {name: tuple(RetrievalRow(**row) for row in data.get(name, ())) for name in retrieval.TASKS}
    except TypeError as error:
        raise InputError(f"evaluation.json: expected the rows that eval --json writes ({error})") from None
    return {name: rows for name, rows in found.items() if rows}


def evaluate(request: EvalRequest, progress: Progress) -> Evaluation:
    """Measure; see `EvalRequest`. Raises InputError when texts are too short for a length, or nothing was asked."""
    if not request.lengths:
        raise InputError("expected --windows, --passkey or --needle with lengths N,N; none was given")
    checkpoint, source = open_artifact(request.artifact, max(request.lengths), request.threads)
    try:
        corpus = load_corpus(request.texts, checkpoint.encode)
        return Evaluation(
            request.artifact,
            _perplexities(request, corpus, source, progress),
            _retrieval("passkey", request.passkey, request, checkpoint, corpus, source, progress),
            _retrieval("needle", request.needle, request, checkpoint, corpus, source, progress),
            corpus.fingerprint,
            request.seed,
        )
    finally:
        source.close()


def open_artifact(name: str, max_length: int, threads: int | None = None) -> tuple[Checkpoint, LogitSource]:
    """An artifact in its runtime, with the checkpoint that holds its tokenizer; or a model in transformers."""
    from longrope.modeling import TorchSource, build_model, set_threads

    path = Path(name)
    if not path.exists():
        checkpoint = open_model(name)
        set_threads(threads)
        return checkpoint, TorchSource(build_model(checkpoint), checkpoint.factors, name=checkpoint.name)
    converter = registry.recognize(path)
    converter.check_requirements()
    checkpoint = converter.tokenizer_source(path)
    factors = converter.read_factors(path)
    bound = checkpoint.bind(factors) if factors else None
    return checkpoint, converter.open_source(path, bound, max_length=max_length, threads=threads)


def _finite(value: Any) -> Any:
    """JSON has no infinity: null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _perplexities(
    request: EvalRequest, corpus: Corpus, source: LogitSource, progress: Progress
) -> tuple[PerplexityRow, ...]:
    rows = []
    with progress.task("perplexity", sum(request.windows)) as task:
        for length in request.windows:
            windows = corpus.windows(length, request.windows_per_length)
            rows.append(PerplexityRow(length, len(windows), perplexity(nll(source, windows, source.set_for(length)))))
            task.advance(length, f"{rows[-1].ppl:.3f} at {length}")
    return tuple(rows)


def _retrieval(
    task_name: str,
    lengths: Sequence[int],
    request: EvalRequest,
    checkpoint: Checkpoint,
    corpus: Corpus,
    source: LogitSource,
    progress: Progress,
) -> tuple[RetrievalRow, ...]:
    """One row a length and depth. Late statements come first: the next prompt then shares its start with the last one."""
    filler = np.concatenate([document.ids for document in corpus.documents])
    rows = []
    with progress.task(task_name, sum(lengths) * len(request.depths) * request.samples) as task:
        for length in lengths:
            for depth in sorted(request.depths, reverse=True):
                samples = retrieval.samples_of(
                    task_name,
                    lambda text: encode_plain(checkpoint, text),
                    filler,
                    length,
                    depth,
                    request.samples,
                    request.seed,
                )
                note = f"{length} tokens, depth {depth:g}"
                rows.append(
                    retrieval.measure(
                        source,
                        list(samples),
                        generate=request.generate,
                        on_sample=lambda length=length, note=note: task.advance(length, note),  # type: ignore[misc]
                    )
                )
    return tuple(sorted(rows, key=lambda row: (row.length, row.depth)))
