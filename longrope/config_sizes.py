"""Sizes that a config.json announces, held against the headers of the weights before anything of that size is built.

What transformers builds from a configuration is as large as the configuration says. A size that no file here can fill is
a mistake or an attack; exact shapes are compared later, where the model's structure is known (`longrope.loading`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from longrope.errors import InputError
from longrope.reading import shown

# As many numbers as one stored number may stand for: two bits of a packed 32-bit one.
_PACKED = 16
_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "depth", "encoder_layers", "decoder_layers")
# Sizes that a weight has together: their product is not above the number of all numbers in the files.
_MATRICES: Sequence[tuple[str, ...]] = (
    ("vocab_size", "hidden_size"),
    ("intermediate_size", "hidden_size"),
    ("num_attention_heads", "head_dim"),
    ("num_key_value_heads", "head_dim"),
    ("num_experts", "moe_intermediate_size", "hidden_size"),
    ("n_routed_experts", "moe_intermediate_size", "hidden_size"),
    ("num_local_experts", "hidden_size"),
    ("kv_lora_rank", "hidden_size"),
    ("q_lora_rank", "hidden_size"),
    ("v_head_dim",),
    ("qk_nope_head_dim",),
    ("qk_rope_head_dim",),
    ("n_shared_experts",),
    ("rotary_dim",),
)


def refuse_unfilled_sizes(config: Mapping[str, Any], headers: Sequence[Mapping[str, Any]], name: str) -> None:
    """Refuse a configuration with more layers, or larger matrices, than the files hold numbers for.

    Args:
        config: a parsed config.json, whose types have been checked.
        headers: of the weight files: name → {dtype, shape, data_offsets}.
        name: of the model, for messages.

    Raises:
        InputError: names the field and the numbers.
    """
    tensors = sum(map(len, headers))
    numbers = _PACKED * sum(math.prod(entry["shape"]) for header in headers for entry in header.values())
    for part, values in _parts(config, f"{name}: config.json"):
        for field in _LAYERS:
            layers = values.get(field)
            if isinstance(layers, int) and layers > tensors:
                raise InputError(
                    f"{part}: {field}: expected as many layers as there are weights of, got {shown(layers)} layers and "
                    f"{tensors} weights"
                )
        for fields in _MATRICES:
            found = {field: size for field in fields if (size := _largest(values.get(field)))}
            if math.prod(found.values()) > numbers:
                sizes = " × ".join(f"{field} {shown(size)}" for field, size in found.items())
                raise InputError(
                    f"{part}: {sizes}: expected sizes that the weights are of, and the files hold "
                    f"{numbers // _PACKED} numbers in all"
                )


def _parts(config: Mapping[str, Any], name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The configuration and those of its parts (text, vision, sound), with their names."""
    yield name, config
    for field, value in config.items():
        if field.endswith("_config") and isinstance(value, dict):
            yield from _parts(value, f"{name}: {field}")


def _largest(size: Any) -> int:
    """A size, or the largest where there is one per layer; 0 for what is none."""
    sizes = size if isinstance(size, list) else [size]
    return max((each for each in sizes if isinstance(each, int) and not isinstance(each, bool)), default=0)
