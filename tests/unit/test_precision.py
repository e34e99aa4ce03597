"""The errors of float32 angles that are foreseen, against torch's own and against ggml's loop written out."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from converters.precision import (
    LAST_POSITIONS,
    Angles,
    ggml_angles,
    precision_check,
    transformers_angles,
    worst_angle_error,
)
from longrope import rope
from longrope.factors import BoundFactors

DIM = 64


@cache
def factors(target: int, theta: float = 10_000.0) -> BoundFactors:
    original = target // 8
    scaled = tuple(rope.yarn_factors(DIM, 8.0, rope_theta=theta, original=original))
    return BoundFactors(
        long_factor=scaled,
        short_factor=(1.0,) * (DIM // 2),
        original_max_position_embeddings=original,
        target_length=target,
        rope_theta=theta,
        rotary_dim=DIM,
        model_type="llama",
    )


def exact(of: BoundFactors, positions: np.ndarray) -> np.ndarray:
    return np.outer(positions, rope.inv_freq(of.rope_theta, of.rotary_dim, of.long_factor))


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("target", [1 << 15, 1 << 17, 1 << 21])
def test_transformers_own_angles_are_as_far_off(target: int, theta: float) -> None:
    of = factors(target, theta)
    config = LlamaConfig(
        hidden_size=2 * DIM,
        num_attention_heads=2,
        max_position_embeddings=target,
        original_max_position_embeddings=of.original,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": theta,
            "factor": 8.0,
            "original_max_position_embeddings": of.original,
            "short_factor": list(of.short_factor),
            "long_factor": list(of.long_factor),
        },
    )
    positions = torch.arange(target - LAST_POSITIONS, target)[None]
    module = LlamaRotaryEmbedding(config)
    module(torch.zeros(1, 1, DIM), positions)  # takes the long set
    theirs = (positions[0, :, None].float() * module.inv_freq).double().numpy()
    measured = np.abs(theirs - exact(of, positions[0].numpy())).max()
    assert worst_angle_error(of, transformers_angles)[0] == pytest.approx(measured, rel=0.5)


def test_ggml_multiplies_from_pair_to_pair() -> None:
    of, position = factors(1 << 20), np.float32((1 << 20) - 7)
    scaled = np.array(of.long_factor, dtype=np.float32)
    step, theta, expected = np.float32(of.rope_theta) ** np.float32(-2.0 / DIM), position, []
    for factor in scaled:
        expected.append(theta / factor)
        theta = np.float32(theta * step)
    found = ggml_angles(np.array([position]), of.rope_theta, DIM, scaled)
    assert found.dtype == np.float32
    assert found[0].tolist() == expected


@pytest.mark.parametrize("angles", [transformers_angles, ggml_angles])
def test_two_million_tokens_are_warned_about(angles: Angles) -> None:
    assert precision_check("hf", factors(1 << 17), angles).status == "pass"  # type: ignore[arg-type]
    check = precision_check("hf", factors(1 << 21), angles)
    assert (check.status, check.id) == ("warn", "hf.rope.precision")
    assert "float64" in check.message


def test_a_short_set_counts_in_its_own_window_only() -> None:
    """Ones are off by more than the long factors at the target, where they are not used."""
    of = replace(factors(1 << 20), long_factor=(64.0,) * (DIM // 2))
    error, position, _ = worst_angle_error(of, ggml_angles)
    assert of.original - LAST_POSITIONS <= position < of.original
    assert error < 0.05
