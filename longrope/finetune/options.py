"""How a stage is trained, apart from what the stage itself says."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from longrope.errors import InputError
from longrope.modeling import DTYPES

# Options that may change when a run is resumed.
MACHINE_ONLY = ("device", "threads", "save_every", "peak_flops", "pass_tokens", "sequence_size", "checkpointing")


@dataclass(frozen=True)
class TrainOptions:
    """Optimizer, precision and machine.

    Args:
        dtype: `float32`, or `bfloat16`: layers compute in it, weights and the optimizer's state stay float32.
        device: a torch device; with torchrun, `cuda` or `cpu` and each process takes its own.
        threads: torch's threads; None for its own choice.
        seed: of rows, LoRA's start and dropout.
        lora_rank: train adapters of this rank, with norms and embeddings in full, merged at the end; None trains everything.
        lora_layers: adapters in the last so many layers only; all below, and the embedding, stay as they are, and
            backward ends there: less time and memory. None for all layers.
        lora_alpha: adapters are scaled by lora_alpha / lora_rank; None for twice the rank.
        optimizer: `adamw`, or `adamw8bit` (bitsandbytes).
        weight_decay: of matrices.
        betas: AdamW's.
        max_grad_norm: gradients are clipped to this norm.
        checkpointing: recompute each layer's activations in backward; None decides by the memory that is free.
        pass_tokens: tokens of one forward and backward, at least a row; None for `DEFAULT_PASS`.
        liger: Liger's kernels for norms and MLPs (needs liger-kernel and a GPU).
        save_every: steps between checkpoints.
        sequence_size: processes that share one sequence (Ulysses).
        peak_flops: FLOP/s of one device, for the model-FLOPs use; None takes a known GPU's.

    Raises:
        InputError: a number is out of range.
    """

    dtype: str = "float32"
    device: str = "cpu"
    threads: int | None = None
    seed: int = 0
    lora_rank: int | None = None
    lora_layers: int | None = None
    lora_alpha: int | None = None
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    checkpointing: bool | None = None
    pass_tokens: int | None = None
    liger: bool = False
    save_every: int = 20
    sequence_size: int = 1
    peak_flops: float | None = None

    def __post_init__(self) -> None:
        if self.dtype == "float16" or self.dtype not in DTYPES:
            raise InputError(f"training dtype: expected float32 or bfloat16, got {self.dtype!r}")
        for name in ("threads", "lora_rank", "lora_layers", "pass_tokens", "save_every", "sequence_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}: expected a number above 0, got {value}")
        if self.lora_layers is not None and self.lora_rank is None:
            raise InputError("lora_layers: expected a lora_rank beside it, got none; full training trains every layer")
        if not self.max_grad_norm > 0:
            raise InputError(f"max_grad_norm: expected a number above 0, got {self.max_grad_norm}")
        if self.seed < 0:
            raise InputError(f"seed: expected 0 or more, got {self.seed}")

    def settings(self) -> dict[str, Any]:
        """What decides the result, as JSON. The machine does not."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in MACHINE_ONLY}
