"""Families of parameters: closed form against transformers, factors.json, config.json, what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from converters.folder import config_checks
from longrope import rope
from longrope.checkpoint import placeholder_factors
from longrope.errors import FactorError, InputError, UnsupportedError
from longrope.factors import BoundFactors, RescaleFactors
from longrope.family import RopeFamily
from longrope.hf_config import extended_config
from longrope.search.options import SearchOptions
from longrope.search.space import make_space
from tests.common import TARGET, WINDOW, pico_checkpoint, pico_config

DIM, THETA = 64, 10_000.0
FAMILIES = {
    "yarn": RopeFamily.yarn(4.0, THETA),
    "another ramp and base": RopeFamily.yarn(5.5, 3 * THETA, beta_fast=12.8, beta_slow=0.4, attention_factor=1.3),
    "PI": RopeFamily("linear", 4.0, THETA),
    "NTK": RopeFamily("linear", 1.0, THETA * 4 ** (DIM / (DIM - 2))),
}


def bound(family: RopeFamily, **changes: Any) -> BoundFactors:
    factors = family.factors(DIM, original=WINDOW, rope_theta=THETA)
    values = {"attention_factor": family.attention_factor, "family": family, "method": family.type, **changes}
    return RescaleFactors(factors, factors, **values).bound_to(
        original=WINDOW, target=TARGET, rope_theta=THETA, rotary_dim=DIM, model_type="llama"
    )


def llama() -> dict[str, Any]:
    data: dict[str, Any] = pico_config("llama", hidden_size=256, head_dim=DIM).to_dict()
    return data


def extended(family: RopeFamily) -> dict[str, Any]:
    return json.loads(json.dumps(extended_config(llama(), bound(family))))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
def test_the_factors_are_what_transformers_computes_from_either_spelling(family: RopeFamily, spelling: str) -> None:
    data = extended(family)
    del data[{"rope_parameters": "rope_scaling", "rope_scaling": "rope_parameters"}[spelling]]
    config = AutoConfig.for_model(data.pop("model_type"), **data)
    assert config.rope_parameters["rope_type"] == family.type
    found, attention = ROPE_INIT_FUNCTIONS[family.type](config, "cpu")
    expected = rope.inv_freq(THETA, DIM, bound(family).long_factor)
    assert np.max(np.abs(found.double().numpy() / expected - 1)) <= 1e-6
    assert attention == pytest.approx(family.attention_factor, rel=1e-6)


def test_ntk_aware_scaling_is_a_changed_base() -> None:
    np.testing.assert_allclose(bound(FAMILIES["NTK"]).long_factor, rope.ntk_factors(DIM, 4.0), rtol=1e-12)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_parameters_come_back_from_factors_json(tmp_path: Path, family: RopeFamily) -> None:
    bound(family).save(tmp_path / "factors.json")
    found = RescaleFactors.load(tmp_path / "factors.json")
    assert found.family == family
    assert found.long_factor == bound(family).long_factor


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "another factor": ({"family": {"factor": 4.0001}}, "do not follow from their yarn parameters"),
    "another base": ({"family": {"rope_theta": 10_001.0}}, "do not follow from their yarn parameters"),
    "another attention factor": ({"attention_factor": 1.2}, "expected both alike"),
    "no attention factor": ({"attention_factor": None}, "expected both alike"),
    "start tokens": ({"n_hat": 4}, "no start tokens"),
    "unknown type": ({"family": {"type": "ntk"}}, "expected an object whose type is one of linear, yarn"),
    "unknown parameter": ({"family": {"gamma": 2.0}}, "unknown parameter gamma"),
    "betas the wrong way round": ({"family": {"beta_slow": 64.0}}, "expected beta_fast"),
    "no number": ({"family": {"factor": "4"}}, "factor: expected a finite number"),
}


@pytest.mark.parametrize(("changes", "message"), BROKEN.values(), ids=BROKEN)
def test_factors_that_are_not_those_of_their_parameters_are_refused(changes: dict[str, Any], message: str) -> None:
    data = bound(FAMILIES["yarn"]).to_json()
    data |= {**changes, "family": {**data["family"], **changes.get("family", {})}}
    with pytest.raises(InputError, match=message):
        RescaleFactors.from_json(data)


def test_two_sets_are_no_family() -> None:
    factors = bound(FAMILIES["yarn"])
    with pytest.raises(FactorError, match="one set"):
        dataclasses.replace(factors, short_factor=(1.0,) * len(factors.long_factor))


def test_engines_compute_the_attention_factor_unless_it_is_another() -> None:
    usual, other = extended(FAMILIES["yarn"]), extended(FAMILIES["another ramp and base"])
    for spelling in ("rope_parameters", "rope_scaling"):
        assert not {"attention_factor", "attn_factor"} & set(usual[spelling])
        assert other[spelling]["attention_factor"] == 1.3
        assert other[spelling]["attn_factor"] == pytest.approx(1.3 / (0.1 * np.log(5.5) + 1))
    assert other["rope_theta"] == other["rope_parameters"]["rope_theta"] == 3 * THETA
    assert other["rope_scaling"]["type"] == "yarn"


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
def test_every_parameter_of_a_config_is_checked(family: RopeFamily, spelling: str) -> None:
    def failed(config: dict[str, Any]) -> list[str]:
        checks = config_checks(config, bound(family), keys="hf.config", rope="hf", source=llama())
        return [check.id for check in checks if check.status == "fail"]

    assert failed(extended(family)) == []
    for name in extended(family)[spelling]:
        if name in ("type", "rope_theta"):
            continue
        config = extended(family)
        config[spelling][name] = "other"
        assert failed(config), name
    config = extended(family)
    config[spelling]["mscale"] = 0.7
    assert failed(config)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a strategy of free factors": ({"strategy": "evolution"}, "has its own search"),
    "start tokens": ({"n_hat": "search"}, "start tokens"),
    "another base": ({"from_factors": bound(FAMILIES["PI"])}, "replace those"),
    "free starts": ({"start_from": (bound(FAMILIES["PI"]),)}, "not points of a family"),
    "attention of linear": ({"family": "linear", "attention_factor": "search"}, "linear interpolation has none"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_options_that_a_family_has_no_place_for_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SearchOptions(**{"family": "yarn", **changes})


def test_models_whose_rescaling_is_none_of_the_family_or_that_take_longrope_only_are_refused(tmp_path: Path) -> None:
    original = {"rope_theta": THETA, "original_max_position_embeddings": WINDOW // 2, "factor": 2.0}
    llama3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **original}
    rescaled = pico_checkpoint(tmp_path / "rescaled", rope_parameters=llama3)
    with pytest.raises(UnsupportedError, match="rescaled already"):
        make_space(rescaled, TARGET, family="yarn")
    with pytest.raises(UnsupportedError, match="rescaled already"):
        placeholder_factors(rescaled, TARGET, family="yarn")
    linear = pico_checkpoint(tmp_path / "linear", rope_parameters={"rope_type": "linear", **original})
    with pytest.raises(UnsupportedError, match="rescaled already"):
        make_space(linear, TARGET, family="yarn")
    assert make_space(linear, TARGET, family="linear").known_methods()[0].candidate.factors == pytest.approx(
        [2.0 * TARGET / WINDOW] * (linear.rotary_dim // 2)
    )
    phi3 = pico_checkpoint(tmp_path / "phi3", "phi3", pad_token_id=0)
    with pytest.raises(UnsupportedError, match="only longrope"):
        make_space(phi3, TARGET, family="linear")
