"""How a stage is trained, apart from what the stage itself says."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from longrope.errors import InputError
from longrope.machine import AUTO, device_option, resolve, seed_option, threads_option
from longrope.options import Tokens, check_declared, option

if TYPE_CHECKING:
    from longrope.checkpoint import Checkpoint

# Options that may change when a run is resumed.
MACHINE_ONLY = (
    "device",
    "threads",
    "save_every",
    "peak_flops",
    "pass_tokens",
    "sequence_parallel",
    "fsdp",
    "checkpointing",
)


@dataclass(frozen=True)
class TrainOptions:
    """Optimizer, precision and machine.

    Args:
        dtype: `float32`, or `bfloat16`: layers compute in it, weights and the optimizer's state stay float32; `auto` for
            float32 on a CPU; on a GPU bfloat16 for checkpoints of 16 bits.
        device: a torch device, `auto` for the GPU when there is one; with torchrun each process takes its own.
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
        sequence_parallel: processes that share one sequence (Ulysses).
        fsdp: processes that one copy of the weights is sharded over (FSDP2; HSDP where it is fewer than all); None for all.
        peak_flops: FLOP/s of one device, for the model-FLOPs use; None takes a known GPU's.

    Raises:
        InputError: a number is out of range.
    """

    lora_rank: int | None = option(
        None,
        name="lora",
        section="Training",
        metavar="RANK",
        minimum=1,
        unset="all weights",
        help="Train adapters of this rank, with norms and embeddings, instead of all weights.",
    )
    lora_layers: int | None = option(
        None, minimum=1, unset="all", help="Put adapters into the last layers only and freeze all else (with --lora)."
    )
    lora_alpha: int | None = option(
        None, minimum=1, unset="2 RANK", help="Scale of the adapters times their rank (with --lora)."
    )
    optimizer: Literal["adamw", "adamw8bit"] = option(
        "adamw", help="Optimizer of the training; adamw8bit needs bitsandbytes."
    )
    weight_decay: float = option(0.0, minimum=0, help="Weight decay of matrices; vectors have none.")
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    sequence_parallel: int = option(1, minimum=1, help="Processes that share one sequence in training (Ulysses).")
    fsdp: int | None = option(
        None, minimum=1, unset="all processes", help="Processes that one copy of the trained weights is sharded over."
    )
    pass_tokens: Tokens | None = option(
        None, unset="8192", help="Tokens of one forward pass in training, at least a row."
    )
    checkpointing: bool | None = option(
        None, unset="when memory is short", help="Recompute activations in the backward pass to save memory."
    )
    liger: bool = option(False, help="Use Liger's kernels for norms and MLPs (needs liger-kernel and a GPU).")
    peak_flops: float | None = option(
        None, above=0, unset="known GPUs' own", help="Peak FLOP/s of one device, for the reported mfu."
    )
    save_every: int = option(20, minimum=1, help="Optimizer steps between two checkpoints of the training.")
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        AUTO,
        section="Machine",
        help="Precision that layers are trained in; weights and the optimizer's state stay float32.",
    )
    device: str = device_option()
    threads: int | None = threads_option()
    seed: int = seed_option()

    def __post_init__(self) -> None:
        check_declared(self)
        if self.lora_layers is not None and self.lora_rank is None:
            raise InputError("lora_layers: expected a lora_rank beside it, got none; full training trains every layer")
        if not self.max_grad_norm > 0:
            raise InputError(f"max_grad_norm: expected a number above 0, got {self.max_grad_norm}")

    def on(self, checkpoint: Checkpoint) -> Self:
        """The same with `auto` made plain for a checkpoint on this machine."""
        device, dtype = resolve(self.device, self.dtype, checkpoint)
        return dataclasses.replace(self, device=device, dtype="bfloat16" if dtype == "float16" else dtype)

    def settings(self) -> dict[str, Any]:
        """What decides the result, as JSON. The machine does not."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in MACHINE_ONLY}
