"""The config.json of an extended model: written in every spelling, read back exactly, understood by transformers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longrope import rope
from longrope.errors import InputError, UnsupportedError
from longrope.factors import BoundFactors, RescaleFactors
from longrope.family import RopeFamily
from longrope.hf_config import extended_config, from_config, rope_parameters, with_one_set
from tests.common import TARGET, WINDOW, pico_config, pico_factors


def bound(rotary_dim: int = 16, **changes: Any) -> BoundFactors:
    factors = pico_factors(rotary_dim, **changes)
    return factors.bound_to(original=WINDOW, rope_theta=10_000.0, rotary_dim=rotary_dim, model_type="llama")


def plain_config(model_type: str = "llama", **changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = pico_config(model_type, **changes).to_dict()
    return data


def without(data: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name not in names}


# -- writing


def test_every_place_an_engine_reads_is_filled() -> None:
    """Top level for vLLM and mlx-lm, rope_scaling for transformers 4, rope_parameters for transformers 5."""
    factors = bound()
    config = extended_config(plain_config(), factors)
    assert config["max_position_embeddings"] == TARGET
    assert config["original_max_position_embeddings"] == WINDOW
    assert config["rope_theta"] == 10_000.0
    assert config["rope_scaling"]["type"] == "longrope"
    assert config["rope_parameters"]["rope_theta"] == 10_000.0
    for spelling in ("rope_scaling", "rope_parameters"):
        assert config[spelling]["rope_type"] == "longrope"
        assert config[spelling]["short_factor"] == list(factors.short_factor)
        assert config[spelling]["long_factor"] == list(factors.long_factor)
        assert config[spelling]["factor"] == TARGET / WINDOW
        assert config[spelling]["original_max_position_embeddings"] == WINDOW
        assert not {"attention_factor", "mscale", "short_mscale", "long_mscale"} & set(config[spelling])


def test_a_given_attention_factor_is_written_in_both_spellings() -> None:
    config = extended_config(plain_config(), bound(attention_factor=1.5))
    assert config["rope_scaling"]["attention_factor"] == config["rope_parameters"]["attention_factor"] == 1.5


def test_the_rest_of_the_config_is_kept() -> None:
    touched = {
        "max_position_embeddings",
        "original_max_position_embeddings",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
    }
    before = plain_config()
    assert without(extended_config(before, bound()), *touched) == without(before, *touched)


def test_start_tokens_are_refused_with_the_way_out() -> None:
    with pytest.raises(UnsupportedError, match=r"n_hat = 4 start tokens; export to ONNX.*search without start tokens"):
        extended_config(plain_config(), bound(n_hat=4))


# -- reading


@pytest.mark.parametrize("kept", ["both", "rope_scaling", "rope_parameters"])
def test_each_spelling_alone_brings_the_factors_back(kept: str) -> None:
    factors = bound(attention_factor=1.5)
    other = {"rope_scaling": "rope_parameters", "rope_parameters": "rope_scaling"}.get(kept, "")
    found = from_config(without(extended_config(plain_config(), factors), other))
    assert found is not None
    assert found.to_json() == {**factors.to_json(), "rotary_dim": None, "method": "config.json"}


def test_the_first_phi3_spelling_is_read() -> None:
    """Phi-3's own files of 2024: type "su", L at the top level only."""
    config = {
        "model_type": "phi3",
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "su", "short_factor": [1.0, 1.1], "long_factor": [1.0, 40.0]},
    }
    found = from_config(config)
    assert found is not None
    assert (found.original_max_position_embeddings, found.target_length) == (4096, 131072)
    assert found.long_factor == (1.0, 40.0)


def test_the_top_level_original_wins_over_the_nested() -> None:
    config = {**extended_config(plain_config(), bound()), "original_max_position_embeddings": 128}
    found = from_config(config)
    assert found is not None
    assert found.original_max_position_embeddings == 128


@pytest.mark.parametrize(
    "config", [{}, {"rope_scaling": None}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}]
)
def test_other_models_carry_no_factors(config: dict[str, Any]) -> None:
    assert from_config(config) is None


def test_a_longrope_config_without_lists_is_an_error() -> None:
    with pytest.raises(InputError, match="rope type longrope without long_factor"):
        from_config({"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0]}})


def test_the_v5_spelling_wins_where_both_are_there() -> None:
    merged = rope_parameters({"rope_scaling": {"factor": 2.0, "beta_fast": 3}, "rope_parameters": {"factor": 4.0}})
    assert merged == {"factor": 4.0, "beta_fast": 3}


# -- transformers' view of what was written


def theirs(config: dict[str, Any], seq_len: int) -> tuple[np.ndarray, float]:
    """Inverse frequencies and attention factor that transformers computes from a config.json."""
    data = dict(config)
    loaded = AutoConfig.for_model(data.pop("model_type"), **data)
    inv_freq, attention_factor = ROPE_INIT_FUNCTIONS["longrope"](loaded, seq_len=seq_len)
    return inv_freq.double().numpy(), attention_factor


PARTIAL: dict[str, dict[str, Any]] = {
    "whole": {},
    "nested v5": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "top level v4": {"partial_rotary_factor": 0.5, "rope_theta": 10_000.0},
}


@pytest.mark.parametrize("spelling", ["both", "rope_scaling"])
@pytest.mark.parametrize("partial", PARTIAL)
def test_transformers_computes_both_sets_from_it(partial: str, spelling: str) -> None:
    base = without(plain_config("phi3"), "rope_parameters") | {"rope_theta": 10_000.0} | PARTIAL[partial]
    rotary_dim = 16 if partial == "whole" else 8
    factors = bound(rotary_dim)
    config = extended_config(base, factors)
    if spelling == "rope_scaling":
        del config["rope_parameters"]
    for name, seq_len in (("short", WINDOW), ("long", WINDOW + 1)):
        inv_freq, attention_factor = theirs(config, seq_len)
        expected = rope.inv_freq(10_000.0, rotary_dim, factors.set(name))  # type: ignore[arg-type]
        np.testing.assert_allclose(inv_freq, expected, rtol=2e-6)
        assert attention_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(64)))


def test_extending_twice_leaves_nothing_of_the_first_time() -> None:
    first = extended_config(plain_config(), bound(attention_factor=1.5))
    second = bound(target=2 * TARGET, dual=False)
    again = extended_config(first, second)
    assert again == extended_config(plain_config(), second)


# -- phimoe, whose class rotates by the short set at every length

PHIMOE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "short_mscale": 1.2}


def test_an_attention_factor_for_each_set_is_written_where_a_class_reads_them() -> None:
    config = extended_config(plain_config("phimoe"), bound(attention_factor=1.5).as_single())
    for spelling in ("rope_scaling", "rope_parameters"):
        found = {config[spelling][name] for name in ("attention_factor", "short_mscale", "long_mscale")}
        assert found == {1.5}
    with pytest.raises(UnsupportedError, match="short set at every length"):
        extended_config(plain_config("phimoe"), bound())


def test_such_a_model_is_extended_from_its_long_set() -> None:
    given = {"model_type": "phimoe", "rope_scaling": {**PHIMOE, "long_mscale": 1.2}}
    rope = rope_parameters(with_one_set(given))
    assert (rope["short_factor"], rope["attention_factor"]) == ([2.0] * 8, 1.2)
    assert with_one_set({**given, "model_type": "phi3"}) == {**given, "model_type": "phi3"}
    with pytest.raises(UnsupportedError, match="expected one for both sets"):
        with_one_set({**given, "rope_scaling": {**PHIMOE, "long_mscale": 1.3}})


def test_a_softmax_scale_stays_when_the_rotation_is_extended() -> None:
    """DeepSeek computes it from the scale of YaRN and mscale_all_dim."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": WINDOW // 4}
    before = {"model_type": "deepseek_v2", "rope_scaling": {**yarn, "mscale": 0.7, "mscale_all_dim": 0.7}}
    family = RopeFamily.yarn(16.0, 10_000.0, beta_fast=128.0, beta_slow=4.0, attention_factor=1.0)
    values = family.factors(16, original=WINDOW, rope_theta=10_000.0)
    factors = RescaleFactors(values, values, attention_factor=1.0, target_length=TARGET, family=family)
    given = factors.bound_to(original=WINDOW, rope_theta=10_000.0, rotary_dim=16, model_type="deepseek_v2")
    rope = extended_config(before, given)["rope_parameters"]
    assert (rope["factor"], rope["original_max_position_embeddings"], rope["beta_fast"]) == (16.0, WINDOW // 4, 32.0)
    assert rope["attention_factor"] == 1.0
    assert rope["mscale_all_dim"] * math.log(16.0) == pytest.approx(0.7 * math.log(4.0))
