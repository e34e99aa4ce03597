"""Our rounding against the library's: the same bits for numbers of every size, and for the special ones."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from converters.gguf.weights import encode

TYPES = [gguf.GGMLQuantizationType[name] for name in ("F16", "BF16", "Q8_0", "Q4_0", "F32")]
EDGES = np.array(
    [0, -0.0, 6e-8, -3e-8, 2.98e-8, 2.99e-8, 6.1e-5, 6.09e-5, 6.103515625e-05, 1.5, 2.5, -2.5, 0.5, 127, 126.5, -63.5]
    + [65503.9, 65504, 65519.99, 1 / 3, 2**-24, 2**-25, 3 * 2**-25, 1e-38, 1e-45, 1e30]
    + [0.1] * 6,
    dtype=np.float32,
)


def same(rows: np.ndarray, kind: gguf.GGMLQuantizationType) -> bool:
    with np.errstate(all="ignore"):
        expected = gguf.quants.quantize(rows, kind)
    return np.array_equal(encode(rows, int(kind)).view(np.uint8), expected.view(np.uint8))


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("seed", range(40))
def test_equals_the_library(kind: gguf.GGMLQuantizationType, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal((64, 96)) * 10.0 ** rng.uniform(-9, 3.5)).astype(np.float32)
    if seed % 3 == 0:
        rows = np.round(rows * 2) / 2  # halves
    if seed % 4 == 0:
        rows[3] = 0
    assert same(rows, kind)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("scale", [1, 1e-3, 1e-30, 1e4])
def test_edges(kind: gguf.GGMLQuantizationType, scale: float) -> None:
    assert same((EDGES * np.float32(scale)).reshape(1, -1), kind)


@pytest.mark.parametrize("kind", TYPES[:3], ids=lambda kind: kind.name)
@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan, 65520.0, 1e38])
def test_special_numbers(kind: gguf.GGMLQuantizationType, special: float) -> None:
    rows = np.full((2, 32), 0.25, np.float32)
    rows[1, 5] = special
    assert same(rows, kind)
