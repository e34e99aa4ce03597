"""The scorer against a straightforward float64 computation on whole logits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from longrope.errors import InputError, LongRopeError
from longrope.factors import FactorSet
from longrope.scoring import (
    Comparison,
    Run,
    WindowScore,
    compare_rows,
    compare_runs,
    compare_windows,
    crossing_rows,
    nll,
)
from longrope.text import TokenIds

VOCABULARY = 50


@dataclass
class Table:
    """A source whose logits depend on the token, its position, the set and a seed."""

    seed: int
    noise: float = 0.0
    name: str = "table"
    vocab_size: int = VOCABULARY
    rule: Literal["per_forward", "per_context"] = "per_forward"
    chunks: list[int] = field(default_factory=list)

    def whole(self, ids: TokenIds, factor_set: FactorSet) -> Tensor:
        rng = np.random.default_rng(7 if factor_set == "short" else 8)
        base = rng.normal(0, 3, (self.vocab_size, self.vocab_size))[ids] + 0.01 * np.arange(len(ids))[:, None]
        noise = np.random.default_rng(self.seed).normal(0, self.noise, base.shape)
        return torch.from_numpy((base + noise).astype(np.float32))

    def set_for(self, length: int) -> FactorSet:
        return "long"

    def logits(self, ids: TokenIds, factor_set: FactorSet, chunk: int) -> Iterator[Tensor]:
        self.chunks.append(chunk)
        yield from self.whole(ids, factor_set).split(chunk)

    def decode_logits(self, ids: TokenIds, prefill: int) -> Tensor:
        return self.whole(ids, "long")[prefill - 1 :]

    def close(self) -> None: ...


def token_ids(length: int, seed: int = 0) -> TokenIds:
    return np.random.default_rng(seed).integers(0, VOCABULARY, length)


WINDOWS = [token_ids(97, seed) for seed in range(3)]


def straightforward(
    reference: Table, actual: Table, windows: Sequence[TokenIds], factor_set: FactorSet
) -> dict[str, float]:
    """The same quantities with everything in memory at once."""
    p, q, targets = [], [], []
    for ids in windows:
        p.append(reference.whole(ids, factor_set).double().numpy()[:-1])
        q.append(actual.whole(ids, factor_set).double().numpy()[:-1])
        targets.append(ids[1:])
    p_, q_, t_ = np.concatenate(p), np.concatenate(q), np.concatenate(targets)
    log_p = p_ - np.log(np.exp(p_).sum(-1, keepdims=True))
    log_q = q_ - np.log(np.exp(q_).sum(-1, keepdims=True))
    rows = np.arange(len(t_))
    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    return {
        "tokens": len(t_),
        "ppl_reference": math.exp(-log_p[rows, t_].mean()),
        "ppl": math.exp(-log_q[rows, t_].mean()),
        "kl_mean": kl.mean(),
        "kl_p99": np.quantile(kl, 0.99),
        "top1_agreement": (p_.argmax(-1) == q_.argmax(-1)).mean(),
        "max_logit_diff": np.abs(p_.astype(np.float32) - q_.astype(np.float32)).max(),
    }


def score(reference: Table, actual: Table, *, chunk: int = 16, factor_set: FactorSet = "long") -> WindowScore:
    return compare_windows(reference, {"a": actual}, WINDOWS, factor_set=factor_set, chunk=chunk)["a"]


# -- values


@pytest.mark.parametrize("chunk", [1, 16, 32, 96, 97, 98, 1000])
@pytest.mark.parametrize("factor_set", ["short", "long"])
def test_blocks_of_any_size_give_the_whole_windows_numbers(chunk: int, factor_set: FactorSet) -> None:
    """96 ends just before the last row, which predicts nothing; 97 at it."""
    reference, actual = Table(0), Table(1, noise=0.3)
    found = score(reference, actual, chunk=chunk, factor_set=factor_set)
    assert (found.length, found.regime) == (97, factor_set)
    for name, expected in straightforward(reference, actual, WINDOWS, factor_set).items():
        assert getattr(found, name) == pytest.approx(expected, rel=1e-9), name


def test_a_source_agrees_with_itself_exactly() -> None:
    found = score(Table(0, noise=0.3), Table(0, noise=0.3))
    assert (found.ppl_delta_percent, found.kl_mean, found.kl_p99, found.max_logit_diff) == (0, 0, 0, 0)
    assert found.top1_agreement == 1.0


def test_the_interval_of_perplexitys_change_holds_what_rounding_moves_it_by() -> None:
    """Sixteen tokens, drawn as the reference predicts them: the expected change lies outside in at most 5 % of draws.

    Their own spread alone would miss it more often: now and then sixteen tokens agree by chance.
    """
    generator = torch.Generator().manual_seed(0)
    outside = []
    for _ in range(1000):
        reference = 3 * torch.randn(16, VOCABULARY, generator=generator)
        actual = reference + 0.1 * torch.randn(16, VOCABULARY, generator=generator)
        targets = torch.multinomial(reference.softmax(-1), 1, generator=generator)[:, 0]
        total = Comparison()
        total.add(reference, actual, targets)
        found = total.score(16, "crossing")
        expected = 100 * math.expm1(found.kl_mean)
        outside.append(not found.ppl_delta_low <= expected <= found.ppl_delta_high)
    assert np.mean(outside) < 0.05


def test_tokens_weigh_not_windows() -> None:
    """Windows of 10 and 90 tokens: the mean is over 98 predictions, not over two windows."""
    windows = [token_ids(10, 1), token_ids(90, 2)]
    source = Table(0)
    expected = straightforward(source, source, windows, "long")
    assert nll(source, windows, "long", chunk=16) == pytest.approx(math.log(expected["ppl"]), rel=1e-12)
    found = compare_windows(source, {"a": source}, windows, factor_set="long")["a"]
    assert (found.tokens, found.ppl) == (98, pytest.approx(expected["ppl"]))
    per_window = [nll(source, [window], "long") for window in windows]
    assert abs(np.mean(per_window) - math.log(expected["ppl"])) > 1e-3


def test_several_artifacts_are_scored_in_one_pass_of_the_reference() -> None:
    reference, near, far = Table(0), Table(1, noise=0.1), Table(1, noise=1.0)
    found = compare_windows(reference, {"near": near, "far": far}, WINDOWS, factor_set="long", chunk=10)
    assert found["near"] == score(Table(0), Table(1, noise=0.1), chunk=10)
    assert found["far"].kl_mean > 10 * found["near"].kl_mean
    assert reference.chunks == [10] * len(WINDOWS)


def test_the_reference_may_be_held_to_another_set() -> None:
    """A single artifact of a dual reference: its short regime is the reference's long set."""
    runs = [Run(Table(0), "long"), Run(Table(0), "short")]
    found = compare_runs(runs, {"a": (0, 1)}, WINDOWS, regime="short")["a"]
    assert found.kl_mean > 0.1
    assert found.regime == "short"


def test_kl_sees_what_perplexity_cannot() -> None:
    """Every wrong token permuted: the target keeps its probability, so perplexity does not move."""

    class Permuted(Table):
        def whole(self, ids: TokenIds, factor_set: FactorSet) -> Tensor:
            logits = super().whole(ids, factor_set)
            for row, target in zip(logits, [*ids[1:], 0], strict=True):
                others = torch.arange(VOCABULARY) != int(target)
                row[others] = row[others].flip(0)
            return logits

    found = score(Table(0), Permuted(0))
    assert abs(found.ppl_delta_percent) < 1e-6
    assert found.kl_mean > 1.0
    assert found.top1_agreement < 0.2


def test_progress_counts_every_row_once() -> None:
    seen: list[int] = []
    runs = [Run(Table(0), "long")] * 2
    compare_runs(runs, {"a": (0, 1)}, WINDOWS, regime="long", chunk=40, on_tokens=seen.append)
    assert sum(seen) == sum(map(len, WINDOWS))


# -- what goes wrong


class Poisoned(Table):
    """NaN in one row, as a broken kernel gives it."""

    def whole(self, ids: TokenIds, factor_set: FactorSet) -> Tensor:
        logits = super().whole(ids, factor_set)
        logits[5] = math.nan
        return logits


def test_nan_is_never_lost() -> None:
    found = score(Table(0), Poisoned(0))
    assert math.isnan(found.ppl)
    assert math.isnan(found.kl_mean)
    assert math.isnan(found.kl_p99)
    assert math.isnan(found.max_logit_diff)
    assert not math.isnan(found.ppl_reference)


def test_a_perplexity_beyond_float64_is_infinite() -> None:
    class Certain(Table):
        def whole(self, ids: TokenIds, factor_set: FactorSet) -> Tensor:
            logits = torch.zeros(len(ids), VOCABULARY)
            logits[:, 0] = 1e6
            return logits

    ids = np.full(20, 3)
    found = compare_windows(Table(0), {"a": Certain(0)}, [ids], factor_set="long")["a"]
    assert found.ppl == math.inf


def test_another_vocabulary_is_refused_before_anything_runs() -> None:
    reference = Table(0, name="model")
    with pytest.raises(InputError, match="b: expected a vocabulary of 50 tokens like model, got 51"):
        compare_windows(reference, {"a": Table(0), "b": Table(0, vocab_size=51)}, WINDOWS, factor_set="long")
    assert reference.chunks == []


def test_a_runtime_that_returns_fewer_rows_is_caught() -> None:
    class Short(Table):
        def logits(self, ids: TokenIds, factor_set: FactorSet, chunk: int) -> Iterator[Tensor]:
            for block in super().logits(ids, factor_set, chunk):
                yield block[: max(len(block) - 1, 1)]

    with pytest.raises(LongRopeError, match=r"returned logits \(15, 50\), expected \(16, 50\)"):
        score(Table(0), Short(0))


def test_a_runtime_that_stops_early_is_caught() -> None:
    class Early(Table):
        def logits(self, ids: TokenIds, factor_set: FactorSet, chunk: int) -> Iterator[Tensor]:
            yield next(super().logits(ids, factor_set, chunk))

    with pytest.raises((LongRopeError, ValueError)):
        score(Table(0), Early(0))


# -- crossing


@pytest.mark.parametrize("chunk", [1, 7, 20, 64])
def test_crossing_expects_a_full_recompute_at_every_position(chunk: int) -> None:
    ids, original, prefill = token_ids(48), 40, 32
    source = Table(0)
    expected = torch.cat((source.whole(ids[:40], "short")[31:], source.whole(ids, "long")[40:47]))
    rows = crossing_rows(source, ids, original, prefill=prefill, rule="per_forward", chunk=chunk)
    assert rows.shape == (len(ids) - prefill, VOCABULARY)
    assert torch.equal(rows, expected)


def test_crossing_with_one_set_per_context_is_long_throughout() -> None:
    ids = token_ids(48)
    rows = crossing_rows(Table(0), ids, 40, prefill=32, rule="per_context", chunk=10)
    assert torch.equal(rows, Table(0).whole(ids, "long")[31:47])


def test_crossing_scores_the_decoded_tokens() -> None:
    ids, source = token_ids(48), Table(0)
    rows = crossing_rows(source, ids, 40, prefill=32, rule="per_context")
    found = compare_rows(rows, source.decode_logits(ids, 32)[:-1], ids, prefill=32)
    assert (found.regime, found.length, found.tokens, found.kl_mean) == ("crossing", 48, 16, 0.0)
    switched = crossing_rows(source, ids, 40, prefill=32, rule="per_forward")
    stale = compare_rows(switched, source.decode_logits(ids, 32)[:-1], ids, prefill=32)
    assert stale.kl_mean > 0.1
