"""What a search takes: memory of one measurement and the largest pass that fits, tokens and evaluations of all.

    weights      parameters · bytes                                      all the time
    pass         P tokens · (6 D + 3 F + 2 (H + 2 K) h) · bytes          hidden states, MLP and attention of one layer
    cache        2 · layers · K h · T · bytes                            only when the window goes in several passes
    mask         P · T · (1 + bytes) + 2 · H h · T · bytes               likewise: booleans, numbers; all keys and values
    scores       H · P · T · (4 + 2 · bytes)                             models that cap scores write them out (Gemma 2)
    logits       rows · V · 4 bytes · 3                                  one chunk: logits, log-softmax, loss
    gradient     layers · (pass + scores) without checkpointing, layers · P · D with it; P · D for the head; logits twice

D hidden size, F size of the MLPs that work for a token, H and K heads and key-value heads of size h, T window. `bytes` is
the dtype's. `make bench-search` holds the estimate against a measured peak (docs/search.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from longrope.checkpoint import Checkpoint
from longrope.estimates import memory
from longrope.estimates.memory import MemoryEstimate, require_memory
from longrope.estimates.shape import DecoderShape
from longrope.modeling import DTYPES, require_device

if TYPE_CHECKING:
    from longrope.search.options import SearchOptions  # a search imports its estimates

# Numbers of logits that a measurement holds at a time, 16 MB in float32: of a forward, small ones are as fast.
LOGITS_AT_ONCE = 1 << 22
MIN_ROWS = 16
MIN_PASS = 256


@dataclass(frozen=True, kw_only=True)
class SearchMemory(MemoryEstimate):
    """How a window is measured and what that takes.

    Args:
        window: T, tokens.
        pass_tokens: P, tokens of one pass; T when the window goes in at once.
        rows: rows of logits at a time.
    """

    window: int
    pass_tokens: int
    rows: int

    def __str__(self) -> str:
        passes = "one pass" if self.pass_tokens >= self.window else f"passes of {self.pass_tokens} tokens"
        how = ", activation checkpointing" if self.checkpointing else ""
        own = {name: size for name, size in self.parts.items() if name != "runtime"}
        return f"{self.window} tokens in {passes}{how}: {self._summary(own)}"


def search_memory(
    checkpoint: Checkpoint,
    window: int,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    gradient: bool = False,
    available: float | None = None,
) -> SearchMemory:
    """The fastest way to measure one window that fits: one pass if possible, then checkpointing, then shorter passes.

    Args:
        checkpoint: gives the sizes.
        window: T in tokens.
        dtype, device: of the model.
        gradient: a derivative is taken, too; it always goes in one pass.
        available: bytes for weights and all; None asks the device, infinity takes the fastest way.

    Returns:
        The first way that fits, or the smallest one if none does; see `MemoryEstimate.fits`.
    """
    free = memory.free_memory(device) if available is None else int(available) if math.isfinite(available) else None
    ways = [
        _measurement(checkpoint, window, pass_tokens, dtype, device, gradient, checkpointing, free)
        for checkpointing, pass_tokens in _ways(window, gradient)
    ]
    return next((way for way in ways if way.fits), ways[-1])


def _ways(window: int, gradient: bool) -> list[tuple[bool, int]]:
    """(checkpointing, tokens of a pass), the fastest first: the window, then powers of two below it."""
    if gradient:
        return [(False, window), (True, window)]
    powers = [1 << bit for bit in reversed(range(window.bit_length())) if MIN_PASS <= 1 << bit < window]
    return [(False, tokens) for tokens in (window, *powers)]


def _measurement(
    checkpoint: Checkpoint,
    window: int,
    pass_tokens: int,
    dtype: str,
    device: str,
    gradient: bool,
    checkpointing: bool,
    available: int | None,
) -> SearchMemory:
    shape, size = DecoderShape.of(checkpoint.config), DTYPES[dtype].itemsize
    mlp, attention = 3 * shape.active_experts * shape.mlp, 2 * (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    one_layer = (6 * shape.hidden + mlp + attention) * size
    if shape.capped_scores:
        one_layer += shape.heads * window * (4 + 2 * size)
    per_token = one_layer
    if gradient:
        per_token += shape.hidden * size + shape.layers * (shape.hidden * size if checkpointing else one_layer)
    kept = 0
    if pass_tokens < window:
        kept = 2 * (shape.layers * shape.kv_heads + shape.heads) * shape.head_dim * window * size
        kept += pass_tokens * window * (1 + size)
    rows = max(MIN_ROWS, LOGITS_AT_ONCE // shape.vocab)
    parts = {
        "weights": checkpoint.num_parameters * size,
        "activations": pass_tokens * per_token,
        "cache and mask": kept,
        "logits": min(rows, window) * shape.vocab * 4 * (4 if gradient else 3),
        "runtime": memory.runtime_bytes(device),
    }
    return SearchMemory(
        parts=parts,
        checkpointing=checkpointing,
        available=available,
        window=window,
        pass_tokens=pass_tokens,
        rows=rows,
    )


@dataclass(frozen=True)
class SearchEstimate:
    """What a search takes.

    Args:
        forward: memory of one measurement, and in how many passes.
        gradient: the same with a derivative; None for strategies without.
        evaluations: budget, in full evaluations.
        tokens: budget, in tokens forwarded.
        needs_gradient: whether the strategy cannot do without.
    """

    forward: SearchMemory
    gradient: SearchMemory | None
    evaluations: int
    tokens: int
    needs_gradient: bool = False

    @property
    def skips_gradient(self) -> bool:
        """Whether gradients do not fit and are left out."""
        return self.gradient is not None and not self.gradient.fits and not self.needs_gradient

    def lines(self) -> list[str]:
        """What a person reads."""
        found = [f"budget: {self.evaluations} evaluations, {self.tokens / 1e6:.2f}M tokens", f"forward: {self.forward}"]
        if self.gradient:
            found.append(f"gradient: {self.gradient}")
        return [*found, *self.caveats()]

    def caveats(self) -> list[str]:
        """What of it does not fit into memory, for a person."""
        if not all(needed.fits for needed in self.needed):
            return ["does not fit: the search would be refused"]
        return ["gradients do not fit: the search would go without"] if self.skips_gradient else []

    def require(self) -> None:
        """Raise MissingRequirementError when even the smallest passes do not fit."""
        for needed in self.needed:
            require_memory(needed)

    @property
    def needed(self) -> list[SearchMemory]:
        """What the search cannot do without."""
        return [self.forward, *([self.gradient] if self.gradient and self.needs_gradient else [])]


def search_estimate(
    checkpoint: Checkpoint, target_length: int, options: SearchOptions, *, available: int | None = None
) -> SearchEstimate:
    """What `search` with these options takes.

    Args:
        checkpoint: gives the sizes.
        target_length: L' in tokens.
        options: strategy, budget, objective and machine.
        available: bytes for each process; None for `available_memory`.

    Raises:
        InputError, MissingRequirementError: the device is not there.
    """
    if available is None:
        available = available_memory(options)
    one = partial(
        search_memory,
        checkpoint,
        target_length,
        dtype=options.dtype,
        device=options.device,
        available=math.inf if available is None else available,
    )
    evaluations = options.evaluations(target_length)
    return SearchEstimate(
        forward=one(),
        gradient=one(gradient=True) if options.takes_gradients else None,
        evaluations=evaluations,
        tokens=evaluations * options.evaluation_tokens(checkpoint.window, target_length),
        needs_gradient=options.needs_gradients,
    )


def available_memory(options: SearchOptions) -> int | None:
    """Bytes that each process of a search may take; None where that is not known here, as on a Ray cluster's machines.

    Raises:
        InputError, MissingRequirementError: the device is not there.
    """
    if options.executor == "ray":
        return None
    require_device(options.device)
    return memory.free_for_each(memory.spread(options.device, options.workers))
