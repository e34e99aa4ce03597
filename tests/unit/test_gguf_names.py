"""Names that stand in our tables are those of the library `gguf`, which is imported when it is first used."""

from __future__ import annotations

from collections.abc import Iterator

import gguf
import pytest

from converters.gguf.carriers import LOADS_FREQS, LOADS_SETS, TARGETS
from converters.gguf.factors import FREQS, LONG, MEANINGS, SHORT
from converters.gguf.layouts import COMMON_KEYS, LAYOUTS
from converters.gguf.native import OptionalLibrary
from converters.gguf.weights import OUTTYPES
from longrope.errors import MissingRequirementError


def library_keys(group: type) -> Iterator[str]:
    """Every key of a group of `gguf.Keys`, without the architecture."""
    for name, value in vars(group).items():
        if isinstance(value, str) and not name.startswith("_"):
            yield value.removeprefix("{arch}.")
        elif isinstance(value, type):
            yield from library_keys(value)


def test_hyperparameters_are_known_to_the_library() -> None:
    newer = {"attention.recurrent_layers"}  # in llama.cpp as vendored, not yet in the library
    known = set(library_keys(gguf.Keys)) | newer
    used = {key.name for layout in LAYOUTS.values() for key in (*COMMON_KEYS, *layout.keys)}
    assert (used | set(MEANINGS) | {name for layout in LAYOUTS.values() for name in layout.scalars.values()}) <= known


def test_architectures_are_known_to_the_library() -> None:
    newer = {"granite_swa"}  # in llama.cpp as vendored, not yet in the library
    written = {row.architecture for rows in TARGETS.values() for row in rows}
    assert {*written, *LOADS_SETS, *LOADS_FREQS} - newer <= set(gguf.MODEL_ARCH_NAMES.values())


def test_every_row_has_a_layout() -> None:
    assert {row.layout_name for rows in TARGETS.values() for row in rows} <= set(LAYOUTS)


def test_factor_tensors_have_the_names_of_the_library() -> None:
    tensors = (gguf.MODEL_TENSOR.ROPE_FACTORS_LONG, gguf.MODEL_TENSOR.ROPE_FACTORS_SHORT, gguf.MODEL_TENSOR.ROPE_FREQS)
    assert [gguf.TENSOR_NAMES[tensor] + ".weight" for tensor in tensors] == [LONG, SHORT, FREQS]


def test_weight_types_are_known_to_the_library() -> None:
    for row in OUTTYPES.values():
        assert row.file_type in gguf.LlamaFileType.__members__
        assert row.matrix is None or row.matrix in gguf.GGMLQuantizationType.__members__


def test_a_missing_library_names_the_command_that_brings_it() -> None:
    absent = OptionalLibrary("no_such_library")
    with pytest.raises(MissingRequirementError, match=r"pip install 'longrope-export\[gguf\]'"):
        _ = absent.GGUFValueType
    assert OptionalLibrary("gguf").GGUFValueType is gguf.GGUFValueType
