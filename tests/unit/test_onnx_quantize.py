"""Blocks of integers: what they hold, and that onnxruntime reads them as `dequantize` does."""

from __future__ import annotations

from typing import get_args, get_type_hints

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters.onnx import quantize as module
from converters.onnx.options import OnnxOptions
from converters.onnx.quantize import Quantized, dequantize, quantize

QUANTIZERS = get_args(get_type_hints(OnnxOptions)["quantizer"])


def matrix(rows: int = 40, columns: int = 96) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [96, 80, 32])
def test_every_value_is_within_half_a_step(bits: int, columns: int) -> None:
    values = matrix(columns=columns)
    found = quantize(values, bits)
    steps = np.repeat(found.scales, 32, axis=1)[:, :columns]
    assert (np.abs(dequantize(found) - values) <= steps * 1.001).all()
    assert np.abs(dequantize(found) - values).mean() < steps.mean() / 3


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_row_of_zeros_stays_zero(quantizer: str) -> None:
    assert not dequantize(quantize(np.zeros((2, 64), np.float32), 4, quantizer)).any()


@pytest.mark.parametrize("quantizer", ["search", "k_quant"])
@pytest.mark.parametrize("columns", [96, 80])
def test_other_quantizers_lose_less_than_rounding_to_nearest(quantizer: str, columns: int) -> None:
    values = matrix(rows=200, columns=columns)
    errors = [np.square(dequantize(quantize(values, 4, name)) - values).mean() for name in ("rtn", quantizer)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("bits", [4, 8])
def test_equal_weights_stay_near(quantizer: str, bits: int) -> None:
    for value in (0.3, -0.3):
        values = np.full((2, 64), value, np.float32)
        assert np.abs(dequantize(quantize(values, bits, quantizer)) - values).max() < 0.03


def test_slabs_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = quantize(matrix(), 4)
    monkeypatch.setattr(module, "SLAB_VALUES", 7 * 96)
    parts = quantize(matrix(), 4)
    assert all(np.array_equal(getattr(whole, name), getattr(parts, name)) for name in ("values", "scales"))


def product_in_onnxruntime(x: np.ndarray, found: Quantized) -> np.ndarray:
    node = helper.make_node(
        "MatMulNBits",
        ["x", "values", "scales", "zero_points"],
        ["y"],
        domain="com.microsoft",
        K=found.columns,
        N=len(found.scales),
        bits=found.bits,
        block_size=32,
    )
    parts = [numpy_helper.from_array(getattr(found, name), name) for name in ("values", "scales", "zero_points")]
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    graph = helper.make_graph([node], "g", shapes[:1], shapes[1:], parts)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    return ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [96, 80])
def test_onnxruntime_multiplies_by_the_dequantized_matrix(bits: int, columns: int) -> None:
    found = quantize(matrix(columns=columns), bits)
    x = np.random.default_rng(1).standard_normal((5, columns)).astype(np.float32)
    assert np.abs(product_in_onnxruntime(x, found) - x @ dequantize(found).T).max() < 1e-4
