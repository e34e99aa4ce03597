"""Closed-form base factors against transformers' own initializers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longrope import rope
from longrope.base_rope import NOT_ROTATED, BaseRope, base_rope
from longrope.errors import InputError, UnsupportedError

THETA, HEAD, WINDOW = 500_000.0, 64, 131_072
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
LISTS = {name: [1 + i / 10 for i in range(HEAD // 2)] for name in ("short_factor", "long_factor")}
PUBLISHED = {
    "llama 3.1": LLAMA3,
    "llama 3.2": {**LLAMA3, "factor": 32.0},
    "vicuna 16k": {"rope_type": "linear", "factor": 4.0},
    "qwen 2.5": YARN,
    "gpt-oss": {**YARN, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
    "mistral's ramp": {**YARN, "beta_fast": 128.0, "beta_slow": 2.0},
    "olmo 3": {**YARN, "attention_factor": 1.2079},
    "deepseek v2": {**YARN, "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 0.5},
    "deepseek v3": {**YARN, "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0},
    "internlm 3": {"rope_type": "dynamic", "factor": 6.0},
    "phi 3": {"rope_type": "longrope", **LISTS, "original_max_position_embeddings": 4096},
    "proportional": {"rope_type": "proportional", "partial_rotary_factor": 0.25},
}


def ours(parameters: dict[str, Any]) -> BaseRope:
    return base_rope({"rope_theta": THETA}, parameters, rotary_dim=HEAD, window=WINDOW)


@pytest.mark.parametrize("name", PUBLISHED)
def test_frequencies_and_attention_are_those_of_transformers(name: str) -> None:
    parameters = PUBLISHED[name]
    config = LlamaConfig(
        head_dim=HEAD, max_position_embeddings=WINDOW, rope_parameters={"rope_theta": THETA, **parameters}
    )
    theirs, attention = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu", seq_len=WINDOW)
    found = ours(parameters)
    expected = theirs.double().numpy()
    actual = rope.inv_freq(THETA, HEAD, found.long_factor)
    assert np.allclose(actual[expected > 0], expected[expected > 0], rtol=1e-6, atol=0)
    assert (actual[expected == 0] * WINDOW < 1e-20).all()
    assert found.attention_factor == pytest.approx(attention, rel=1e-12)


def test_the_windows_before_and_after_the_publishers_rescaling() -> None:
    assert (ours(LLAMA3).window, ours(LLAMA3).pretraining_window) == (WINDOW, 8192)
    assert ours({}).pretraining_window == WINDOW
    top = base_rope({"original_max_position_embeddings": 64}, YARN, rotary_dim=HEAD, window=WINDOW)
    assert top.pretraining_window == 64, "the top-level value wins, as in transformers"


def test_a_fixed_alpha_stretches_theta() -> None:
    found = ours({"rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0})
    stretched = rope.inv_freq(THETA * 1000.0 ** (HEAD / (HEAD - 2)), HEAD)
    assert np.allclose(rope.inv_freq(THETA, HEAD, found.long_factor), stretched, rtol=1e-12)


def test_longrope_keeps_both_sets_and_the_formula() -> None:
    lists = {**PUBLISHED["phi 3"], "short_factor": [1.0] * (HEAD // 2)}
    found = ours(lists)
    assert found.short_factor != found.long_factor
    assert found.attention_factor == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))


def test_plain_is_plain_whatever_its_spelling() -> None:
    for parameters in (
        {},
        {"rope_type": "default"},
        {"type": "linear", "factor": 1.0},
        {"rope_type": "dynamic", "factor": 4.0},
    ):
        assert ours(parameters).is_plain
    assert not ours(LLAMA3).is_plain


def test_pairs_that_are_not_rotated_have_a_factor_beyond_every_window() -> None:
    assert ours(PUBLISHED["proportional"]).long_factor == (1.0,) * 8 + (NOT_ROTATED,) * 24


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"factor": "8"}, "factor"),
        ({"factor": 0}, "factor"),
        ({"factor": math.nan}, "factor"),
        ({"factor": True}, "factor"),
        ({"low_freq_factor": None}, "low_freq_factor"),
        ({"low_freq_factor": 4.0}, "low_freq_factor"),
        ({"original_max_position_embeddings": "8192"}, "original_max_position_embeddings"),
        ({"rope_theta": [1]}, "rope_theta"),
        ({"rope_type": 3}, "rope_type"),
    ],
)
def test_odd_values_are_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        ours({**LLAMA3, **change})


def test_lists_of_another_length_and_unknown_types_are_refused() -> None:
    with pytest.raises(InputError, match="short_factor: expected 32 numbers, got 3"):
        ours({**PUBLISHED["phi 3"], "short_factor": [1, 2, 3]})
    with pytest.raises(UnsupportedError, match="rope_type 'spiral'"):
        ours({"rope_type": "spiral"})
