"""What a stage takes on this device, before it starts: tokens, FLOPs, memory, time.

    sizes, stage, options ──plan.plan_step──► memory of a step, by formula
                          ──plan.model_flops──► FLOPs ÷ measured rates ──► time

Time comes from two rates that are measured in a fraction of a second: matrix products, and causal attention of the model's
own head size, which on a CPU is several times slower. Recomputation adds a third to the time, never to the model FLOPs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from longrope.checkpoint import Checkpoint
from longrope.finetune.options import TrainOptions
from longrope.finetune.plan import A100, DecoderShape, TrainingSetting, model_flops, plan_step
from longrope.finetune.stages import Stage
from longrope.modeling import DTYPES
from longrope.search.memory import RUNTIME, SHARE, free_memory

# Tokens that one forward and backward takes where rows are shorter.
DEFAULT_PASS = 8192
# Dense bfloat16 FLOP/s of devices, without sparsity, as their makers state them.
PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12}
# Of a trained number as the optimizer keeps it.
MASTER_BYTES = 4
# Norms, rotations and optimizer beside the matrix products: part of the matrix rate that a real step reaches.
EFFICIENCY = 0.7


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes in one process at the peak.

    Args:
        parts: name → bytes, as `plan.StepPlan.memory`.
        checkpointing: activations are recomputed.
        available: bytes free; None when unknown.
    """

    parts: Mapping[str, float]
    checkpointing: bool
    available: int | None = None

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.available is None or self.total <= SHARE * self.available

    def __str__(self) -> str:
        free = f" of {self.available / 2**30:.1f} GiB free" if self.available is not None else ""
        how = ", activations recomputed" if self.checkpointing else ""
        largest = sorted(self.parts.items(), key=lambda part: -part[1])[:3]
        parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in largest)
        return f"about {self.total / 2**30:.2f} GiB{free}{how} ({parts})"


def rows_per_pass(stage: Stage, options: TrainOptions, rows: int) -> int:
    """Rows that one forward takes together, of so many that a process has in a step."""
    return max(1, min(rows, (options.pass_tokens or DEFAULT_PASS) // stage.row_length))


def plan_memory(checkpoint: Checkpoint, stage: Stage, options: TrainOptions, *, world_size: int = 1) -> TrainingMemory:
    """Memory of a training step in each process, without recomputation if that fits.

    Args:
        checkpoint: gives the sizes.
        stage: row length and batch.
        options: precision, LoRA, device, processes per sequence; a given choice of recomputation is kept.
        world_size: processes that weights are spread over.
    """
    shape, free = DecoderShape.of(checkpoint.config), free_memory(options.device)
    choices = (False, True) if options.checkpointing is None else (options.checkpointing,)
    tried = [_memory(shape, stage, options, world_size, checkpointing, free) for checkpointing in choices]
    return next((memory for memory in tried if memory.fits), tried[-1])


def _memory(
    shape: DecoderShape, stage: Stage, options: TrainOptions, world_size: int, checkpointing: bool, free: int | None
) -> TrainingMemory:
    rows = max(1, stage.batch * options.sequence_size // world_size)
    setting = TrainingSetting(
        length=rows_per_pass(stage, options, rows) * stage.row_length,
        document=stage.row_length,
        devices=world_size,
        sequence_size=options.sequence_size,
        trained=_trained_share(shape, options),
        backward_layers=options.lora_layers,
        compute_bytes=DTYPES[options.dtype].itemsize,
        optimizer_bytes=_optimizer_bytes(options),
        recompute=checkpointing,
        teacher=stage.distil_short,
    )
    parts = dict(plan_step(shape, setting, A100).memory)  # memory is the same on any device, but for the runtime's own
    if not options.device.startswith("cuda"):
        parts["runtime"] = RUNTIME
    return TrainingMemory(parts, checkpointing, free)


def checkpoint_bytes(checkpoint: Checkpoint, options: TrainOptions) -> int:
    """Size of one checkpoint of a training run: what is trained, in float32, and the optimizer's state of it."""
    shape = DecoderShape.of(checkpoint.config)
    return round(shape.parameters * _trained_share(shape, options) * (MASTER_BYTES + _optimizer_bytes(options)))


def _optimizer_bytes(options: TrainOptions) -> int:
    return 2 if options.optimizer == "adamw8bit" else 8


def _trained_share(shape: DecoderShape, options: TrainOptions) -> float:
    """Part of the parameters that is trained: all, or adapters; with the embedding where every layer has some."""
    if options.lora_rank is None:
        return 1.0
    widths = 6 * shape.hidden + 2 * (shape.heads + shape.kv_heads) * shape.head_dim + 3 * shape.mlp
    embedding = 0 if options.lora_layers else shape.vocab * shape.hidden
    return (options.lora_rank * (options.lora_layers or shape.layers) * widths + embedding) / shape.parameters


@dataclass(frozen=True)
class Rates:
    """FLOP/s of this device, measured: matrix products, and causal attention forward and backward."""

    matrix: float
    attention: float


def measure_rates(shape: DecoderShape, dtype: str, device: str, *, size: int = 1024) -> Rates:
    """Time a product of matrices and an attention of the model's heads, once each after a warm-up."""
    kind = DTYPES[dtype]
    matrix = torch.randn(size, size, dtype=kind, device=device)
    heads = torch.randn(1, shape.heads, size, shape.head_dim, dtype=kind, device=device, requires_grad=True)

    def attention() -> None:
        scaled_dot_product_attention(heads, heads, heads, is_causal=True).sum().backward()

    return Rates(
        matrix=2.0 * size**3 / _seconds(lambda: matrix @ matrix, device),
        attention=6.0 * shape.heads * shape.head_dim * size**2 / _seconds(attention, device),
    )


def training_seconds(shape: DecoderShape, length: int, rates: Rates, backward_layers: int | None = None) -> float:
    """Wall time of a forward and backward of one document of `length` tokens; of all layers, a forward is a third of it."""
    matrix = model_flops(shape, [1], backward_layers) * length  # a token alone attends to nothing that counts
    attention = model_flops(shape, [length], backward_layers) - matrix
    return matrix / (EFFICIENCY * rates.matrix) + attention / rates.attention


def forward_seconds(shape: DecoderShape, length: int, tokens: int, rates: Rates) -> float:
    """Wall time of measuring so many tokens in windows of `length`."""
    return tokens / length * training_seconds(shape, length, rates) / 3


@dataclass(frozen=True)
class StageCost:
    """What a stage takes.

    Args:
        tokens: that training reads.
        flops: model FLOPs; rows of short sequences attend to them alone.
        seconds: wall time, by the measured rates of this device.
        memory: in each process.
    """

    tokens: int
    flops: float
    seconds: float
    memory: TrainingMemory

    def __str__(self) -> str:
        return (
            f"{self.tokens / 1e6:.2f}M tokens, {self.flops:.2g} FLOPs, about {duration(self.seconds)} on this device; "
            f"memory {self.memory}"
        )


def stage_cost(
    checkpoint: Checkpoint, stage: Stage, options: TrainOptions, rates: Rates, *, world_size: int = 1
) -> StageCost:
    """Tokens, FLOPs, time and memory of a stage's training."""
    shape = DecoderShape.of(checkpoint.config)
    memory = plan_memory(checkpoint, stage, options, world_size=world_size)
    rows, short = stage.steps * stage.batch, min(checkpoint.window, stage.row_length)
    long_rows, short_documents = rows * (1 - stage.short_share), rows * stage.short_share * stage.row_length / short
    layers = options.lora_layers
    seconds = long_rows * training_seconds(shape, stage.row_length, rates, layers)
    seconds += short_documents * training_seconds(shape, short, rates, layers)
    if stage.distil_short:
        seconds += short_documents * training_seconds(shape, short, rates) / 3  # the teacher's forward
    flops = long_rows * model_flops(shape, [stage.row_length], layers)
    flops += short_documents * model_flops(shape, [short], layers)
    again = 4 / 3 if memory.checkpointing else 1.0
    return StageCost(stage.tokens, flops, again * seconds / world_size, memory)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`, `2.1 days`."""
    for size, unit, digits in ((86_400, "days", 1), (3600, "h", 1), (60, "min", 0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def peak_flops(options: TrainOptions) -> float | None:
    """FLOP/s of one device: told, or known by a GPU's name; None elsewhere."""
    if options.peak_flops is not None:
        return options.peak_flops
    if not options.device.startswith("cuda") or not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def _seconds(work: Callable[[], object], device: str) -> float:
    for _ in range(2):  # the first one warms up
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        spent = time.perf_counter() - start
    return spent
