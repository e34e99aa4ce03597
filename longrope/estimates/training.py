"""What fine-tuning takes: memory of a step in each process; tokens, FLOPs and time of a stage; a checkpoint on disk.

With weights over N processes, S of which share a sequence, t = T/S tokens of a pass in each, c and m bytes of a number that
is computed with and that is kept:

    weights        m P / N                            P parameters; as much again for a teacher
    gradients      m P_t / N                          P_t of them trained
    optimizer      o P_t / N                          o = 8 for AdamW, 2 for its 8-bit form
    gathered       c (2 P_layer + P_ends)             FSDP2: this layer, the next, embedding and head        (N > 1)
    on their way   (c + 4) P_layer                    a layer's gradients before they are summed in float32  (N > 1)
    kept           c t D layers                       activation checkpointing; without it `one layer` with 4 F, times layers
    one layer      t (c (6 D + 3 H d + 2 K d + 6 F) + 8 D)   computed anew, its gradients, float32 norms     (8 D if c < 4)
    exchange       2 c t (2 H + 2 K') d               Ulysses: what is sent and what has come                (S > 1)
    loss           4 (2 t D + D V) + 2 chunks of logits

D hidden, F MLP, V vocabulary, H and K query and key heads of size d, K' = lcm(K, S). benchmarks/training.md has tables for
7B models. Recomputation adds a third to the time, never to the model FLOPs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from longrope.checkpoint import Checkpoint
from longrope.estimates import memory
from longrope.estimates.compute import Rates, duration, model_flops, training_seconds
from longrope.estimates.memory import MemoryEstimate
from longrope.estimates.shape import DecoderShape
from longrope.finetune.linear_loss import LOGITS_AT_ONCE
from longrope.finetune.options import TrainOptions
from longrope.finetune.stages import Stage
from longrope.modeling import DTYPES

# Tokens that one forward and backward takes where rows are shorter.
DEFAULT_PASS = 8192
# Of a trained number as the optimizer keeps it: float32 always.
MASTER_BYTES = 4


@dataclass(frozen=True)
class TrainingSetting:
    """What decides the memory of a step.

    Args:
        length: tokens of one forward.
        fsdp: processes that one copy of the weights lies on.
        sequence_parallel: processes that share a sequence.
        trained: share of the parameters that is trained (LoRA).
        backward_layers: the last so many, below which nothing is trained and backward ends; None for all.
        compute_bytes: of a number that is computed with.
        optimizer_bytes: state for each trained parameter.
        recompute: activation checkpointing.
        teacher: a frozen copy of the model beside it.
    """

    length: int
    fsdp: int = 1
    sequence_parallel: int = 1
    trained: float = 1.0
    backward_layers: int | None = None
    compute_bytes: int = 2
    optimizer_bytes: int = 8
    recompute: bool = True
    teacher: bool = False

    @property
    def local_tokens(self) -> float:
        """t: tokens of a forward that one process holds."""
        return self.length / self.sequence_parallel


def step_memory(shape: DecoderShape, setting: TrainingSetting, runtime: float) -> dict[str, float]:
    """Part → bytes of one process at the peak of an optimizer step; see the module's docstring for the formulas."""
    here, shards, layers = setting.local_tokens, setting.fsdp, setting.backward_layers or shape.layers
    parameters, trained, c = shape.parameters, shape.parameters * setting.trained, setting.compute_bytes
    kept = shape.hidden * c if setting.recompute else layer_bytes(shape, c, backward=False)
    parts = {
        "weights": MASTER_BYTES * parameters / shards,
        "gradients": MASTER_BYTES * trained / shards,
        "teacher": MASTER_BYTES * parameters / shards if setting.teacher else 0.0,
        "optimizer": setting.optimizer_bytes * trained / shards,
        "gathered weights": c * (2 * shape.layer_parameters + shape.end_parameters) if shards > 1 else 0.0,
        "gradients on their way": (c + 4) * shape.layer_parameters * setting.trained if shards > 1 else 0.0,
        "kept activations": here * kept * layers,
        "one layer": here * layer_bytes(shape, c, backward=True),
        "sequence exchange": 2 * here * exchanged(shape, setting) * c if setting.sequence_parallel > 1 else 0.0,
        "loss": _loss_bytes(shape, here),
    }
    if shards == 1 and c < MASTER_BYTES:
        parts["gathered weights"] = c * parameters  # a copy in the computing dtype
    return {**{name: size for name, size in parts.items() if size}, "runtime": runtime}


def layer_bytes(shape: DecoderShape, c: int, *, backward: bool) -> float:
    """Bytes a token: what a layer keeps for its backward, or what it holds at the worst moment of it."""
    attention = (3 * shape.heads + 2 * shape.kv_heads) * shape.head_dim
    mlp = (6 if backward else 4) * shape.active_experts * shape.mlp
    norms = 8 * shape.hidden if c < 4 else 0
    return c * (6 * shape.hidden + attention + mlp) + norms


def exchanged(shape: DecoderShape, setting: TrainingSetting) -> float:
    """Numbers a token that sequence parallelism sends: queries, keys, values and the attention's output."""
    kv_heads = math.lcm(shape.kv_heads, setting.sequence_parallel)
    return (2 * shape.heads + 2 * kv_heads) * shape.head_dim


def _loss_bytes(shape: DecoderShape, here: float) -> float:
    chunk = min(LOGITS_AT_ONCE, here * shape.vocab)
    return 4 * (2 * here * shape.hidden + shape.hidden * shape.vocab + 2 * chunk)


@dataclass(frozen=True, kw_only=True)
class TrainingMemory(MemoryEstimate):
    """Memory of a training step in each process."""

    def __str__(self) -> str:
        how = ", activations recomputed" if self.checkpointing else ""
        largest = sorted(self.parts.items(), key=lambda part: -part[1])[:3]
        return self._summary(dict(largest), how)


def rows_per_pass(stage: Stage, options: TrainOptions, rows: int) -> int:
    """Rows that one forward takes together, of so many that a process has in a step."""
    return max(1, min(rows, (options.pass_tokens or DEFAULT_PASS) // stage.row_length))


def training_memory(
    checkpoint: Checkpoint, stage: Stage, options: TrainOptions, *, world_size: int = 1
) -> TrainingMemory:
    """Memory of a training step in each process, without recomputation if that fits.

    Args:
        checkpoint: gives the sizes.
        stage: row length and batch.
        options: precision, LoRA, device, processes per sequence; a given choice of recomputation is kept.
        world_size: processes that weights are spread over.
    """
    options = options.on(checkpoint)
    free = memory.free_memory(options.device)
    choices = (False, True) if options.checkpointing is None else (options.checkpointing,)
    tried = [
        TrainingMemory(
            parts=_step_parts(checkpoint, stage, options, world_size, choice), checkpointing=choice, available=free
        )
        for choice in choices
    ]
    return next((estimate for estimate in tried if estimate.fits), tried[-1])


def _step_parts(
    checkpoint: Checkpoint, stage: Stage, options: TrainOptions, world_size: int, recompute: bool
) -> dict[str, float]:
    shape, rows = DecoderShape.of(checkpoint.config), max(1, stage.batch * options.sequence_parallel // world_size)
    setting = TrainingSetting(
        length=rows_per_pass(stage, options, rows) * stage.row_length,
        fsdp=options.fsdp or world_size,
        sequence_parallel=options.sequence_parallel,
        trained=_trained_share(shape, options),
        backward_layers=options.lora_layers,
        compute_bytes=DTYPES[options.dtype].itemsize,
        optimizer_bytes=_optimizer_bytes(options),
        recompute=recompute,
        teacher=stage.distil_short,
    )
    return step_memory(shape, setting, memory.runtime_bytes(options.device))


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
class StageEstimate:
    """What a stage's training takes.

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


def stage_estimate(
    checkpoint: Checkpoint, stage: Stage, options: TrainOptions, rates: Rates, *, world_size: int = 1
) -> StageEstimate:
    """Tokens, FLOPs, time and memory of a stage's training."""
    shape, layers = DecoderShape.of(checkpoint.config), options.lora_layers
    needed = training_memory(checkpoint, stage, options, world_size=world_size)
    rows, short = stage.steps * stage.batch, min(checkpoint.window, stage.row_length)
    long_rows, short_documents = rows * (1 - stage.short_share), rows * stage.short_share * stage.row_length / short
    seconds = long_rows * training_seconds(shape, stage.row_length, rates, layers)
    seconds += short_documents * training_seconds(shape, short, rates, layers)
    if stage.distil_short:
        seconds += short_documents * training_seconds(shape, short, rates) / 3  # the teacher's forward
    flops = long_rows * model_flops(shape, [stage.row_length], layers)
    flops += short_documents * model_flops(shape, [short], layers)
    again = 4 / 3 if needed.checkpointing else 1.0
    return StageEstimate(stage.tokens, flops, again * seconds / world_size, needed)
