"""Packed rows: attention inside documents, a factor set for every sequence, the fused loss."""

from __future__ import annotations

import sys
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from longrope.checkpoint import Checkpoint
from longrope.errors import UnsupportedError
from longrope.factors import BoundFactors, FactorSet, RescaleFactors
from longrope.finetune import attention
from longrope.finetune.attention import attend, document_attention, use_document_attention
from longrope.finetune.batch import IGNORED, PackedBatch, TrainingSequence, join, pack
from longrope.finetune.loss import TrainingLoss
from longrope.finetune.rotary import LONG, SHORT, SequenceRotary
from longrope.modeling import RescaledRotary, build_model, replace_rotary
from tests.common import PICO_CHANGES, pico_checkpoint

SETS: dict[int, FactorSet] = {SHORT: "short", LONG: "long"}


def some_ids(length: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(seed).integers(1, 300, length)


def sequences() -> list[TrainingSequence]:
    return [
        TrainingSequence(some_ids(40, 1), SHORT),
        TrainingSequence(some_ids(101, 2), LONG),
        TrainingSequence(some_ids(40, 3), LONG),
    ]


def training_model(checkpoint: Checkpoint, factors: RescaleFactors) -> TrainingLoss:
    model = build_model(checkpoint).requires_grad_(True)
    rotary = SequenceRotary(factors)
    replace_rotary(model, rotary)
    use_document_attention(model)
    return TrainingLoss(model, rotary)


def logits_alone(checkpoint: Checkpoint, factors: RescaleFactors, sequence: TrainingSequence) -> torch.Tensor:
    """What transformers' own attention gives for one sequence, with the engine's single-set rotary embedding."""
    model, rotary = build_model(checkpoint), RescaledRotary.of(factors)
    rotary.use(SETS[sequence.factor_set])
    replace_rotary(model, rotary)
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.from_numpy(sequence.ids)[None]).logits[0]
    return logits


def test_a_batch_says_where_sequences_start_and_what_follows() -> None:
    weighted = TrainingSequence(np.array([7, 8, 9]), SHORT, np.array([1, 0, 4], np.float32))
    batch = pack([TrainingSequence(np.array([1, 2])), weighted], length=6)
    assert batch.cu_seqlens == (0, 2, 5, 6)
    assert batch.positions.tolist() == [[0, 1, 0, 1, 2, 0]]
    assert batch.labels.tolist() == [[2, IGNORED, IGNORED, 9, IGNORED, IGNORED]]
    assert batch.weights.tolist() == [[1, 0, 0, 4, 0, 0]]
    assert batch.sets.tolist() == [[LONG, LONG, SHORT, SHORT, SHORT, SHORT]]
    assert (batch.weight, batch.lengths) == (5.0, [2, 3, 1])


def test_rows_joined_are_rows_packed() -> None:
    parts = sequences()
    joined, packed = join([pack(parts[:1]), pack(parts[1:])]), pack(parts)
    assert joined.cu_seqlens == packed.cu_seqlens
    for name in ("ids", "labels", "weights", "positions", "sets"):
        assert torch.equal(getattr(joined, name), getattr(packed, name)), name


def test_attention_equals_a_block_diagonal_mask() -> None:
    torch.manual_seed(0)
    bounds = (0, 5, 6, 20)
    query, key, value = torch.randn(2, 4, 20, 8), torch.randn(2, 2, 20, 8), torch.randn(2, 2, 20, 8)
    document = torch.repeat_interleave(torch.arange(3), torch.tensor([5, 1, 14]))
    mask = (document[:, None] == document) & torch.ones(20, 20).tril().bool()
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True, scale=0.3)
    torch.testing.assert_close(attend(query, key, value, bounds, scaling=0.3), expected)


@pytest.mark.parametrize(
    "model_type", ["llama", "mistral", "mixtral", "granite", "minicpm3", "phi3", "qwen2", "olmo2", "smollm3"]
)
def test_packed_rows_give_each_documents_own_logits(tmp_path: Any, dual: BoundFactors, model_type: str) -> None:
    """Three sequences with two factor sets in one forward, against three forwards with one set each."""
    checkpoint = pico_checkpoint(tmp_path / "model", model_type, **PICO_CHANGES.get(model_type, {}))
    bound = checkpoint.bind(RescaleFactors(dual.short_factor, dual.long_factor, target_length=256))
    trained, batch = training_model(checkpoint, bound), pack(sequences())
    trained.rotary.assign(batch.sets)
    with torch.inference_mode():
        logits = trained.model(
            input_ids=batch.ids, position_ids=batch.positions, cu_seqlens=batch.cu_seqlens, use_cache=False
        ).logits[0]
    alone = torch.cat([logits_alone(checkpoint, bound, sequence) for sequence in sequences()])
    assert float((logits - alone).abs().max()) <= 1e-5


@pytest.mark.parametrize("n_hat", [0, 16])
def test_two_sets_in_one_forward_are_the_two_sets(pico: Checkpoint, dual: BoundFactors, n_hat: int) -> None:
    factors = pico.bind(RescaleFactors(dual.short_factor, dual.long_factor, n_hat=n_hat, target_length=256))
    rotary, single = SequenceRotary(factors), RescaledRotary.of(factors)
    positions = torch.tensor([[0, 1, 60, 0, 1, 200]])
    rotary.assign(torch.tensor([[SHORT, SHORT, SHORT, LONG, LONG, LONG]]))
    cos, sin = rotary(torch.empty(0), positions)
    for index, name in SETS.items():
        single.use(name)
        part = slice(3 * index, 3 * index + 3)
        for got, expected in zip((cos, sin), single(torch.empty(0), positions[:, part]), strict=True):
            torch.testing.assert_close(got[:, part], expected, rtol=0, atol=1e-7)


def test_rotary_sets_are_no_weights(dual: BoundFactors) -> None:
    rotary = SequenceRotary(dual).to(torch.bfloat16)
    rotary.assign(torch.ones(1, 4, dtype=torch.long))
    assert not rotary.state_dict()
    cos, _ = rotary(torch.empty(0, dtype=torch.float32), torch.tensor([[0, 1, 2, 255]]))
    assert cos.dtype == torch.float32
    exact = np.cos(255 * SequenceRotary(dual)._frequencies[LONG].numpy()) * dual.effective_attention_factor
    np.testing.assert_allclose(cos[0, 3, :8].numpy(), exact, atol=1e-7)


def plain_loss(trained: TrainingLoss, batch: PackedBatch, weights: torch.Tensor) -> torch.Tensor:
    """All logits at once, cross entropy of each token."""
    trained.rotary.assign(batch.sets)
    logits = trained.model(
        input_ids=batch.ids, position_ids=batch.positions, cu_seqlens=batch.cu_seqlens, use_cache=False
    ).logits
    nll = F.cross_entropy(logits[0], batch.labels[0], reduction="none", ignore_index=IGNORED)
    return (nll * weights[0]).sum()


@pytest.mark.parametrize("model_type", ["llama", "granite"])
@pytest.mark.parametrize("weighted", [False, True])
def test_fused_loss_and_gradients_equal_the_plain_ones(
    tmp_path: Any, dual: BoundFactors, model_type: str, weighted: bool
) -> None:
    checkpoint = pico_checkpoint(
        tmp_path / "model", model_type, **({"logits_scaling": 3.0} if "gr" in model_type else {})
    )
    trained = training_model(
        checkpoint, checkpoint.bind(RescaleFactors(dual.short_factor, dual.long_factor, target_length=256))
    )
    first, *others = sequences()
    weights = np.where(np.arange(len(first)) > 30, 4, 1).astype(np.float32)
    batch = pack([TrainingSequence(first.ids, SHORT, weights if weighted else None), *others])
    gradients = []
    for loss in (trained(batch), plain_loss(trained, batch, batch.weights)):
        trained.zero_grad()
        loss.backward()
        gradients.append((loss.item(), {name: p.grad.clone() for name, p in trained.named_parameters()}))
    (fused, ours), (plain, theirs) = gradients
    assert fused == pytest.approx(plain, rel=1e-6)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=2e-4)


def test_layers_that_are_not_plainly_causal_are_refused() -> None:
    heads = torch.zeros(1, 1, 8, 4)
    for options in ({"softcap": 30.0}, {"sliding_window": 4}):
        with pytest.raises(UnsupportedError, match="packed documents"):
            document_attention(torch.nn.Module(), heads, heads, heads, None, **options)
    document_attention(torch.nn.Module(), heads, heads, heads, None, sliding_window=4, cu_seqlens=(0, 4, 8))


def test_memory_of_attention_is_linear_in_the_row() -> None:
    """A mask of 1 byte a pair would be 1 GB here."""
    heads = torch.zeros(1, 1, 32_768, 1)
    assert attend(heads, heads, heads, tuple(range(0, 32_769, 64))).shape == heads.shape


def test_the_flash_kernel_is_asked_in_what_autocast_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotated queries are float32 under autocast, which that kernel does not take."""
    asked: list[torch.dtype] = []
    monkeypatch.setattr(attention, "flash_attention_serves", lambda *_: True)
    monkeypatch.setattr(attention, "flash_attention", lambda query, *_: asked.append(query.dtype) or query)
    heads = torch.zeros(1, 2, 8, 4)
    with torch.autocast("cpu", torch.bfloat16):
        attend(heads, heads, heads, (0, 4, 8))
    attend(heads, heads, heads, (0, 4, 8))
    assert asked == [torch.bfloat16, torch.float32]


def test_the_flash_kernel_gets_documents_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """flash-attention's form is [T, H, d] with bounds in int32; a stand-in of that form gives what torch gives."""

    def varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        assert options["causal"]
        assert options["cu_seqlens_q"].dtype == options["cu_seqlens_k"].dtype == torch.int32
        assert options["max_seqlen_q"] == options["max_seqlen_k"] == 5
        done = []
        for start, stop in pairwise(options["cu_seqlens_q"].tolist()):
            heads = (tensor[start:stop].transpose(0, 1)[None] for tensor in (query, key, value))
            done.append(attend(*heads, (0, stop - start), scaling=options["softmax_scale"])[0].transpose(0, 1))
        return torch.cat(done)

    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = varlen  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 12, 8, generator=generator) for heads in (4, 2, 2))
    for scaling in (None, 0.7):
        torch.testing.assert_close(
            attention.flash_attention(query, key, value, (0, 5, 8, 12), scaling, 0.0),
            attend(query, key, value, (0, 5, 8, 12), scaling=scaling),
        )


def test_bfloat16_losses_are_summed_in_float32(pico: Checkpoint, dual: BoundFactors) -> None:
    """torch's own sum in bfloat16 is off by half a percent and more; here only each token's loss is rounded."""
    exact = training_model(pico, pico.bind(dual))
    rounded = TrainingLoss(exact.model, exact.rotary, torch.bfloat16)
    batch = pack([TrainingSequence(some_ids(1000, seed), LONG) for seed in range(12)])
    with torch.no_grad():
        assert rounded(batch).item() == pytest.approx(exact(batch).item(), rel=2e-4)
