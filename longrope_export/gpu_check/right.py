"""Right: the device in float32, bfloat16 and float16 against float32 on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise

import torch
from torch import Tensor

from longrope.finetune import attention
from longrope.finetune.batch import TrainingSequence, pack
from longrope.finetune.linear_loss import chunked_loss, fused_sum
from longrope.finetune.model import TrainedModel
from longrope.finetune.options import TrainOptions
from longrope.finetune.parallel import Parallel
from longrope.machine import PRECISIONS, Machine, Precision
from longrope.modeling import DTYPES, TorchSource, build_model
from longrope.scoring import compare_windows
from longrope.search.measure import WindowModel
from longrope.search.objective import Window
from longrope.search.trial import Candidate
from longrope_export.gpu_check.base import Row, Setting, Step, cosine_gap, judged

# Largest difference to float32 on a CPU: of a loss in nats, 1 − cosine of a gradient, KL divergence in nats.
LOSS = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 5e-3}
GRADIENT = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 1e-2}
KL = {"float32": 1e-6, "bfloat16": 2e-2, "float16": 1e-3}
# Of the 190 pairs of 20 candidates, those that may change places: neighbours are closer than 16 bits resolve.
CANDIDATES, SWAPPED = 20, {"float32": 0, "bfloat16": 12, "float16": 4}
# Trained precisions; TrainOptions knows no float16.
TRAINED = ("float32", "bfloat16")


def candidates(setting: Setting) -> list[Candidate]:
    """From no scaling to PI in equal steps of the logarithm."""
    scale, pairs = setting.budget.target / setting.checkpoint.window, setting.checkpoint.rotary_dim // 2
    return [
        Candidate((scale ** (step / (CANDIDATES - 1)),) * pairs, attention_factor=1.0) for step in range(CANDIDATES)
    ]


def evaluator(setting: Setting) -> Iterator[Row]:
    """What a search measures: losses of candidates, their order, and the gradient by the factors."""
    window, tried = Window(setting.ids(setting.budget.exact)), candidates(setting)

    def measured(device: str, dtype: Precision) -> tuple[list[float], tuple[float, ...]]:
        model = WindowModel(setting.checkpoint, Machine(device, dtype))
        return [model.nll(candidate, window) for candidate in tried], model.nll_and_gradient(tried[5], window)[1]

    exact, exact_gradient = measured("cpu", "float32")
    for dtype in PRECISIONS:
        losses, gradient = measured(setting.device, dtype)
        gap = max(abs(loss - true) for loss, true in zip(losses, exact, strict=True))
        swapped = sum(
            (losses[i] - losses[j]) * (exact[i] - exact[j]) < 0 for i, j in combinations(range(CANDIDATES), 2)
        )
        yield judged(f"evaluator, {dtype}: largest difference of {CANDIDATES} losses", gap, LOSS[dtype], " nats")
        yield judged(f"evaluator, {dtype}: pairs of candidates in another order", swapped, SWAPPED[dtype])
        yield judged(
            f"evaluator, {dtype}: gradient by the factors, 1 − cosine",
            cosine_gap(gradient, exact_gradient),
            GRADIENT[dtype],
        )


def together(setting: Setting) -> Iterator[Row]:
    """Short windows in one pass, each row with factors of its own, against one by one."""
    window, tried = Window(setting.ids(setting.budget.exact)), candidates(setting)[::5]
    model = setting.window_model()
    rows = model.nlls(tried, [window] * len(tried))
    gap = max(abs(loss - model.nll(candidate, window)) for loss, candidate in zip(rows, tried, strict=True))
    yield judged(
        f"{len(tried)} candidates in one pass: largest difference to one by one", gap, LOSS[setting.dtype], " nats"
    )


def scorer(setting: Setting) -> Iterator[Row]:
    """What every format is measured by, with the device as the artifact."""
    ids, checkpoint = setting.ids(setting.budget.exact), setting.checkpoint
    reference = TorchSource(build_model(checkpoint), None)
    for dtype in PRECISIONS:
        source = TorchSource(build_model(checkpoint, dtype=dtype, device=setting.device), None)
        score = compare_windows(reference, {dtype: source}, [ids], factor_set="short")[dtype]
        yield judged(f"scorer, {dtype}: KL divergence", score.kl_mean, KL[dtype], " nats")
        yield Row(f"scorer, {dtype}: same likeliest token", f"{score.top1_agreement:.2%}", score.top1_agreement)


def training(setting: Setting) -> Iterator[Row]:
    """Loss and gradients of all weights in one training step."""
    exact_loss, exact_gradient = _step(setting, "cpu", "float32")
    for dtype in TRAINED:
        loss, gradient = _step(setting, setting.device, dtype)
        yield judged(f"training step, {dtype}: difference of the loss", abs(loss - exact_loss), LOSS[dtype], " nats")
        yield judged(
            f"training step, {dtype}: gradient of all weights, 1 − cosine",
            float(1 - torch.cosine_similarity(gradient, exact_gradient, dim=0)),
            GRADIENT[dtype],
        )
    yield Row("training step, float16", "not offered: bfloat16 has float32's range", state="left out")


def _step(setting: Setting, device: str, dtype: str) -> tuple[float, Tensor]:
    """Mean loss, and the gradient of all weights end to end, in float64 on the CPU."""
    options = TrainOptions(dtype="float32" if dtype == "float32" else "bfloat16", device=device)
    trained = TrainedModel(setting.checkpoint, setting.bound(setting.ntk), options, Parallel.single(device))
    ids = setting.ids(setting.budget.exact)
    third = len(ids) // 3
    batch = pack([TrainingSequence(ids[:third]), TrainingSequence(ids[third:])]).map(lambda tensor: tensor.to(device))
    with torch.autocast(torch.device(device).type, trained.compute, enabled=trained.autocast):
        loss = trained.loss(batch) / batch.weight
    loss.backward()
    slopes = [parameter.grad for parameter in trained.parameters()]
    return float(loss.detach()), torch.cat([slope.flatten().cpu().double() for slope in slopes if slope is not None])


def head_loss(setting: Setting) -> Iterator[Row]:
    """The library's fused kernel that this device takes, if any, against ours."""
    draw, device = torch.Generator().manual_seed(0), setting.device
    for dtype in PRECISIONS:
        hidden = torch.randn(512, 256, generator=draw).to(device, DTYPES[dtype])
        head = torch.randn(4096, 256, generator=draw).mul(0.1).to(device, DTYPES[dtype])
        labels, ones = torch.randint(0, 4096, (512,), generator=draw).to(device), torch.ones(512, device=device)
        kernel = fused_sum(hidden)
        if kernel is None:
            yield Row(f"head's loss, {dtype}", "ours is the one that runs", state="left out")
            continue
        ours, theirs = chunked_loss(hidden, head, None, labels, ones), kernel(hidden, head, None, labels)
        yield judged(f"head's loss, {dtype}: {kernel.__name__} to ours, relative", abs(float(theirs / ours) - 1), 1e-5)


def flash_attention(setting: Setting) -> Iterator[Row]:
    """Packed documents by flash-attention, against torch's attention of each."""
    draw, bounds, compute = torch.Generator().manual_seed(0), (0, 100, 256), torch.bfloat16
    query, key, value = (
        torch.randn(1, heads, 256, 64, generator=draw).to(setting.device, compute) for heads in (4, 2, 2)
    )
    if not attention.flash_attention_serves(query, compute, bounds):
        yield Row("flash-attention", "not installed, or not for this device", state="left out")
        return
    flash = attention.flash_attention(query, key, value, bounds, None, 0.0)
    parts = [
        attention.attend(query[:, :, start:stop], key[:, :, start:stop], value[:, :, start:stop], (0, stop - start))
        for start, stop in pairwise(bounds)
    ]
    gap = (flash.float() - torch.cat(parts, dim=2).float()).abs().max()
    yield judged("flash-attention to SDPA, packed documents: largest difference", float(gap), 2e-2)


STEPS: tuple[Step, ...] = (evaluator, together, scorer, training, head_loss, flash_attention)
