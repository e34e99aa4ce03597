"""One model whose factors change from measurement to measurement: NLL of a window, and its derivative by the factors.

    λ, attention ──► cos, sin ──► every layer ──► hidden [T, D] ──chunks──► head [t, V] ──► NLL
       ▲                                                                                     │
       └───────────────────────── gradient (weights are frozen) ◄────────────────────────────┘

Logits exist for one chunk of rows at a time, in both directions; memory never holds window × vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longrope.checkpoint import Checkpoint
from longrope.modeling import RescaledRotary, build_model, head_logits, hidden_states, replace_rotary
from longrope.search.objective import Window
from longrope.search.trial import Candidate, Job, Measurement

# Logits held at a time: 4M float32 numbers, 16 MB.
LOGITS_AT_ONCE = 1 << 22
# A gradient costs a forward and a backward pass, and a backward pass as much as two forwards.
GRADIENT_FORWARDS = 3


@dataclass(frozen=True)
class Machine:
    """Where and how models run.

    Args:
        device: a torch device.
        dtype: `float32`, `bfloat16` or `float16`.
        threads: torch's threads in each process; None for torch's own choice.
    """

    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = None


class WindowModel:
    """A checkpoint's model with the engine's rotary embedding in it.

    Args:
        checkpoint: the model to search on.
        machine: device, dtype and threads.
        default_attention: attention factor of candidates that leave theirs open.
    """

    def __init__(self, checkpoint: Checkpoint, machine: Machine, default_attention: float = 1.0) -> None:
        if machine.threads:
            torch.set_num_threads(machine.threads)
        self.model: Any = build_model(checkpoint, dtype=machine.dtype, device=machine.device)
        self.rotary = RescaledRotary(checkpoint.rope_theta, checkpoint.rotary_dim)
        replace_rotary(self.model, self.rotary)
        self.default_attention = default_attention
        self._rows = max(16, LOGITS_AT_ONCE // checkpoint.vocab_size)

    def measure(self, job: Job, window: Window) -> Measurement:
        """Run one job."""
        start = time.perf_counter()
        if job.gradient:
            nll, gradient = self.nll_and_gradient(job.candidate, window)
        else:
            nll, gradient = self.nll(job.candidate, window), None
        tokens = len(window) * (GRADIENT_FORWARDS if job.gradient else 1)
        return Measurement(nll, tokens, gradient, time.perf_counter() - start)

    @torch.inference_mode()
    def nll(self, candidate: Candidate, window: Window) -> float:
        """Mean NLL of the window's counted tokens, nats; sums are in float64."""
        self.rotary.set(candidate.factors, self._attention(candidate), candidate.n_hat)
        hidden_TD = hidden_states(self.model, self._ids(window))[0]
        return sum(float(self._nll_sum(h, t)) for h, t in self._chunks(hidden_TD, window)) / window.counted

    def nll_and_gradient(self, candidate: Candidate, window: Window) -> tuple[float, tuple[float, ...]]:
        """Mean NLL and its [d/2 + 1] derivative by ln factor[i] and, last, by ln attention_factor."""
        logs = torch.tensor([*candidate.factors, self._attention(candidate)], dtype=torch.float64).log()
        logs.requires_grad_(True)
        values = logs.exp()
        self.rotary.set(values[:-1], values[-1], candidate.n_hat)
        hidden_TD = hidden_states(self.model, self._ids(window))[0]
        leaf_TD = hidden_TD.detach().requires_grad_(True)
        total = 0.0
        for hidden, targets in self._chunks(leaf_TD, window):
            loss = self._nll_sum(hidden, targets) / window.counted
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        (gradient,) = torch.autograd.grad(hidden_TD, logs, leaf_TD.grad)
        return total, tuple(gradient.tolist())

    def _attention(self, candidate: Candidate) -> float:
        return self.default_attention if candidate.attention_factor is None else candidate.attention_factor

    def _ids(self, window: Window) -> Tensor:
        """[1, T - 1]: the last token is predicted, never read."""
        return torch.as_tensor(window.ids[: window.stop - 1], device=self.model.device)[None]

    def _chunks(self, hidden_TD: Tensor, window: Window) -> Iterator[tuple[Tensor, Tensor]]:
        targets_T = torch.as_tensor(window.ids[window.start : window.stop], device=hidden_TD.device)
        counted_TD = hidden_TD[window.start - 1 : window.stop - 1]
        return zip(counted_TD.split(self._rows), targets_T.split(self._rows), strict=True)

    def _nll_sum(self, hidden_TD: Tensor, targets_T: Tensor) -> Tensor:
        logits_TV = head_logits(self.model, hidden_TD).float()
        return torch.nn.functional.cross_entropy(logits_TV, targets_T, reduction="none").double().sum()
