"""Short sequences that learn from the model before extension."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from longrope.checkpoint import Checkpoint
from longrope.errors import InputError
from longrope.factors import BoundFactors, RescaleFactors
from longrope.finetune.batch import PackedBatch, TrainingSequence, pack
from longrope.finetune.data import training_rows
from longrope.finetune.model import TrainedModel
from longrope.finetune.options import TrainOptions
from longrope.finetune.parallel import Parallel
from longrope.finetune.rotary import LONG, SHORT
from longrope.finetune.stages import Stage
from longrope.finetune.teacher import Teacher, taught_loss
from longrope.finetune.trainer import finetune, mixture_of
from longrope.modeling import build_model
from longrope.text import Corpus, load_corpus
from tests.common import pico_checkpoint

STAGE = Stage(256, steps=8, learning_rate=3e-3, warmup=2, batch=2, short_share=0.6)
OPTIONS = TrainOptions(threads=1)


@pytest.fixture(scope="module")
def corpus(pico: Checkpoint, texts: Path) -> Corpus:
    return load_corpus([texts], pico.encode)


def sequences() -> list[TrainingSequence]:
    """A taught one under each set, and one that learns its own text."""
    rng = np.random.default_rng(0)
    return [
        TrainingSequence(rng.integers(384, size=50), SHORT, taught=True),
        TrainingSequence(rng.integers(384, size=120), LONG),
        TrainingSequence(rng.integers(384, size=40), LONG, taught=True),
    ]


def student(checkpoint: Checkpoint, factors: BoundFactors) -> TrainedModel:
    return TrainedModel(checkpoint, factors, OPTIONS, Parallel.single())


def teacher_of(checkpoint: Checkpoint) -> Teacher:
    return Teacher(checkpoint, Parallel.single(), torch.float32)


def test_loss_is_the_cross_entropy_to_transformers_distribution(pico: Checkpoint, dual: BoundFactors) -> None:
    """Teacher: transformers' plain RoPE, a sequence at a time. The untaught sequence keeps its text's loss."""
    batch, factors = pack(sequences(), 256), pico.bind(dual)
    original = build_model(pico)
    expected = 0.0
    for sequence in sequences():
        ids = torch.from_numpy(sequence.ids)[None]
        with torch.no_grad():
            logits_TV = build_model(pico, _only(factors, sequence.factor_set))(ids).logits[0, :-1].double()
            p_TV = original(ids).logits[0, :-1].double().softmax(-1)
        text_TV = F.one_hot(ids[0, 1:], logits_TV.shape[-1]).double()
        expected -= float(((p_TV if sequence.taught else text_TV) * logits_TV.log_softmax(-1)).sum())
    teacher = teacher_of(pico)
    assert student(pico, factors).loss(batch, teacher(batch)).item() == pytest.approx(expected, rel=1e-6)


def _only(factors: BoundFactors, factor_set: int) -> BoundFactors:
    values = factors.short_factor if factor_set == SHORT else factors.long_factor
    return replace(
        factors, short_factor=values, long_factor=values, attention_factor=factors.effective_attention_factor
    )


def test_there_is_nothing_to_learn_from_oneself(pico: Checkpoint) -> None:
    """Same weights, original RoPE, attention factor 1: the gradient is zero, however the logits are cut."""
    ones = pico.bind(RescaleFactors((1.0,) * 8, (1.0,) * 8, target_length=256, attention_factor=1.0))
    batch = pack([sequence for sequence in sequences() if sequence.taught], 256)
    model = student(pico, ones)
    model.loss(batch, teacher_of(pico)(batch)).backward()
    assert (
        max(parameter.grad.abs().max().item() for parameter in model.parameters() if parameter.grad is not None) < 1e-4
    )


def test_chunks_change_nothing(pico: Checkpoint, dual: BoundFactors) -> None:
    teacher = teacher_of(pico)
    lesson = teacher(pack(sequences(), 256))
    head = torch.randn(384, 64, generator=torch.Generator().manual_seed(0))
    hidden = lesson.hidden.roll(1, 0)

    def gradient(rows: int) -> torch.Tensor:
        leaf = hidden.clone().requires_grad_(True)
        taught_loss(leaf, lambda part: part @ head.T, lesson, rows).backward()
        assert leaf.grad is not None
        return leaf.grad

    torch.testing.assert_close(gradient(7), gradient(1000))


def test_short_rows_are_taught_under_both_sets(pico: Checkpoint, dual: BoundFactors, corpus: Corpus) -> None:
    stage = replace(STAGE, distil_short=True, retrieval_share=0.2)
    rows = training_rows(pico, corpus, mixture_of(stage, pico.bind(dual), OPTIONS))
    made = [rows.row(number) for number in range(30)]
    taught = [batch for batch in made if batch.taught.any()]
    assert 12 <= len(taught) <= 24
    assert {int(value) for batch in taught for value in batch.sets[batch.taught]} == {SHORT, LONG}
    assert all(batch.positions[batch.taught].max() < 64 for batch in taught)
    assert all((batch.weights[batch.taught] == 1).all() for batch in taught)


def test_a_taught_model_stays_nearer_to_what_it_was(
    pico: Checkpoint, dual: BoundFactors, corpus: Corpus, tmp_path: Path
) -> None:
    """KL to the model before extension on short sequences, after the same steps with and without a teacher."""
    factors = pico.bind(dual)
    taught = replace(STAGE, distil_short=True)
    rows = training_rows(pico, corpus, mixture_of(taught, factors, OPTIONS))
    batch = next(batch for batch in map(rows.row, range(100, 200)) if batch.taught.any())

    def distance(stage: Stage) -> float:
        folder = tmp_path / str(stage.distil_short)
        return _distance(finetune(pico, dual, stage, corpus, folder, options=OPTIONS).checkpoint, pico, factors, batch)

    assert distance(taught) < 0.7 * distance(STAGE)


def _distance(checkpoint: Checkpoint, before: Checkpoint, factors: BoundFactors, batch: PackedBatch) -> float:
    teacher = teacher_of(before)
    lesson = teacher(batch)
    entropy = taught_loss(lesson.hidden, lesson.logits, lesson, 512).item()
    return student(checkpoint, factors).loss(batch, lesson).item() - entropy


def test_another_model_cannot_teach(pico: Checkpoint, dual: BoundFactors, corpus: Corpus, tmp_path: Path) -> None:
    other = pico_checkpoint(tmp_path / "other", vocab_size=400)
    with pytest.raises(InputError, match="cannot teach"):
        finetune(pico, dual, replace(STAGE, distil_short=True), corpus, tmp_path / "run", teacher=other)


def test_teaching_needs_short_rows() -> None:
    with pytest.raises(InputError, match="distil_short: expected a short_share"):
        Stage(256, steps=1, distil_short=True)
