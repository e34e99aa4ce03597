"""The head's loss: ours against float64, against torch's own kernel where there is one, and who takes which tokens."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from longrope.finetune import linear_loss
from longrope.finetune.batch import IGNORED
from longrope.finetune.linear_loss import chunk_rows, chunked_loss, fused_sum, weighted_loss

needs_torchs_kernel = pytest.mark.skipif(
    not hasattr(nn, "LinearCrossEntropyOptions"), reason="torch's linear_cross_entropy came with 2.13"
)
# Rounding of gradients, relative to the largest: two of a type's last bits in 16 bits.
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


def inputs(dtype: torch.dtype, *, bias: bool = False, weighted: bool = True) -> tuple[Any, ...]:
    """Two chunks and a bit of rows; every seventh label is ignored, some tokens count 4, some nothing."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(600, 16, generator=draw).to(dtype)
    head, biases = (torch.randn(*size, generator=draw).to(dtype) for size in ((50, 16), (50,)))
    labels, weights = torch.randint(0, 50, (600,), generator=draw), torch.ones(600)
    labels[::7] = IGNORED
    if weighted:
        weights[::5], weights[::11] = 4.0, 0.0
    return hidden, head, biases if bias else None, labels, weights


def plain_loss(hidden: Tensor, head: Tensor, bias: Tensor | None, labels: Tensor, weights: Tensor) -> Tensor:
    """All logits at once."""
    nll = F.cross_entropy(F.linear(hidden, head, bias), labels, reduction="none", ignore_index=IGNORED)
    return (nll * weights).sum()


def with_gradients(loss: Any, given: tuple[Any, ...]) -> tuple[float, list[Tensor]]:
    """The loss, and its gradients by hidden states, head and bias, as training asks for them: of a mean."""
    leaves = [each.clone().requires_grad_() if each is not None else None for each in given[:3]]
    total = loss(*leaves, *given[3:])
    (total / 500).backward()
    return float(total.detach()), [leaf.grad.double() for leaf in leaves if leaf is not None]


def assert_same(actual: tuple[float, list[Tensor]], expected: tuple[float, list[Tensor]], rounding: float) -> None:
    assert actual[0] == pytest.approx(expected[0], rel=1e-6)
    for ours, theirs in zip(actual[1], expected[1], strict=True):
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < rounding


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_loss, "LOGITS_AT_ONCE", 256 * 50)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_ours_is_the_plain_loss_in_float64(dtype: torch.dtype, bias: bool) -> None:
    """To 1e-6; in 16 bits logits are rounded, each by half a last bit, and nothing else is."""
    given = inputs(dtype, bias=bias)
    exact = with_gradients(
        plain_loss, tuple(each if each is None or each is given[3] else each.double() for each in given)
    )
    ours = with_gradients(chunked_loss, given)
    if dtype.itemsize == 2:
        assert ours[0] == pytest.approx(exact[0], rel=ROUNDING[dtype] / 16)
        ours = (exact[0], ours[1])
    assert_same(ours, exact, ROUNDING[dtype])


@needs_torchs_kernel
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_ours_and_torchs_give_the_same_to_1e_6(bias: bool, weighted: bool) -> None:
    given = inputs(torch.float32, bias=bias, weighted=weighted)
    assert fused_sum(given[0]) is linear_loss.torch_sum
    assert_same(with_gradients(weighted_loss, given), with_gradients(chunked_loss, given), 1e-6)


def test_an_older_torch_trains_with_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(nn, "LinearCrossEntropyOptions", raising=False)
    given = inputs(torch.float32)
    assert fused_sum(given[0]) is None
    assert_same(with_gradients(weighted_loss, given), with_gradients(chunked_loss, given), 1e-12)


def test_in_16_bits_every_torch_computes_the_same() -> None:
    """torch's kernel sums in bfloat16, a percent off; each of its losses is rounded, too."""
    assert fused_sum(inputs(torch.bfloat16)[0]) is None


def test_frozen_heads_get_no_gradient() -> None:
    hidden, head, *rest = inputs(torch.float32)
    hidden.requires_grad_()
    chunked_loss(hidden, head, *rest).backward()
    assert hidden.grad is not None
    assert head.grad is None


def test_without_gradients_only_the_loss_is_computed() -> None:
    given = inputs(torch.float32)
    with torch.no_grad():
        loss = chunked_loss(*given)
    assert not loss.requires_grad
    assert float(loss) == pytest.approx(float(plain_loss(*given)), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_liger_serves_a_gpu_where_it_is_installed(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    there = SimpleNamespace(is_cuda=True, dtype=dtype)
    monkeypatch.setattr(linear_loss, "find_spec", lambda name: object() if name == "liger_kernel" else None)
    assert fused_sum(there) is linear_loss.liger_sum  # type: ignore[arg-type]
    monkeypatch.setattr(linear_loss, "find_spec", lambda name: None)
    assert fused_sum(there) is not linear_loss.liger_sum  # type: ignore[arg-type]


def test_ligers_kernel_gets_the_tokens_that_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in of its form; the kernel itself needs a GPU (`longrope-export doctor --gpu` runs it there)."""
    asked: list[int] = []

    class Stand:
        def __init__(self, ignore_index: int, reduction: str, accum_dtype: torch.dtype) -> None:
            assert (ignore_index, reduction, accum_dtype) == (IGNORED, "sum", torch.float32)

        def __call__(self, head: Tensor, hidden: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
            asked.append(int((labels != IGNORED).sum()))
            return F.cross_entropy(F.linear(hidden, head, bias), labels, reduction="sum", ignore_index=IGNORED)

    module = ModuleType("liger_kernel.transformers")
    module.LigerFusedLinearCrossEntropyLoss = Stand  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", module)
    monkeypatch.setattr(linear_loss, "fused_sum", lambda hidden: linear_loss.liger_sum)
    given = inputs(torch.float32, bias=True)
    actual = with_gradients(weighted_loss, given)
    assert_same(actual, with_gradients(chunked_loss, given), 1e-6)
    assert asked == [int(((given[3] != IGNORED) & (given[4] == 1)).sum())]


def test_chunks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert [chunk_rows(size) for size in (2048, 49_152, 1 << 26)] == [8192, 512, 256]


class LargestResult(TorchDispatchMode):
    """Watches how many numbers the largest result of an operation has."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_one_chunk_are_the_largest_thing_ever_held(dtype: torch.dtype) -> None:
    given = inputs(dtype)
    with LargestResult() as ours:
        with_gradients(chunked_loss, given)
    with LargestResult() as plain:
        with_gradients(plain_loss, given)
    assert ours.numbers == chunk_rows(50) * 50
    assert plain.numbers == 600 * 50
