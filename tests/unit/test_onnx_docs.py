"""The ONNX pages say what the code does: every option, weight type and model type."""

from __future__ import annotations

import dataclasses

import pytest

from converters.onnx.blocks import BLOCKS
from converters.onnx.options import PRECISIONS, OnnxOptions
from tests.common import REPOSITORY

PAGE = (REPOSITORY / "docs" / "onnx.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("option", [field.name for field in dataclasses.fields(OnnxOptions)])
def test_every_option_is_on_the_page(option: str) -> None:
    assert f"| `{option}` |" in PAGE


def test_every_weight_type_is_on_the_page() -> None:
    assert [name for name in PRECISIONS if f"| `{name}` |" not in PAGE] == []


def test_the_matrix_has_every_model_type() -> None:
    matrix = (REPOSITORY / "benchmarks" / "onnx_architectures.md").read_text(encoding="utf-8")
    assert [model_type for model_type in BLOCKS if f"| {model_type} |" not in matrix] == []
