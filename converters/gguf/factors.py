"""Rescale factors ⇄ GGUF: the tensors, the keys and our own record of them, written and read here and nowhere else.

    RescaleFactors ──factor_arrays──► rope_factors_long.weight, rope_factors_short.weight   or rope_freqs.weight
                   ──scaling_values─► {arch}.rope.scaling.*
                   ──own_record─────► longrope_export.factors, which no runtime reads
    the file       ──factors_of, recorded_factors──► RescaleFactors

llama.cpp divides the angle of each pair of dimensions by its factor. It takes the long tensor in contexts above
`rope.scaling.original_context_length`, the short one in others; an architecture without the two takes rope_freqs always.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import longrope
from converters.gguf.carriers import GgufRope, architectures_of
from converters.gguf.container import GgufFile, TensorInfo, Value, f32, text, u32
from converters.gguf.native import gguf
from longrope.errors import InputError, UnsupportedError
from longrope.factors import BoundFactors, FactorSet, RescaleFactors
from longrope.family import BETA_FAST, BETA_SLOW, RopeFamily
from longrope.reading import parsed_json
from longrope.rope import pair_with_rotations

LONG = "rope_factors_long.weight"
SHORT = "rope_factors_short.weight"
FREQS = "rope_freqs.weight"
FACTOR_TENSORS = (LONG, SHORT, FREQS)
OWN_PREFIX = "longrope_export."
FACTORS_KEY = OWN_PREFIX + "factors"
CARRIED_KEY = OWN_PREFIX + "carried"

# How near to a whole pair the end of a ramp may lie before llama.cpp's float32 may find another one.
FLOAT32_PAIRS = 1e-4
# An original window in which every pair turns more than YaRN's beta_fast times; the largest that llama.cpp holds.
NO_RAMP = (1 << 31) - 1

# What each key does to a model when it is wrong; the words of the checks.
MEANINGS = {
    "context_length": "runtimes take the window a user gets from it",
    "rope.scaling.type": "without longrope llama.cpp does not load the factors",
    "rope.scaling.original_context_length": "llama.cpp chooses the set by it; without it the long set is never used",
    "rope.scaling.attn_factor": "attention is too sharp or too flat at every length; perplexity may even fall",
    "rope.scaling.factor": "must be absent: llama.cpp applies it on top of the factors",
    "rope.scaling.yarn_beta_fast": "the ramp of YaRN begins at another pair",
    "rope.scaling.yarn_beta_slow": "the ramp of YaRN ends at another pair",
    "rope.freq_base": "every rotary frequency is wrong",
}
# Architectures that rotate half of `rope.dimension_count` where they take factors.
_ROTATE_HALF = ("step35",)


# -- into a file


def bound_to_file(file: GgufFile, factors: RescaleFactors) -> BoundFactors:
    """A file's own factors with its lengths, theta and rotary dimension filled in. Raises InputError on a contradiction."""
    require_same_type(file, factors)
    return factors.bound_to(
        original=int(file.model_key("rope.scaling.original_context_length") or file.required_key("context_length")),
        rope_theta=theta_of(file, factors.rope_theta),
        rotary_dim=rotary_dim(file),
        model_type=factors.model_type or file.architecture,
        target=file.required_key("context_length"),
    )


def require_same_type(file: GgufFile, factors: RescaleFactors) -> None:
    """Raise InputError for factors of a model type that is never written as this file's architecture."""
    known = architectures_of(factors.model_type or "")
    if known and file.architecture not in known:
        raise InputError(f"the factors are for {factors.model_type}, the file holds a model of {file.architecture}")


def theta_of(file: GgufFile, known: float | None) -> float:
    """θ of a file, which has it rounded to float32: `known` where that is what was rounded."""
    theta = float(file.model_key("rope.freq_base", 10_000.0))
    return known if known is not None and f32(known).data == theta else theta


def rotary_dim(file: GgufFile) -> int:
    """Dimensions of a head that are rotated, as llama.cpp derives them."""
    given = _stated_rotary_dim(file) or file.model_key("attention.key_length")
    return int(given or file.required_key("embedding_length") // file.required_key("attention.head_count"))


def _stated_rotary_dim(file: GgufFile) -> int | None:
    given: int | None = file.model_key("rope.dimension_count")
    return given // 2 if given is not None and file.architecture in _ROTATE_HALF else given


def positive_key(file: GgufFile, name: str, default: float) -> float:
    """A key as a finite number above 0, by its shortest decimal. Raises InputError."""
    value = file.model_key(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise InputError(f"{file.path}: {name}: expected a finite number above 0, got {value!r}")
    return float(str(np.float32(value)))


def require_expressible(factors: BoundFactors, architecture: str, rope: GgufRope) -> None:
    """Raise UnsupportedError for factors that llama.cpp cannot apply in this architecture."""
    if factors.family is not None:
        scaling_values(factors, rope)
        return
    if factors.n_hat:
        raise UnsupportedError(
            f"GGUF cannot hold n_hat = {factors.n_hat} start tokens: llama.cpp rescales every position; "
            "export to ONNX, which can, or search with --n-hat 0"
        )
    if rope == "full_freqs":
        _ = _attention_of_full_layers(factors)
    if rope != "sets" and factors.factor_sets == "dual":
        raise UnsupportedError(
            f"llama.cpp's {architecture} takes one factor set for every context; "
            "use --factor-sets single, or export to HF or ONNX"
        )


def factor_tensors(rope: GgufRope) -> Mapping[str, FactorSet]:
    """Tensor name → the set it holds: both, or the one that serves every context."""
    return {LONG: "long", SHORT: "short"} if rope == "sets" else {FREQS: "long"}


def factor_arrays(factors: BoundFactors, rope: GgufRope) -> dict[str, NDArray[np.float32]]:
    """The factor tensors by name, [rotary_dim / 2] each; none for a family, whose parameters are keys."""
    if factors.family is not None:
        return {}
    return {name: np.array(factors.set(held), dtype=np.float32) for name, held in factor_tensors(rope).items()}


def factor_info(name: str, data: NDArray[np.float32]) -> TensorInfo:
    """The info of a factor tensor; llama.cpp reads them as float32 only."""
    return TensorInfo(name, data.shape, int(gguf.GGMLQuantizationType.F32))


def scaling_values(factors: BoundFactors, rope: GgufRope, switch: int | None = None) -> dict[str, Value]:
    """The keys `rope.scaling.*`, without the architecture.

    `rope.scaling.factor` is left out of free factors on purpose: llama.cpp would apply it on top.

    Args:
        factors: of the file.
        rope: how the architecture takes them.
        switch: tokens up to which the short set is used; None for the original window.

    Raises:
        UnsupportedError: llama.cpp would compute other factors from any keys.
    """
    if factors.family is not None:
        return _family_values(factors, factors.family)
    if rope == "full_freqs":
        return _attention_of_full_layers(factors)
    kind = {"rope.scaling.type": text(gguf.RopeScalingType.LONGROPE.value)} if rope == "sets" else {}
    return {
        **kind,
        "rope.scaling.original_context_length": u32(switch or factors.original),
        "rope.scaling.attn_factor": f32(factors.effective_attention_factor),
    }


def _attention_of_full_layers(factors: BoundFactors) -> dict[str, Value]:
    """The attention factor of layers that see everything alone, where sliding ones take no part in the extension.

    `attn_factor` would be both's. YaRN's own, 1 + 0.1 ln s, is not: sliding layers have s = 1. With an original window so
    long that no pair is on its ramp, it is all that YaRN does.

    Raises:
        UnsupportedError: an attention factor below 1, which YaRN never has, or a base beyond which pairs are on the ramp.
    """
    attention = factors.effective_attention_factor
    begin = pair_with_rotations(factors.rotary_dim, factors.written_theta, NO_RAMP, BETA_FAST)
    if attention < 1 or math.floor(begin) < factors.num_pairs - 1:
        raise UnsupportedError(
            f"llama.cpp cannot give layers that see everything an attention factor of {attention:g} on base "
            f"{factors.written_theta:g} of their own; export to HF or ONNX instead"
        )
    return {
        "rope.scaling.type": text(gguf.RopeScalingType.YARN.value),
        "rope.scaling.factor": f32(math.exp(10 * (attention - 1))),
        "rope.scaling.original_context_length": u32(NO_RAMP),
    }


def _family_values(factors: BoundFactors, family: RopeFamily) -> dict[str, Value]:
    """The parameters of a family, as llama.cpp reads them for any architecture.

    It multiplies cos and sin by 1 + 0.1 ln s itself, and by attn_factor. It rounds the ends of the ramp to whole pairs in
    float32, and reads betas for two architectures only: in all others they are 32 and 1, so the ramp of other betas is
    that of another original window, L 32 / beta_fast.

    Raises:
        UnsupportedError: parameters with which llama.cpp would compute another ramp.
    """
    scale = {"rope.scaling.factor": f32(family.factor)}
    if family.type == "linear":
        return {"rope.scaling.type": text(gguf.RopeScalingType.LINEAR.value), **scale}
    window = round(factors.original * BETA_FAST / family.beta_fast)
    _require_same_ramp(factors, family, window)
    return {
        "rope.scaling.type": text(gguf.RopeScalingType.YARN.value),
        **scale,
        "rope.scaling.original_context_length": u32(window),
        "rope.scaling.attn_factor": f32(family.attention_factor / family.formula_attention_factor),
        "rope.scaling.yarn_beta_fast": f32(BETA_FAST),
        "rope.scaling.yarn_beta_slow": f32(BETA_SLOW),
    }


def _require_same_ramp(factors: BoundFactors, family: RopeFamily, window: int) -> None:
    """Raise UnsupportedError unless betas of 32 and 1 in a window of so many tokens give these factors, for sure."""
    ends = [pair_with_rotations(factors.rotary_dim, family.rope_theta, window, beta) for beta in (BETA_FAST, BETA_SLOW)]
    moved = dataclasses.replace(family, beta_fast=BETA_FAST, beta_slow=BETA_SLOW, truncate=True)
    computed = moved.factors(factors.rotary_dim, original=window, rope_theta=factors.rope_theta)
    same = np.allclose(computed, factors.long_factor, rtol=1e-6, atol=0)
    sure = all(abs(end - round(end)) > FLOAT32_PAIRS for end in ends)
    if not (same and sure and 0 < math.ceil(ends[1]) > math.floor(ends[0])):
        raise UnsupportedError(
            f"llama.cpp computes another ramp than YaRN with {family}: it rounds the ends to whole pairs and takes "
            "beta_fast = 32 beta_slow; --family yarn finds parameters that it computes, free factors go to HF and ONNX"
        )


def own_record(factors: BoundFactors, carried: str | None = None) -> dict[str, Value]:
    """Keys of our own: the whole factors.json, with where the factors come from, and what wrote the file.

    Args:
        carried: the model's own architecture in llama.cpp, where the file has another one.
    """
    return {
        OWN_PREFIX + "version": text(longrope.__version__),
        **({CARRIED_KEY: text(carried)} if carried else {}),
        FACTORS_KEY: text(json.dumps(factors.to_json(), default=str)),
    }


# -- out of a file


def read_factors(path: Path) -> RescaleFactors | None:
    """The factors in a file, as the float32 numbers that are stored; None when it has none.

    Raises:
        InputError: not a sound GGUF file, or only one of the two sets.
    """
    with GgufFile(path) as file:
        return factors_of(file)


def factors_of(file: GgufFile) -> RescaleFactors | None:
    """The factors of an opened file; see `read_factors`."""
    present = [name for name in (LONG, SHORT) if name in file.tensors]
    if not present and FREQS not in file.tensors:
        return None
    if len(present) == 1:
        raise InputError(f"{file.path}: has {present[0]} only; expected both rope_factors_long and rope_factors_short")
    short, long = (SHORT, LONG) if present else (FREQS, FREQS)
    original, attention = file.model_key("rope.scaling.original_context_length"), None
    if original == NO_RAMP:  # see `_attention_of_full_layers`
        original, attention = None, 1 + 0.1 * math.log(positive_key(file, "rope.scaling.factor", 1.0))
    return RescaleFactors(
        short_factor=tuple(file.floats(short).ravel().tolist()),
        long_factor=tuple(file.floats(long).ravel().tolist()),
        original_max_position_embeddings=original,
        target_length=file.model_key("context_length"),
        attention_factor=attention or file.model_key("rope.scaling.attn_factor", 1.0),  # as llama.cpp reads it
        rope_theta=file.model_key("rope.freq_base"),
        rotary_dim=_stated_rotary_dim(file),
        method="gguf",
    )


def recorded_factors(path: Path) -> RescaleFactors | None:
    """The factors.json that our exporter put into a file; None in files of other tools.

    Raises:
        InputError: it is damaged.
    """
    with GgufFile(path) as file:
        return record_of(file)


def record_of(file: GgufFile) -> RescaleFactors | None:
    """The record of an opened file; see `recorded_factors`."""
    record = file.get(FACTORS_KEY)
    if record is None:
        return None
    where = f"{file.path}: {FACTORS_KEY}"
    return RescaleFactors.from_json(parsed_json(record, where, non_finite=True), where)
