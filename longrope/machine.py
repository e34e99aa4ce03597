"""Where and how models run: the names of devices and precisions, and what `auto` means on this machine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from longrope.errors import InputError
from longrope.options import option

if TYPE_CHECKING:
    from longrope.checkpoint import Checkpoint

AUTO: Final = "auto"
# Layer by layer over all GPUs of this machine, and over main memory where they are full; not a device of torch's.
SHARDED: Final = "sharded"
Precision = Literal["float32", "bfloat16", "float16"]
Dtype = Literal["auto", Precision]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
# By the names that safetensors headers use.
_STORED: dict[str, Precision] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Machine:
    """Where and how models run.

    Args:
        device: a torch device.
        dtype: `float32`, `bfloat16` or `float16`.
        threads: torch's threads in each process; None for torch's own choice.
        pass_tokens: longest pass; None lets the memory estimate choose.
        checkpointing: recompute activations for gradients; None lets the memory estimate choose.
        available: bytes that the model and its passes may take; None for what is free before the model is loaded.
        together: tokens that several short windows may fill one pass with; None for 16,384 on a GPU, where a short pass
            leaves most of the chip idle, and one window per pass elsewhere.
    """

    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = None
    pass_tokens: int | None = None
    checkpointing: bool | None = None
    available: int | None = None
    together: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in PRECISIONS:
            raise InputError(f"dtype: expected one of {', '.join(PRECISIONS)}, got {self.dtype!r}")


# Options that several dataclasses share, each worded once.


def device_option(help: str = "Torch device: auto (the GPU when there is one), cpu, cuda, cuda:1 or mps.") -> Any:
    """`--device`."""
    return option(AUTO, section="Machine", metavar="DEVICE", help=help)


def threads_option() -> Any:
    """`--threads`."""
    return option(None, section="Machine", minimum=1, unset="all cores", help="CPU threads of each runtime.")


def seed_option() -> Any:
    """`--seed`."""
    return option(0, section="Machine", minimum=0, maximum=2**32 - 1, help="Seed of every random draw.")


def resolve_device(device: str) -> str:
    """`auto` as the GPU that is here (CUDA, then Apple's), or the CPU; any other name as it stands."""
    if device != AUTO:
        return device
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve(device: str, dtype: Dtype, checkpoint: Checkpoint) -> tuple[str, Precision]:
    """Device and dtype with `auto` made plain: the GPU when there is one, the checkpoint's own precision on it.

    Args:
        device: a torch device, or `auto`.
        dtype: a precision, or `auto`: float32 on a CPU.
        checkpoint: whose weights give the precision.
    """
    device = resolve_device(device)
    if dtype != AUTO:
        return device, dtype
    return device, "float32" if device == "cpu" else stored_precision(checkpoint)


def stored_precision(checkpoint: Checkpoint) -> Precision:
    """The type that most weights of a checkpoint are stored in; float32 for types that are none of torch's floats."""
    sizes: Counter[str] = Counter()
    for header in checkpoint.weight_headers.values():
        for entry in header.values():
            start, end = entry["data_offsets"]
            sizes[entry["dtype"]] += end - start
    return _STORED.get(sizes.most_common(1)[0][0], "float32") if sizes else "float32"
