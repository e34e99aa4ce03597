"""The config.json of an extended model: read in every spelling, written so that every engine reads it alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from longrope.architectures import ARCHITECTURES, architecture_of, attending_to
from longrope.base_rope import DEFAULT_THETA
from longrope.errors import FactorError, UnsupportedError
from longrope.factors import BoundFactors, RescaleFactors
from longrope.family import RopeFamily
from longrope.reading import said_by
from longrope.rope import attention_factor_formula

# How layers that see everything, and those that do not, are called where rotary parameters are nested by layer type.
FULL, SLIDING = "full_attention", "sliding_attention"
# Attention factors of each set, which only phimoe's model class applies.
PER_SET_FACTORS = ("short_mscale", "long_mscale")
# Rotary parameters that are no scaling of their own, and stay.
_KEPT = ("partial_rotary_factor", "mrope_section", "mrope_interleaved", "llama_4_scaling_beta")
# Those that a softmax scale is computed from (DeepSeek).
_MSCALES = ("mscale", "mscale_all_dim")
_SOFTMAX = (*_MSCALES, "factor")


def from_config(config: Mapping[str, Any]) -> RescaleFactors | None:
    """The factors a Hugging Face config.json carries; None when its RoPE is not of type longrope.

    The top-level `original_max_position_embeddings` wins over the nested one, as in transformers.
    """
    rope = rope_parameters(config)
    if rope.get("rope_type", rope.get("type")) not in ("longrope", "su"):
        return None
    missing = [name for name in ("short_factor", "long_factor") if name not in rope]
    if missing:
        raise FactorError(f"config.json: rope type longrope without {' and '.join(missing)}")
    nested = rope.get("original_max_position_embeddings")
    return RescaleFactors(
        short_factor=rope["short_factor"],
        long_factor=rope["long_factor"],
        original_max_position_embeddings=config.get("original_max_position_embeddings") or nested,
        target_length=config.get("max_position_embeddings"),
        attention_factor=rope.get("attention_factor"),
        rope_theta=rope.get("rope_theta", config.get("rope_theta")),
        model_type=config.get("model_type"),
        method="config.json",
    )


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` (v5) merged over `rope_scaling` (v4) of a config.json; empty when it has neither.

    Where they are nested by layer type, those of the layers that see everything.
    """
    merged = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    own = {name: value for name, value in merged.items() if not isinstance(value, Mapping)}
    return {**own, **(merged.get(FULL) or {})}


def with_window(config: Mapping[str, Any], window: int, *, plain: bool) -> dict[str, Any]:
    """A config.json that says another released window, of a model whose weights stay.

    Args:
        config: parsed config.json of the text model.
        window: L in tokens.
        plain: whether the publisher's rescaling is taken out; else it stays as it is.
    """
    moved = {**config, "max_position_embeddings": window}
    if not plain:
        return moved
    rope = {name: value for name, value in rope_parameters(config).items() if name in (*_KEPT, "rope_theta")}
    full = {**rope, "rope_type": "default"}
    if full.get("rope_theta") is None and config.get("rope_theta") is not None:
        full["rope_theta"] = config["rope_theta"]
    by_type = architecture_of(config).rotary == "by_type"
    moved["rope_parameters"] = {FULL: full, SLIDING: local_parameters(config)} if by_type else full
    return {
        name: value for name, value in moved.items() if name not in ("rope_scaling", "original_max_position_embeddings")
    }


def transformers_config(config: Mapping[str, Any]) -> Any:
    """transformers' configuration object of a parsed config.json, without any code that comes with it."""
    from transformers import AutoConfig

    data = {name: _numbers(value) for name, value in with_current_names(config).items() if name != "auto_map"}
    with said_by("transformers", "config.json"):
        return AutoConfig.for_model(data.pop("model_type"), **data)


def _numbers(value: Any) -> Any:
    """Numbers that JSON has no name for, which transformers 5 writes as {"__float__": "Infinity"}."""
    if isinstance(value, Mapping):
        special = value.get("__float__")
        return float(special) if isinstance(special, str) else {name: _numbers(each) for name, each in value.items()}
    return [_numbers(each) for each in value] if isinstance(value, list) else value


def with_current_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config.json whose RoPE type is called as transformers calls it today: `su` was longrope's first name.

    What is null in the RoPE's parameters is not said there.
    """
    renamed = {
        spelling: {
            key: "longrope" if key in ("rope_type", "type") and value == "su" else value
            for key, value in rope.items()
            if value is not None
        }
        for spelling in ("rope_scaling", "rope_parameters")
        if (rope := config.get(spelling))
    }
    return {**config, **renamed}


def with_one_set(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of a config.json whose model class rotates by the short set at every length, with the long one in its place.

    Raises:
        UnsupportedError: the attention factors of the two sets differ, which one set cannot have.
    """
    row, rope = ARCHITECTURES.get(str(config.get("model_type"))), rope_parameters(config)
    if row is None or not row.per_set_attention or "long_factor" not in rope:
        return config
    short, long = (rope.get(name) for name in PER_SET_FACTORS)
    if short != long:
        raise UnsupportedError(f"config.json: short_mscale {short} and long_mscale {long}: expected one for both sets")
    one = {"short_factor": rope["long_factor"], **({"attention_factor": long} if long else {})}
    spellings = {name: {**config[name], **one} for name in ("rope_scaling", "rope_parameters") if config.get(name)}
    return {**config, **spellings}


def extended_config(config: Mapping[str, Any], factors: BoundFactors) -> dict[str, Any]:
    """A config.json with the factors in it, read alike by transformers 5 and 4.57, vLLM, SGLang, TGI and mlx-lm.

    Both `rope_scaling` (v4) and `rope_parameters` (v5) are written, and theta, L and L' at the top level too.
    `attention_factor` is left out when it is the formula's, which every engine computes; else it is written.
    Factors of a family are written as its parameters, with rope_type yarn or linear. Where all layers slide over fewer
    tokens than the target, they attend to everything.

    Raises:
        UnsupportedError: n_hat > 0, for which the configuration has no place.
    """
    if factors.n_hat:
        raise UnsupportedError(
            f"a Hugging Face configuration cannot hold n_hat = {factors.n_hat} start tokens; "
            "export to ONNX, which can, or search without start tokens"
        )
    native = _longrope(config, factors) if factors.family is None else _of_family(config, factors, factors.family)
    shared = {**kept_parameters(config), **native} if factors.family else {**native, **kept_parameters(config)}
    theta = factors.written_theta
    full: dict[str, Any] = {"rope_theta": theta, **shared}
    row = architecture_of(config)
    extended = {
        **attending_to(config, factors.target),
        **_head_dim(config),
        "max_position_embeddings": factors.target,
        "original_max_position_embeddings": shared.get("original_max_position_embeddings"),
        "rope_theta": theta,
        "rope_scaling": {"type": shared["rope_type"], **shared},
        "rope_parameters": full if row.rotary != "by_type" else {FULL: full, SLIDING: local_parameters(config)},
    }
    if row.v5_only:
        del extended["rope_scaling"], extended["rope_theta"]
        # Gemma 4's heads differ by layer, and transformers' validation of longrope asks for one size.
        extended["allow_global_per_layer_attribute_access"] = True
    if extended["original_max_position_embeddings"] is None:  # linear, which knows no L; vLLM would stop there
        del extended["original_max_position_embeddings"]
    return extended


def _longrope(config: Mapping[str, Any], factors: BoundFactors) -> dict[str, Any]:
    """Both sets, as rope_type longrope."""
    shared: dict[str, Any] = {
        "rope_type": "longrope",
        "short_factor": list(factors.short_factor),
        "long_factor": list(factors.long_factor),
        "factor": factors.length_scale,
        "original_max_position_embeddings": switch_length(config, factors),
    }
    per_set = architecture_of(config).per_set_attention
    if per_set and factors.factor_sets == "dual":
        raise UnsupportedError(
            f"transformers' {config['model_type']} rotates by its short set at every length; use a single factor set",
            option="factor-sets single",
        )
    if per_set or factors.attention_factor is not None or not by_runtime_formula(shared, factors):
        shared["attention_factor"] = factors.effective_attention_factor
    return {**shared, **dict.fromkeys(PER_SET_FACTORS if per_set else (), factors.effective_attention_factor)}


def _of_family(config: Mapping[str, Any], factors: BoundFactors, family: RopeFamily) -> dict[str, Any]:
    """The parameters of a family. Raises as `require_family`."""
    require_family(config, family.type)
    found = family_parameters(*_in_own_window(config, family, factors.original))
    given = rope_parameters(config)
    if not (architecture_of(config).softmax_scale and given.get("mscale_all_dim")):
        return found
    # The softmax scale is (0.1 mscale_all_dim ln s + 1)², which stays: only the rotation is extended.
    if family.factor <= 1:
        raise UnsupportedError(
            f"{config['model_type']} computes its softmax scale from YaRN's scale; expected one above 1"
        )
    kept = math.log(given["factor"]) / math.log(family.factor)
    mscales = {name: given[name] * kept for name in _MSCALES if given.get(name)}
    return {**found, **mscales, "attention_factor": family.attention_factor}


def _in_own_window(config: Mapping[str, Any], family: RopeFamily, original: int) -> tuple[RopeFamily, int]:
    """The same ramp with betas of the window that the model was trained on before its publisher's YaRN, and that window."""
    given = rope_parameters(config)
    own = given.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    if given.get("rope_type", given.get("type")) != "yarn" or not own or family.type != "yarn":
        return family, original
    moved = own / original
    return replace(family, beta_fast=family.beta_fast * moved, beta_slow=family.beta_slow * moved), own


def require_family(config: Mapping[str, Any], name: str) -> None:
    """Raise UnsupportedError where transformers' configuration of this model type knows no rope_type but longrope."""
    row = architecture_of(config)
    if row.longrope_only:
        raise UnsupportedError(
            f"transformers' {row.model_type} takes no rope_type {name}, only longrope; search free factors"
        )


def family_parameters(family: RopeFamily, original: int) -> dict[str, Any]:
    """The rotary parameters of a family, but for θ, which has places of its own.

    `attention_factor` is transformers' name, `attn_factor` what vLLM and SGLang multiply their own 0.1 ln s + 1 by; both
    are left out where the attention factor is the formula's.
    """
    if family.type == "linear":
        return {"rope_type": "linear", "factor": family.factor}
    found = {
        "rope_type": "yarn",
        "factor": family.factor,
        "original_max_position_embeddings": original,
        "beta_fast": family.beta_fast,
        "beta_slow": family.beta_slow,
        "truncate": family.truncate,
    }
    formula = family.formula_attention_factor
    if not math.isclose(family.attention_factor, formula, rel_tol=1e-9):
        found |= {
            "attention_factor": family.attention_factor,
            "attn_factor": family.attention_factor / formula,
        }
    return found


def by_runtime_formula(written: Mapping[str, Any], factors: BoundFactors) -> bool:
    """Whether a runtime that finds no attention factor among these rotary parameters computes the right one."""
    original = written["original_max_position_embeddings"]
    return math.isclose(attention_factor_formula(written["factor"], original), factors.effective_attention_factor)


def kept_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary parameters of a configuration that an extension leaves as they are."""
    given, row = rope_parameters(config), architecture_of(config)
    names = (*_KEPT, *(_SOFTMAX if row.softmax_scale and given.get("mscale_all_dim") else ()))
    kept = {name: given[name] for name in names if given.get(name) is not None}
    if given.get("rope_type") == "proportional":  # its part of rotated pairs is in the factors
        kept.pop("partial_rotary_factor", None)
    return kept


def switch_length(config: Mapping[str, Any], factors: BoundFactors) -> int:
    """Tokens up to which the short set is used, as a configuration says it.

    Ministral 3 scales its queries by a position's multiple of the same number, so that it has to stay; both sets are equal
    then.

    Raises:
        UnsupportedError: two factor sets of such a model.
    """
    given = rope_parameters(config)
    if given.get("llama_4_scaling_beta") is None:
        return factors.original
    stays = config.get("original_max_position_embeddings") or given.get("original_max_position_embeddings")
    if stays in (None, factors.original):
        return factors.original
    if factors.factor_sets == "dual":
        raise UnsupportedError(
            f"a Hugging Face configuration of this model scales queries by original_max_position_embeddings = {stays}, and "
            f"the same number would switch between the two sets, at {factors.original}; use a single factor set"
        )
    return int(stays)


def local_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary parameters of the layers that slide, where they have their own; an extension leaves them as they are."""
    nested = (config.get("rope_parameters") or {}).get(SLIDING)
    if nested:
        return dict(nested)
    row, given = architecture_of(config), rope_parameters(config)
    own = config.get(row.local_theta) if row.local_theta else given.get("rope_theta", config.get("rope_theta"))
    return {"rope_type": "default", "rope_theta": own or DEFAULT_THETA}


def _head_dim(config: Mapping[str, Any]) -> dict[str, int]:
    """A null head_dim, as Mixtral's configuration saves it, spelled out: transformers 5 refuses longrope beside a null."""
    if config.get("head_dim", 0) is not None:
        return {}
    return {"head_dim": int(config["hidden_size"]) // int(config["num_attention_heads"])}
