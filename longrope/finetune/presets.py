"""Plans that `--stages` takes by name, with the published hyperparameters and where they were published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from longrope.errors import InputError
from longrope.finetune.stages import Stage, StagePlan, read_plan_file

# LongRoPE (arXiv 2402.13753), section 4 and appendix: windows of LLaMA2-7B (4k) and Mistral-7B (8k).
# LongRoPE2 (arXiv 2502.20082): LLaMA3-8B (8k) to 128k with 10B tokens; its rate is not in our sources: LongRoPE's is used.
PRESETS: Final[Mapping[str, StagePlan]] = {
    "paper-llama2": StagePlan(
        "paper-llama2",
        (Stage(131_072, steps=400), Stage(262_144, steps=600)),
        original=4096,
        source="LongRoPE, LLaMA2-7B: 2e-5, linear decay, batch 32; 400 steps at 128k, 600 at 256k",
    ),
    "paper-mistral": StagePlan(
        "paper-mistral",
        tuple(
            Stage(length, steps=400, learning_rate=1e-6, schedule="constant", batch=64, sequence_length=16_384)
            for length in (131_072, 262_144)
        ),
        original=8192,
        source="LongRoPE, Mistral-7B: 1e-6, constant, batch 64; 400 steps on sequences of 16k for both windows",
    ),
    "longrope2": StagePlan(
        "longrope2",
        (Stage(131_072, steps=2384, short_share=0.5),),
        original=8192,
        source="LongRoPE2, LLaMA3-8B: 10B tokens in mixed context windows; share, rate and batch are ours",
    ),
    "default": StagePlan("default", (), source="LongRoPE's steps, rate and batch; LongRoPE2's mixed windows"),
}


def read_plan(name: str) -> StagePlan:
    """The plan of a preset's name or a TOML file; `StagePlan.for_model` brings it to a model and a target.

    Raises:
        InputError: neither a preset nor a readable file, unknown keys, values out of range.
    """
    if name in PRESETS:
        return PRESETS[name]
    if not Path(name).is_file():
        raise InputError(f"stages {name}: expected a TOML file or one of {', '.join(PRESETS)}")
    return read_plan_file(Path(name))
