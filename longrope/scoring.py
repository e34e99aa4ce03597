"""The one scorer of every format: perplexity, KL divergence, top-1 agreement and logit difference, streamed in blocks.

    reference ──logits──► block [t, V] ─┐
    artifact a ─logits──► block [t, V] ─┼─► accumulators ──► WindowScore per artifact
    artifact b ─logits──► block [t, V] ─┘

All sources run in step over the same token ids, so no more than one block of each is held at a time, and the reference
is computed once for all artifacts. Sums are in float64. Perplexity is exp(mean NLL weighted by tokens); a window of T
tokens predicts T - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from longrope.errors import InputError, LongRopeError
from longrope.factors import FactorSet
from longrope.metrics import perplexity
from longrope.sources import Rule, Stop, never
from longrope.text import TokenIds

Regime = Literal["short", "long", "crossing"]
# Rows of logits held at a time for each source: 256 rows of a 128k vocabulary are 134 MB in float32.
CHUNK_TOKENS = 256


class LogitSource(Protocol):
    """A model in some runtime.

    Attributes:
        name: for messages.
        vocab_size: V.
        rule: when the runtime changes factor sets: anew at every forward, or once for a whole context.
    """

    name: str
    vocab_size: int
    rule: Rule

    def set_for(self, length: int) -> FactorSet:
        """The set this runtime uses for a fresh window of `length` tokens."""
        ...

    def logits(self, ids: TokenIds, factor_set: FactorSet, chunk: int) -> Iterator[Tensor]:
        """Logits of one window [T] under one set, in blocks of `chunk` rows: [chunk, V] float32 on the CPU."""
        ...

    def decode_logits(self, ids: TokenIds, prefill: int) -> Tensor:
        """[T - prefill + 1, V] float32: rows prefill - 1 … T - 1, the last ones decoded one by one through the cache."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class PromptSource(Protocol):
    """What a LogitSource may offer beyond: long prompts answered without the rows that nobody looks at."""

    def tail_logits(self, ids: TokenIds, factor_set: FactorSet, first: int) -> Tensor:
        """[T - first, V] float32 on the CPU: the rows of positions first … T - 1 of one window [T]."""
        ...

    def greedy(self, prompt: TokenIds, count: int, factor_set: FactorSet, stop: Stop) -> TokenIds:
        """At most `count` tokens after a prompt [T], each the likeliest, through the runtime's cache."""
        ...


@dataclass(frozen=True)
class WindowScore:
    """How an artifact compares with the reference on windows of one length; one entry of `windows` in validation.json.

    `non_finite` says whose logits hold NaN or infinity, and from where on; empty where all are finite.
    """

    length: int
    regime: Regime
    tokens: int
    ppl_reference: float
    ppl: float
    kl_mean: float
    kl_p99: float
    top1_agreement: float
    max_logit_diff: float
    non_finite: str = ""

    @property
    def ppl_delta_percent(self) -> float:
        return 100.0 * (self.ppl / self.ppl_reference - 1.0)


@dataclass
class Comparison:
    """Running sums over predicted tokens. KL is KL(reference || artifact), in nats per token."""

    nll_reference: float = 0.0
    nll: float = 0.0
    tokens: int = 0
    top1_agreements: int = 0
    max_logit_diff: float = 0.0
    kl: list[Tensor] = field(default_factory=list)
    non_finite: dict[str, int] = field(default_factory=dict)

    def add(self, reference_TV: Tensor, actual_TV: Tensor, targets_T: Tensor) -> None:
        """Add rows that predict `targets_T`. Logits are shifted by nothing and compared as they are."""
        for whose, rows in (("the reference's", reference_TV), ("the artifact's", actual_TV)):
            if whose not in self.non_finite and (row := _first_non_finite(rows)) is not None:
                self.non_finite[whose] = self.tokens + row
        reference_lp = torch.log_softmax(reference_TV.double(), dim=-1)
        actual_lp = torch.log_softmax(actual_TV.double(), dim=-1)
        index = targets_T[:, None]
        self.nll_reference -= float(reference_lp.gather(1, index).sum())
        self.nll -= float(actual_lp.gather(1, index).sum())
        self.tokens += len(targets_T)
        self.top1_agreements += int((reference_TV.argmax(-1) == actual_TV.argmax(-1)).sum())
        difference = float((reference_TV - actual_TV).abs().max())
        self.max_logit_diff = float(np.maximum(self.max_logit_diff, difference))  # Python's max would lose a NaN
        self.kl.append((reference_lp.exp() * (reference_lp - actual_lp)).sum(-1))

    def score(self, length: int, regime: Regime) -> WindowScore:
        kl = torch.cat(self.kl).clamp_min(0.0)
        return WindowScore(
            length=length,
            regime=regime,
            tokens=self.tokens,
            ppl_reference=perplexity(self.nll_reference / self.tokens),
            ppl=perplexity(self.nll / self.tokens),
            kl_mean=float(kl.mean()),
            kl_p99=float(np.quantile(kl.numpy(), 0.99)),
            top1_agreement=self.top1_agreements / self.tokens,
            max_logit_diff=self.max_logit_diff,
            non_finite=", ".join(
                f"{whose} logits are non-finite from prediction {row + 1} on" for whose, row in self.non_finite.items()
            ),
        )


def compare_windows(
    reference: LogitSource,
    artifacts: Mapping[str, LogitSource],
    windows: Sequence[TokenIds],
    *,
    factor_set: FactorSet,
    reference_set: FactorSet | None = None,
    chunk: int = CHUNK_TOKENS,
    on_tokens: Callable[[int], None] = lambda tokens: None,
) -> dict[str, WindowScore]:
    """Score artifacts against a reference on windows of one length.

    Args:
        reference, artifacts: sources over one vocabulary.
        windows: [T] token ids each.
        factor_set: the set that is measured; also names the regime.
        reference_set: the reference's set, when it is another (a `single` artifact of a `dual` reference).
        chunk: rows of logits in memory at a time, for each source.
        on_tokens: called with the number of tokens done since the last call.

    Raises:
        InputError: the vocabularies differ in size.
    """
    check_vocabularies(reference, artifacts)
    totals = {name: Comparison() for name in artifacts}
    for ids in windows:
        targets = torch.as_tensor(ids[1:])
        streams = [reference.logits(ids, reference_set or factor_set, chunk)]
        streams += [source.logits(ids, factor_set, chunk) for source in artifacts.values()]
        start = 0
        for expected, *actual in zip(*streams, strict=True):
            wanted = targets[start : start + len(expected)]
            for total, block in zip(totals.values(), actual, strict=True):
                _check_block(expected, block)
                if len(wanted):
                    total.add(expected[: len(wanted)], block[: len(wanted)], wanted)
            start += len(expected)
            on_tokens(len(expected))
    return {name: total.score(len(windows[0]), factor_set) for name, total in totals.items()}


def crossing_rows(
    reference: LogitSource, ids: TokenIds, original: int, *, prefill: int, rule: Rule, chunk: int = CHUNK_TOKENS
) -> Tensor:
    """What decoding across the original window must give: full recomputes by the reference.

    A runtime with one set per context is expected to use the long one throughout; any other is expected to give, at
    each position, what a full recompute of the sequence up to there gives: the short set up to L tokens, then the long.

    Args:
        ids: [T], T > original > prefill.
        prefill: tokens that go in at once before decoding starts.

    Returns:
        [T - prefill, V] float32: the rows that predict ids[prefill:].
    """
    expected = _rows_from(reference.logits(ids, "long", chunk), prefill - 1)[:-1]
    if rule == "per_context":
        return expected
    short_rows = _rows_from(reference.logits(ids[:original], "short", chunk), prefill - 1)
    return torch.cat((short_rows, expected[len(short_rows) :]))


def compare_crossing(expected: Tensor, decoded: Tensor, ids: TokenIds, *, prefill: int) -> WindowScore:
    """Score what an artifact decodes through its cache.

    Args:
        expected: [T - prefill, V], from `crossing_rows`.
        decoded: [T - prefill + 1, V], from `LogitSource.decode_logits`.
        ids: [T].
        prefill: tokens that went in at once.
    """
    total = Comparison()
    total.add(expected, decoded[:-1], torch.as_tensor(ids[prefill:]))
    return total.score(len(ids), "crossing")


def nll(source: LogitSource, windows: Sequence[TokenIds], factor_set: FactorSet, chunk: int = CHUNK_TOKENS) -> float:
    """Mean negative log-likelihood in nats per token over windows, weighted by tokens."""
    total, tokens = 0.0, 0
    for ids in windows:
        targets, start = torch.as_tensor(ids[1:]), 0
        for block in source.logits(ids, factor_set, chunk):
            wanted = targets[start : start + len(block)]
            total += float(torch.nn.functional.cross_entropy(block[: len(wanted)].double(), wanted, reduction="sum"))
            start += len(block)
        tokens += len(targets)
    return total / tokens


def first_non_finite(source: LogitSource, ids: TokenIds, factor_set: FactorSet) -> int | None:
    """The first position of a window [T] whose logits hold NaN or infinity; None where all are finite."""
    start = 0
    for block in source.logits(ids, factor_set, CHUNK_TOKENS):
        if (row := _first_non_finite(block)) is not None:
            return start + row
        start += len(block)
    return None


def _first_non_finite(rows_TV: Tensor) -> int | None:
    bad_T = ~torch.isfinite(rows_TV).all(-1)
    return int(bad_T.int().argmax()) if bool(bad_T.any()) else None


def tail_logits(source: LogitSource, ids: TokenIds, factor_set: FactorSet, first: int) -> Tensor:
    """[T - first, V] float32: the rows of positions first … T - 1 of one window; a source that can leaves out the rest."""
    if isinstance(source, PromptSource):
        return source.tail_logits(ids, factor_set, first)
    return _rows_from(source.logits(ids, factor_set, CHUNK_TOKENS), first)


def score_answer(source: LogitSource, ids: TokenIds, start: int, factor_set: FactorSet) -> tuple[float, bool]:
    """How a source takes an answer, ids[start:], after all tokens before it (teacher-forced).

    Returns:
        Its summed negative log-likelihood in nats, and whether each of its tokens is the likeliest.
    """
    logits_AV, answer_A = tail_logits(source, ids[:-1], factor_set, start - 1), torch.as_tensor(ids[start:])
    summed = torch.nn.functional.cross_entropy(logits_AV.double(), answer_A, reduction="sum")
    return float(summed), torch.equal(logits_AV.argmax(-1), answer_A)


def greedy(source: LogitSource, prompt: TokenIds, count: int, factor_set: FactorSet, stop: Stop = never) -> TokenIds:
    """At most `count` tokens after a prompt, each the likeliest; a source without a way of its own reads it anew for each.

    Args:
        source: a model in some runtime.
        prompt: [T] token ids.
        count: most tokens that are written.
        factor_set: the set for prompt and answer.
        stop: asked after each token, with all new ones.
    """
    if isinstance(source, PromptSource):
        return source.greedy(prompt, count, factor_set, stop)
    written: list[int] = []
    while len(written) < count and not (written and stop(written)):
        ids = np.concatenate([prompt, np.asarray(written, dtype=np.int64)])
        written.append(int(tail_logits(source, ids, factor_set, len(ids) - 1)[-1].argmax()))
    return np.asarray(written, dtype=np.int64)


def check_vocabularies(reference: LogitSource, artifacts: Mapping[str, LogitSource]) -> None:
    """Raise InputError unless all sources predict over one vocabulary."""
    for name, source in artifacts.items():
        if source.vocab_size != reference.vocab_size:
            raise InputError(
                f"{name}: expected a vocabulary of {reference.vocab_size} tokens like {reference.name}, "
                f"got {source.vocab_size}"
            )


def _rows_from(blocks: Iterator[Tensor], first: int) -> Tensor:
    """Rows `first` and later of logits that come in blocks, without holding the earlier ones."""
    kept, start = [], 0
    for block in blocks:
        if start + len(block) > first:
            kept.append(block[max(first - start, 0) :])
        start += len(block)
    return torch.cat(kept)


def _check_block(expected: Tensor, actual: Tensor) -> None:
    if expected.shape != actual.shape:
        raise LongRopeError(f"a runtime returned logits {tuple(actual.shape)}, expected {tuple(expected.shape)}")
