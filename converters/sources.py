"""Runtimes as sources of logits and back: arrays in a runtime, tensors in the scorer. torch is imported on use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from longrope.factors import FactorSet
from longrope.sources import Hidden, Rows, Rule, Runtime, Stop, never
from longrope.text import TokenIds

if TYPE_CHECKING:
    from torch import Tensor

    from longrope.scoring import LogitSource

# Of the longer one of two texts in a batch.
BATCH_TOKENS = 12


class TensorSource:
    """A runtime for the scorer (see `longrope.scoring.LogitSource`).

    Args:
        runtime: whose arrays become tensors; they share memory.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.name, self.vocab_size = runtime.name, runtime.vocab_size
        self.rule: Rule = runtime.rule

    def set_for(self, length: int) -> FactorSet:
        return self.runtime.set_for(length)

    def logits(self, ids: TokenIds, factor_set: FactorSet, chunk: int) -> Iterator[Tensor]:
        for rows in self.runtime.logits(ids, factor_set, chunk):
            yield _tensor(rows)

    def decode_logits(self, ids: TokenIds, prefill: int) -> Tensor:
        return _tensor(self.runtime.decode_logits(ids, prefill))

    def tail_logits(self, ids: TokenIds, factor_set: FactorSet, first: int) -> Tensor:
        return _tensor(self.runtime.tail_logits(ids, factor_set, first))

    def greedy(self, prompt: TokenIds, count: int, factor_set: FactorSet, stop: Stop = never) -> TokenIds:
        return self.runtime.greedy(prompt, count, factor_set, stop)

    def padded_batch(self, short: TokenIds, long: TokenIds) -> Tensor | None:
        """Two texts in one pass (`converters.onnx.runtime.OnnxRuntime.padded_batch`); None where a runtime takes one."""
        batch = getattr(self.runtime, "padded_batch", None)
        rows = None if batch is None else batch(short, long)
        return None if rows is None else _tensor(rows)

    def hidden_states(self, ids: TokenIds, factor_set: FactorSet, keep: int) -> Tensor | None:
        """The residual stream [layers + 1, keep, D] of the first positions; None where a runtime does not give it."""
        states = getattr(self.runtime, "hidden_states", None)
        found = None if states is None else states(ids, factor_set, keep)
        return None if found is None else _tensor(found)

    def close(self) -> None:
        self.runtime.close()


class SourceRuntime:
    """A source of logits as a runtime (see `longrope.sources.Runtime`): for formats whose runtime gives tensors."""

    def __init__(self, source: LogitSource) -> None:
        self.source = source
        self.name, self.vocab_size = source.name, source.vocab_size
        self.rule: Rule = source.rule

    def set_for(self, length: int) -> FactorSet:
        return self.source.set_for(length)

    def logits(self, ids: TokenIds, factor_set: FactorSet, chunk: int) -> Iterator[Rows]:
        for rows in self.source.logits(ids, factor_set, chunk):
            yield rows.numpy()

    def decode_logits(self, ids: TokenIds, prefill: int) -> Rows:
        return self.source.decode_logits(ids, prefill).numpy()

    def tail_logits(self, ids: TokenIds, factor_set: FactorSet, first: int) -> Rows:
        from longrope import scoring

        return scoring.tail_logits(self.source, ids, factor_set, first).numpy()

    def greedy(self, prompt: TokenIds, count: int, factor_set: FactorSet, stop: Stop) -> TokenIds:
        from longrope import scoring

        return scoring.greedy(self.source, prompt, count, factor_set, stop)

    def hidden_states(self, ids: TokenIds, factor_set: FactorSet, keep: int) -> Hidden | None:
        states = getattr(self.source, "hidden_states", None)
        found = None if states is None else states(ids, factor_set, keep)
        return None if found is None else found.numpy()

    def close(self) -> None:
        self.source.close()


def batch_and_alone(source: LogitSource, ids: TokenIds) -> tuple[Tensor, Tensor, TokenIds] | None:
    """Two texts in one pass, the shorter one padded in front, and each alone: rows [t, V] twice, and their tokens [t].

    None where a runtime takes one text at a time. The texts are the beginning of `ids`, and half of that.
    """
    import torch

    if not isinstance(source, TensorSource):
        return None
    texts = (ids[: BATCH_TOKENS // 2], ids[:BATCH_TOKENS])
    together = source.padded_batch(*texts)
    if together is None:
        return None
    alone = [rows for text in texts for rows in source.logits(text, source.set_for(len(text)), len(text))]
    return together, torch.cat(alone), np.concatenate(texts)


def _tensor(rows: Rows) -> Tensor:
    import torch

    return torch.from_numpy(rows)
