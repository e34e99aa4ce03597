"""The RoPE that llama.cpp computes from a file, of this program or of other tools, which say theirs in more ways:

    rope.scaling.type (linear where it is silent), .factor or the old rope.scale_linear, .attn_factor (1 where silent),
    rope_freqs.weight, rope_factors_*.weight  ──file_rope──► FileRope: rotary parameters of a config.json, or factor sets

Position n rotates pair i by n θ^(-2i/d) / (λ_i s): λ of a tensor, s the scaling factor, on top of one another. Type none
switches s off, yarn spreads it over the pairs. Source: llama.cpp as vendored by llama-cpp-python 0.3.36 (load_hparams in
src/llama-model.cpp, the constructor in src/llama-context.cpp).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from converters.gguf.container import GgufFile
from converters.gguf.factors import (
    FREQS,
    LONG,
    SHORT,
    bound_to_file,
    factors_of,
    positive_key,
    require_same_type,
    rotary_dim,
    theta_of,
)
from longrope.base_rope import BaseRope
from longrope.checkpoint import Checkpoint
from longrope.errors import UnsupportedError
from longrope.factors import BoundFactors, RescaleFactors
from longrope.family import BETA_FAST, BETA_SLOW

KINDS = ("none", "linear", "yarn", "longrope")
# Architectures that load the two tensors whatever the type says.
_ALWAYS_SETS = ("phi3", "phimoe", "minicpm3")
# Overrides of what YaRN derives, which transformers has no words for.
YARN_OVERRIDES = ("yarn_ext_factor", "yarn_attn_factor", "yarn_log_multiplier", "alpha")


@dataclass(frozen=True)
class FileRope:
    """What a file's rotary embedding is.

    Args:
        parameters: `rope_type` and what belongs to it, of a plain, linear or yarn RoPE; empty where there are factors.
        factors: the two sets with the attention factor, where no other rope_type says it.
    """

    parameters: dict[str, Any]
    factors: RescaleFactors | None = None


def file_rope(file: GgufFile) -> FileRope:
    """The RoPE of a file.

    Raises:
        InputError: a value that cannot be, or one factor set without the other.
        UnsupportedError: what has no counterpart in transformers, or what llama.cpp does not load.
    """
    if file.architecture.startswith("granite") and file.model_key("rope.scaling.finetuned") is False:
        raise UnsupportedError(
            f"{file.path}: its rotary embedding is switched off (rope.scaling.finetuned is false), so there is nothing to "
            "rescale"
        )
    kind, scale = _kind(file), _scale(file)
    if kind == "yarn":
        return FileRope(_yarn(file, scale))
    attention = positive_key(file, "rope.scaling.attn_factor", 1.0)
    stored = factors_of(file)
    if stored is None and attention == 1.0:
        return FileRope({"rope_type": "default"} if scale == 1.0 else {"rope_type": "linear", "factor": scale})
    if stored is None:
        ones = (1.0,) * (rotary_dim(file) // 2)
        stored = RescaleFactors(ones, ones, target_length=file.model_key("context_length"), method="gguf")
    return FileRope({}, _scaled(stored, scale, attention))


def base_of(file: GgufFile) -> BaseRope:
    """The same as the RoPE that an extension of the file is put on. Raises as `file_rope`."""
    return _as_checkpoint(file, file.architecture, None).base


def put_on_file(file: GgufFile, factors: RescaleFactors) -> BoundFactors:
    """Factors as products with the RoPE of a file, as `Checkpoint.bind` makes them.

    Raises:
        InputError: a contradiction between the two.
        UnsupportedError: as `file_rope`.
    """
    require_same_type(file, factors)
    return _as_checkpoint(file, factors.model_type or file.architecture, factors.rope_theta).bind(factors)


def _as_checkpoint(file: GgufFile, model_type: str, rope_theta: float | None) -> Checkpoint:
    """What binding factors needs to know of a model: lengths, θ and RoPE."""
    rope, dim = file_rope(file), rotary_dim(file)
    theta = theta_of(file, rope_theta)
    parameters = {**rope.parameters, "rope_theta": theta, "partial_rotary_factor": 1.0}
    if rope.factors is not None:
        bound = bound_to_file(file, rope.factors)
        parameters |= {
            "rope_type": "longrope",
            "short_factor": list(bound.short_factor),
            "long_factor": list(bound.long_factor),
            "original_max_position_embeddings": bound.original,
            "attention_factor": bound.effective_attention_factor,
        }
    config = {
        "model_type": model_type,
        "head_dim": dim,
        "num_hidden_layers": 1,
        "layer_types": ["full_attention"],
        "max_position_embeddings": file.required_key("context_length"),
        "rope_parameters": parameters,
    }
    return Checkpoint(file.path.parent, str(file.path), config)


def _kind(file: GgufFile) -> str:
    """`rope.scaling.type`, and whether llama.cpp loads the tensors that are there under it."""
    kind = file.model_key("rope.scaling.type", "linear")
    if kind not in KINDS:
        raise UnsupportedError(f"{file.path}: rope.scaling.type {kind!r}: expected one of {', '.join(KINDS)}")
    sets = {LONG, SHORT} & set(file.tensors)
    if sets and kind != "longrope" and file.architecture not in _ALWAYS_SETS:
        raise UnsupportedError(f"{file.path}: llama.cpp does not load {min(sets)} beside rope.scaling.type {kind}")
    if FREQS in file.tensors and (sets or kind == "longrope"):
        raise UnsupportedError(f"{file.path}: has {FREQS} beside rope.scaling.type longrope; expected one of them")
    if kind == "yarn" and (sets or FREQS in file.tensors):
        raise UnsupportedError(f"{file.path}: its RoPE is rescaled by yarn and by a tensor; expected one of them")
    return str(kind)


def _scale(file: GgufFile) -> float:
    """s: how much slower every pair is rotated; llama.cpp reads 0 as 1."""
    name = "rope.scaling.factor" if file.model_key("rope.scaling.factor") is not None else "rope.scale_linear"
    if file.model_key("rope.scaling.type") == "none" or not file.model_key(name):
        return 1.0
    return positive_key(file, name, 1.0)


def _yarn(file: GgufFile, scale: float) -> dict[str, Any]:
    """llama.cpp multiplies cos and sin by (1 + 0.1 ln s) · attn_factor."""
    given = [name for name in YARN_OVERRIDES if file.model_key(f"rope.scaling.{name}")]
    if given:
        raise UnsupportedError(
            f"{file.path}: rope.scaling.{given[0]} changes YaRN in a way that has no counterpart in transformers"
        )
    return {
        "rope_type": "yarn",
        "factor": scale,
        "original_max_position_embeddings": int(
            file.model_key("rope.scaling.original_context_length") or file.required_key("context_length")
        ),
        "beta_fast": positive_key(file, "rope.scaling.yarn_beta_fast", BETA_FAST),
        "beta_slow": positive_key(file, "rope.scaling.yarn_beta_slow", BETA_SLOW),
        "attention_factor": (1.0 + 0.1 * math.log(scale)) * positive_key(file, "rope.scaling.attn_factor", 1.0),
    }


def _scaled(stored: RescaleFactors, scale: float, attention: float) -> RescaleFactors:
    short, long = (tuple(scale * factor for factor in each) for each in (stored.short_factor, stored.long_factor))
    return dataclasses.replace(stored, short_factor=short, long_factor=long, attention_factor=attention)
