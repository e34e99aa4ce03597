"""Retrieval prompts: a key told somewhere in real text, and asked for at the end.

    ├──── filler ────┤ statement ├──────── filler ────────┤ question answer │
    0            depth · room                                        length

The same builder makes training windows and evaluation prompts of any length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from longrope.errors import InputError

Encode = Callable[[str], Sequence[int]]
"""Text to token ids, adding no special tokens."""

TokenIds = npt.NDArray[np.int64]

PASSKEY_STATEMENT: Final = "\n\nThe pass key is {key}. Remember it. {key} is the pass key.\n\n"
PASSKEY_QUESTION: Final = "\n\nWhat is the pass key? The pass key is"
PASSKEY_ANSWER: Final = " {key}"


@dataclass(frozen=True)
class RetrievalSample:
    """One prompt with its answer.

    token_ids: the whole sequence, answer included, shape (length,).
    answer_start, answer_stop: the answer is `token_ids[answer_start:answer_stop]`.
    depth: where the statement stands, 0 (first) to 1 (right before the question).
    """

    token_ids: TokenIds
    answer_start: int
    answer_stop: int
    depth: float

    @property
    def prompt_ids(self) -> TokenIds:
        """Everything before the answer, shape (answer_start,)."""
        return self.token_ids[: self.answer_start]

    @property
    def answer_ids(self) -> TokenIds:
        """The answer's tokens, shape (answer_stop − answer_start,)."""
        return self.token_ids[self.answer_start : self.answer_stop]

    def recalled(self, predicted_ids: npt.ArrayLike) -> bool:
        """Whether every token of the answer was predicted (teacher-forced).

        predicted_ids: shape (length,) or (length − 1,); entry i is the model's argmax after reading tokens 0 … i.
        """
        predicted = np.asarray(predicted_ids)[self.answer_start - 1 : self.answer_stop - 1]
        return bool(np.array_equal(predicted, self.answer_ids))


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of leading elements that two sequences share."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))


def hide(
    filler_ids: npt.ArrayLike,
    statement_ids: Sequence[int],
    ending_ids: Sequence[int],
    length: int,
    depth: float,
    rng: np.random.Generator,
) -> TokenIds:
    """Exactly `length` tokens: a random contiguous run of filler, the statement at `depth` in it, then the ending."""
    filler = np.asarray(filler_ids, dtype=np.int64)
    room = length - len(statement_ids) - len(ending_ids)
    if not 0.0 <= depth <= 1.0:
        raise InputError(f"expected a depth between 0 and 1, got {depth}")
    if room < 0:
        raise InputError(f"expected a length of at least {length - room} tokens, got {length}")
    if filler.size < room:
        raise InputError(f"expected at least {room} filler tokens, got {filler.size}: give a longer text")
    start = int(rng.integers(filler.size - room + 1))
    cut = start + round(depth * room)
    parts = (filler[start:cut], statement_ids, filler[cut : start + room], ending_ids)
    return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])


def passkey_sample(
    encode: Encode,
    filler_ids: npt.ArrayLike,
    length: int,
    depth: float,
    rng: np.random.Generator,
    *,
    num_digits: int = 5,
) -> RetrievalSample:
    """A random pass key told at `depth` in `length` tokens of filler and asked for at the end (LongRoPE's passkey task).

    encode: text → ids, adding no special tokens; filler_ids: ids of real text, at least `length` of them.
    depth: relative place of the statement in the filler, 0 to 1. The same `rng` state gives the same sample.
    """
    key = "".join(str(digit) for digit in (rng.integers(1, 10), *rng.integers(0, 10, num_digits - 1)))
    question = encode(PASSKEY_QUESTION)
    ending = encode(PASSKEY_QUESTION + PASSKEY_ANSWER.format(key=key))
    token_ids = hide(filler_ids, encode(PASSKEY_STATEMENT.format(key=key)), ending, length, depth, rng)
    answer_start = length - len(ending) + common_prefix(question, ending)
    return RetrievalSample(token_ids, answer_start, length, depth)
