"""Training rows from documents: any row can be made from its number alone, so a resumed run just goes on counting.

    row number ──► kind (text, short or retrieval, spread evenly by their shares)
                     text       │ <bos> a piece of a document, or several short documents <eos> │
                     short      │ <bos> up to L tokens <eos> │ <bos> up to L tokens <eos> │ …  │
                     retrieval  │ a passkey in real text, asked for at the end │ …            │

Documents are cut to the row's length and bookended; shorter ones are packed. The factor set is each sequence's own: in mixed
training, sequences of at most L tokens get the short set, longer ones the long set, whatever else lies in their row.
Source: LongRoPE (arXiv 2402.13753) for bookended chunks, LongRoPE2 (arXiv 2502.20082) for mixed context windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any, Final, Literal

import numpy as np

from longrope.checkpoint import Checkpoint
from longrope.errors import InputError
from longrope.finetune.batch import PackedBatch, TrainingSequence, pack
from longrope.finetune.rotary import LONG, SHORT
from longrope.retrieval import Encode, passkey_sample, with_distractors
from longrope.text import Corpus, TokenIds

Kind = Literal["text", "short", "retrieval"]
KINDS: Final = ("short", "retrieval", "text")
# Steps of this fraction of a turn spread the kinds more evenly than chance does.
GOLDEN: Final = 0.6180339887498949
# Pieces shorter than this are not worth a sequence.
MIN_PIECE: Final = 16
# A passkey needs about 40 tokens of statement and question; below this there is no filler to speak of.
MIN_RETRIEVAL: Final = 128


@dataclass(frozen=True)
class Mixture:
    """What rows are made of.

    Args:
        row_length: T, tokens of a row.
        short_length: L, the longest sequence that the short set serves.
        short_share: part of the rows that hold short sequences; above 0, training is mixed.
        retrieval_share: part of the rows that hold passkeys.
        retrieval_distractors: other numbers in their texts, per 1,024 tokens.
        answer_share: part of a retrieval sequence's loss that its answer makes up; by count it would be nearly nothing.
        distil_short: sequences of short rows are for a teacher, every other one under the long set.
        seed: of the order, the cuts, the keys.
    """

    row_length: int
    short_length: int
    short_share: float = 0.0
    retrieval_share: float = 0.0
    retrieval_distractors: float = 0.0
    answer_share: float = 0.1
    distil_short: bool = False
    seed: int = 0

    @property
    def mixed(self) -> bool:
        """Whether short sequences train the short set."""
        return self.short_share > 0

    def factor_set(self, length: int) -> int:
        """`SHORT` or `LONG`, for a sequence of so many tokens."""
        return SHORT if self.mixed and length <= self.short_length else LONG


@dataclass(frozen=True)
class Bookends:
    """Tokens around every piece of text; None where the model has none."""

    start: int | None
    end: int | None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Bookends:
        """bos_token_id and eos_token_id of a config.json; of several ends the first."""
        start, end = config.get("bos_token_id"), config.get("eos_token_id")
        return cls(start, end[0] if isinstance(end, list) else end)

    @property
    def size(self) -> int:
        return (self.start is not None) + (self.end is not None)

    def around(self, ids: TokenIds) -> TokenIds:
        start = [] if self.start is None else [self.start]
        end = [] if self.end is None else [self.end]
        return np.concatenate([np.array(start, np.int64), ids, np.array(end, np.int64)])

    def stripped(self, ids: TokenIds) -> TokenIds:
        """Text without what the tokenizer put around it."""
        first = int(ids.size > 0 and ids[0] == self.start)
        last = ids.size - int(ids.size > first and ids[-1] == self.end)
        return ids[first:last]


@dataclass(frozen=True)
class Piece:
    """Tokens start … stop of a document."""

    document: int
    start: int
    stop: int


class TrainingRows:
    """All rows of a stage, by their number."""

    def __init__(self, corpus: Corpus, mixture: Mixture, bookends: Bookends, encode: Encode) -> None:
        """Take documents as they are.

        Args:
            corpus: what is trained on.
            mixture: what rows are made of.
            bookends: around every sequence.
            encode: text to ids without special tokens, for passkeys.

        Raises:
            InputError: no document fills a row, or rows are too short for what they should hold.
        """
        self.mixture, self.bookends, self.encode = mixture, bookends, encode
        self.documents = [bookends.stripped(document.ids) for document in corpus.documents]
        self.room = mixture.row_length - bookends.size
        longest = max((ids.size for ids in self.documents), default=0)
        if longest < self.room:
            raise InputError(
                f"expected a document of at least {self.room} tokens to train on, got {len(self.documents)} documents, the "
                f"longest with {longest} tokens; give longer texts or a smaller length",
                option="text",
            )
        if mixture.retrieval_share and mixture.row_length < MIN_RETRIEVAL:
            raise InputError(f"passkeys need rows of at least {MIN_RETRIEVAL} tokens, got {mixture.row_length}")
        self._plan = lru_cache(maxsize=4)(self._make_plan)
        self._plan_size = cache(lambda kind, epoch: len(self._plan(kind, epoch)))

    def row(self, number: int) -> PackedBatch:
        """The row of this number, counted from 0 over the whole stage; always the same one."""
        kind, rank = self.place(number)
        if kind == "retrieval":
            return pack(self._retrieval(number), self.mixture.row_length)
        epoch = 0
        while rank >= self._plan_size(kind, epoch):
            rank -= self._plan_size(kind, epoch)
            epoch += 1
        make = self._taught if kind == "short" and self.mixture.distil_short else self._sequence
        return pack([make(piece) for piece in self._plan(kind, epoch)[rank]], self.mixture.row_length)

    def place(self, number: int) -> tuple[Kind, int]:
        """What kind row `number` is, and how many of its kind come before it."""
        bounds = np.cumsum([self.mixture.short_share, self.mixture.retrieval_share])
        spread = (0.5 + GOLDEN * np.arange(number + 1)) % 1.0
        kinds = np.searchsorted(bounds, spread, side="right")
        kind: Kind = KINDS[int(kinds[-1])]
        return kind, int(np.count_nonzero(kinds[:-1] == kinds[-1]))

    def _rng(self, *place: int) -> np.random.Generator:
        return np.random.default_rng([self.mixture.seed, *place])

    # -- text

    def _make_plan(self, kind: Kind, epoch: int) -> list[list[Piece]]:
        """All rows of one pass over the documents, shuffled, cut at other places each time."""
        rng = self._rng(KINDS.index(kind), epoch)
        size = (
            self.room
            if kind == "text"
            else min(self.mixture.short_length, self.mixture.row_length) - self.bookends.size
        )
        whole: list[Piece] = []
        part: list[Piece] = []
        for index in rng.permutation(len(self.documents)):
            length = self.documents[index].size
            if length < size:
                part += [Piece(int(index), 0, length)] if length >= MIN_PIECE else []
                continue
            first = int(rng.integers(length % size + 1))
            whole += [Piece(int(index), start, start + size) for start in range(first, length - size + 1, size)]
        if kind == "text":
            rows = [[piece] for piece in whole] + self._packed(part)
        else:
            pieces = whole + part
            rows = self._packed([pieces[k] for k in rng.permutation(len(pieces))])
        return [rows[k] for k in rng.permutation(len(rows))]

    def _packed(self, pieces: Sequence[Piece]) -> list[list[Piece]]:
        """Fill row after row; a piece that does not fit into what is left of a row is cut there."""
        rows: list[list[Piece]] = []
        left = 0
        for piece in pieces:
            if left < self.bookends.size + MIN_PIECE:
                rows.append([])
                left = self.mixture.row_length
            size = min(piece.stop - piece.start, left - self.bookends.size)
            rows[-1].append(Piece(piece.document, piece.start, piece.start + size))
            left -= size + self.bookends.size
        return rows

    def _sequence(self, piece: Piece) -> TrainingSequence:
        """A piece with its bookends; the end token counts only where the document ends."""
        document = self.documents[piece.document]
        ids = self.bookends.around(document[piece.start : piece.stop])
        weights = np.ones(ids.size, np.float32)
        if self.bookends.end is not None and piece.stop < document.size:
            weights[-1] = 0
        return TrainingSequence(ids, self.mixture.factor_set(ids.size), weights)

    def _taught(self, piece: Piece) -> TrainingSequence:
        """The same for a teacher. Both sets learn from it in turn: a single export has only the long one."""
        sequence = self._sequence(piece)
        turn = piece.document + piece.start // len(sequence)
        return replace(sequence, factor_set=sequence.factor_set if turn % 2 else LONG, taught=True)

    # -- retrieval

    def _retrieval(self, number: int) -> list[TrainingSequence]:
        """Passkeys in sequences that fill a row: half of the rows hold one, the others several of all lengths."""
        rng, left, samples = self._rng(len(KINDS), number), self.mixture.row_length, []
        whole = rng.random() < 0.5
        while left >= MIN_RETRIEVAL:
            size = left if whole else min(left, int(np.exp(rng.uniform(np.log(MIN_RETRIEVAL), np.log(2 * left)))))
            samples.append(self._passkey(size, rng))
            left -= size
        return samples

    def _passkey(self, length: int, rng: np.random.Generator) -> TrainingSequence:
        room = length - self.bookends.size
        filler = self._filler(room, rng)
        sample = passkey_sample(self.encode, filler, room, float(rng.random()), rng)
        ids = self.bookends.around(sample.token_ids)
        first = int(self.bookends.start is not None)
        answer = slice(first + sample.answer_start, first + sample.answer_stop)
        weights = np.ones(length, np.float32)
        count, share = answer.stop - answer.start, self.mixture.answer_share
        weights[answer] = share / (1 - share) * (length - 1 - count) / count
        return TrainingSequence(ids, self.mixture.factor_set(length), weights)

    def _filler(self, room: int, rng: np.random.Generator) -> TokenIds:
        """Real text of at least `room` tokens: a whole document, or a run of one with distractors."""
        fillers = [ids for ids in self.documents if ids.size >= room]
        filler = fillers[rng.integers(len(fillers))]
        distractors = round(self.mixture.retrieval_distractors * room / 1024)
        if not distractors:
            return filler
        start = int(rng.integers(filler.size - room + 1))
        return with_distractors(self.encode, filler[start : start + room], distractors, rng)


def training_rows(checkpoint: Checkpoint, corpus: Corpus, mixture: Mixture) -> TrainingRows:
    """Rows for a model: its bookends, its tokenizer. Raises as `TrainingRows`."""
    return TrainingRows(corpus, mixture, Bookends.of(checkpoint.config), checkpoint.encode_plain)
