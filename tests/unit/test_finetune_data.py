"""Stages as data, and training rows: every token of a row from where it should be, any row from its number alone."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from longrope.checkpoint import Checkpoint
from longrope.errors import InputError
from longrope.finetune.batch import IGNORED
from longrope.finetune.data import Bookends, Mixture, TrainingRows, training_rows
from longrope.finetune.presets import PRESETS, read_plan
from longrope.finetune.progressive import describe
from longrope.finetune.rotary import LONG, SHORT
from longrope.finetune.stages import Stage
from longrope.retrieval import with_distractors
from longrope.text import Corpus, Document
from tests.common import pico_text

BOOKENDS = Bookends(0, 999)


def corpus(*lengths: int) -> Corpus:
    """Documents whose tokens say where they come from: document number times 10,000, plus the place."""
    ids = [np.arange(length) + 10_000 * (number + 1) for number, length in enumerate(lengths)]
    return Corpus(tuple(Document(str(number), tokens) for number, tokens in enumerate(ids)))


def rows(*lengths: int, **mixture: float) -> TrainingRows:
    values = {"row_length": 64, "short_length": 16, **mixture}
    return TrainingRows(corpus(*lengths), Mixture(**values), BOOKENDS, lambda text: [5] * len(text.split()))  # type: ignore[arg-type]


def sequences(row_number: int, made: TrainingRows) -> list[tuple[list[int], list[int]]]:
    """(ids, sets) of every sequence in a row."""
    batch = made.row(row_number)
    bounds = zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False)
    return [(batch.ids[0, a:b].tolist(), batch.sets[0, a:b].tolist()) for a, b in bounds]


def test_long_documents_are_cut_to_bookended_rows() -> None:
    made = rows(200, 63)
    for number in range(10):
        ((ids, sets),) = sequences(number, made)
        assert (ids[0], ids[-1], len(ids)) == (0, 999, 64)
        assert np.all(np.diff(ids[1:-1]) == 1), "one run of one document"
        assert set(sets) == {LONG}


def test_one_pass_reads_every_window_once_then_cuts_elsewhere() -> None:
    made = rows(200, 125)
    firsts = [made.row(number).ids[0, 1].item() for number in range(10)]
    for one_pass in (firsts[:5], firsts[5:]):
        assert len(set(one_pass)) == 5
        assert sorted(first // 10_000 for first in one_pass) == [1, 1, 1, 2, 2]
    assert set(firsts[:5]) != set(firsts[5:])


def test_rows_of_late_passes_do_not_plan_the_early_ones_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass is planned by a generator of its own, whose seed ends in the number of the pass."""
    planned: list[int] = []
    make = np.random.default_rng

    def counted(seed: list[int]) -> np.random.Generator:
        planned.append(seed[-1])
        return make(seed)

    made = rows(300)
    monkeypatch.setattr(np.random, "default_rng", counted)
    for number in range(100):
        made.row(number)
    assert planned == sorted(set(planned))
    assert len(planned) > 10


def test_short_documents_are_packed_and_cut_where_the_row_ends() -> None:
    made = rows(62, 30, 29, 28)
    found = [sequences(number, made) for number in range(3)]
    packed = [row for row in found if len(row) > 1]
    assert packed
    for row in packed:
        assert sum(len(ids) for ids, _ in row) == 64
        for ids, _ in row:
            if ids[0] != ids[-1]:
                assert (ids[0], ids[-1]) == (0, 999)
                assert np.all(np.diff(ids[1:-1]) == 1)


def test_an_end_counts_only_where_the_document_ends() -> None:
    made = rows(62, 200)
    for number in range(8):
        batch = made.row(number)
        whole = batch.ids[0, 1].item() == 10_000
        assert batch.labels[0, -2].item() == (999 if whole else IGNORED)
        assert batch.weights[0, -2].item() == float(whole)


def test_kinds_have_their_shares_and_their_sets() -> None:
    made = rows(400, 300, short_share=0.25, row_length=256, short_length=32, retrieval_share=0.2)
    kinds = [made.place(number)[0] for number in range(400)]
    assert kinds.count("short") == pytest.approx(100, abs=3)
    assert kinds.count("retrieval") == pytest.approx(80, abs=3)
    for number in range(24):
        for ids, sets in (found for found in sequences(number, made) if any(found[0])):
            assert set(sets) == {SHORT if len(ids) <= 32 else LONG}, "the set is the sequence's own"


def test_without_short_rows_every_sequence_trains_the_long_set() -> None:
    made = rows(62, 10, 20, 17, retrieval_share=0.0)
    assert all(set(sets) == {LONG} for number in range(3) for ids, sets in sequences(number, made) if any(ids))


def test_rows_depend_on_their_number_and_the_seed_alone() -> None:
    def ids(made: TrainingRows, numbers: list[int]) -> list[torch.Tensor]:
        return [made.row(number).ids for number in numbers]

    mixture = {"short_share": 0.25, "retrieval_share": 0.25, "row_length": 256, "short_length": 32}
    order = list(range(20))
    first, again = ids(rows(900, 400, **mixture), order), ids(rows(900, 400, **mixture), order[::-1])[::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = ids(rows(900, 400, **mixture, seed=1), order)
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_retrieval_rows_ask_for_keys_that_were_told(pico: Checkpoint) -> None:
    ids = np.array(pico.encode(pico_text(200)))
    mixture = Mixture(256, 64, retrieval_share=0.999, answer_share=0.2)
    made = training_rows(pico, Corpus((Document("a", ids),)), mixture)
    lengths = set()
    for number in range(12):
        batch = made.row(number)
        for start, stop in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False):
            weights = batch.weights[0, start:stop]
            if weights.sum() == 0:
                continue
            lengths.add(stop - start)
            answer = weights > 1
            assert float(weights[answer].sum() / weights.sum()) == pytest.approx(0.2, abs=0.01)
            text = pico.tokenizer.decode(batch.ids[0, start:stop].tolist())
            key = pico.tokenizer.decode(batch.labels[0, start:stop][answer].tolist()).strip()
            assert len(key) == 5
            assert text.count(key) == 3
    assert 256 in lengths
    assert len(lengths) > 3


def test_distractors_are_other_numbers_in_the_text_of_a_key(pico: Checkpoint) -> None:
    filler = np.array(pico.encode_plain("a" * 8000))

    def numbers(ids: np.ndarray) -> list[str]:
        return re.findall(r"\d+", pico.tokenizer.decode(ids.tolist()))

    noisy = with_distractors(pico.encode_plain, filler, 40, np.random.default_rng(0))
    assert noisy.size == filler.size
    assert {len(number) for number in numbers(noisy)} == {1, 2, 3, 4, 5}
    assert 36 <= len(numbers(noisy)) <= 40  # some are cut off at the end

    def told(distractors: float) -> list[int]:
        mixture = Mixture(256, 64, retrieval_share=0.999, retrieval_distractors=distractors)
        made = training_rows(pico, Corpus((Document("a", filler),)), mixture)
        return [len(numbers(made.row(number).ids[0].numpy())) for number in range(6)]

    plain, mixed = sum(told(0)), sum(told(40))
    assert plain + 20 <= mixed <= plain + 60  # 40 per 1,024 tokens: up to 10 a row, fewer where keys take much of it


def test_documents_shorter_than_a_row_are_refused() -> None:
    with pytest.raises(InputError, match="at least 62 tokens to train on, got 2 documents, the longest with 40"):
        rows(40, 30)


def test_tokenizer_bookends_are_not_doubled() -> None:
    assert BOOKENDS.stripped(np.array([0, 5, 6, 999])).tolist() == [5, 6]
    assert Bookends(None, None).stripped(np.array([5, 6])).tolist() == [5, 6]
    assert Bookends.of({"bos_token_id": 1, "eos_token_id": [2, 3]}) == Bookends(1, 2)


# -- stages


def lengths(name: str, window: int, target: int) -> list[tuple[int, int]]:
    return [(stage.length, stage.steps) for stage in read_plan(name).for_model(window, target).stages]


def test_presets_carry_the_published_figures() -> None:
    assert lengths("paper-llama2", 4096, 2_097_152) == [(131_072, 400), (262_144, 600), (2_097_152, 0)]
    llama, mistral = PRESETS["paper-llama2"].stages[0], PRESETS["paper-mistral"].stages[0]
    assert (llama.learning_rate, llama.schedule, llama.batch, llama.row_length) == (2e-5, "linear", 32, 131_072)
    assert (mistral.learning_rate, mistral.schedule, mistral.batch, mistral.row_length) == (
        1e-6,
        "constant",
        64,
        16_384,
    )
    (mixed,) = PRESETS["longrope2"].stages
    assert mixed.tokens == pytest.approx(10e9, rel=0.001)


def test_presets_keep_their_proportions_on_another_window() -> None:
    assert lengths("paper-llama2", 256, 131_072) == [(8192, 400), (16_384, 600), (131_072, 0)]
    assert read_plan("paper-mistral").for_model(256, 8192).stages[0].row_length == 512


@pytest.mark.parametrize(
    ("window", "target", "expected"),
    [
        (256, 131_072, [2048, 16_384, 131_072]),
        (256, 1024, [1024]),
        (8192, 131_072, [16_384, 131_072]),
        (256, 2048, [2048]),
    ],
)
def test_the_default_plan_scales_with_the_target(window: int, target: int, expected: list[int]) -> None:
    assert [stage.length for stage in read_plan("default").for_model(window, target).stages] == expected


def test_a_plan_beyond_the_target_is_refused() -> None:
    with pytest.raises(InputError, match="beyond the target length of 8192"):
        read_plan("paper-llama2").for_model(256, 8192)


def test_toml_plans(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        """
        [[stage]]
        length = 128
        steps = 10
        schedule = "cosine"
        warmup = 2
        short_share = 0.25
        texts = ["books"]
        [[stage]]
        length = 256
        factors = "given.json"
        """
    )
    plan = read_plan(str(file)).for_model(64, 512)
    assert plan.name == "mine"
    assert [stage.length for stage in plan.stages] == [128, 256, 512]
    assert plan.stages[0].texts == (tmp_path / "books",)
    assert plan.stages[1].factors == str(tmp_path / "given.json")
    assert plan.stages[0].tokens == 10 * 32 * 128


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected a \[\[stage\]\] table"),
        ("[[stage]]\nlength = 128\nsteeps = 3", "stage 1: unknown key steeps; did you mean steps"),
        ("[[stage]]\nsteps = 3", "stage 1: expected a length"),
        ("[[stage]]\nlength = 128\nschedule = 'wavy'", "schedule: expected linear, constant or cosine, got 'wavy'"),
        ("[[stage]]\nlength = 128\nsteps = -1", "steps: expected a whole number of 0 or more, got -1"),
        ("[[stage]]\nlength = 128\nshort_share = 1.5", "short_share: expected a share like 1% or 0.01, got 1.5"),
        ("[[stage]]\nlength = 128\nsequence_length = 256", "sequence_length: expected at most the length 128"),
        ("[[stage]]\nlength = 128\nwarmup = 3\nsteps = 2", "warmup: expected at most the 2 steps"),
        ("[[stage]]\nlength = 64", "expected lengths that grow from the window on, got 64 → 64"),
        ("[[stage]]\nlength = 128\nfactors = 'rescale'", "no factors before it"),
        ("[[stage]]\nlength = 128\nfactors = 3", "expected search, rescale or a path"),
        ("[[stage]", "not a readable TOML file"),
        ("speed = 3\n[[stage]]\nlength = 128", "unknown key speed; expected one of name, original, source"),
    ],
)
def test_bad_plans_say_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_plan(str(file)).for_model(64, 512)


def test_unknown_plans_name_the_presets() -> None:
    with pytest.raises(InputError, match="paper-llama2, paper-mistral, longrope2, default"):
        read_plan("papper")
    with pytest.raises(InputError, match="batch: expected a whole number of 1 or more"):
        Stage(128, batch=0)


def test_a_plans_line_tells_what_rows_hold() -> None:
    stage = Stage(2048, steps=4, batch=2, short_share=0.5, distil_short=True, retrieval_share=0.25)
    assert describe(stage).endswith("4 steps of 2 rows of 2048, 2e-05 linear, 50 % short, taught, 25 % retrieval")
    assert describe(replace(stage, retrieval_distractors=8)).endswith("25 % retrieval among 8 distractors per 1,024")


@pytest.mark.parametrize("distractors", [-1, 65, "many", True])
def test_distractors_that_cannot_be_are_refused(distractors: object) -> None:
    with pytest.raises(InputError, match="retrieval_distractors: expected a number from 0 to 64"):
        Stage(2048, retrieval_distractors=distractors)  # type: ignore[arg-type]
