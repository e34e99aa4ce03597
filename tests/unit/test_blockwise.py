"""Blockwise attention of a CPU against torch's SDPA in float32, and where it stays out of the way."""

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from longrope import blockwise
from longrope.checkpoint import Checkpoint
from longrope.modeling import build_model, hidden_blocks
from tests.common import pico_checkpoint

MODULE = SimpleNamespace(num_key_value_groups=3)


def heads(tokens: int, *, keys: int | None = None, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Two rows of 6 heads with 2 groups of keys; values are wider than keys."""
    generator = torch.Generator().manual_seed(tokens)
    shapes = (2, 6, tokens, 8), (2, 2, keys or tokens, 8), (2, 2, keys or tokens, 12)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_(True) for shape in shapes]


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


@pytest.mark.parametrize("change", ["mask", "cache", "not causal"])
def test_anything_else_is_left_to_sdpa(change: str) -> None:
    given = heads(8, keys=20 if change == "cache" else None)
    mask = torch.rand(2, 1, 8, given[1].shape[2]) > 0.3 if change != "not causal" else None
    options = {"is_causal": False} if change == "not causal" else {}
    found = blockwise.attention_forward(MODULE, *given, mask, **options)[0]
    assert torch.equal(found, sdpa_attention_forward(MODULE, *given, mask, **options)[0])


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
