"""What `inspect` says of runtimes, for factors as an artifact says them."""

from __future__ import annotations

import pytest

from converters import registry
from tests.common import pico_factors


@pytest.mark.parametrize("name", ["hf", "gguf", "onnx"])
@pytest.mark.parametrize(("original", "shown"), [(64, "64"), (None, "L")])
def test_the_switch_is_described_whether_the_window_is_known_or_not(
    name: str, original: int | None, shown: str
) -> None:
    uses = registry.converter(name).runtime_uses(pico_factors(original_max_position_embeddings=original))
    assert any(f" {shown} " in use.uses for use in uses)
    assert not any("None" in use.uses + use.advice for use in uses)
