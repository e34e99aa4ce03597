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


SLIDING = {"sliding_window": 128, "max_position_embeddings": 256}
HALF = {"layer_types": ["sliding_attention", "full_attention"]}


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        ({"model_type": "mistral"}, "all layers"),
        ({"model_type": "phi3"}, "all layers"),
        ({"model_type": "exaone4"}, "all layers"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "all layers"),
        ({"model_type": "qwen3", **HALF}, "1 of 2 layers"),
        ({"model_type": "exaone4", **HALF}, "1 of 2 layers"),
        ({"model_type": "llama", **HALF}, "1 of 2 layers"),
        ({"model_type": "gemma2", "layer_types": ["sliding_attention"] * 2}, "2 of 2 layers"),
        ({"model_type": "llama", "layer_types": ["chunked_attention", "full_attention"]}, "1 of 2 layers"),
    ],
)
def test_layers_that_slide_below_the_window_are_refused(config: dict[str, object], layers: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"{layers} of this .* the last 128 tokens only \(sliding_window\)"):
        architecture_of({**SLIDING, **config})


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama"},
        {"model_type": "qwen2", "use_sliding_window": False},
        {"model_type": "qwen3", "layer_types": ["full_attention"] * 2},
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "mistral", "sliding_window": 256},
        {"model_type": "gemma2", **HALF},
        {"model_type": "gemma2"},
    ],
)
def test_layers_that_see_everything_and_known_mixtures_are_not(config: dict[str, object]) -> None:
    assert architecture_of({**SLIDING, **config}).model_type == config["model_type"]


def test_llama_is_exported_everywhere() -> None:
    row = ARCHITECTURES["llama"]
    assert (row.gguf, row.gguf_rope, row.permute_qk) == ("llama", "sets", True)
    assert row.onnx is not None


@pytest.mark.parametrize(
    ("written", "meant"), [("lama", "llama"), ("Llama", "llama"), ("mistrall", "mistral"), ("qwen", "qwen2|qwen3")]
)
def test_a_misspelt_type_gets_a_hint(written: str, meant: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"did you mean ({meant})\? expected one of "):
        architecture_of({"model_type": written})
