"""What a runtime offers, in numpy's arrays: nothing here needs torch, so that a runtime can live in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from longrope.factors import FactorSet
from longrope.text import TokenIds

Rows = NDArray[np.float32]
"""Logits [T, V]."""
Hidden = NDArray[np.float32]
"""The residual stream [layers + 1, T, D]: before the first layer, and behind each."""
Rule = Literal["per_forward", "per_context"]
Stop = Callable[[Sequence[int]], bool]
"""Whether generation ends after these new tokens."""


def never(tokens: Sequence[int]) -> bool:
    """The `Stop` that always goes on."""
    return False


class Runtime(Protocol):
    """A model in some runtime: `longrope.scoring.LogitSource` and `PromptSource` with arrays for tensors.

    Attributes:
        name: for messages.
        vocab_size: V.
        rule: when the runtime changes factor sets: anew at every forward, or once for a whole context.
    """

    name: str
    vocab_size: int
    rule: Rule

    def set_for(self, length: int) -> FactorSet: ...

    def logits(self, ids: TokenIds, factor_set: FactorSet, chunk: int) -> Iterator[Rows]: ...

    def decode_logits(self, ids: TokenIds, prefill: int) -> Rows: ...

    def tail_logits(self, ids: TokenIds, factor_set: FactorSet, first: int) -> Rows: ...

    def greedy(self, prompt: TokenIds, count: int, factor_set: FactorSet, stop: Stop) -> TokenIds: ...

    def close(self) -> None: ...
