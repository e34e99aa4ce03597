"""Estimates of training and evaluation: parameters as transformers counts them, and what makes them grow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.paper_tables import FULL, PAGE, with_tables
from longrope.finetune.plan import (
    A100,
    LLAMA2_7B,
    DecoderShape,
    TrainingSetting,
    model_flops,
    plan_evaluation,
    plan_step,
    step_flops,
)
from tests.common import pico_config


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"num_key_value_heads": 4, "intermediate_size": 96, "head_dim": 32}),
        ("mixtral", {"num_local_experts": 3, "num_experts_per_tok": 2}),
    ],
)
def test_parameters_are_those_of_the_model(model_type: str, changes: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    config = pico_config(model_type, **changes)
    model = AutoModelForCausalLM.from_config(config)
    routers = sum(p.numel() for name, p in model.named_parameters() if "mlp.gate." in name or "router" in name)
    counted = sum(p.numel() for p in model.parameters()) - routers
    assert DecoderShape.of(config.to_dict()).parameters == counted


def test_a_7b_model_has_as_many_parameters_as_its_name_says() -> None:
    assert LLAMA2_7B.parameters == 6_738_415_616


def test_the_page_has_the_tables_of_these_formulas() -> None:
    """`make bench-train` writes them."""
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page) == page
    assert "| **total** |" in page


def test_sharing_a_row_divides_what_grows_with_it() -> None:
    alone, shared = (plan_step(LLAMA2_7B, replace(FULL, sequence_size=size), A100) for size in (1, 8))
    for part in ("kept activations", "one layer"):
        assert alone.memory[part] == 8 * shared.memory[part]
    assert alone.memory["weights"] == shared.memory["weights"]
    assert "sequence exchange" not in alone.memory
    assert alone.sent["sequences"] == 0
    assert not alone.fits(A100)
    assert shared.fits(A100)


def test_more_devices_hold_less_and_send_more() -> None:
    setting = TrainingSetting(4096, rows=8)
    one, eight = (plan_step(LLAMA2_7B, replace(setting, devices=count), A100) for count in (1, 8))
    assert one.memory["optimizer"] == 8 * eight.memory["optimizer"]
    assert one.sent["weights and gradients"] == 0
    assert eight.sent["weights and gradients"] == pytest.approx(8 * LLAMA2_7B.parameters * 7 / 8)
    assert one.compute_seconds == pytest.approx(8 * eight.compute_seconds)


def test_copies_of_weights_cost_memory() -> None:
    spread, copied = (
        plan_step(LLAMA2_7B, replace(FULL, weight_shards=shards), A100).memory["weights"] for shards in (8, 2)
    )
    assert copied == 4 * spread


def test_less_is_kept_by_each_saving() -> None:
    savings = {"optimizer_bytes": 2, "trained": 0.02, "offload": True, "backward_layers": 4}
    full = plan_step(LLAMA2_7B, FULL, A100).total_memory
    assert all(plan_step(LLAMA2_7B, replace(FULL, **{n: v}), A100).total_memory < full for n, v in savings.items())
    losses = {"fused_loss": False, "recompute": False}
    assert all(plan_step(LLAMA2_7B, replace(FULL, **{n: v}), A100).total_memory > full for n, v in losses.items())


def test_flops_of_a_step_are_those_of_the_model_and_what_is_computed_again() -> None:
    setting = TrainingSetting(1024, recompute=False)
    assert step_flops(LLAMA2_7B, setting) / model_flops(LLAMA2_7B, [1024]) == pytest.approx(1, rel=0.02)
    assert step_flops(LLAMA2_7B, TrainingSetting(1024)) > 1.3 * step_flops(LLAMA2_7B, setting)
    half = step_flops(LLAMA2_7B, replace(setting, backward_layers=16))
    assert half / model_flops(LLAMA2_7B, [1024], 16) == pytest.approx(1, rel=0.02)
    assert half / step_flops(LLAMA2_7B, setting) == pytest.approx(2 / 3, rel=0.02)
    packed = replace(setting, length=8192, document=1024)
    assert step_flops(LLAMA2_7B, packed) == pytest.approx(8 * step_flops(LLAMA2_7B, setting))


def test_a_cache_that_one_device_cannot_hold_takes_several() -> None:
    short, long = (plan_evaluation(LLAMA2_7B, length, A100) for length in (32_768, 2_097_152))
    assert (short.devices, long.devices) == (1, 16)
    assert long.cache == 64 * short.cache
    assert plan_evaluation(LLAMA2_7B, 2_097_152, A100, cache_bytes=1).devices == 8
