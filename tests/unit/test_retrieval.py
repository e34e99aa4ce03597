"""Retrieval prompts have exactly the length asked for, the key where it was asked for, and the answer at the end."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from longrope.checkpoint import Checkpoint
from longrope.errors import InputError
from longrope.retrieval import (
    TASKS,
    RetrievalSample,
    common_prefix,
    measure,
    needle_sample,
    passkey_sample,
    samples_of,
)
from longrope.text import TokenIds


def encode(text: str) -> list[int]:
    """One token a character."""
    return [ord(character) for character in text]


def decode(ids: np.ndarray) -> str:
    return "".join(map(chr, ids))


FILLER = np.array(encode("It was a dark night. " * 200))


def sample(length: int = 512, depth: float = 0.5, seed: int = 0) -> RetrievalSample:
    return passkey_sample(encode, FILLER, length, depth, np.random.default_rng(seed))


@pytest.mark.parametrize("length", [150, 256, 2048])
@pytest.mark.parametrize("depth", [0.0, 0.37, 1.0])
def test_length_is_exact_and_the_answer_ends_it(length: int, depth: float) -> None:
    made = sample(length, depth)
    assert made.token_ids.shape == (length,)
    assert made.answer_stop == length
    assert np.array_equal(np.concatenate([made.prompt_ids, made.answer_ids]), made.token_ids)
    key = decode(made.answer_ids).strip()
    assert len(key) == 5
    assert decode(made.prompt_ids).count(key) == 2
    assert decode(made.prompt_ids).endswith("The pass key is")


def test_depth_places_the_statement() -> None:
    places = [decode(sample(1024, depth).token_ids).index("The pass key is") for depth in (0.0, 0.25, 0.5, 1.0)]
    assert places == sorted(places)
    assert places[0] == 2  # after its line breaks
    assert decode(sample(1024, 1.0).token_ids).count("\n\n\n\n") == 1  # statement and question touch


@pytest.mark.parametrize("task", ["passkey", "needle"])
def test_a_prompt_begins_as_every_text_of_the_model_does(task: str) -> None:
    (sample,) = samples_of(task, encode, FILLER, 200, 0.5, 1, seed=3, start_ids=[7])
    assert len(sample.token_ids) == 200
    assert sample.token_ids[0] == 7


def test_what_the_tokenizer_adds_around_a_text(pico: Checkpoint) -> None:
    assert pico.added_around == ([], [])
    adding = copy.deepcopy(pico.tokenizer)
    adding.post_processor = TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    checkpoint = replace(pico)
    checkpoint.__dict__["tokenizer"] = adding
    assert checkpoint.added_around == ([1], [2])


def test_same_seed_same_sample() -> None:
    assert np.array_equal(sample(seed=3).token_ids, sample(seed=3).token_ids)
    assert not np.array_equal(sample(seed=3).token_ids, sample(seed=4).token_ids)


@pytest.mark.parametrize("drop_last", [False, True])
def test_recalled_looks_at_the_answer_only(drop_last: bool) -> None:
    made = sample()
    predicted = np.zeros(made.token_ids.size, dtype=np.int64)
    predicted[made.answer_start - 1 : made.answer_stop - 1] = made.answer_ids
    seen = predicted[:-1] if drop_last else predicted
    assert made.recalled(seen)
    seen[made.answer_stop - 2] += 1
    assert not made.recalled(seen)


@pytest.mark.parametrize(
    ("length", "depth", "message"),
    [(20, 0.5, "a length of at least"), (256, 1.5, "a depth between 0 and 1"), (100_000, 0.5, "filler tokens")],
)
def test_impossible_prompts_are_refused(length: int, depth: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sample(length, depth)


def test_tokens_that_merge_the_answer_with_the_question_belong_to_the_answer() -> None:
    def merging(text: str) -> list[int]:
        return [ord(c) for c in text.replace("is 4", "\u0100").replace("is 8", "\u0101")]

    made = passkey_sample(merging, FILLER, 256, 0.5, np.random.default_rng(0), num_digits=1)
    assert made.answer_stop - made.answer_start >= 1
    assert made.token_ids.shape == (256,)


def test_common_prefix() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([1, 2], [1, 2, 3]) == 2
    assert common_prefix([], [1]) == 0


def test_a_needle_is_told_once_and_asked_for_at_the_end() -> None:
    made = needle_sample(encode, FILLER, 512, 0.5, np.random.default_rng(0))
    text, place = decode(made.token_ids), decode(made.answer_ids)
    assert made.token_ids.shape == (512,)
    assert text.count(place) == 2
    assert text.endswith(place)


@pytest.mark.parametrize("task", TASKS)
def test_samples_differ_by_number_and_only_the_place_by_depth(task: str) -> None:
    early, late = (list(samples_of(task, encode, FILLER, 400, depth, 2, seed=0)) for depth in (0.0, 1.0))
    assert not np.array_equal(early[0].token_ids, early[1].token_ids)
    for one, other in zip(early, late, strict=True):
        assert np.array_equal(one.answer_ids, other.answer_ids)
        assert sorted(one.token_ids) == sorted(other.token_ids)


class Oracle:
    """A source that knows its prompts by heart, but for one row of each answer if it is told to be wrong."""

    name, vocab_size, rule = "oracle", 256, "per_forward"

    def __init__(self, samples: list[RetrievalSample], wrong_at: int | None = None) -> None:
        self.samples, self.wrong_at = samples, wrong_at
        self.rows: list[tuple[int, int]] = []

    def set_for(self, length: int) -> str:
        return "long"

    def tail_logits(self, ids: TokenIds, factor_set: str, first: int) -> torch.Tensor:
        self.rows.append((first, len(ids)))
        known = next(s for s in self.samples if np.array_equal(s.token_ids[: len(ids)], ids))
        rows = torch.zeros(len(ids) - first, self.vocab_size)
        rows[torch.arange(len(rows)), torch.as_tensor(known.token_ids[first + 1 : len(ids) + 1])] = 9.0
        if self.wrong_at is not None:
            rows[self.wrong_at] = rows[self.wrong_at].roll(1)
        return rows

    def greedy(self, prompt: TokenIds, count: int, factor_set: str, stop: object) -> TokenIds:
        known = next(s for s in self.samples if np.array_equal(s.prompt_ids, prompt))
        return known.answer_ids[:count]


def test_measure_counts_whole_answers_and_asks_for_their_rows_alone() -> None:
    samples = list(samples_of("passkey", encode, FILLER, 300, 0.5, 3, seed=0))
    source = Oracle(samples)
    row = measure(source, samples, generate=True)  # type: ignore[arg-type]
    assert (row.length, row.depth, row.samples, row.accuracy, row.generated) == (300, 0.5, 3, 1.0, 1.0)
    assert row.answer_ppl == pytest.approx(1 + 255 * np.exp(-9), rel=1e-3)
    assert (samples[0].answer_start - 1, 299) in source.rows
    wrong = measure(Oracle(samples, wrong_at=3), samples)  # type: ignore[arg-type]
    assert (wrong.accuracy, wrong.generated) == (0.0, None)
    assert wrong.answer_ppl > row.answer_ppl
