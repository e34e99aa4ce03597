"""Measure training: many processes against one, checkpoints, a step against transformers' Trainer, and a real fine-tuning.

    python -m benchmarks.bench_train                      every section, into benchmarks/results/train.json
    python -m benchmarks.bench_train --only distributed   one of them
    python -m benchmarks.bench_train --only paper         only writes the tables of benchmarks/training.md

Every step is measured in a process of its own and kept in `--out`/cells.json, so that a stopped bench goes on where it was.
The fine-tuning of SmolLM2 at 12k takes hours on two cores; it goes on from its checkpoints.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.bench_progressive import Cells
from benchmarks.figures import ROOT, Figures, say, smollm2
from benchmarks.paper_tables import PaperSetting, step_flops, write_page
from longrope.checkpoint import Checkpoint
from longrope.errors import MissingRequirementError
from longrope.estimates.shape import DecoderShape
from longrope.factors import BoundFactors
from longrope.finetune.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint, step_folder
from longrope.finetune.options import TrainOptions
from longrope.finetune.stages import Stage
from longrope.finetune.trainer import finetune
from longrope.modeling import TorchSource, build_model
from longrope.scoring import nll
from longrope.search import SearchOptions, search
from longrope.text import Corpus, load_corpus
from longrope_export import default_model
from longrope_export.models import open_model
from tests.common import pico_folder
from tests.processes import Outcome, Run, run_processes, start_process, train

# Lengths of a step: (tokens, steps, of which the fastest counts).
LENGTHS = ((1024, 3), (2048, 2), (4096, 2), (8192, 2))
SHALLOW, SHALLOW_LENGTHS = 3, (4096,)
IN_USE_LENGTHS = (2048, 8192)
# glibc gives freed blocks of this size and more back at once, as a device's allocator counts them. Costs page faults.
RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": "1048576"}
MIB = 1 << 20
# The fine-tuning of a real model.
WINDOW, STEPS, LAYERS = 12_288, 24, 10


@dataclass
class Bench:
    """Where things go."""

    out: Path
    threads: int
    figures: Figures
    lengths: tuple[tuple[int, int], ...] = LENGTHS
    steps: int = STEPS
    row: int = WINDOW
    layers: int = LAYERS

    @cached_property
    def cells(self) -> Cells:
        return Cells(self.out / "cells.json")

    @cached_property
    def pico(self) -> Path:
        """A random model of two layers, window 64."""
        folder = self.out / "pico"
        return folder if folder.is_dir() else pico_folder(folder)

    @cached_property
    def small(self) -> Checkpoint:
        return open_model(str(smollm2()))


# -- many processes


def distributed(bench: Bench) -> None:
    """Ten steps of packed short and long sequences, each kind with its own factors, against one process."""
    base = Run(bench.pico)
    alone = train(base)
    for count in (2, 4):
        runs = {
            "FSDP2": base,
            "Ulysses": replace(base, sequence_parallel=count, fsdp=1),
            "FSDP2 and Ulysses": replace(base, sequence_parallel=2, recompute=True),
        }
        for name, outcomes in run_processes(count, train, runs).items():
            losses, weights = worst(outcomes, alone)
            how = f"{count} processes, {name}" + (", activation checkpointing" if runs[name].recompute else "")
            add_difference(bench, "distributed", f"{how}: losses", losses, 1e-5)
            add_difference(bench, "distributed", f"{how}: weights", weights, 1e-5)


def worst(outcomes: Iterable[Outcome], expected: Outcome, first: int = 0) -> tuple[float, float]:
    """Largest difference in any process: of a loss, of a weight."""
    losses = [
        abs(ours - its)
        for outcome in outcomes
        for ours, its in zip(outcome.losses, expected.losses[first:], strict=True)
    ]
    weights = [
        float((outcome.weights[name] - weight).abs().max())
        for outcome in outcomes
        for name, weight in expected.weights.items()
    ]
    return max(losses), max(weights)


def add_difference(bench: Bench, section: str, what: str, got: float, asked: float) -> None:
    bench.figures.add(section, what, f"≤ {asked:.0e}", f"{got:.1e}", got <= asked)


# -- checkpoints


def checkpoints(bench: Bench) -> None:
    """Killed after every step and resumed; saved by two processes and resumed by one and by four; a full disk."""
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room)
        _killed(bench, folder)
        _resharded(bench, folder)
        _full_disk(bench, folder)


def _killed(bench: Bench, folder: Path) -> None:
    base = Run(bench.pico)
    whole = train(base)
    run = replace(base, checkpoints=folder / "killed", log=folder / "log.jsonl", killed_after=tuple(range(base.steps)))
    kills = 0
    while True:
        process = start_process(train, run)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    records = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    losses = {record["step"]: record["loss"] for record in records}
    difference = max(abs(losses[step] - loss) for step, loss in enumerate(whole.losses))
    add_difference(bench, "checkpoints", f"kill -9 {kills} times in {base.steps} steps: losses", difference, 1e-6)


def _resharded(bench: Bench, folder: Path) -> None:
    base = Run(bench.pico)
    whole = train(base)
    half = replace(base, steps=5, save_every=5, checkpoints=folder / "half")
    run_processes(2, train, {"half": half})
    for count in (1, 4):
        rest = replace(base, save_every=100, checkpoints=folder / "half", sequence_parallel=1 if count == 1 else 2)
        outcomes = [train(rest)] if count == 1 else run_processes(count, train, {"rest": rest})["rest"]
        losses, weights = worst(outcomes, whole, first=5)
        how = f"saved by 2 processes, resumed by {count}"
        add_difference(bench, "checkpoints", f"{how}: losses", losses, 1e-5)
        add_difference(bench, "checkpoints", f"{how}: weights", weights, 1e-5)


def _full_disk(bench: Bench, folder: Path) -> None:
    room = folder / "full"
    model, optimizer = _small_training()
    save_checkpoint(step_folder(room, 1), model, optimizer, {"step": 1})
    process = start_process(_save_on_a_full_disk, room)
    process.join()
    left = sorted(path.name for path in room.iterdir())
    latest = latest_checkpoint(room)
    good = process.exitcode == 0 and left == ["step-00000001"] and latest is not None
    good = good and load_checkpoint(step_folder(room, 1), *_small_training())["step"] == 1
    got = "loads, nothing else left" if good else f"exit {process.exitcode}, {left}"
    bench.figures.add("checkpoints", "full disk: the last checkpoint", "loads", got, good)


def _save_on_a_full_disk(room: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        save_checkpoint(step_folder(room, 2), *_small_training(), {"step": 2})
    except MissingRequirementError:
        return
    raise SystemExit(1)


def _small_training() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Linear(64, 64)
    return model, torch.optim.AdamW(model.parameters())


# -- a step against transformers' Trainer


def step(bench: Bench) -> None:
    """SmolLM2-135M in float32, all weights, AdamW, one row a step, activation checkpointing in both."""
    shape = DecoderShape.of(bench.small.config)
    for length, steps in bench.lengths:
        ours, its = (measured(bench, engine, length, steps) for engine in ("ours", "trainer"))
        speed = min(its["seconds"]) / min(ours["seconds"])
        flops = step_flops(shape, PaperSetting(length))
        got = f"{length / min(ours['seconds']):.0f} against {length / min(its['seconds']):.0f} tokens/s: {speed:.3f}×"
        bench.figures.add("step", f"SmolLM2 {length} tokens: throughput", "≥ 0.95×", got, speed >= 0.95)
        add_memory(bench, "step", f"SmolLM2 {length} tokens: peak memory", ours, its)
        same = abs(ours["losses"][0] - its["losses"][0])
        bench.figures.add(
            "step", f"SmolLM2 {length} tokens: loss of step 1", "≤ 1e-3 apart", f"{same:.1e}", same <= 1e-3
        )
        say(f"        {flops / min(ours['seconds']) / 1e9:.0f} GFLOP/s, recomputation counted")


def memory(bench: Bench) -> None:
    """The same with the first three of SmolLM2's thirty layers, in minutes instead of an hour. Memory only."""
    for length in SHALLOW_LENGTHS:
        ours, its = (measured(bench, engine, length, 2, SHALLOW) for engine in ("ours", "trainer"))
        add_memory(bench, "memory", f"SmolLM2's first {SHALLOW} layers, {length} tokens: peak memory", ours, its)


def in_use(bench: Bench) -> None:
    """Memory of the whole model without the freed blocks that the C library keeps: told so in both processes."""
    for length, steps in bench.lengths:
        if length not in IN_USE_LENGTHS:
            continue
        ours, its = (measured(bench, engine, length, steps, env=RETURN_FREED) for engine in ("ours", "trainer"))
        add_memory(bench, "in_use", f"SmolLM2 {length} tokens: peak memory, freed blocks given back", ours, its)


def add_memory(bench: Bench, section: str, what: str, ours: dict[str, Any], its: dict[str, Any]) -> None:
    """What ours took at the peak, as a share of Trainer's."""
    share = extra(ours) / extra(its)
    got = f"{extra(ours) / MIB:.0f} against {extra(its) / MIB:.0f} MiB: {share:.2f}×"
    bench.figures.add(section, what, "≤ 1/2", got, share <= 0.5)


def extra(cell: dict[str, Any]) -> int:
    """Bytes that training took beyond the process with its libraries."""
    return int(cell["peak"] - cell["before"])


def measured(
    bench: Bench, engine: str, length: int, steps: int, layers: int | None = None, env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """One engine at one length, in a process of its own with more variables in its environment."""

    def measure() -> dict[str, Any]:
        command = [sys.executable, "-m", "benchmarks.train_step", engine, str(smollm2()), "--length", str(length)]
        command += ["--steps", str(steps), "--threads", str(bench.threads)]
        command += ["--layers", str(layers)] if layers else []
        done = subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, **more}, capture_output=True, text=True)
        return dict(json.loads(done.stdout.splitlines()[-1]))

    more = env or {}
    facts = [f"{layers} layers"] * bool(layers) + [f"{name}={value}" for name, value in more.items()]
    name = "/".join(map(str, ("step", engine, length, steps, bench.threads, *facts)))
    return dict(bench.cells.get(name, measure))


# -- a real model


def real(bench: Bench) -> None:
    """SmolLM2-135M, 8192 → 12,288 tokens: searched factors, LoRA on novels, loss on another novel before and after."""
    checkpoint = bench.small
    corpus = load_corpus([default_model.SEARCH_TEXTS], checkpoint.encode)
    factors = searched(bench, corpus)
    before = held_out(bench, checkpoint, factors, "before")
    stage = Stage(WINDOW, steps=bench.steps, learning_rate=2e-4, warmup=3, batch=1, sequence_length=bench.row)
    options = TrainOptions(
        dtype="bfloat16", lora_rank=16, lora_layers=bench.layers, threads=bench.threads, save_every=2
    )
    folder = bench.out / f"smollm2-{bench.steps}x{bench.row}-{bench.layers}"
    training = finetune(checkpoint, factors, stage, corpus, folder, options=options, resume=folder.exists())
    after = held_out(bench, training.checkpoint, factors, f"{bench.steps} steps of {bench.row}, {bench.layers} layers")
    what = f"SmolLM2 at {WINDOW}, {bench.steps} steps of {bench.row} tokens, last {bench.layers} layers: held-out loss"
    bench.figures.add("smollm2", what, "lower", f"{before:.4f} → {after:.4f} nats a token", after < before)


def searched(bench: Bench, corpus: Corpus) -> BoundFactors:
    """Factors for 12,288 tokens from a search of three evaluations on one novel; journalled."""
    journal = bench.out / "search"
    options = SearchOptions(strategy="seeds", max_evals=3, num_documents=1, threads=bench.threads)
    resume = journal.exists()
    return search(bench.small, corpus, WINDOW, options=options, journal_dir=journal, resume=resume).factors


def held_out(bench: Bench, checkpoint: Checkpoint, factors: BoundFactors, name: str) -> float:
    """Mean NLL of one window of a novel that neither the search nor the training saw."""

    def measure() -> float:
        (window,) = load_corpus([default_model.TEST_TEXTS / "moby_dick.txt"], checkpoint.encode).windows(WINDOW, 1)
        source = TorchSource(build_model(checkpoint, factors), factors)
        return nll(source, [window], "long")

    return float(bench.cells.get(f"smollm2/{name}", measure))


# -- the command


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "paper": lambda _: write_page(),
    "distributed": distributed,
    "checkpoints": checkpoints,
    "step": step,
    "memory": memory,
    "in_use": in_use,
    "smollm2": real,
}


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(SECTIONS)), help="Sections to measure; all by default.")
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "runs" / "bench" / "train")
@click.option("--results", type=click.Path(path_type=Path), default=None, help="Folder of the JSON, for trials.")
@click.option("--threads", type=int, default=1)
@click.option("--length", "lengths", multiple=True, type=int, help="Steps that are measured; all by default.")
@click.option("--steps", type=int, default=STEPS, help="Of the fine-tuning of SmolLM2.")
@click.option("--row", type=int, default=WINDOW, help="Tokens of its rows.")
@click.option("--layers", type=int, default=LAYERS, help="The last ones that are tuned; 30 takes twice the time.")
def main(
    only: tuple[str, ...],
    out: Path,
    results: Path | None,
    threads: int,
    lengths: tuple[int, ...],
    steps: int,
    row: int,
    layers: int,
) -> None:
    """Measure training."""
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    figures = Figures("train", facts={"threads": threads}, **({"folder": results} if results else {}))
    chosen = tuple(item for item in LENGTHS if not lengths or item[0] in lengths)
    bench = Bench(out, threads, figures, chosen, steps, row, layers)
    sys.exit(figures.run({name: lambda name=name: SECTIONS[name](bench) for name in SECTIONS}, only))


if __name__ == "__main__":
    main()
