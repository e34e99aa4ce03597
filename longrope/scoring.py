"""The one scorer of every format: perplexity, KL divergence, top-1 agreement and logit difference, streamed in blocks.

    reference ──logits──► block [t, V] ─┐
    artifact a ─logits──► block [t, V] ─┼─► accumulators ──► WindowScore per artifact
    artifact b ─logits──► block [t, V] ─┘

All sources run in step over the same token ids, so no more than one block of each is held at a time, and the reference
is computed once for all artifacts. Sums are in float64. Perplexity is exp(mean NLL weighted by tokens); a window of T
tokens predicts T - 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longrope.errors import InputError, LongRopeError
from longrope.factors import FactorSet
from longrope.intervals import mean_interval, quantile_low
from longrope.measures import Regime, TextScore, WindowScore
from longrope.metrics import perplexity
from longrope.sources import Rule, Stop, never
from longrope.text import TokenIds

# Rows of logits held at a time for each source: 256 rows of a 128k vocabulary are 134 MB in float32.
CHUNK_TOKENS = 256
# Numbers of a vocabulary's rows that are compared at a time: their float64 exponentials (2 MiB) stay in the processor's
# cache, which is five times as fast as whole blocks.
_TILE = 2**18


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


@dataclass
class _Rows:
    """One number for each position, of a window: all that is kept of its logits. Each a list of [t] float64."""

    nll_reference: list[Tensor] = field(default_factory=list)
    nll: list[Tensor] = field(default_factory=list)
    kl: list[Tensor] = field(default_factory=list)
    difference: list[Tensor] = field(default_factory=list)
    margin: list[Tensor] = field(default_factory=list)
    agrees: list[Tensor] = field(default_factory=list)
    finite: list[Tensor] = field(default_factory=list)

    def text(self) -> TextScore:
        """The window in a few numbers."""
        nll_reference, nll, kl, agrees = map(torch.cat, (self.nll_reference, self.nll, self.kl, self.agrees))
        return TextScore(
            tokens=len(nll),
            nll_reference=float(nll_reference.mean()),
            nll=float(nll.mean()),
            kl_mean=float(kl.mean()),
            top1_agreement=float(agrees.double().mean()),
        )


class _Predictions:
    """What one run predicts in a few rows: worked out once, and shared by all comparisons that it takes part in.

    Args:
        logits_TV: float32.
        targets_T: the tokens that came.
    """

    def __init__(self, logits_TV: Tensor, targets_T: Tensor) -> None:
        self.logits_TV = logits_TV
        best = logits_TV.max(-1)
        self.best_T, self.token_T = best.values, best.indices
        self.exp_TV = (logits_TV.double() - self.best_T[:, None]).exp_()
        self.sum_T = self.exp_TV.sum(-1)
        self.logsumexp_T = self.best_T + self.sum_T.log()
        self.nll_T = self.logsumexp_T - logits_TV.gather(1, targets_T[:, None])[:, 0]
        self.finite_T = torch.isfinite(self.best_T) & torch.isfinite(logits_TV.amin(-1))

    @cached_property
    def margin(self) -> Tensor:
        """How far the likeliest token lies before the next one, in logits: [T] float64."""
        second_T = self.logits_TV.scatter(1, self.token_T[:, None], -torch.inf).amax(-1)
        return self.best_T.double() - second_T

    def divergence(self, difference_TV: Tensor, other: _Predictions) -> Tensor:
        """KL(self || other) of each row in nats, [T] float64; `difference_TV` are self's logits less the other's.

        Logits next to each other differ by an exact float32, and of equal ones nothing is left; what rounding leaves
        below 0 is 0.
        """
        expected_T = (self.exp_TV * difference_TV).sum(-1) / self.sum_T
        return (expected_T - (self.logsumexp_T - other.logsumexp_T)).clamp_min(0.0)


@dataclass
class Comparison:
    """What is kept of compared rows. KL is KL(reference || artifact), in nats per token."""

    windows: list[_Rows] = field(default_factory=lambda: [_Rows()])
    tokens: int = 0
    non_finite: dict[str, int] = field(default_factory=dict)

    def next_window(self) -> None:
        """Rows from now on belong to another window of text."""
        if self.windows[-1].kl:
            self.windows.append(_Rows())

    def add(self, reference_TV: Tensor, actual_TV: Tensor, targets_T: Tensor) -> None:
        """Add rows that predict `targets_T`. Logits are shifted by nothing and compared as they are."""
        for tile in _tiles(reference_TV):
            self.add_predictions(*(_Predictions(rows[tile], targets_T[tile]) for rows in (reference_TV, actual_TV)))

    def add_predictions(self, reference: _Predictions, actual: _Predictions) -> None:
        """As `add`, of rows whose predictions are worked out."""
        for whose, rows in (("the reference's", reference), ("the artifact's", actual)):
            if whose not in self.non_finite and not bool(rows.finite_T.all()):
                self.non_finite[whose] = self.tokens + int((~rows.finite_T).int().argmax())
        window, difference_TV = self.windows[-1], reference.logits_TV - actual.logits_TV
        window.nll_reference.append(reference.nll_T)
        window.nll.append(actual.nll_T)
        window.kl.append(reference.divergence(difference_TV, actual))
        window.difference.append(difference_TV.abs().amax(-1).double())
        window.margin.append(reference.margin)
        window.agrees.append(reference.token_T == actual.token_T)
        window.finite.append(reference.finite_T & actual.finite_T)
        self.tokens += len(actual.nll_T)

    def score(self, length: int, regime: Regime) -> WindowScore:
        """All windows together."""
        nll_reference, nll = self._all("nll_reference"), self._all("nll")
        kl, difference = np.sort(self._all("kl")), self._all("difference")
        agrees, decided = self._all("agrees"), self._all("margin") > 2 * np.median(difference)
        # Under the reference the log-ratio of two near distributions has the variance 2 KL.
        low, high = mean_interval(nll - nll_reference, math.sqrt(2 * float(kl.mean()) / len(kl)))
        return WindowScore(
            length=length,
            regime=regime,
            tokens=self.tokens,
            ppl_reference=perplexity(float(nll_reference.mean())),
            ppl=perplexity(float(nll.mean())),
            ppl_delta_low=100.0 * (perplexity(low) - 1.0),
            ppl_delta_high=100.0 * (perplexity(high) - 1.0),
            kl_mean=float(kl.mean()),
            kl_mean_low=mean_interval(kl)[0],
            kl_median=float(np.median(kl)),
            kl_median_low=quantile_low(kl, 0.5),
            kl_p99=float(np.quantile(kl, 0.99)),
            kl_p99_low=quantile_low(kl, 0.99),
            kl_max=float(kl.max()),
            top1_agreement=float(agrees.mean()),
            tied=int((~decided).sum()),
            decided_agreements=int((agrees & decided).sum()),
            max_logit_diff=float(difference.max()),
            logit_diff_mean=float(difference.mean()),
            logit_diff_median=float(np.median(difference)),
            logit_diff_p99=float(np.quantile(difference, 0.99)),
            non_finite=", ".join(
                f"{whose} logits are non-finite from prediction {row + 1} on" for whose, row in self.non_finite.items()
            ),
            non_finite_positions=int((~self._all("finite")).sum()),
            texts=tuple(window.text() for window in self.windows),
        )

    def _all(self, name: str) -> NDArray[Any]:
        """One number for each position of all windows."""
        found: NDArray[Any] = torch.cat([part for window in self.windows for part in getattr(window, name)]).numpy()
        return found


def divergence(reference_TV: Tensor, actual_TV: Tensor) -> Tensor:
    """KL(reference || actual) of each row of logits, in nats: [T] float64."""
    nowhere_T = torch.zeros(len(reference_TV), dtype=torch.int64)
    parts = []
    for tile in _tiles(reference_TV):
        reference, actual = (_Predictions(rows[tile], nowhere_T[tile]) for rows in (reference_TV, actual_TV))
        parts.append(reference.divergence(reference.logits_TV - actual.logits_TV, actual))
    return torch.cat(parts)


def _tiles(rows_TV: Tensor) -> Iterator[slice]:
    """Few enough rows at a time for a core's cache."""
    step = max(_TILE // rows_TV.shape[-1], 1)
    yield from (slice(start, start + step) for start in range(0, len(rows_TV), step))


def compare_windows(
    reference: LogitSource,
    artifacts: Mapping[str, LogitSource],
    windows: Sequence[TokenIds],
    *,
    factor_set: FactorSet,
    chunk: int = CHUNK_TOKENS,
) -> dict[str, WindowScore]:
    """Score artifacts against a reference on windows of one length.

    Args:
        reference, artifacts: sources over one vocabulary.
        windows: [T] token ids each.
        factor_set: the set that is measured; also names the regime.
        chunk: rows of logits in memory at a time, for each source.

    Raises:
        InputError: the vocabularies differ in size.
    """
    check_vocabularies(reference, artifacts)
    runs = [Run(source, factor_set) for source in (reference, *artifacts.values())]
    pairs = {name: (0, place) for place, name in enumerate(artifacts, 1)}
    return compare_runs(runs, pairs, windows, regime=factor_set, chunk=chunk)


@dataclass(frozen=True)
class Run:
    """A source under one of its sets."""

    source: LogitSource
    factor_set: FactorSet


def compare_runs(
    runs: Sequence[Run],
    pairs: Mapping[str, tuple[int, int]],
    windows: Sequence[TokenIds],
    *,
    regime: Regime,
    chunk: int = CHUNK_TOKENS,
    on_tokens: Callable[[int], None] = lambda tokens: None,
) -> dict[str, WindowScore]:
    """Score pairs of sources on windows of one length, each source being run once.

    Args:
        runs: sources over one vocabulary.
        pairs: name → the places in `runs` of what is the reference and of what is compared with it.
        windows, chunk: as of `compare_windows`.
        regime: for the scores.
        on_tokens: called with the number of tokens done since the last call.
    """
    totals = {name: Comparison() for name in pairs}
    for ids in windows:
        targets = torch.as_tensor(ids[1:])
        for total in totals.values():
            total.next_window()
        streams = [run.source.logits(ids, run.factor_set, chunk) for run in runs]
        start = 0
        for blocks in zip(*streams, strict=True):
            wanted = targets[start : start + len(blocks[0])]
            for block in blocks[1:]:
                _check_block(blocks[0], block)
            for tile in _tiles(blocks[0][: len(wanted)]):
                said = [_Predictions(block[: len(wanted)][tile], wanted[tile]) for block in blocks]
                for name, (expected, actual) in pairs.items():
                    totals[name].add_predictions(said[expected], said[actual])
            start += len(blocks[0])
            on_tokens(len(blocks[0]))
    return {name: total.score(len(windows[0]), regime) for name, total in totals.items()}


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


def compare_rows(expected: Tensor, actual: Tensor, ids: TokenIds, *, prefill: int) -> WindowScore:
    """Score rows across the original window.

    Args:
        expected, actual: [T - prefill, V], which predict ids[prefill:]: of `crossing_rows`, and what an artifact decodes.
        ids: [T].
        prefill: tokens that went in at once.
    """
    total = Comparison()
    total.add(expected, actual, torch.as_tensor(ids[prefill:]))
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
        if (row := non_finite_row(block)) is not None:
            return start + row
        start += len(block)
    return None


def non_finite_row(rows_TV: Tensor) -> int | None:
    """The first row that holds NaN or infinity; None where all are finite."""
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
