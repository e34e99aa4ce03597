"""Sequences packed into one row, as the tensors of one pass.

sequence     │ <bos> a b c <eos> │ <bos> d e <eos> │
ids          │   0   5 6 7   0   │   0   8 9   0   │
labels       │   5   6 7 0  -100 │   8   9 0  -100 │      the next token of the same sequence
positions    │   0   1 2 3   4   │   0   1 2   3   │
sets         │   long            │   short         │      given for every sequence, by its own length
taught       │   no              │   yes           │      the next token's distribution is a teacher's
cu_seqlens   0                   5                 9
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longrope.finetune.rotary import LONG, SHORT
from longrope.text import TokenIds

IGNORED = -100
TENSORS = ("ids", "labels", "weights", "positions", "sets", "taught")


@dataclass(frozen=True)
class TrainingSequence:
    """One document, or a piece of one, as it is trained on.

    Args:
        ids: [n] tokens, bookends included.
        factor_set: `SHORT` or `LONG`.
        weights: [n] how much each token counts when it is predicted; None for 1 each. The first is never predicted.
        taught: a teacher's distribution is learned where there is one, not the text's next token.
    """

    ids: TokenIds
    factor_set: int = LONG
    weights: NDArray[np.float32] | None = None
    taught: bool = False

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class PackedBatch:
    """What one forward takes: any number of sequences, one after the other.

    Args:
        ids: [1, T] tokens.
        labels: [1, T] at each token the next one of its sequence; `IGNORED` where nothing is predicted.
        weights: [1, T] float32, at each token how much its prediction counts; 0 where nothing is predicted.
        positions: [1, T] from 0 in every sequence.
        sets: [1, T] factor set of the token's sequence, `SHORT` or `LONG`.
        taught: [1, T] bool, at each token whether a teacher says what comes next. Such tokens count 1.
        cu_seqlens: where sequences start, and T.
    """

    ids: Tensor
    labels: Tensor
    weights: Tensor
    positions: Tensor
    sets: Tensor
    taught: Tensor
    cu_seqlens: tuple[int, ...]

    @property
    def weight(self) -> float:
        """Sum of the weights of all predicted tokens: what the summed loss is divided by."""
        return float(self.weights.double().sum())

    @property
    def lengths(self) -> list[int]:
        """Tokens of every sequence."""
        return [stop - start for start, stop in zip(self.cu_seqlens, self.cu_seqlens[1:], strict=False)]

    def map(self, change: Callable[[Tensor], Tensor]) -> PackedBatch:
        """The batch with every tensor changed: moved to a device, or cut to one rank's tokens. The bounds stay whole."""
        return PackedBatch(**{name: change(getattr(self, name)) for name in TENSORS}, cu_seqlens=self.cu_seqlens)


def pack(sequences: Sequence[TrainingSequence], length: int | None = None) -> PackedBatch:
    """Lay sequences one after the other.

    Args:
        sequences: in their order.
        length: T; what is left is filled with a sequence that counts for nothing. None for no filling.
    """
    room = 0 if length is None else length - sum(map(len, sequences))
    if room < 0:
        raise ValueError(f"{-room} tokens too many for a row of {length}")
    if room:
        sequences = [*sequences, TrainingSequence(np.zeros(room, np.int64), SHORT, np.zeros(room, np.float32))]
    return PackedBatch(
        ids=_row([sequence.ids for sequence in sequences]),
        labels=_row([_labels(sequence) for sequence in sequences]),
        weights=_row([_weights(sequence) for sequence in sequences]),
        positions=_row([np.arange(len(sequence)) for sequence in sequences]),
        sets=_row([np.full(len(sequence), sequence.factor_set) for sequence in sequences]),
        taught=_row([sequence.taught & (_labels(sequence) != IGNORED) for sequence in sequences]),
        cu_seqlens=tuple(accumulate(map(len, sequences), initial=0)),
    )


def join(batches: Sequence[PackedBatch]) -> PackedBatch:
    """Several rows as one, for windows so short that one row would not fill the device."""
    if len(batches) == 1:
        return batches[0]
    bounds = [0]
    for batch in batches:
        bounds += [bounds[-1] + bound for bound in batch.cu_seqlens[1:]]
    tensors = {name: torch.cat([getattr(batch, name) for batch in batches], dim=1) for name in TENSORS}
    return PackedBatch(**tensors, cu_seqlens=tuple(bounds))


def _row(parts: Sequence[NDArray[np.generic]]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))[None]


def _labels(sequence: TrainingSequence) -> TokenIds:
    """The next token; ignored at the end, and where it counts for nothing."""
    labels = np.append(sequence.ids[1:], IGNORED)
    labels[_weights(sequence) == 0] = IGNORED
    return labels


def _weights(sequence: TrainingSequence) -> NDArray[np.float32]:
    """[n] at each token the weight of the next one: kept where a token is, used where it is predicted. 0 at the end."""
    if sequence.weights is None:
        weights = np.ones(len(sequence), dtype=np.float32)
        weights[-1] = 0
        return weights
    return np.append(sequence.weights[1:], np.float32(0)).astype(np.float32)
