"""Plans that `--stages` takes by name, with the published hyperparameters and where they were published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from longrope.errors import InputError
from longrope.finetune.stages import Stage, StagePlan, read_toml

# A second interpolation without training reaches so many times the trained window (LongRoPE: 256k → 2048k).
SECOND_INTERPOLATION: Final = 8

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
}


def read_plan(name: str, window: int, target: int) -> StagePlan:
    """The plan of a preset's name or a TOML file, for a model's window and a target.

    Raises:
        InputError: neither a preset nor a readable file, unknown keys, values out of range, lengths that do not grow.
    """
    if name == "default":
        return default_plan(window, target).for_model(window, target)
    plan = PRESETS.get(name)
    if plan is None:
        path = Path(name)
        if not path.is_file():
            raise InputError(f"--stages {name}: expected a TOML file or one of {', '.join(preset_names())}")
        plan = read_toml(path)
    return plan.for_model(window, target)


def preset_names() -> tuple[str, ...]:
    """What `--stages` takes beside a file."""
    return (*PRESETS, "default")


def default_plan(window: int, target: int) -> StagePlan:
    """Train to an eighth of the target (to the target itself up to 8×), in two stages from 16× on; then interpolate.

    With 256 → 131,072: 2,048, 16,384, and 131,072 without training. Mixed windows keep the short window, retrieval the long
    one's use. Steps, rates and batch are the paper's for LLaMA2.
    """
    trained = target if target <= SECOND_INTERPOLATION * window else target // SECOND_INTERPOLATION
    lengths = [_halfway(window, trained), trained] if trained >= 16 * window else [trained]
    mixed: dict[str, Any] = {"short_share": 0.25, "retrieval_share": 0.1, "warmup": 20}
    steps = (400, 600) if len(lengths) == 2 else (600,)
    stages = tuple(Stage(length, steps=count, **mixed) for length, count in zip(lengths, steps, strict=True))
    return StagePlan("default", stages, source="LongRoPE's steps, rate and batch; LongRoPE2's mixed windows")


def _halfway(window: int, trained: int) -> int:
    """The window times the power of two nearest to the root of the whole scale, below it."""
    scale = 1
    while (2 * scale) ** 2 <= trained // window:
        scale *= 2
    return window * scale
