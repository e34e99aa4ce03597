"""FLOPs by formula, rates of this device by measurement, and the time that follows.

    FLOPs of T tokens         forward 2 P_m T + 2 T² H d layers    P_m without the looked-up embedding; causal attention
                              backward twice as many

H heads of size d. Two rates are measured in a fraction of a second: matrix products, and causal attention of the model's own
head size, which on a CPU is several times slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from longrope.estimates.shape import DecoderShape
from longrope.modeling import DTYPES

# Dense bfloat16 FLOP/s of devices, without sparsity, as their makers state them.
PEAK_FLOPS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
}
# Norms, rotary embedding and optimizer beside the matrix products: part of the matrix rate that a real step reaches.
EFFICIENCY = 0.7
# FLOP/s of the slowest machine that is waited for: a tenth of one old core.
SLOWEST = 1e9


def linear_flops(shape: DecoderShape, tokens: float) -> float:
    """A forward's matrix products: layers and head."""
    return 2 * tokens * (shape.active_parameters + shape.vocab * shape.hidden)


def attention_flops(shape: DecoderShape, tokens: float) -> float:
    """A forward's causal attention: half of queries times keys, half of weights times values, in every layer."""
    return 2 * tokens**2 * shape.heads * shape.head_dim * shape.layers


def backward_share(shape: DecoderShape, backward_layers: int | None) -> float:
    """Part of the layers that backward goes through; None for all."""
    return (backward_layers or shape.layers) / shape.layers


def model_flops(shape: DecoderShape, lengths: Iterable[int], backward_layers: int | None = None) -> float:
    """FLOPs that training on these documents needs, nothing computed twice: three forwards. What model-FLOPs use counts.

    Args:
        shape: the model.
        lengths: tokens of each document; attention stays inside.
        backward_layers: the last so many, below which nothing is trained; a backward is two forwards of these.
    """
    times = 1 + 2 * backward_share(shape, backward_layers)
    return times * sum(linear_flops(shape, n) + attention_flops(shape, n) for n in lengths)


def peak_flops(device: str) -> float | None:
    """FLOP/s of a GPU that is known by its name; None elsewhere."""
    if not device.startswith("cuda") or not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


@dataclass(frozen=True)
class Rates:
    """FLOP/s of this device, measured: matrix products, and causal attention forward and backward."""

    matrix: float
    attention: float


def measure_rates(shape: DecoderShape, dtype: str, device: str) -> Rates:
    """Time a product of matrices and an attention of the model's heads, once each after a warm-up."""
    kind, size = DTYPES[dtype], 1024
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


def slow_seconds(shape: DecoderShape, tokens: int) -> float:
    """Wall time of a forward of a window on a very slow machine."""
    return (linear_flops(shape, tokens) + attention_flops(shape, tokens)) / SLOWEST


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`, `2.1 days`."""
    for size, unit, digits in ((86_400, "days", 1), (3600, "h", 1), (60, "min", 0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


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
