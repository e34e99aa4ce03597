"""What a GGUF file says about its factors and itself."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from converters.gguf.container import GgufFile, type_name
from converters.gguf.target import FACTORS_KEY, FREQS, LONG, SHORT
from longrope.errors import InputError
from longrope.factors import RescaleFactors


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
    return RescaleFactors(
        short_factor=tuple(file.floats(short).ravel().tolist()),
        long_factor=tuple(file.floats(long).ravel().tolist()),
        original_max_position_embeddings=file.model_key("rope.scaling.original_context_length"),
        target_length=file.model_key("context_length"),
        attention_factor=file.model_key("rope.scaling.attn_factor"),
        rope_theta=file.model_key("rope.freq_base"),
        rotary_dim=file.model_key("rope.dimension_count"),
        method="gguf",
    )


def recorded_factors(path: Path) -> RescaleFactors | None:
    """The factors.json that our exporter put into a file; None in files of other tools.

    Raises:
        InputError: it is damaged.
    """
    with GgufFile(path) as file:
        return _record(file)


def _record(file: GgufFile) -> RescaleFactors | None:
    record = file.get(FACTORS_KEY)
    if record is None:
        return None
    try:
        data = json.loads(record)
    except json.JSONDecodeError:
        raise InputError(f"{file.path}: {FACTORS_KEY} is not valid JSON") from None
    return RescaleFactors.from_json(data, f"{file.path}: {FACTORS_KEY}")


# Weight types by how finely they round, finest first; every other type has about 4 bits or less.
_FINEST_FIRST = ("f32", "f16", "bf16", "q8_0")


def coarsest_type(path: Path) -> str:
    """The type of the coarsest matrix: f32, f16, bf16 or q8_0, and 4bit for everything below."""
    with GgufFile(path) as file:
        names = {type_name(info.type) for info in file.tensors.values()}
    if names - set(_FINEST_FIRST):
        return "4bit"
    return max(names, key=_FINEST_FIRST.index, default="f32")


def describe(path: Path) -> dict[str, Any]:
    """Facts for `inspect`."""
    with GgufFile(path) as file:
        record = _record(file)
        types = Counter(type_name(info.type) for info in file.tensors.values())
        return {
            "format": "gguf",
            "name": file.get("general.name"),
            "architecture": file.architecture,
            "tensors": len(file.tensors),
            "tensor_types": dict(types),
            "context_length": file.model_key("context_length"),
            "original_context_length": file.model_key("rope.scaling.original_context_length"),
            "rope_scaling_type": file.model_key("rope.scaling.type"),
            "attention_factor": file.model_key("rope.scaling.attn_factor"),
            "vocabulary": len(file.get("tokenizer.ggml.tokens", ())),
            "pre_tokenizer": file.get("tokenizer.ggml.pre"),
            "provenance": {"method": record.method, **record.provenance} if record else {},
        }
