"""Retrieval prompts: something stated in the middle of real text, and asked for at the end.

    ├──── filler ────┤ statement ├──────── filler ────────┤ question answer │
    0            depth · room                                        length

passkey   a number of five digits                            (LongRoPE, arXiv 2402.13753, section 4.3)
needle    where somebody's things are, answered in words     (after LongRoPE2, arXiv 2502.20082, section 3.2)

The same builder makes training windows and evaluation prompts of any length. `measure` puts prompts to a source of
logits: is every token of the answer the likeliest one (teacher-forced), is it what greedy decoding writes, and how
likely is it (needle perplexity: the answer's tokens only).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from longrope.errors import InputError
from longrope.metrics import perplexity
from longrope.scoring import LogitSource, greedy, score_answer
from longrope.text import TokenIds

Encode = Callable[[str], Sequence[int]]
"""Text to token ids, adding no special tokens."""


PASSKEY_STATEMENT: Final = "\n\nThe pass key is {key}. Remember it. {key} is the pass key.\n\n"
PASSKEY_QUESTION: Final = "\n\nWhat is the pass key? The pass key is"
PASSKEY_ANSWER: Final = " {key}"

DISTRACTORS: Final = (" {number}", "\n\n{number}\n\n", "\n\nCHAPTER {number}\n\n", "\n\nChapter {number}\n\n")

NEEDLE_STATEMENT: Final = "\n\n{owner} keeps the {thing} in {place}.\n\n"
NEEDLE_QUESTION: Final = "\n\nWhere does {owner} keep the {thing}? {owner} keeps the {thing} in"
NEEDLE_ANSWER: Final = " {place}"
NEEDLE_OWNERS: Final = ("the captain", "the widow", "the teacher", "my uncle", "the gardener", "the judge", "our cook")
NEEDLE_THINGS: Final = ("silver watch", "old letters", "blue ribbon", "brass key", "map", "violin", "green lamp")
NEEDLE_PLACES: Final = (
    "the kitchen drawer",
    "a box under the stairs",
    "the garden house",
    "the pocket of a coat",
    "an empty barrel",
    "the church tower",
    "a basket by the window",
)


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
    start_ids: Sequence[int] = (),
) -> TokenIds:
    """Exactly `length` tokens: the start, a random contiguous run of filler with the statement at `depth`, the ending."""
    filler = np.asarray(filler_ids, dtype=np.int64)
    room = length - len(start_ids) - len(statement_ids) - len(ending_ids)
    if not 0.0 <= depth <= 1.0:
        raise InputError(f"expected a depth between 0 and 1, got {depth}")
    if room < 0:
        raise InputError(f"expected a length of at least {length - room} tokens, got {length}")
    if filler.size < room:
        raise InputError(f"expected at least {room} filler tokens, got {filler.size}: give a longer text")
    start = int(rng.integers(filler.size - room + 1))
    cut = start + round(depth * room)
    parts = (start_ids, filler[start:cut], statement_ids, filler[cut : start + room], ending_ids)
    return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])


def with_distractors(encode: Encode, filler_ids: TokenIds, count: int, rng: np.random.Generator) -> TokenIds:
    """Filler in which `count` other numbers of one to five digits stand at random places, cut to its old length.

    A copying head that looks for what followed the last digit finds it after every such digit of the text. How many there
    are grows with the text, so they stand for one that is much longer. Numbers are spread evenly in their logarithm, as in
    real text: three of ten begin with a 1 (Benford's law). Some stand within a sentence, others apart as in headings.
    """
    pieces = np.split(filler_ids, np.sort(rng.integers(0, filler_ids.size + 1, count)))
    numbers = [int(10**exponent) for exponent in rng.uniform(0, 5, count)]
    texts = [str(rng.choice(DISTRACTORS)).format(number=number) for number in numbers]
    inserted = [np.array(encode(text), dtype=np.int64) for text in texts]
    mixed = [part for pair in zip(pieces, [*inserted, np.empty(0, np.int64)], strict=True) for part in pair]
    return np.concatenate(mixed)[: filler_ids.size]


def passkey_sample(
    encode: Encode,
    filler_ids: npt.ArrayLike,
    length: int,
    depth: float,
    rng: np.random.Generator,
    *,
    num_digits: int = 5,
    start_ids: Sequence[int] = (),
) -> RetrievalSample:
    """A random passkey stated at `depth` in `length` tokens of filler and asked for at the end (LongRoPE's passkey task).

    encode: text → ids, adding no special tokens; filler_ids: ids of real text, at least `length` of them.
    depth: relative place of the statement in the filler, 0 to 1. The same `rng` state gives the same sample.
    start_ids: what the model expects before every text, see `longrope.checkpoint.Checkpoint.added_around`.
    """
    key = "".join(str(digit) for digit in (rng.integers(1, 10), *rng.integers(0, 10, num_digits - 1)))
    statement, answer = PASSKEY_STATEMENT.format(key=key), PASSKEY_ANSWER.format(key=key)
    return _sample(encode, filler_ids, length, depth, rng, (statement, PASSKEY_QUESTION, answer), start_ids)


def needle_sample(
    encode: Encode,
    filler_ids: npt.ArrayLike,
    length: int,
    depth: float,
    rng: np.random.Generator,
    *,
    start_ids: Sequence[int] = (),
) -> RetrievalSample:
    """A sentence of who keeps what where, stated at `depth` and asked for at the end; arguments as `passkey_sample`."""
    words = {
        "owner": rng.choice(NEEDLE_OWNERS),
        "thing": rng.choice(NEEDLE_THINGS),
        "place": rng.choice(NEEDLE_PLACES),
    }
    texts = (NEEDLE_STATEMENT, NEEDLE_QUESTION, NEEDLE_ANSWER)
    statement, question, answer = (text.format(**words) for text in texts)
    return _sample(encode, filler_ids, length, depth, rng, (statement, question, answer), start_ids)


def _sample(
    encode: Encode,
    filler_ids: npt.ArrayLike,
    length: int,
    depth: float,
    rng: np.random.Generator,
    texts: tuple[str, str, str],
    start_ids: Sequence[int],
) -> RetrievalSample:
    """A prompt of (statement, question, answer); tokens that merge question and answer belong to the answer."""
    statement, question, answer = texts
    asked, ending = encode(question), encode(question + answer)
    token_ids = hide(filler_ids, encode(statement), ending, length, depth, rng, start_ids)
    return RetrievalSample(token_ids, length - len(ending) + common_prefix(asked, ending), length, depth)


# -- measuring

MakeSample = Callable[..., RetrievalSample]
TASKS: Final[Mapping[str, MakeSample]] = {"passkey": passkey_sample, "needle": needle_sample}


@dataclass(frozen=True)
class RetrievalRow:
    """What a source recalls at one length and depth.

    Args:
        length: tokens of a prompt, its answer included.
        depth: of the statement, 0 (first) to 1 (last).
        samples: prompts measured.
        accuracy: share of prompts whose whole answer is the likeliest, token by token, given all before it.
        answer_ppl: exp of the mean NLL of the answers' tokens.
        generated: share of prompts that greedy decoding answers; None where it was not asked for.
    """

    length: int
    depth: float
    samples: int
    accuracy: float
    answer_ppl: float
    generated: float | None = None


def samples_of(
    task: str,
    encode: Encode,
    filler_ids: npt.ArrayLike,
    length: int,
    depth: float,
    count: int,
    seed: int,
    start_ids: Sequence[int] = (),
) -> Iterator[RetrievalSample]:
    """`count` prompts. Prompt k has the same filler and answer at every depth: only the statement's place differs.

    Raises:
        InputError: too little filler, or a length or depth that cannot be.
    """
    for k in range(count):
        rng = np.random.default_rng([seed, length, k])
        yield TASKS[task](encode, filler_ids, length, depth, rng, start_ids=start_ids)


def measure(
    source: LogitSource,
    samples: Sequence[RetrievalSample],
    *,
    generate: bool = False,
    on_sample: Callable[[], None] = lambda: None,
) -> RetrievalRow:
    """Put prompts of one length and depth to a source, under the set its runtime uses for that length.

    Only the rows of logits that predict the answer are asked for.
    """
    found = written = 0
    nll, tokens = 0.0, 0
    for sample in samples:
        used, count = source.set_for(len(sample.token_ids)), len(sample.answer_ids)
        answer_nll, recalled = score_answer(source, sample.token_ids, sample.answer_start, used)
        found += recalled
        nll += answer_nll
        tokens += count
        if generate:
            written += np.array_equal(greedy(source, sample.prompt_ids, count, used), sample.answer_ids)
        on_sample()
    first, count = samples[0], len(samples)
    ppl = perplexity(nll / tokens)
    return RetrievalRow(
        len(first.token_ids), first.depth, count, found / count, ppl, written / count if generate else None
    )
