"""Perplexity and passkey retrieval of one artifact or model, in its own runtime, by window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from converters import registry
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError
from longrope.factors import FactorSet
from longrope.progress import Progress
from longrope.provenance import provenance
from longrope.retrieval import RetrievalSample, passkey_sample
from longrope.scoring import CHUNK_TOKENS, LogitSource, nll
from longrope.text import Corpus, TokenIds, load_corpus
from longrope_export.models import open_model

SCHEMA_VERSION = 1
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class EvalRequest:
    """The arguments of `eval`.

    Args:
        windows: lengths to measure perplexity at.
        passkey: lengths to measure retrieval at.
        samples: prompts per length and depth.
    """

    artifact: str
    texts: Sequence[Path]
    windows: tuple[int, ...] = ()
    passkey: tuple[int, ...] = ()
    windows_per_length: int = 4
    samples: int = 2
    threads: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class PerplexityRow:
    """Perplexity at one length."""

    length: int
    windows: int
    ppl: float


@dataclass(frozen=True)
class PasskeyRow:
    """Share of prompts whose whole answer is predicted, teacher-forced, at one length and depth."""

    length: int
    depth: float
    samples: int
    accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """What `eval` found."""

    artifact: str
    perplexity: tuple[PerplexityRow, ...]
    passkey: tuple[PasskeyRow, ...]

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "provenance": dict(provenance())}


def evaluate(request: EvalRequest, progress: Progress) -> Evaluation:
    """Measure; see `EvalRequest`. Raises InputError when texts are too short for a length, or nothing was asked."""
    lengths = (*request.windows, *request.passkey)
    if not lengths:
        raise InputError("expected --windows N,N or --passkey N,N; neither was given")
    checkpoint, source = _open(request, max(lengths))
    corpus = load_corpus(request.texts, checkpoint.encode)
    try:
        perplexity = []
        with progress.task("perplexity", sum(request.windows)) as task:
            for length in request.windows:
                windows = corpus.windows(length, request.windows_per_length)
                value = math.exp(nll(source, windows, source.set_for(length)))
                perplexity.append(PerplexityRow(length, len(windows), value))
                task.advance(length, f"{value:.3f} at {length}")
        passkey = _passkey_rows(request, checkpoint, corpus, source, progress)
    finally:
        source.close()
    return Evaluation(request.artifact, tuple(perplexity), passkey)


def _open(request: EvalRequest, max_length: int) -> tuple[Checkpoint, LogitSource]:
    """An artifact in its runtime, with the checkpoint that holds its tokenizer; or a model in transformers."""
    from longrope.modeling import TorchSource, build_model, set_threads

    path = Path(request.artifact)
    if not path.exists():
        checkpoint = open_model(request.artifact)
        set_threads(request.threads)
        return checkpoint, TorchSource(build_model(checkpoint), checkpoint.factors, name=checkpoint.name)
    converter = registry.recognize(path)
    converter.check_requirements()
    checkpoint = converter.tokenizer_source(path)
    factors = converter.read_factors(path)
    bound = checkpoint.bind(factors) if factors else None
    return checkpoint, converter.open_source(path, bound, max_length=max_length, threads=request.threads)


def _passkey_rows(
    request: EvalRequest,
    checkpoint: Checkpoint,
    corpus: Corpus,
    source: LogitSource,
    progress: Progress,
) -> tuple[PasskeyRow, ...]:
    if not request.passkey:
        return ()
    filler = np.concatenate([document.ids for document in corpus.documents])
    rng = np.random.default_rng(request.seed)
    rows = []
    with progress.task("passkey", len(request.passkey) * len(DEPTHS) * request.samples) as task:
        for length in request.passkey:
            for depth in DEPTHS:
                found = 0
                for _ in range(request.samples):
                    sample = passkey_sample(_plain_encode(checkpoint), filler, length, depth, rng)
                    found += answered(source, sample, source.set_for(length))
                    task.advance(1, f"{length} tokens, depth {depth}")
                rows.append(PasskeyRow(length, depth, request.samples, found / request.samples))
    return tuple(rows)


def answered(source: LogitSource, sample: RetrievalSample, factor_set: FactorSet) -> bool:
    """Whether every token of the answer is the most likely one, given all before it."""
    ids: TokenIds = np.asarray(sample.token_ids, dtype=np.int64)
    wanted = torch.as_tensor(ids[sample.answer_start : sample.answer_stop])
    predicted, start = [], 0
    for block in source.logits(ids, factor_set, CHUNK_TOKENS):
        rows = torch.arange(start, start + len(block))
        predicted.append(block[(rows >= sample.answer_start - 1) & (rows < sample.answer_stop - 1)].argmax(-1))
        start += len(block)
    return bool(torch.equal(torch.cat(predicted), wanted))


def _plain_encode(checkpoint: Checkpoint) -> Any:
    """Text to ids without BOS: parts of a prompt are put together."""
    return lambda text: checkpoint.tokenizer.encode(text, add_special_tokens=False).ids
