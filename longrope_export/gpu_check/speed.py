"""Speed: tokens per second and memory against plain transformers, the share of the chip's peak, and where time goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from longrope.errors import is_out_of_memory
from longrope.estimates.compute import attention_flops, linear_flops, model_flops, peak_flops
from longrope.estimates.shape import DecoderShape
from longrope.modeling import build_model
from longrope.search.objective import Window
from longrope_export.gpu_check.base import Row, Setting, Step, judged, peak_bytes, seconds, synchronize
from longrope_export.gpu_check.training import PlainTrainee, Trainee

# Of plain transformers' speed and memory.
AS_FAST, HALF = 0.95, 0.5
# Lines of the profiler's table.
ENTRIES = 8


def evaluation(setting: Setting) -> Iterator[Row]:
    """One evaluation of a search, against a forward of transformers with its own loss."""
    shape = DecoderShape.of(setting.checkpoint.config)
    for length in setting.budget.lengths:
        ours, theirs = _evaluation(setting, length), _plain_evaluation(setting, length)
        flops = linear_flops(shape, length) + attention_flops(shape, length)
        yield from _compared(setting, f"evaluation of {length} tokens", length, flops, ours, theirs)
        del ours, theirs


def together(setting: Setting) -> Iterator[Row]:
    """Candidates on a short window in one pass, against one by one."""
    window, count = Window(setting.ids(setting.budget.exact)), 8
    tried = [setting.ntk] * count
    model = setting.window_model()
    rows = seconds(lambda: model.nlls(tried, [window] * count), setting.device)
    one = seconds(lambda: [model.nll(candidate, window) for candidate in tried], setting.device)
    what = f"{count} candidates on {len(window)} tokens in one pass: speed / one by one"
    yield Row(what, f"{one / rows:.2f}", one / rows)


def training(setting: Setting) -> Iterator[Row]:
    """One training step, against the step of transformers' Trainer."""
    shape = DecoderShape.of(setting.checkpoint.config)
    for length in setting.budget.lengths[:2]:
        trainee = Trainee(setting, length)
        ours, peak = trainee.step, peak_bytes(trainee.step, setting.device)
        checkpointing = trainee.checkpointing
        spent = seconds(ours, setting.device)
        del trainee, ours
        plain = PlainTrainee(setting, length, checkpointing=checkpointing)
        what, flops = f"training step of {length} tokens", model_flops(shape, [length])
        yield from _compared(setting, what, length, flops, spent, plain.step)
        if peak is not None and (theirs := _tried(lambda plain=plain: peak_bytes(plain.step, setting.device))):  # type: ignore[misc]
            yield judged(f"{what}: memory / transformers'", peak / theirs, HALF)
        del plain


def _evaluation(setting: Setting, length: int) -> Callable[[], object]:
    model, window = setting.window_model(), Window(setting.ids(length))
    return lambda: model.nll(setting.ntk, window)


def _plain_evaluation(setting: Setting, length: int) -> Callable[[], object]:
    model = build_model(setting.checkpoint, dtype=setting.dtype, device=setting.device)
    ids = torch.as_tensor(setting.ids(length), device=setting.device)[None]

    @torch.inference_mode()
    def loss() -> float:
        return float(model(input_ids=ids, labels=ids, use_cache=False).loss)

    return loss


def _compared(
    setting: Setting,
    what: str,
    tokens: int,
    flops: float,
    ours: Callable[[], object] | float,
    theirs: Callable[[], object],
) -> Iterator[Row]:
    """Tokens per second, the share of the peak, and how much faster than transformers."""
    spent = ours if isinstance(ours, float) else seconds(ours, setting.device)
    yield Row(what, f"{tokens / spent:.0f} tokens/s", tokens / spent)
    if peak := peak_flops(setting.device):
        yield Row(f"{what}: share of the chip's peak (MFU)", f"{flops / spent / peak:.1%}", flops / spent / peak)
    plain = _tried(lambda: seconds(theirs, setting.device))
    if plain is None:
        yield Row(f"{what}: transformers", "out of memory")
        return
    row = judged(f"{what}: speed / transformers'", plain / spent, AS_FAST, at_least=True)
    # Fractions of a second on a shared CPU say nothing.
    yield row if setting.on_gpu else Row(row.what, row.value, row.number)


def _tried(work: Callable[[], float | None]) -> float | None:
    """What it gives; None where memory runs out."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return None


def profiled(setting: Setting) -> Iterator[Row]:
    """The operations that take most of an evaluation and of a training step, by their own time."""
    length = setting.budget.lengths[1]
    yield from _entries(setting, f"evaluation of {length} tokens", _evaluation(setting, length))
    yield from _entries(setting, f"training step of {length} tokens", Trainee(setting, length).step)


def _entries(setting: Setting, what: str, work: Callable[[], object]) -> Iterator[Row]:
    work()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.on_gpu else [])]
    with profile(activities=activities) as found:
        work()
        synchronize(setting.device)
    name = "self_device_time_total" if setting.on_gpu else "self_cpu_time_total"

    def own(entry: Any) -> float:
        return float(getattr(entry, name))

    entries = [entry for entry in found.key_averages() if own(entry) > 0]
    total = sum(map(own, entries))
    for entry in sorted(entries, key=own, reverse=True)[:ENTRIES]:
        yield Row(f"{what}: {str(entry.key)[:70]}", f"{own(entry) / total:.1%} of its time", own(entry) / total)


STEPS: tuple[Step, ...] = (evaluation, together, training, profiled)
