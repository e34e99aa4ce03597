"""The table of model types: its rows against what transformers builds, and against each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from converters.gguf.carriers import TARGETS
from longrope.architectures import ARCHITECTURES, FULL, architecture_of, attending_to
from longrope.checkpoint import Checkpoint, open_folder
from longrope.errors import UnsupportedError
from longrope.modeling import detect_layout
from tests.common import PICO_CHANGES, pico_config

SUPPORTED = [name for name, row in ARCHITECTURES.items() if not row.refusal]
REFUSED = [name for name, row in ARCHITECTURES.items() if row.refusal]


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_the_engine_s_rotary_tables_are_those_of_the_model_that_transformers_builds(model_type: str) -> None:
    from transformers import AutoModelForCausalLM

    config = pico_config(model_type, **PICO_CHANGES.get(model_type, {}))
    model = AutoModelForCausalLM.from_config(config)
    detect_layout(model, Checkpoint(Path(), model_type, json.loads(config.to_json_string(use_diff=False))).base)


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_a_supported_type_opens(model_type: str) -> None:
    assert architecture_of({"model_type": model_type}).model_type == model_type


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_known_type_that_nothing_can_be_done_with_says_why(model_type: str) -> None:
    with pytest.raises(UnsupportedError, match=f"'{model_type}' is not supported: .{{20}}"):
        architecture_of({"model_type": model_type})


SLIDING = {"sliding_window": 128, "max_position_embeddings": 256}
HALF = {"layer_types": ["sliding_attention", "full_attention"]}


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1}, "layers from 1 on"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "layers from 28 on"),
        ({"model_type": "qwen3", **HALF}, "1 of 2 layers"),
        ({"model_type": "llama", **HALF}, "1 of 2 layers"),
        ({"model_type": "gemma3_text", "layer_types": ["sliding_attention"] * 2}, "2 of 2 layers"),
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
        {"model_type": "mistral"},
        {"model_type": "phi3"},
        {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1, "num_hidden_layers": 1},
        {"model_type": "gemma2", **HALF},
        {"model_type": "gemma2"},
        {"model_type": "gpt_oss", **HALF},
        {"model_type": "gemma3_text"},
    ],
)
def test_layers_that_see_everything_that_all_slide_and_known_mixtures_are_not(config: dict[str, object]) -> None:
    assert architecture_of({**SLIDING, **config}).model_type == config["model_type"]


def test_llama_is_exported_everywhere() -> None:
    assert "llama" in TARGETS


@pytest.mark.parametrize(
    ("written", "meant"), [("lama", "llama"), ("Llama", "llama"), ("mistrall", "mistral"), ("qwen", "qwen2|qwen3")]
)
def test_a_misspelt_type_gets_a_hint(written: str, meant: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"did you mean ({meant})\? expected one of "):
        architecture_of({"model_type": written})


@pytest.mark.parametrize("written", ["mistral4", "internlm4", "qwen7", "bert", "falcon", "ernie"])
def test_another_family_s_or_generation_s_type_is_no_near_miss(written: str) -> None:
    with pytest.raises(UnsupportedError, match="is not supported; expected one of "):
        architecture_of({"model_type": written})


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        ({"model_type": "mistral"}, {"sliding_window": None}),
        ({"model_type": "phi3", "layer_types": ["sliding_attention"]}, {"sliding_window": None, "layer_types": [FULL]}),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0},
            {"sliding_window": None, "use_sliding_window": False},
        ),
        ({"model_type": "mistral", "sliding_window": 512}, {}),
        ({"model_type": "gemma2", **HALF}, {}),
        ({"model_type": "gpt_oss", **HALF}, {}),
        ({"model_type": "llama"}, {}),
    ],
)
def test_an_extension_attends_to_everything_where_all_layers_slid(
    config: dict[str, object], changed: dict[str, object]
) -> None:
    before = {**SLIDING, **config}
    assert attending_to(before, 512) == {**before, **changed}


MIXED = ["sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    ("model_type", "config", "rotates"),
    [
        ("llama", {}, ["extended", "extended"]),
        ("gemma3_text", {}, ["local", "extended"]),
        ("gpt_oss", {}, ["extended", "extended"]),
        ("exaone4", {}, ["local", "none"]),
        ("smollm3", {"no_rope_layers": [1, 0]}, ["local", "none"]),
        ("granitemoehybrid", {"position_embedding_type": "nope"}, ["none", "none"]),
    ],
)
def test_which_rotary_embedding_a_layer_uses(model_type: str, config: dict[str, Any], rotates: list[str]) -> None:
    row = ARCHITECTURES[model_type]
    assert [row.rotates(config, MIXED, layer) for layer in range(2)] == rotates


@pytest.mark.parametrize(
    ("model_type", "config", "where"),
    [
        ("exaone4", {"sliding_window": 32, "layer_types": MIXED}, "in its local layers only"),
        (
            "llama4_text",
            {"no_rope_layers": [1, 0], "layer_types": ["chunked_attention", "full_attention"]},
            "in its local",
        ),
        ("granitemoehybrid", {"position_embedding_type": "nope"}, "nowhere"),
    ],
)
def test_a_model_that_rescaling_cannot_extend_says_so(
    tmp_path: Path, model_type: str, config: dict[str, Any], where: str
) -> None:
    shared = {"model_type": model_type, "num_hidden_layers": 2, "max_position_embeddings": 128}
    (tmp_path / "config.json").write_text(json.dumps({**shared, **config}))
    with pytest.raises(UnsupportedError, match=where):
        open_folder(tmp_path, needs_weights=False)
