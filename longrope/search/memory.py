"""How much memory one measurement needs, estimated before the start, and the largest pass that fits.

    weights      parameters · bytes                                      all the time
    pass         P tokens · (6 D + 3 F + 2 (H + 2 K) h) · bytes          hidden states, MLP and attention of one layer
    cache        2 · layers · K h · T · bytes                            only when the window goes in several passes
    mask         P · T · (1 + bytes) + 2 · H h · T · bytes               likewise: booleans, numbers; all keys and values
    scores       H · P · T · (4 + 2 · bytes)                             models that cap scores write them out (Gemma 2)
    logits       rows · V · 4 bytes · 3                                  one chunk: logits, log-softmax, loss
    gradient     layers · (pass + scores) without checkpointing, layers · P · D with it; P · D for the head; logits twice

D hidden size, F MLP size, H and K heads and key-value heads of size h, T window. `bytes` is the dtype's.
`make bench-search` holds the estimate against a measured peak (benchmarks/search.md).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from longrope.checkpoint import Checkpoint
from longrope.errors import MissingRequirementError
from longrope.modeling import DTYPES

# Logits held at a time: 4M float32 numbers, 16 MB.
LOGITS_AT_ONCE = 1 << 22
MIN_ROWS = 16
MIN_PASS = 256
# Part of the free memory that a plan may use; the rest is for the allocator and everybody else.
SHARE = 0.8
# What Python, torch and the kernels' work space take, bytes.
RUNTIME = 350 << 20


@dataclass(frozen=True)
class MemoryPlan:
    """How a window is measured and what that takes.

    Args:
        window: T, tokens.
        pass_tokens: P, tokens of one pass; T when the window goes in at once.
        rows: rows of logits at a time.
        checkpointing: gradients recompute each layer's activations.
        weights, activations, cache, logits: bytes.
        available: bytes free when the plan was made; None when unknown.
    """

    window: int
    pass_tokens: int
    rows: int
    checkpointing: bool
    weights: int
    activations: int
    cache: int
    logits: int
    available: int | None = None

    @property
    def total(self) -> int:
        """Bytes at the peak, the runtime included."""
        return self.weights + self.activations + self.cache + self.logits + RUNTIME

    @property
    def fits(self) -> bool:
        return self.available is None or self.total <= SHARE * self.available

    def __str__(self) -> str:
        passes = "one pass" if self.pass_tokens >= self.window else f"passes of {self.pass_tokens} tokens"
        free = f" of {self.available / 2**30:.1f} GiB free" if self.available is not None else ""
        how = ", activation checkpointing" if self.checkpointing else ""
        return (
            f"{self.window} tokens in {passes}{how}: about {self.total / 2**30:.2f} GiB{free} "
            f"(weights {self.weights / 2**30:.2f}, activations {self.activations / 2**30:.2f}, "
            f"cache and mask {self.cache / 2**30:.2f}, logits {self.logits / 2**30:.2f})"
        )


def plan_memory(
    checkpoint: Checkpoint,
    window: int,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    gradient: bool = False,
    available: float | None = None,
) -> MemoryPlan:
    """The fastest way to measure one window that fits: one pass if possible, then checkpointing, then shorter passes.

    Args:
        checkpoint: gives the sizes.
        window: T in tokens.
        dtype, device: of the model.
        gradient: plan for a derivative too; it always goes in one pass.
        available: bytes for weights and all; None asks the device, infinity takes the fastest way.

    Returns:
        The first plan that fits, or the smallest one if none does; see `MemoryPlan.fits`.
    """
    free = free_memory(device) if available is None else int(available) if math.isfinite(available) else None
    tried = None
    for checkpointing, pass_tokens in _ways(window, gradient):
        tried = _estimate(checkpoint, window, pass_tokens, dtype, gradient, checkpointing, free)
        if tried.fits:
            break
    assert tried is not None, "there is always one way to try"
    return tried


def require_memory(plan: MemoryPlan) -> None:
    """Raise MissingRequirementError when a plan does not fit."""
    if not plan.fits:
        raise MissingRequirementError(
            f"not enough memory for {plan}; use a smaller --dtype, a shorter target, or another machine"
        )


def free_memory(device: str) -> int | None:
    """Bytes free on a device, what torch keeps for its own next use included; None when it does not say."""
    if device.startswith("cuda"):
        card = torch.device(device)
        kept = torch.cuda.memory_reserved(card) - torch.cuda.memory_allocated(card)
        return int(torch.cuda.mem_get_info(card)[0] + kept)
    if device != "cpu":
        return None
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    return int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None


def spread(device: str, workers: int) -> list[str]:
    """A device for every worker: the GPUs in turn for `cuda`, else the same for all."""
    if device != "cuda":
        return [device] * workers
    return [f"cuda:{index % max(1, torch.cuda.device_count())}" for index in range(workers)]


def free_for_each(devices: Sequence[str]) -> int | None:
    """Bytes that each of some processes, one a name, may count on; None when a device does not say."""
    free = {device: free_memory(device) for device in set(devices)}
    shares = [amount // count for device, count in Counter(devices).items() if (amount := free[device]) is not None]
    return min(shares, default=None)


def logit_rows(vocab_size: int) -> int:
    """Rows of logits to hold at a time."""
    return max(MIN_ROWS, LOGITS_AT_ONCE // vocab_size)


def _ways(window: int, gradient: bool) -> list[tuple[bool, int]]:
    if gradient:
        return [(False, window), (True, window)]
    passes, size = [window], 1 << (window - 1).bit_length() - 1
    while size >= MIN_PASS:
        if size < window:
            passes.append(size)
        size //= 2
    return [(False, tokens) for tokens in passes]


def _estimate(
    checkpoint: Checkpoint,
    window: int,
    pass_tokens: int,
    dtype: str,
    gradient: bool,
    checkpointing: bool,
    available: int | None,
) -> MemoryPlan:
    config: Any = checkpoint.config
    size = DTYPES[dtype].itemsize
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    mlp = config.get("intermediate_size") or 4 * hidden
    one_layer = (6 * hidden + 3 * mlp + 2 * (heads + 2 * kv_heads) * checkpoint.head_dim) * size
    if config.get("attn_logit_softcapping"):  # no SDPA for these
        one_layer += heads * window * (4 + 2 * size)
    per_token = one_layer
    if gradient:
        per_token += hidden * size + layers * (hidden * size if checkpointing else one_layer)
    kept = 0
    if pass_tokens < window:
        kept = 2 * (layers * kv_heads + heads) * checkpoint.head_dim * window * size
        kept += pass_tokens * window * (1 + size)
    rows = logit_rows(checkpoint.vocab_size)
    return MemoryPlan(
        window=window,
        pass_tokens=pass_tokens,
        rows=rows,
        checkpointing=checkpointing,
        weights=checkpoint.num_parameters * size,
        activations=pass_tokens * per_token,
        cache=kept,
        logits=min(rows, window) * checkpoint.vocab_size * 4 * (4 if gradient else 3),
        available=available,
    )
