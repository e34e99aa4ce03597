"""What a fine-tuning step and a long evaluation need: memory, traffic and time, by formula, before anything is started.

For each device, with N devices over which weights lie, S of which share a sequence, t = T/S tokens of it here, c and m bytes
of a number that is computed with and that is kept:

    weights        m P / N                            P parameters; as much again for a teacher
    gradients      m P_t / N                          P_t of them trained
    optimizer      o P_t / N                          o = 8 for AdamW, 2 for its 8-bit form
    gathered       c (2 P_layer + P_ends)             FSDP2: this layer, the next, embedding and head        (N > 1)
    on their way   (c + 4) P_layer                    a layer's gradients before they are summed in float32  (N > 1)
    kept           c t D layers                       activation checkpointing; without it `one layer` with 4 F, times layers
    one layer      t (c (6 D + 3 H d + 2 K d + 6 F) + 8 D)   computed anew, its gradients, float32 norms     (8 D if c < 4)
    exchange       2 c t (2 H + 2 K') d               Ulysses: what is sent and what has come                (S > 1)
    loss           4 (2 t D + D V) + 2 chunks of logits      fused; all logits: 3 · 4 t V

    FLOPs of T tokens         forward 2 P_m T + 2 T² H d layers    P_m without the looked-up embedding; causal attention
                              backward twice the first, 2.5 times the second (flash attention computes scores anew)
                              recomputing adds a forward of all layers
    sent by each device       FSDP2 (2 c P + 4 P_t) (N-1)/N a pass; Ulysses 3 · c t (2 H + 2 K') d layers (S-1)/S

D hidden, F MLP, V vocabulary, H and K query and key heads of size d, K' = lcm(K, S). GPUs' figures are
their vendors'; how much of the peak is reached is an assumption that each device states.
benchmarks/training.md has the tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# CUDA's context, NCCL's buffers, the allocator's rests.
RUNTIME = 2e9
# Logits held at a time by the fused loss.
LOSS_CHUNK = 1 << 25
# Part of a device's memory that a plan may use.
SHARE = 0.92


@dataclass(frozen=True)
class DecoderShape:
    """The numbers of a decoder that decide what it costs.

    Args:
        layers, hidden, mlp, heads, kv_heads, head_dim, vocab: as in config.json; `mlp` is one expert's.
        tied: the head is the embedding.
        experts, active_experts: MLPs in a layer, and how many of them work for a token.
    """

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False
    experts: int = 1
    active_experts: int = 1

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> DecoderShape:
        """From a parsed config.json. MLPs are taken to be gated, as almost all are."""
        heads = int(config["num_attention_heads"])
        mlp = int(config.get("moe_intermediate_size") or config.get("intermediate_size") or 4 * config["hidden_size"])
        return cls(
            layers=int(config["num_hidden_layers"]),
            hidden=int(config["hidden_size"]),
            mlp=mlp,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            vocab=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            experts=int(config.get("num_local_experts") or config.get("num_experts") or 1),
            active_experts=int(config.get("num_experts_per_tok") or 1),
        )

    @property
    def layer_parameters(self) -> int:
        return self._layer(self.experts)

    @property
    def active_parameters(self) -> int:
        """Of all layers, those that work for a token."""
        return self.layers * self._layer(self.active_experts)

    def _layer(self, experts: int) -> int:
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + experts * 3 * self.hidden * self.mlp + 2 * self.hidden

    @property
    def end_parameters(self) -> int:
        """Embedding, last norm and head."""
        return self.vocab * self.hidden * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_parameters + self.end_parameters


LLAMA2_7B = DecoderShape(32, 4096, 11008, 32, 32, 128, 32000)
MISTRAL_7B = DecoderShape(32, 4096, 14336, 32, 8, 128, 32000)


@dataclass(frozen=True)
class Device:
    """What one device can do, and how much of that a plan counts on.

    Args:
        name: for people.
        memory: bytes.
        flops: peak of dense matrix products in the computing dtype, per second.
        reached: share of `flops` that training reaches.
        bandwidth: of its memory, bytes per second.
        link: to its neighbours, bytes per second in each direction.
    """

    name: str
    memory: float
    flops: float
    reached: float
    bandwidth: float
    link: float


A100 = Device("A100 80 GB", 80e9, 312e12, 0.5, 2.0e12, 250e9)
H100 = Device("H100 80 GB", 80e9, 989e12, 0.4, 3.35e12, 400e9)


@dataclass(frozen=True)
class TrainingSetting:
    """One kind of step.

    Args:
        length: tokens of a row.
        rows: rows of a global batch.
        devices: of all.
        sequence_size: devices that share a row.
        weight_shards: devices that a copy of the weights lies on; None for all.
        document: tokens of the documents packed in a row; None for one as long as the row.
        trained: share of the parameters that is trained (LoRA).
        backward_layers: the last so many, below which nothing is trained and backward ends; None for all.
        compute_bytes, master_bytes: of a number that is computed with, and of one that the optimizer keeps.
        optimizer_bytes: state for each trained parameter.
        recompute: activation checkpointing.
        fused_loss: logits in chunks.
        offload: kept activations lie in the host's memory.
        teacher: a frozen copy of the model beside it.
    """

    length: int
    rows: int = 1
    devices: int = 1
    sequence_size: int = 1
    weight_shards: int | None = None
    document: int | None = None
    trained: float = 1.0
    backward_layers: int | None = None
    compute_bytes: int = 2
    master_bytes: int = 4
    optimizer_bytes: int = 8
    recompute: bool = True
    fused_loss: bool = True
    offload: bool = False
    teacher: bool = False

    @property
    def shards(self) -> int:
        return self.weight_shards or self.devices

    @property
    def passes(self) -> int:
        """Forwards and backwards that each device makes for a step."""
        return math.ceil(self.rows * self.sequence_size / self.devices)


@dataclass(frozen=True)
class StepPlan:
    """What one step takes of each device.

    Args:
        memory: part → bytes at the peak.
        sent: "weights and gradients", "sequences" → bytes that a device sends in a step.
        tokens: of the global batch.
        flops: of all devices together.
        compute_seconds, link_seconds: of a device; link_seconds is what cannot hide behind computing.
    """

    memory: Mapping[str, float]
    sent: Mapping[str, float]
    tokens: int
    flops: float
    compute_seconds: float
    link_seconds: float

    @property
    def total_memory(self) -> float:
        return sum(self.memory.values())

    @property
    def seconds(self) -> float:
        return self.compute_seconds + self.link_seconds

    def fits(self, device: Device) -> bool:
        return self.total_memory <= SHARE * device.memory


def plan_step(shape: DecoderShape, setting: TrainingSetting, device: Device) -> StepPlan:
    """Memory, traffic and time of one optimizer step; see the module's docstring for the formulas."""
    sent = {
        "weights and gradients": setting.passes * _sent_by_fsdp(shape, setting),
        "sequences": setting.passes * _sent_by_ulysses(shape, setting),
    }
    flops = setting.rows * step_flops(shape, setting)
    compute = flops / setting.devices / (device.flops * device.reached)
    hidden = min(sent["weights and gradients"] / device.link, compute) if sent["weights and gradients"] else 0.0
    link = sum(amount / device.link for amount in sent.values() if amount) - hidden
    return StepPlan(
        memory=_memory(shape, setting),
        sent=sent,
        tokens=setting.rows * setting.length,
        flops=flops,
        compute_seconds=compute,
        link_seconds=link,
    )


def model_flops(shape: DecoderShape, lengths: Iterable[int], backward_layers: int | None = None) -> float:
    """FLOPs that training on these documents needs, nothing computed twice: three forwards. What model-FLOPs use counts.

    Args:
        shape: the model.
        lengths: tokens of each document; attention stays inside.
        backward_layers: as in `TrainingSetting`; a backward is two forwards of these.
    """
    times = 1 + 2 * _backward_share(shape, backward_layers)
    return times * sum(_linear_flops(shape, n) + _attention_flops(shape, n) for n in lengths)


def step_flops(shape: DecoderShape, setting: TrainingSetting) -> float:
    """FLOPs that one row costs, forward and backward, with what is computed twice."""
    document = min(setting.document or setting.length, setting.length)
    documents = setting.length / document
    linear = _linear_flops(shape, setting.length)
    attention = documents * _attention_flops(shape, document)
    again = linear - 2 * shape.vocab * shape.hidden * setting.length + attention if setting.recompute else 0.0
    backward = linear * (1 + setting.trained) + 2.5 * attention + again
    return linear + attention + _backward_share(shape, setting.backward_layers) * backward


def _backward_share(shape: DecoderShape, backward_layers: int | None) -> float:
    """Part of the layers that backward goes through."""
    return (backward_layers or shape.layers) / shape.layers


def _linear_flops(shape: DecoderShape, tokens: float) -> float:
    """A forward's matrix products: layers and head."""
    return 2 * tokens * (shape.active_parameters + shape.vocab * shape.hidden)


def _attention_flops(shape: DecoderShape, tokens: float) -> float:
    """A forward's causal attention: half of queries times keys, half of weights times values, in every layer."""
    return 2 * tokens**2 * shape.heads * shape.head_dim * shape.layers


def _memory(shape: DecoderShape, setting: TrainingSetting) -> dict[str, float]:
    here = setting.length / setting.sequence_size
    parameters, trained = shape.parameters, shape.parameters * setting.trained
    c, m, shards = setting.compute_bytes, setting.master_bytes, setting.shards
    kept = shape.hidden * c if setting.recompute else _layer_bytes(shape, c, backward=False)
    parts = {
        "weights": m * parameters / shards,
        "gradients": m * trained / shards,
        "teacher": m * parameters / shards if setting.teacher else 0.0,
        "optimizer": setting.optimizer_bytes * trained / shards,
        "gathered weights": c * (2 * shape.layer_parameters + shape.end_parameters) if shards > 1 else 0.0,
        "gradients on their way": (c + 4) * shape.layer_parameters * setting.trained if shards > 1 else 0.0,
        "kept activations": 0.0 if setting.offload else here * kept * (setting.backward_layers or shape.layers),
        "one layer": here * _layer_bytes(shape, c, backward=True),
        "sequence exchange": 2 * here * _exchanged(shape, setting) * c if setting.sequence_size > 1 else 0.0,
        "loss": _loss_bytes(shape, setting, here),
    }
    if shards == 1 and c < m:
        parts["gathered weights"] = c * parameters  # a copy in the computing dtype
    return {**{name: size for name, size in parts.items() if size}, "runtime": RUNTIME}


def _layer_bytes(shape: DecoderShape, c: int, *, backward: bool) -> float:
    """Bytes a token: what a layer keeps for its backward, and what it holds at the worst moment of it."""
    attention = (3 * shape.heads + 2 * shape.kv_heads) * shape.head_dim
    mlp = (6 if backward else 4) * shape.active_experts * shape.mlp
    norms = 8 * shape.hidden if c < 4 else 0
    return c * (6 * shape.hidden + attention + mlp) + norms


def _loss_bytes(shape: DecoderShape, setting: TrainingSetting, here: float) -> float:
    if not setting.fused_loss:
        return 3 * 4 * here * shape.vocab
    chunk = min(LOSS_CHUNK, here * shape.vocab)
    return 4 * (2 * here * shape.hidden + shape.hidden * shape.vocab + 2 * chunk)


def _exchanged(shape: DecoderShape, setting: TrainingSetting) -> float:
    """Numbers a token of this device's part: queries, keys, values and the attention's output."""
    kv_heads = math.lcm(shape.kv_heads, setting.sequence_size)
    return (2 * shape.heads + 2 * kv_heads) * shape.head_dim


def _sent_by_fsdp(shape: DecoderShape, setting: TrainingSetting) -> float:
    """A pass: weights gathered for forward and again for backward, gradients summed in float32."""
    numbers = 2 * setting.compute_bytes * shape.parameters + 4 * shape.parameters * setting.trained
    within = numbers * (setting.shards - 1) / setting.shards
    copies = setting.devices // setting.shards
    across = 2 * 4 * shape.parameters * setting.trained / setting.shards * (copies - 1) / copies
    return within + across


def _sent_by_ulysses(shape: DecoderShape, setting: TrainingSetting) -> float:
    """A pass: forward, its recomputation, backward."""
    size = setting.sequence_size
    times = 3 if setting.recompute else 2
    here = setting.length / size
    return times * here * _exchanged(shape, setting) * setting.compute_bytes * shape.layers * (size - 1) / size


# -- evaluation


@dataclass(frozen=True)
class EvaluationPlan:
    """What one window of text takes to be scored, and to be continued.

    Args:
        devices: how many hold it.
        weights, cache, working: bytes of all devices together.
        prefill_seconds: one pass over the window.
        token_seconds: each token that is generated after it; bounded by reading the cache and the weights.
    """

    devices: int
    weights: float
    cache: float
    working: float
    prefill_flops: float
    prefill_seconds: float
    token_seconds: float

    @property
    def total_memory(self) -> float:
        return self.weights + self.cache + self.working


def plan_evaluation(
    shape: DecoderShape,
    length: int,
    device: Device,
    *,
    chunk: int = 32_768,
    number_bytes: int = 2,
    cache_bytes: int = 2,
) -> EvaluationPlan:
    """The fewest devices, a power of two, that hold weights and KV cache, and the time they need.

    Args:
        shape: the model.
        length: tokens of the window.
        device: each of them.
        chunk: tokens of a pass; the cache keeps those before.
        number_bytes: of weights and activations.
        cache_bytes: of a number in the cache; 1 for 8-bit caches.
    """
    weights = float(number_bytes * shape.parameters)
    cache = float(2 * shape.layers * shape.kv_heads * shape.head_dim * length * cache_bytes)
    working = min(chunk, length) * _layer_bytes(shape, number_bytes, backward=False)
    devices = 1
    while weights + cache + working + devices * RUNTIME > SHARE * devices * device.memory:
        devices *= 2
    flops = _linear_flops(shape, length) + _attention_flops(shape, length)
    return EvaluationPlan(
        devices=devices,
        weights=weights,
        cache=cache,
        working=working,
        prefill_flops=flops,
        prefill_seconds=flops / (devices * device.flops * device.reached),
        token_seconds=(weights + cache) / (devices * device.bandwidth),
    )
