"""The table of model types: its rows against what transformers builds, and against each other."""

from __future__ import annotations

import dataclasses

import pytest

from longrope.architectures import ARCHITECTURES, architecture_of
from longrope.errors import UnsupportedError
from longrope.modeling import rotary_module
from tests.common import pico_config

SUPPORTED = [name for name, row in ARCHITECTURES.items() if not row.refusal]
REFUSED = [name for name, row in ARCHITECTURES.items() if row.refusal]


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_transformers_knows_the_type_and_gives_it_one_rotary_embedding(model_type: str) -> None:
    from transformers import AutoModelForCausalLM

    module = rotary_module(AutoModelForCausalLM.from_config(pico_config(model_type)))
    assert module.inv_freq.ndim == 1


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_a_supported_type_opens(model_type: str) -> None:
    assert architecture_of({"model_type": model_type}).model_type == model_type


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_known_type_that_nothing_can_be_done_with_says_why(model_type: str) -> None:
    with pytest.raises(UnsupportedError, match=f"'{model_type}' is not supported: .{{20}}"):
        architecture_of({"model_type": model_type})


@pytest.mark.parametrize("row", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_a_row_does_not_contradict_itself(row: object) -> None:
    facts = dataclasses.asdict(row)  # type: ignore[call-overload]
    if facts["gguf"] is None:
        assert facts["gguf_rope"] is None, "rope tensors without a GGUF architecture"
        assert not facts["permute_qk"], "permuted rows without a GGUF architecture"


def test_llama_is_exported_everywhere() -> None:
    row = ARCHITECTURES["llama"]
    assert (row.gguf, row.gguf_rope, row.permute_qk) == ("llama", "sets", True)
    assert row.onnx is not None


@pytest.mark.parametrize(
    ("written", "meant"), [("lama", "llama"), ("Llama", "llama"), ("mistrall", "mistral"), ("qwen", "qwen2|qwen3")]
)
def test_a_misspelt_type_gets_a_hint(written: str, meant: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"did you mean ({meant})\? Supported: "):
        architecture_of({"model_type": written})
