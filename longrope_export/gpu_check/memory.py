"""Memory: the estimates against what was allocated, and what happens where memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from longrope.errors import MissingRequirementError
from longrope.estimates.memory import MemoryEstimate
from longrope.estimates.search import search_estimate
from longrope.estimates.training import training_memory
from longrope.modeling import decoder
from longrope.search.objective import Window
from longrope.search.options import SearchOptions
from longrope_export.gpu_check.base import GIB, Row, Setting, Step, gibibytes, judged, peak_bytes
from longrope_export.gpu_check.training import Trainee

# An estimate may be below the peak by this, and above it by that: too low runs out, too high asks for passes nobody needs.
LOWEST, HIGHEST = 0.9, 2.0


def searching(setting: Setting) -> Iterator[Row]:
    """A forward and a gradient of each length."""
    for length in setting.budget.lengths:
        for gradient in (False, True):
            model = setting.window_model()
            window = Window(setting.ids(length))
            work = model.nll_and_gradient if gradient else model.nll
            peak = peak_bytes(lambda work=work, window=window: work(setting.ntk, window), setting.device)  # type: ignore[misc]
            what = f"{'gradient' if gradient else 'forward'} of {length} tokens"
            yield from _compared(what, peak, model.plan(window, gradient))
            del model, work


def training(setting: Setting) -> Iterator[Row]:
    """A training step of each length, recomputing activations where the estimate says so."""
    for length in setting.budget.lengths:
        trainee = Trainee(setting, length)
        estimate = training_memory(setting.checkpoint, trainee.stage, trainee.options)
        peak = peak_bytes(trainee.step, setting.device)
        how = ", recomputed" if trainee.checkpointing else ""
        yield from _compared(f"training step of {length} tokens{how}", peak, estimate)
        del trainee


def _compared(what: str, peak: float | None, estimate: MemoryEstimate) -> Iterator[Row]:
    expected = estimate.total - estimate.parts["runtime"]
    yield gibibytes(f"{what}: peak", peak)
    if peak is None:
        yield Row(f"{what}: estimate", f"{expected / GIB:.2f} GiB", expected / GIB)
        return
    row = judged(f"{what}: estimate / peak", expected / peak, LOWEST, at_least=True)
    yield row if expected / peak <= HIGHEST else judged(row.what, expected / peak, HIGHEST)


def running_out(setting: Setting) -> Iterator[Row]:
    """Memory that runs out in a pass halves the pass and goes on, to the same loss."""
    window = Window(setting.ids(setting.budget.lengths[1]))
    model = setting.window_model()
    whole = model.nll(setting.ntk, window)
    allowed = len(window) // 2
    hook = decoder(model.model).register_forward_pre_hook(_refusing(allowed), with_kwargs=True)
    split = model.nll(setting.ntk, window)
    hook.remove()
    yield judged("out of memory: tokens of a pass afterwards", model.plan(window).pass_tokens, allowed)
    yield judged("out of memory: difference of the loss", abs(split - whole), 2e-2, " nats")


def _refusing(tokens: int) -> Any:
    """A hook that runs out of memory, as torch does, in every pass of more tokens."""

    def hook(module: Any, args: Any, given: dict[str, Any]) -> None:
        if given["input_ids"].shape[1] > tokens:
            raise torch.OutOfMemoryError("out of memory, on purpose")

    return hook


def too_large(setting: Setting) -> Iterator[Row]:
    """A search that cannot fit is refused before it starts."""
    options = SearchOptions(device=setting.device, dtype=setting.dtype)
    estimate = search_estimate(setting.checkpoint, setting.budget.target, options, available=1 << 20)
    try:
        estimate.require()
    except MissingRequirementError as error:
        yield Row("a search with 1 MiB of memory", f"refused: {str(error).split(':')[0]}", state="ok")
    else:
        yield Row("a search with 1 MiB of memory", "not refused", expected="refused", state="failed")


STEPS: tuple[Step, ...] = (searching, training, running_out, too_large)
