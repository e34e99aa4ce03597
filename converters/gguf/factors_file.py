"""A GGUF file of factors and nothing else: the tensors and keys that a model's file would have, for tools that read those."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from converters.gguf.carriers import TARGETS
from converters.gguf.container import Value, f32, text, u32
from converters.gguf.factors import factor_arrays, factor_info, own_record, require_expressible, scaling_values
from converters.gguf.native import gguf
from converters.gguf.writing import Content, write_gguf
from longrope.factors import BoundFactors


def write_factors(path: Path, factors: BoundFactors) -> None:
    """Write both sets under the names that llama.cpp reads.

    Raises:
        UnsupportedError: start tokens, which GGUF cannot hold.
    """
    rows = TARGETS.get(factors.model_type, ())
    architecture = rows[0].architecture if rows else factors.model_type
    require_expressible(factors, architecture, "sets")
    keys: dict[str, Value] = {
        "context_length": u32(factors.target),
        "rope.freq_base": f32(factors.rope_theta),
        "rope.dimension_count": u32(factors.rotary_dim),
        **scaling_values(factors, "sets"),
    }
    values = {
        gguf.Keys.General.ARCHITECTURE: text(architecture),
        **{f"{architecture}.{key}": value for key, value in keys.items()},
        **own_record(factors),
    }
    arrays = factor_arrays(factors, "sets")
    contents = [Content(factor_info(name, data), partial(list, (data,))) for name, data in arrays.items()]
    write_gguf(path, values, contents)
