"""What a stage takes before it starts: tokens, FLOPs, memory, time.

    weights      16 bytes a trained parameter (float32 weight, gradient, two moments), 4 a frozen one; over the processes
    activations  tokens of a pass · layers · (8 D + 4 F + 4 (H + K) h) · bytes; with recomputation one layer, and D · layers
    logits       rows of a chunk · V · 4 bytes · 3
    FLOPs        6 · parameters in matrices a token, and 6 · H h · layers · n² for every sequence of n tokens (causal)

D hidden size, F MLP size, H and K heads and key-value heads of size h, V vocabulary. Recomputation adds a third of the
FLOPs to the time, never to the model FLOPs. Time comes from a measured rate of this device: matrix products and causal
attention of the model's own head size, a fraction of a second each.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from longrope.checkpoint import Checkpoint, safetensors_header
from longrope.finetune.loss import chunking
from longrope.finetune.options import TrainOptions
from longrope.finetune.stages import Stage
from longrope.modeling import DTYPES
from longrope.search.memory import RUNTIME, SHARE, free_memory

# Tokens that one forward and backward takes where rows are shorter.
DEFAULT_PASS = 8192
# Dense bfloat16 FLOP/s of devices, without sparsity, as their makers state them.
PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12}
# Layer norms, rotations and optimizer beside the matrix products: part of the matrix rate that a real step reaches.
EFFICIENCY = 0.7


@dataclass(frozen=True)
class Shape:
    """Sizes of a model that costs depend on; see the module's docstring."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    parameters: int
    matrices: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Shape:
        """Read from config.json and the weight files' headers."""
        config: Any = checkpoint.config
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        shapes = {
            name: entry["shape"] for file in checkpoint.weight_files for name, entry in safetensors_header(file).items()
        }
        tied = bool(config.get("tie_word_embeddings"))
        in_matrices = [
            math.prod(shape)
            for name, shape in shapes.items()
            if len(shape) > 1 and ("embed_tokens" not in name or tied)
        ]
        return cls(
            hidden=hidden,
            mlp=config.get("intermediate_size") or 4 * hidden,
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=checkpoint.head_dim,
            vocab=checkpoint.vocab_size,
            parameters=sum(int(math.prod(shape)) for shape in shapes.values()),
            matrices=sum(in_matrices),
        )

    def matrix_flops(self, tokens: int) -> float:
        """Model FLOPs of matrix products, forward and backward."""
        return 6.0 * self.matrices * tokens

    def attention_flops(self, lengths: Iterable[int]) -> float:
        """Model FLOPs of causal attention over sequences of these lengths, forward and backward."""
        return 6.0 * self.heads * self.head_dim * self.layers * sum(float(n) ** 2 for n in lengths)

    def flops(self, lengths: Iterable[int]) -> float:
        """Model FLOPs of a training step over sequences of these lengths."""
        lengths = list(lengths)
        return self.matrix_flops(sum(lengths)) + self.attention_flops(lengths)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes in one process at the peak.

    Args:
        weights: parameters, gradients, optimizer.
        activations: of one pass.
        logits: of one chunk.
        checkpointing: activations are recomputed.
        available: bytes free; None when unknown.
    """

    weights: int
    activations: int
    logits: int
    checkpointing: bool
    available: int | None = None

    @property
    def total(self) -> int:
        return self.weights + self.activations + self.logits + RUNTIME

    @property
    def fits(self) -> bool:
        return self.available is None or self.total <= SHARE * self.available

    def __str__(self) -> str:
        free = f" of {self.available / 2**30:.1f} GiB free" if self.available is not None else ""
        how = ", activations recomputed" if self.checkpointing else ""
        return (
            f"about {self.total / 2**30:.2f} GiB{free}{how} (weights, gradients, optimizer {self.weights / 2**30:.2f}, "
            f"activations {self.activations / 2**30:.2f}, logits {self.logits / 2**30:.2f})"
        )


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
    shape, free = Shape.of(checkpoint), free_memory(options.device)
    choices = (False, True) if options.checkpointing is None else (options.checkpointing,)
    tried = [_memory(shape, stage, options, world_size, checkpointing, free) for checkpointing in choices]
    return next((memory for memory in tried if memory.fits), tried[-1])


def _memory(
    shape: Shape, stage: Stage, options: TrainOptions, world_size: int, checkpointing: bool, free: int | None
) -> TrainingMemory:
    size = DTYPES[options.dtype].itemsize
    layer = 8 * shape.hidden + 4 * shape.mlp + 4 * (shape.heads + shape.kv_heads) * shape.head_dim
    kept = layer + shape.layers * shape.hidden if checkpointing else layer * shape.layers
    tokens = rows_per_pass(stage, options, stage.batch) * stage.row_length // options.sequence_size
    trained = shape.parameters
    if options.lora_rank is not None:
        adapters = 2 * options.lora_rank * shape.layers * (6 * shape.hidden + 2 * shape.mlp)
        trained = shape.vocab * shape.hidden + adapters
    rows = min(tokens, chunking(shape.vocab).batch_chunk_size or tokens)
    return TrainingMemory(
        weights=(12 * trained + 4 * shape.parameters) // world_size,
        activations=tokens * kept * size,
        logits=rows * shape.vocab * 4 * 3,
        checkpointing=checkpointing,
        available=free,
    )


@dataclass(frozen=True)
class Rates:
    """FLOP/s of this device, measured: matrix products, and causal attention forward and backward."""

    matrix: float
    attention: float


def measure_rates(shape: Shape, dtype: str, device: str, *, size: int = 1024) -> Rates:
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


def estimate_seconds(shape: Shape, stage: Stage, rates: Rates, *, checkpointing: bool, world_size: int = 1) -> float:
    """Wall time of a stage's training: all of its rows as long sequences, short ones as short ones."""
    rows = stage.steps * stage.batch
    long_rows = rows * (1 - stage.short_share)
    matrix = shape.matrix_flops(rows * stage.row_length) / (EFFICIENCY * rates.matrix)
    attention = long_rows * shape.attention_flops([stage.row_length]) / rates.attention
    return (matrix + attention) * (4 / 3 if checkpointing else 1) / world_size


@dataclass(frozen=True)
class StageCost:
    """What a stage takes.

    Args:
        tokens: that training reads.
        flops: model FLOPs, all rows as long sequences but the short ones.
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
    shape = Shape.of(checkpoint)
    memory = plan_memory(checkpoint, stage, options, world_size=world_size)
    long_rows = stage.steps * stage.batch * (1 - stage.short_share)
    attention = long_rows * shape.attention_flops([stage.row_length])
    return StageCost(
        tokens=stage.tokens,
        flops=shape.matrix_flops(stage.tokens) + attention,
        seconds=estimate_seconds(shape, stage, rates, checkpointing=memory.checkpointing, world_size=world_size),
        memory=memory,
    )


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
