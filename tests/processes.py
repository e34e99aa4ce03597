"""Several gloo processes that train one pico model, and one process that trains the same: what distributed tests compare."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from longrope.checkpoint import open_checkpoint
from longrope.errors import MissingRequirementError
from longrope.finetune.attention import NAME, use_document_attention
from longrope.finetune.batch import PackedBatch, TrainingSequence, pack
from longrope.finetune.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint, step_folder
from longrope.finetune.loss import TrainingLoss
from longrope.finetune.model import recompute_activations
from longrope.finetune.parallel import Parallel, full_weights, require_sharding
from longrope.finetune.rotary import LONG, SHORT, SequenceRotary
from longrope.finetune.ulysses import use_ulysses
from longrope.modeling import build_model, replace_rotary
from tests.common import WINDOW, pico_factors

# Tokens of a row; a multiple of four processes, beyond the pico model's window.
ROW = 256
# Imported once, by the server that all processes are forked from.
PRELOADED = ["torch", "transformers.models.llama.modeling_llama", "torch.distributed.checkpoint", "tests.processes"]


def skip_without_sharding() -> None:
    """Skip a test of several processes where torch is too old for them."""
    try:
        require_sharding()
    except MissingRequirementError as error:
        pytest.skip(str(error))


def run_processes(count: int, function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Call a module's function in `count` processes as torchrun would start them, once for each argument.

    Returns:
        Name of the argument → what each process returned, by rank. A process that fails fails the call. A torch that is too
        old for several processes skips the test.
    """
    skip_without_sharding()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    results = {}
    with context.Pool(count) as pool:
        for name, argument in arguments.items():
            port = _free_port()  # a store of its own, so that nobody joins the group before
            jobs = [(function, _environment(rank, count, port), argument) for rank in range(count)]
            results[name] = pool.map(_as_torchrun_would, jobs, chunksize=1)
    return results


def start_process(function: Callable[..., Any], *arguments: Any) -> multiprocessing.process.BaseProcess:
    """One process of its own, to be killed or limited; `exitcode` is -9 after a kill."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writes past `size` bytes fail in this process, as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _environment(rank: int, count: int, port: int) -> dict[str, str]:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in place.items()}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _as_torchrun_would(job: tuple[Callable[..., Any], dict[str, str], Any]) -> Any:
    function, environment, argument = job
    os.environ.update(environment)
    torch.set_num_threads(1)
    return function(argument)


# -- a training run


@dataclass(frozen=True)
class Run:
    """What one training run of the pico model does.

    Args:
        model: folder of the pico model.
        sequence_parallel, fsdp: see `Parallel.from_environment`.
        rows: rows of `ROW` tokens in a global batch.
        recompute: activation checkpointing.
        checkpoints: their folder; a run goes on from the latest.
        save_every: steps between two.
        log: a file that gets a line of JSON for every step.
        killed_after: steps after each of which the process kills itself, before it saves.
    """

    model: Path
    sequence_parallel: int = 1
    fsdp: int | None = None
    steps: int = 10
    rows: int = 4
    recompute: bool = False
    checkpoints: Path | None = None
    save_every: int = 1
    log: Path | None = None
    killed_after: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """Losses and gradient norms step by step, and the whole weights at the end."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor] = field(repr=False)
    numel_here: int


def row(step: int, number: int) -> PackedBatch:
    """Row `number` of a step: one long sequence, or several of both kinds whose bounds fall inside processes' parts.

    Rows count unequally many tokens, and the last one counts some tokens twice.
    """
    rng = np.random.default_rng([step, number])
    lengths = (ROW,) if (step + number) % 2 else (50, 60, ROW - 110)
    weights = [np.ones(length, np.float32) for length in lengths]
    weights[0][: number * lengths[0] // 6] = 0
    if number == 3:
        weights[-1][::2] = 2
    return pack(
        [
            TrainingSequence(rng.integers(384, size=length), LONG if length > WINDOW else SHORT, weight)
            for length, weight in zip(lengths, weights, strict=True)
        ]
    )


def train(run: Run) -> Outcome:
    """Train in this process, with the others that torchrun started, if any."""
    with Parallel.from_environment(run.sequence_parallel, device="cpu", fsdp=run.fsdp) as parallel:
        return _train(run, parallel)


def _train(run: Run, parallel: Parallel) -> Outcome:
    checkpoint = open_checkpoint(run.model)
    model = build_model(checkpoint).requires_grad_(True).train()
    rotary = SequenceRotary(checkpoint.bind(pico_factors()))
    replace_rotary(model, rotary)
    use_document_attention(model)
    use_ulysses(model, parallel, NAME)
    if run.recompute:
        recompute_activations(model)
    whole = parallel.shard(TrainingLoss(model, rotary))
    optimizer = torch.optim.AdamW(whole.parameters(), lr=1e-3)
    first, losses, norms = 0, [], []
    if run.checkpoints and (latest := latest_checkpoint(run.checkpoints)) is not None:
        first = load_checkpoint(latest, whole, optimizer)["step"]
    for step in range(first, run.steps):
        loss, norm = _step(parallel, whole, [row(step, number) for number in range(run.rows)])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
        norms.append(norm)
        if run.log:
            with run.log.open("a") as log:
                log.write(json.dumps({"step": step, "loss": loss}) + "\n")
        if step in run.killed_after and step != first:
            os.kill(os.getpid(), signal.SIGKILL)
        if run.checkpoints and (step + 1) % run.save_every == 0:
            save_checkpoint(step_folder(run.checkpoints, step + 1), whole, optimizer, {"step": step + 1})
    return Outcome(losses, norms, dict(full_weights(whole)), sum(_local(p).numel() for p in whole.parameters()))


def _step(parallel: Parallel, whole: nn.Module, rows: list[PackedBatch]) -> tuple[float, float]:
    """One row at a time: gradients accumulate."""
    total = sum(batch.weight for batch in rows)
    summed = torch.zeros(())
    for batch in rows[parallel.data_rank :: parallel.data_parallel]:
        loss = whole(batch.map(parallel.split_sequence)) / total
        loss.backward()
        summed += loss.detach()
    return parallel.sum_(summed).item(), parallel.clip_grad_norm(whole, 1.0).item()


def _local(tensor: Tensor) -> Tensor:
    local = getattr(tensor, "to_local", None)
    return tensor if local is None else local()
