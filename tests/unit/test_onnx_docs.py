"""The ONNX pages say what the code does: every check id, option, weight type and model type."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from converters.base import Export
from converters.onnx import OnnxConverter
from converters.onnx.blocks import BLOCKS
from converters.onnx.options import PRECISIONS, OnnxOptions
from longrope.progress import Silent
from tests.common import REPOSITORY, pico_checkpoint, pico_factors

PAGE = (REPOSITORY / "docs" / "onnx.md").read_text(encoding="utf-8")


def test_every_check_is_on_the_page(tmp_path: Path) -> None:
    checkpoint = pico_checkpoint(tmp_path / "model")
    factors = checkpoint.bind(pico_factors(checkpoint.rotary_dim))
    checks = OnnxConverter().convert(Export(checkpoint, factors), tmp_path / "onnx", Silent())
    ids = {check.id for check in checks if not check.id.startswith("onnx.config.")}
    assert [id for id in sorted(ids) if f"`{id}`" not in PAGE] == []


@pytest.mark.parametrize("option", [field.name for field in dataclasses.fields(OnnxOptions)])
def test_every_option_is_on_the_page(option: str) -> None:
    assert f"| `{option}` |" in PAGE


def test_every_weight_type_is_on_the_page() -> None:
    assert [name for name in PRECISIONS if f"| `{name}` |" not in PAGE] == []


def test_the_matrix_has_every_model_type() -> None:
    matrix = (REPOSITORY / "benchmarks" / "onnx_architectures.md").read_text(encoding="utf-8")
    assert [model_type for model_type in BLOCKS if f"| {model_type} |" not in matrix] == []
