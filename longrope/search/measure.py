"""One model whose factors change from measurement to measurement: NLL of a window, and its derivative by the factors.

    λ, attention ──► cos, sin ──► every layer ──► hidden [T, D] ──chunks──► head [t, V] ──► NLL
       ▲                                                                                     │
       └───────────────────────── gradient (weights are frozen) ◄────────────────────────────┘

Logits exist for one chunk of rows at a time, in both directions; memory never holds window × vocabulary. A window that
would not fit goes through the KV cache in several passes; a gradient that would not fit recomputes each layer's
activations. Where the estimate was too hopeful, what runs out of memory is halved and tried again. On a GPU short windows
of one length, of any candidates, go in one pass: each row of the batch has factors of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as checkpoint_activations

from longrope.checkpoint import Checkpoint
from longrope.errors import MissingRequirementError, is_out_of_memory
from longrope.estimates import memory
from longrope.estimates.search import MIN_PASS, MIN_ROWS, SearchMemory, search_memory
from longrope.factors import FactorSet
from longrope.machine import Machine
from longrope.modeling import (
    RescaledRotary,
    TorchSource,
    build_model,
    decoder,
    detect_layout,
    head_logits,
    hidden_blocks,
    hidden_states,
    replace_rotary,
    use_fastest_attention,
)
from longrope.search.objective import Window
from longrope.search.trial import GRADIENT_FORWARDS, Candidate, Job, Measurement

Result = TypeVar("Result")
# Tokens of several short windows in one pass on a GPU.
TOGETHER = 16_384


class WindowModel:
    """A checkpoint's model with the engine's rotary embedding in it.

    Args:
        checkpoint: the model to search on.
        machine: device, dtype, threads, and memory choices.
        default_attention: attention factor of candidates that leave theirs open.
    """

    def __init__(self, checkpoint: Checkpoint, machine: Machine, default_attention: float = 1.0) -> None:
        if machine.threads:
            torch.set_num_threads(machine.threads)
        self._available = memory.free_memory(machine.device) if machine.available is None else machine.available
        self.model: Any = build_model(checkpoint.attending_to(), dtype=machine.dtype, device=machine.device)
        use_fastest_attention(self.model, machine.device, machine.dtype)
        layout = detect_layout(self.model, checkpoint.base)
        self.rotary = RescaledRotary(checkpoint.rope_theta, checkpoint.rotary_dim, layout)
        replace_rotary(self.model, self.rotary)
        self.default_attention = default_attention
        self._checkpoint, self._machine = checkpoint, machine
        self._plans: dict[tuple[int, bool], SearchMemory] = {}

    def source(self, candidate: Candidate, name: str) -> TorchSource:
        """This model under a candidate, at every length, as a source of logits; further ones may share the model."""
        return TorchSource(self.model, None, name=name, pin=_Under(self, candidate))

    def measure(self, job: Job, window: Window) -> Measurement:
        """Run one job. A gradient that does not fit is left out; a non-finite loss counts as failed.

        Raises:
            MissingRequirementError: memory ran out with the smallest passes and chunks, too.
        """
        start = time.perf_counter()
        nll, gradient = self._with_gradient(job.candidate, window) if job.gradient else (None, None)
        if nll is None:
            nll = self.nll(job.candidate, window)
        tokens = len(window) * (1 if gradient is None else GRADIENT_FORWARDS)
        if not math.isfinite(nll):  # float16 overflows, say
            nll, gradient = math.inf, None
        return Measurement(nll, tokens, gradient, time.perf_counter() - start)

    def measure_together(self, jobs: Sequence[Job], windows: Sequence[Window]) -> list[Measurement]:
        """Jobs without gradients that `passes` puts together: in one pass, or in less where memory runs out."""
        if len(jobs) == 1:
            return [self.measure(jobs[0], windows[0])]
        start = time.perf_counter()
        try:
            nlls = self.nlls([job.candidate for job in jobs], windows)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._free_cache()
            middle = len(jobs) // 2
            parts = (slice(middle), slice(middle, None))
            return [found for part in parts for found in self.measure_together(jobs[part], windows[part])]
        seconds = (time.perf_counter() - start) / len(jobs)
        return [
            Measurement(nll if math.isfinite(nll) else math.inf, len(window), None, seconds)
            for nll, window in zip(nlls, windows, strict=True)
        ]

    def passes(self, jobs: Sequence[Job], windows: Sequence[Window]) -> list[list[int]]:
        """Which of these jobs, by number, go in one pass: those without gradients whose windows are equally long."""
        alike: dict[int, list[int]] = {}
        alone = list[list[int]]()
        for number, (job, window) in enumerate(zip(jobs, windows, strict=True)):
            if job.gradient:
                alone.append([number])
            else:
                alike.setdefault(window.stop, []).append(number)
        together = (part for stop, numbers in alike.items() for part in _split(numbers, self._together // stop))
        return sorted([*alone, *together])

    def _with_gradient(
        self, candidate: Candidate, window: Window
    ) -> tuple[float, tuple[float, ...]] | tuple[None, None]:
        """As `nll_and_gradient`; nothing where memory is not there, or ran out with everything recomputed."""
        if not self.plan(window, gradient=True).fits:
            return None, None
        try:
            return self.nll_and_gradient(candidate, window)
        except MissingRequirementError:
            return None, None

    def nll(self, candidate: Candidate, window: Window) -> float:
        """Mean NLL of the window's counted tokens, nats; sums are in float64."""
        return self._fitting(window, False, lambda plan: self._nll(candidate, window, plan))

    def nll_and_gradient(self, candidate: Candidate, window: Window) -> tuple[float, tuple[float, ...]]:
        """Mean NLL and its [d/2 + 1] derivative by ln factor[i] and, last, by ln attention_factor."""
        return self._fitting(window, True, lambda plan: self._nll_and_gradient(candidate, window, plan))

    def plan(self, window: Window, gradient: bool = False) -> SearchMemory:
        """How windows of this length are measured."""
        key = (len(window), gradient)
        if key not in self._plans:
            machine, plan = self._machine, self._planned(len(window), gradient)
            if machine.pass_tokens and not gradient:
                plan = replace(plan, pass_tokens=machine.pass_tokens)
            if machine.checkpointing is not None:
                plan = replace(plan, checkpointing=machine.checkpointing)
            self._plans[key] = plan
        return self._plans[key]

    def _planned(self, tokens: int, gradient: bool = False) -> SearchMemory:
        return search_memory(
            self._checkpoint,
            tokens,
            dtype=self._machine.dtype,
            device=self._machine.device,
            gradient=gradient,
            available=math.inf if self._available is None else self._available,
        )

    @torch.inference_mode()
    def nlls(self, candidates: Sequence[Candidate], windows: Sequence[Window]) -> list[float]:
        """As `nll` for candidates and windows of one length, a pair in each row of one pass.

        Raises:
            RuntimeError, MemoryError: memory ran out.
        """
        self.rotary.set_rows(
            [candidate.factors for candidate in candidates],
            [self._attention(candidate) for candidate in candidates],
            [candidate.n_hat for candidate in candidates],
        )
        hidden_BTD = hidden_states(self.model, torch.cat([self._ids(window) for window in windows]))
        rows = self.plan(windows[0]).rows
        return [
            self._total(hidden_TD, window, 0, rows) / window.counted
            for hidden_TD, window in zip(hidden_BTD, windows, strict=True)
        ]

    @torch.inference_mode()
    def _nll(self, candidate: Candidate, window: Window, plan: SearchMemory) -> float:
        self.put(candidate)
        total, start = 0.0, 0
        for hidden_TD in hidden_blocks(self.model, self._ids(window), plan.pass_tokens):
            total += self._total(hidden_TD, window, start, plan.rows)
            start += len(hidden_TD)
        return total / window.counted

    def _total(self, hidden_TD: Tensor, window: Window, start: int, rows: int) -> float:
        """Summed NLL of the counted tokens that these hidden states, from position `start` on, predict."""
        chunks = self._chunks(hidden_TD, window, start, rows)
        return sum(float(self._nll_sum(hidden, targets)) for hidden, targets in chunks)

    def _nll_and_gradient(
        self, candidate: Candidate, window: Window, plan: SearchMemory
    ) -> tuple[float, tuple[float, ...]]:
        logs = torch.tensor([*candidate.factors, self._attention(candidate)], dtype=torch.float64).log()
        logs.requires_grad_(True)
        values = logs.exp()
        self.rotary.set(values[:-1], values[-1], candidate.n_hat)
        self._recompute_activations(plan.checkpointing)
        hidden_TD = hidden_states(self.model, self._ids(window))[0]
        total, slopes_TD = self._nll_by_hidden(hidden_TD.detach(), window, plan.rows)
        (gradient,) = torch.autograd.grad(hidden_TD, logs, slopes_TD)
        return total / window.counted, tuple((gradient / window.counted).tolist())

    def _nll_by_hidden(self, hidden_TD: Tensor, window: Window, rows: int) -> tuple[float, Tensor]:
        """Summed NLL and its [T, D] derivative by hidden states, a chunk of rows at a time.

        The sum, not the mean: divided by thousands of tokens, derivatives would vanish in float16.
        """
        slopes_TD, total, stop = torch.zeros_like(hidden_TD), 0.0, window.start - 1
        for hidden, targets in self._chunks(hidden_TD, window, 0, rows):
            leaf = hidden.detach().requires_grad_(True)
            loss = self._nll_sum(leaf, targets)
            start, stop = stop, stop + len(leaf)
            (slopes_TD[start:stop],) = torch.autograd.grad(loss, leaf)
            total += float(loss.detach())
        return total, slopes_TD

    def _recompute_activations(self, on: bool) -> None:
        """Switch activation checkpointing: each layer's activations are computed again when its gradient is."""
        for layer in decoder(self.model).layers:
            if on:
                layer.forward = partial(checkpoint_activations, type(layer).forward.__get__(layer), use_reentrant=False)
            else:
                vars(layer).pop("forward", None)

    def _fitting(self, window: Window, gradient: bool, run: Callable[[SearchMemory], Result]) -> Result:
        """Run with the plan; on out-of-memory halve what can be halved, for this and all later windows of the length."""
        while True:
            plan = self.plan(window, gradient)
            try:
                return run(plan)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self._plans[len(window), gradient] = smaller(plan, gradient)
            self._free_cache()

    def _free_cache(self) -> None:
        if self._machine.device.startswith("cuda"):
            torch.cuda.empty_cache()

    @cached_property
    def _together(self) -> int:
        """Tokens that short windows fill one pass with, where that fits; 0 for one window per pass."""
        machine = self._machine
        wanted = TOGETHER * machine.device.startswith("cuda") if machine.together is None else machine.together
        return min(wanted, self._planned(wanted).pass_tokens) if wanted else 0

    def put(self, candidate: Candidate) -> None:
        """Rotate by a candidate from now on."""
        self.rotary.set(candidate.factors, self._attention(candidate), candidate.n_hat)

    def _attention(self, candidate: Candidate) -> float:
        return self.default_attention if candidate.attention_factor is None else candidate.attention_factor

    def _ids(self, window: Window) -> Tensor:
        """[1, stop - 1]: the last counted token is predicted, never read."""
        return torch.as_tensor(window.ids[: window.stop - 1], device=self.model.device)[None]

    def _chunks(self, hidden_TD: Tensor, window: Window, start: int, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(hidden, targets) of the counted tokens that these rows, from position `start` on, predict."""
        first = max(window.start - 1 - start, 0)
        counted_TD = hidden_TD[first:]
        position = start + first + 1
        targets_T = torch.as_tensor(window.ids[position : position + len(counted_TD)], device=hidden_TD.device)
        return zip(counted_TD.split(rows), targets_T.split(rows), strict=True) if len(counted_TD) else iter(())

    def _nll_sum(self, hidden_TD: Tensor, targets_T: Tensor) -> Tensor:
        logits_TV = head_logits(self.model, hidden_TD).float()
        losses_T = torch.nn.functional.cross_entropy(logits_TV, targets_T, reduction="none")
        return (losses_T.cpu() if losses_T.device.type == "mps" else losses_T).double().sum()  # no float64 there


@dataclass(frozen=True)
class _Under:
    """Puts a model under a candidate, whatever set is asked for."""

    model: WindowModel
    candidate: Candidate

    def use(self, name: FactorSet) -> None:
        self.model.put(self.candidate)


def _split(numbers: Sequence[int], most: int) -> Iterator[list[int]]:
    """In parts of at most so many, of one where it is none."""
    size = max(most, 1)
    return (list(numbers[start : start + size]) for start in range(0, len(numbers), size))


def smaller(plan: SearchMemory, gradient: bool) -> SearchMemory:
    """The next plan to try after one that ran out of memory.

    Raises:
        MissingRequirementError: there is none.
    """
    if gradient and not plan.checkpointing:
        return replace(plan, checkpointing=True)
    if not gradient and min(plan.pass_tokens, plan.window) > MIN_PASS:
        return replace(plan, pass_tokens=max(MIN_PASS, min(plan.pass_tokens, plan.window) // 2))
    if plan.rows > MIN_ROWS:
        return replace(plan, rows=max(MIN_ROWS, plan.rows // 2))
    raise MissingRequirementError(
        f"out of memory with the smallest passes, too ({plan}); use a smaller dtype, a shorter target or another machine"
    )
