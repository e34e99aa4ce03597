"""Estimates of searches, training and evaluation: parameters as transformers counts them, and what makes them grow."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.paper_tables import (
    A100,
    FULL,
    LLAMA2_7B,
    PAGE,
    PaperSetting,
    paper_evaluation,
    paper_step,
    step_flops,
    with_tables,
)
from longrope.estimates.compute import model_flops
from longrope.estimates.memory import GPU_RUNTIME, HOST_RUNTIME, container_memory, free_memory, runtime_bytes
from longrope.estimates.search import search_memory
from longrope.estimates.shape import DecoderShape
from longrope.estimates.training import checkpoint_bytes, training_memory
from longrope.finetune.options import TrainOptions
from longrope.finetune.stages import Stage
from longrope_export.models import open_model
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
    alone, shared = (paper_step(LLAMA2_7B, replace(FULL, sequence_parallel=size), A100) for size in (1, 8))
    for part in ("kept activations", "one layer"):
        assert alone.memory[part] == 8 * shared.memory[part]
    assert alone.memory["weights"] == shared.memory["weights"]
    assert "sequence exchange" not in alone.memory
    assert alone.sent["sequences"] == 0
    assert not alone.fits(A100)
    assert shared.fits(A100)


def test_more_devices_hold_less_and_send_more() -> None:
    setting = PaperSetting(4096, rows=8)
    one, eight = (paper_step(LLAMA2_7B, replace(setting, devices=count, fsdp=count), A100) for count in (1, 8))
    assert one.memory["optimizer"] == 8 * eight.memory["optimizer"]
    assert one.sent["weights and gradients"] == 0
    assert eight.sent["weights and gradients"] == pytest.approx(8 * LLAMA2_7B.parameters * 7 / 8)
    assert one.compute_seconds == pytest.approx(8 * eight.compute_seconds)


def test_copies_of_weights_cost_memory() -> None:
    spread, copied = (paper_step(LLAMA2_7B, replace(FULL, fsdp=shards), A100).memory["weights"] for shards in (8, 2))
    assert copied == 4 * spread


def test_less_is_kept_by_each_saving() -> None:
    savings = {"optimizer_bytes": 2, "trained": 0.02, "offload": True, "backward_layers": 4}
    full = paper_step(LLAMA2_7B, FULL, A100).total_memory
    assert all(paper_step(LLAMA2_7B, replace(FULL, **{n: v}), A100).total_memory < full for n, v in savings.items())
    losses = {"fused_loss": False, "recompute": False}
    assert all(paper_step(LLAMA2_7B, replace(FULL, **{n: v}), A100).total_memory > full for n, v in losses.items())


def test_flops_of_a_step_are_those_of_the_model_and_what_is_computed_again() -> None:
    setting = PaperSetting(1024, recompute=False)
    assert step_flops(LLAMA2_7B, setting) / model_flops(LLAMA2_7B, [1024]) == pytest.approx(1, rel=0.02)
    assert step_flops(LLAMA2_7B, PaperSetting(1024)) > 1.3 * step_flops(LLAMA2_7B, setting)
    half = step_flops(LLAMA2_7B, replace(setting, backward_layers=16))
    assert half / model_flops(LLAMA2_7B, [1024], 16) == pytest.approx(1, rel=0.02)
    assert half / step_flops(LLAMA2_7B, setting) == pytest.approx(2 / 3, rel=0.02)
    packed = replace(setting, length=8192, document=1024)
    assert step_flops(LLAMA2_7B, packed) == pytest.approx(8 * step_flops(LLAMA2_7B, setting))


def test_a_cache_that_one_device_cannot_hold_takes_several() -> None:
    short, long = (paper_evaluation(LLAMA2_7B, length, A100) for length in (32_768, 2_097_152))
    assert (short.devices, long.devices) == (1, 16)
    assert long.cache == 64 * short.cache
    assert paper_evaluation(LLAMA2_7B, 2_097_152, A100, cache_bytes=1).devices == 8


# -- published figures: docs/search.md and the run that prints them


def test_an_evaluation_at_131072_tokens_is_estimated_as_published() -> None:
    """docs/search.md: 2.02 GiB, 1.32 times the peak that was measured."""
    estimate = search_memory(open_model("default"), 131_072, available=math.inf)
    assert f"{estimate.total / 2**30:.2f}" == "2.02"
    assert str(estimate).startswith("131072 tokens in one pass: about 2.02 GiB (weights 0.01, activations 1.62")


def test_a_training_step_has_the_parts_of_the_formulas() -> None:
    model, stage = open_model("default"), Stage(8192, steps=1, batch=32)
    memory = training_memory(model, stage, TrainOptions(checkpointing=False), world_size=8)
    assert {name: round(size / 1e6, 1) for name, size in memory.parts.items()} == {
        "weights": 1.0,
        "gradients": 1.0,
        "optimizer": 2.0,
        "gathered weights": 4.7,
        "gradients on their way": 3.1,
        "kept activations": 511.7,
        "one layer": 161.5,
        "loss": 148.4,
        "runtime": 367.0,
    }
    assert checkpoint_bytes(model, TrainOptions()) == 12 * 1_967_808


# -- what is free


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"memory.max": "1000", "memory.current": "400", "memory.stat": "anon 300\ninactive_file 50\n"}, 650),
        ({"memory.max": "1000", "memory.current": "1400", "memory.stat": "inactive_file 50"}, 0),
        ({"memory.max": "max", "memory.current": "400", "memory.stat": ""}, 1 << 62),
        (
            {
                "memory/memory.limit_in_bytes": "1000",
                "memory/memory.usage_in_bytes": "400",
                "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 50",
            },
            650,
        ),
        ({}, 1 << 62),
    ],
)
def test_a_containers_limit_is_kept(tmp_path: Path, files: dict[str, str], free: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert container_memory(tmp_path) == free


def test_a_host_says_what_is_free_and_other_devices_do_not() -> None:
    free = free_memory("cpu")
    assert free is not None
    assert 0 < free <= psutil.virtual_memory().total
    assert free_memory("mps") is None
    assert (runtime_bytes("cpu"), runtime_bytes("cuda:1")) == (HOST_RUNTIME, GPU_RUNTIME)
