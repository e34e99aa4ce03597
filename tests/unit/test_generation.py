"""`generate_across`: at every step the logits of a full recompute, on either side of the original window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longrope import generate_across
from longrope.errors import UnsupportedError
from longrope.modeling import build_model
from tests.common import FEATURES, WINDOW, pico_checkpoint, pico_factors

NEW = 24
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma3_text", "phi3"])
def dual(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    room = tmp_path_factory.mktemp(request.param)
    return model_of(
        room, request.param, **(FEATURES[request.param] if request.param in ("gemma3_text", "phi3") else {})
    )


def model_of(room: Path, model_type: str = "llama", *, sets: bool = True, **changes: Any) -> Any:
    checkpoint = pico_checkpoint(room / "model", model_type, **changes)
    model = build_model(checkpoint, checkpoint.bind(pico_factors(checkpoint.rotary_dim, dual=sets)))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def prompt(tokens: int, rows: int = 1) -> Tensor:
    return torch.as_tensor(np.random.default_rng(tokens).integers(1, 384, (rows, tokens)))


def logits(generate: Any, ids: Tensor, **options: Any) -> Tensor:
    """[B, NEW, V] of greedy generation."""
    greedy = {"max_new_tokens": NEW, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    return torch.stack(generate(ids, **greedy, **options).logits, 1)


@pytest.mark.parametrize("tokens", [WINDOW - 10, WINDOW - 1, WINDOW, WINDOW + 1])
def test_every_step_is_a_full_recompute(dual: Any, tokens: int) -> None:
    ids = prompt(tokens)
    expected = logits(dual.generate, ids, use_cache=False)
    assert (logits(lambda *a, **b: generate_across(dual, *a, **b), ids) - expected).abs().max() < TOLERANCE
    assert "prepare_inputs_for_generation" not in vars(dual)
    if dual.config.model_type != "phi3" and tokens <= WINDOW:  # what the helper is for
        assert (logits(dual.generate, ids) - expected).abs().max() > 0.01


# Phi-3's own rule counts the padding.
@pytest.mark.parametrize("dual", ["llama", "qwen3", "gemma3_text"], indirect=True)
def test_rows_of_different_lengths_change_sets_with_the_longest(dual: Any) -> None:
    ids, mask = prompt(WINDOW - 5, rows=3), torch.ones(3, WINDOW - 5, dtype=torch.long)
    mask[0, :7] = mask[1, :3] = mask[2, :1] = 0
    expected = logits(dual.generate, ids, attention_mask=mask, use_cache=False)
    got = logits(lambda *a, **b: generate_across(dual, *a, **b), ids, attention_mask=mask)
    assert (got - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("options", [{"do_sample": True, "temperature": 0.8}, {"num_beams": 3}])
def test_other_ways_of_choosing_tokens(tmp_path: Path, options: dict[str, Any]) -> None:
    model, ids = model_of(tmp_path), prompt(WINDOW - 6)
    made = []
    for generate in (lambda **b: generate_across(model, **b), lambda **b: model.generate(**b, use_cache=False)):
        torch.manual_seed(3)
        made.append(generate(input_ids=ids, max_new_tokens=NEW, **options))
    assert torch.equal(*made)


def test_a_single_set_is_left_to_generate(tmp_path: Path) -> None:
    model, ids = model_of(tmp_path, sets=False), prompt(WINDOW - 6)
    expected = model.generate(ids, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(generate_across(model, ids, max_new_tokens=NEW, do_sample=False), expected)


@pytest.mark.parametrize("option", ["assistant_model", "prefill_chunk_size", "inputs_embeds"])
def test_what_would_mix_the_sets_is_refused(tmp_path: Path, option: str) -> None:
    model = model_of(tmp_path)
    with pytest.raises(UnsupportedError, match=option):
        generate_across(model, prompt(8), max_new_tokens=2, **{option: model if "model" in option else 8})
