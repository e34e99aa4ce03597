"""The options of an ONNX export, in one place, and the weight types it knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args, get_type_hints

from longrope.errors import InputError
from longrope.reading import printable, shown


@dataclass(frozen=True)
class OnnxOptions:
    """What `Export.options` may hold for ONNX.

    Args:
        attention: "standard" uses ONNX's own Attention operator, which every runtime of opset 23 knows; "grouped" uses
            onnxruntime's fused GroupQueryAttention, whose cache onnxruntime-genai updates in place.
        quantizer: how int8 and int4 round a block of weights: "rtn" to the nearest step of the block's range, "search"
            to that of the range, whole or shrunk, that loses least; "k_quant" is onnxruntime's own weighted search of
            scale and offset. The latter two are ten times slower.
        compute: what quantized matrices are multiplied in: "int8" with the activations rounded too, or "float32" with
            the weights expanded, which is exact and, token by token, ten times slower.
    """

    attention: Literal["standard", "grouped"] = "standard"
    quantizer: Literal["rtn", "search", "k_quant"] = "rtn"
    compute: Literal["int8", "float32"] = "int8"

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Build from a mapping. Raises InputError for an unknown option or value."""
        types = get_type_hints(cls)
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(options) - set(known)):
            raise InputError(f"unknown ONNX option {', '.join(map(printable, unknown))}; known: {', '.join(known)}")
        for name, value in options.items():
            if value not in get_args(types[name]):
                raise InputError(
                    f"ONNX option {name}: expected {' or '.join(get_args(types[name]))}, got {shown(value)}"
                )
        return cls(**options)


@dataclass(frozen=True)
class Precision:
    """A weight type.

    Args:
        dtype: name of the type of activations, of the cache, and of every weight that is not quantized.
        bits: of the integers that matrices are stored in; None where they are of `dtype`.
        arithmetic: what onnxruntime computes products in.
    """

    dtype: Literal["FLOAT", "FLOAT16", "BFLOAT16"]
    bits: Literal[4, 8] | None
    arithmetic: str


PRECISIONS: Mapping[str, Precision] = {
    "f32": Precision("FLOAT", None, "f32"),
    "f16": Precision("FLOAT16", None, "f16"),
    "bf16": Precision("BFLOAT16", None, "bf16"),
    "int8": Precision("FLOAT", 8, "int8"),
    "int4": Precision("FLOAT", 4, "int8"),
}
