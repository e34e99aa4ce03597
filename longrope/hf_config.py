"""The config.json of an extended model: read in every spelling, written so that every engine reads it alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longrope.errors import FactorError, UnsupportedError
from longrope.factors import BoundFactors, RescaleFactors

# Rotary parameters that are no scaling of their own, and stay.
_KEPT = ("partial_rotary_factor", "llama_4_scaling_beta")


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
    """`rope_parameters` (v5) merged over `rope_scaling` (v4) of a config.json; empty when it has neither."""
    return {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}


def extended_config(config: Mapping[str, Any], factors: BoundFactors) -> dict[str, Any]:
    """A config.json with the factors in it, read alike by transformers 5 and 4.57, vLLM, SGLang, TGI and mlx-lm.

    Both `rope_scaling` (v4) and `rope_parameters` (v5) are written, and theta, L and L' at the top level too.
    `attention_factor` is left out when it is the formula's, which every engine computes; else it is written.

    Raises:
        UnsupportedError: n_hat > 0, for which the configuration has no place.
    """
    if factors.n_hat:
        raise UnsupportedError(
            f"a Hugging Face configuration cannot hold n_hat = {factors.n_hat} start tokens; "
            "export to ONNX, which can, or search without start tokens"
        )
    shared: dict[str, Any] = {
        "rope_type": "longrope",
        "short_factor": list(factors.short_factor),
        "long_factor": list(factors.long_factor),
        "factor": factors.length_scale,
        "original_max_position_embeddings": factors.original,
    }
    if factors.attention_factor is not None:
        shared["attention_factor"] = factors.attention_factor
    given = config.get("rope_parameters") or {}
    shared |= {name: given[name] for name in _KEPT if given.get(name) is not None}
    return {
        **config,
        **_head_dim(config),
        "max_position_embeddings": factors.target,
        "original_max_position_embeddings": factors.original,
        "rope_theta": factors.rope_theta,
        "rope_scaling": {"type": "longrope", **shared},
        "rope_parameters": {"rope_theta": factors.rope_theta, **shared},
    }


def _head_dim(config: Mapping[str, Any]) -> dict[str, int]:
    """A null head_dim, as Mixtral's configuration saves it, spelled out: transformers 5 refuses longrope beside a null."""
    if config.get("head_dim", 0) is not None:
        return {}
    return {"head_dim": int(config["hidden_size"]) // int(config["num_attention_heads"])}
