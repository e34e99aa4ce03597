"""Blockwise attention of a CPU against torch's SDPA in float32, and where it stays out of the way."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from longrope import blockwise
from longrope.checkpoint import Checkpoint
from longrope.machine import Machine
from longrope.modeling import build_model, hidden_blocks
from longrope.search import Candidate, WindowModel
from longrope.search.objective import Window
from tests.common import pico_checkpoint

MODULE = SimpleNamespace(num_key_value_groups=3)


def heads(tokens: int, *, keys: int | None = None, groups: int = 2) -> list[torch.Tensor]:
    """Two rows of 6 heads with 2 groups of keys; values are wider than keys."""
    generator = torch.Generator().manual_seed(tokens)
    shapes = (2, 6, tokens, 8), (2, groups, keys or tokens, 8), (2, groups, keys or tokens, 12)
    return [torch.randn(shape, generator=generator).requires_grad_(True) for shape in shapes]


def gradients(forward: Any, given: list[torch.Tensor], slope: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(forward(MODULE, *given, None)[0], given, slope)


@pytest.mark.parametrize("scaling", [None, 0.2])
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 200])
def test_outputs_and_gradients_are_those_of_sdpa(tokens: int, scaling: float | None) -> None:
    given = heads(tokens)
    outputs = [
        forward(MODULE, *given, None, scaling=scaling)[0]
        for forward in (blockwise.attention_forward, sdpa_attention_forward)
    ]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
    slope = torch.randn_like(outputs[0])
    found, expected = (torch.autograd.grad(output, given, slope) for output in outputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_it_is_as_near_to_float32_as_eager_attention() -> None:
    exact = heads(512)
    rounded = [tensor.detach().bfloat16() for tensor in exact]
    expected = sdpa_attention_forward(MODULE, *exact, None)[0]
    found = blockwise.attention_forward(MODULE, *rounded, None)[0]
    assert (found.float() - expected).norm() / expected.norm() < 6e-3


@pytest.mark.parametrize("groups", [1, 6])
def test_any_number_of_heads_shares_a_group_of_keys(groups: int) -> None:
    """One group for all heads, and one for each."""
    given, module = heads(100, groups=groups), SimpleNamespace(num_key_value_groups=6 // groups)
    found, expected = (
        forward(module, *given, None)[0] for forward in (blockwise.attention_forward, sdpa_attention_forward)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    slope = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(found, given, slope), torch.autograd.grad(expected, given, slope), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_gradients_in_bfloat16_are_near_to_those_of_sdpa_in_float32() -> None:
    exact = heads(200)
    slope = torch.randn(2, 200, 6, 12, generator=torch.Generator().manual_seed(0))
    rounded = [tensor.detach().bfloat16().requires_grad_(True) for tensor in exact]
    found = gradients(blockwise.attention_forward, rounded, slope.bfloat16())
    for one, other in zip(found, gradients(sdpa_attention_forward, exact, slope), strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.float() - other).norm() / other.norm() < 1e-2


@pytest.mark.parametrize("change", ["mask", "cache"])
def test_masks_are_left_to_sdpa(change: str) -> None:
    given = heads(8, keys=20 if change == "cache" else None)
    mask = torch.rand(2, 1, 8, given[1].shape[2]) > 0.3
    found = blockwise.attention_forward(MODULE, *given, mask)[0]
    assert torch.equal(found, sdpa_attention_forward(MODULE, *given, mask)[0])


@pytest.mark.parametrize("told", ["by the call", "by the module"])
def test_attention_that_is_not_causal_is_left_to_sdpa(told: str) -> None:
    given, options = heads(70), {"is_causal": False} if told == "by the call" else {}
    module = SimpleNamespace(num_key_value_groups=3, is_causal=told == "by the call")
    found = blockwise.attention_forward(module, *given, None, **options)[0]
    assert torch.equal(found, sdpa_attention_forward(module, *given, None, **options)[0])
    assert not torch.allclose(found, sdpa_attention_forward(MODULE, *given, None)[0])


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias", "sliding_window"])
def test_what_changes_scores_is_never_computed_without_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked: list[dict[str, Any]] = []

    def sdpa(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> tuple[None, None]:
        asked.append(options)
        return None, None

    monkeypatch.setattr("transformers.integrations.sdpa_attention.sdpa_attention_forward", sdpa)
    blockwise.attention_forward(MODULE, *heads(8), None, **{name: 4})
    blockwise.attention_forward(MODULE, *heads(8), None, dropout=0.1)
    assert [options.get(name) for options in asked] == [4, None]
    assert asked[1]["dropout"] == 0.1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return pico_checkpoint(tmp_path_factory.mktemp("blockwise"))


@torch.inference_mode()
def test_a_model_computes_the_same_with_and_without_a_cache(checkpoint: Checkpoint) -> None:
    ids = torch.arange(3, 103)[None]
    model = build_model(checkpoint)
    (expected,) = hidden_blocks(model, ids, 100)
    blockwise.use(model)
    assert model.config._attn_implementation == blockwise.NAME
    for tokens in (100, 60):
        found = torch.cat(list(hidden_blocks(model, ids, tokens)))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_search_takes_the_same_gradients(checkpoint: Checkpoint, recomputed: bool) -> None:
    """Of the factors, with activations kept or recomputed; 100 tokens are a block and a part of one."""
    window, candidate = Window(np.arange(3, 103)), Candidate(tuple(np.geomspace(1.0, 4.0, 8)))
    model = WindowModel(checkpoint, Machine(threads=1, checkpointing=recomputed))
    loss, slopes = model.nll_and_gradient(candidate, window)
    blockwise.use(model.model)
    found, gradient = model.nll_and_gradient(candidate, window)
    assert found == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-3, atol=1e-7)


def test_eager_attention_is_kept(checkpoint: Checkpoint) -> None:
    model = build_model(checkpoint)
    model.set_attn_implementation("eager")
    blockwise.use(model)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("device", "dtype", "supported", "expected"),
    [
        ("cpu", torch.bfloat16, True, True),
        ("cpu", torch.bfloat16, False, False),
        ("cpu", torch.float32, True, False),
        ("cuda", torch.bfloat16, True, False),
    ],
)
def test_it_serves_a_cpu_with_products_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, device: str, dtype: torch.dtype, supported: bool, expected: bool
) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: supported)
    assert blockwise.is_faster(device, dtype) is expected
