"""A few fine-tuning steps in a process of their own: ours, or transformers' Trainer at the same settings.

    python -m benchmarks.train_step ours runs/smollm2/….gguf --length 4096 --steps 2

Both train all weights in float32 with AdamW on the same tokens and the same factors, one row a step. Prints one line of JSON:
seconds and loss of each step, bytes resident before the model was loaded and at the peak.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import transformers.models.llama.modeling_llama  # noqa: F401  libraries are loaded before memory is watched
from transformers import Trainer, TrainerCallback, TrainingArguments

from longrope import rope
from longrope.checkpoint import Checkpoint
from longrope.factors import BoundFactors, RescaleFactors
from longrope.finetune.batch import TrainingSequence, pack
from longrope.finetune.model import TrainedModel
from longrope.finetune.options import TrainOptions
from longrope.finetune.parallel import Parallel
from longrope.finetune.stages import Stage
from longrope.finetune.trainer import make_optimizer
from longrope.modeling import build_config, build_model
from longrope.text import TokenIds, load_corpus
from longrope_export import default_model
from longrope_export.models import open_model

LEARNING_RATE = 1e-5
NOVEL = default_model.SEARCH_TEXTS


@dataclass
class Steps:
    """Wall time and loss of every step, and resident memory."""

    before: int = 0
    peak: int = 0
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


@click.command()
@click.argument("engine", type=click.Choice(["ours", "trainer"]))
@click.argument("model")
@click.option("--length", type=int, required=True)
@click.option("--steps", type=int, default=2)
@click.option("--recompute/--keep", default=True, help="Activation checkpointing.")
@click.option("--layers", type=int, default=None, help="Only the first layers of the model.")
@click.option("--threads", type=int, default=1)
def main(engine: str, model: str, length: int, steps: int, recompute: bool, layers: int | None, threads: int) -> None:
    """Train a few steps and print what they took."""
    torch.set_num_threads(threads)
    checkpoint = open_model(model)
    if layers is not None:
        checkpoint = replace(checkpoint, config={**checkpoint.config, "num_hidden_layers": layers})
    _ = checkpoint.weight_files  # a GGUF file is unpacked now, not while memory is watched
    factors = ntk_factors(checkpoint, max(length, 2 * checkpoint.window))
    rows = training_rows(checkpoint, length, steps)
    measured = Steps(before=resident("VmRSS"))
    reset_peak()
    ENGINES[engine](checkpoint, factors, rows, recompute, measured)
    measured.peak = resident("VmHWM")
    sys.stdout.write(json.dumps(vars(measured)) + "\n")


def ntk_factors(checkpoint: Checkpoint, target: int) -> BoundFactors:
    """Known factors will do: memory and time do not depend on their values."""
    factor = tuple(rope.ntk_factors(checkpoint.rotary_dim, target / checkpoint.window).tolist())
    return checkpoint.bind(
        RescaleFactors(
            short_factor=factor,
            long_factor=factor,
            original_max_position_embeddings=checkpoint.window,
            target_length=target,
            method="ntk",
        )
    )


def training_rows(checkpoint: Checkpoint, length: int, steps: int) -> list[TokenIds]:
    """[length] tokens for every step, from the built-in novels laid end to end."""
    documents = load_corpus([NOVEL], checkpoint.encode).documents
    ids = np.concatenate([document.ids for document in documents])
    return [np.resize(ids[step * length :], length) for step in range(steps)]


# -- engines


def ours(checkpoint: Checkpoint, factors: BoundFactors, rows: list[TokenIds], recompute: bool, measured: Steps) -> None:
    """The step of `longrope.finetune.trainer`."""
    options, parallel = TrainOptions(), Parallel.single()
    trained = TrainedModel(checkpoint, factors, options, parallel, checkpointing=recompute)
    stage = Stage(len(rows[0]), steps=len(rows), learning_rate=LEARNING_RATE, batch=1)
    optimizer = make_optimizer(trained, stage, options)
    for ids in rows:
        start = time.perf_counter()
        batch = pack([TrainingSequence(ids)])
        loss = trained.loss(batch) / batch.weight
        loss.backward()
        parallel.clip_grad_norm(trained.loss, options.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        measured.losses.append(float(loss.detach()))
        measured.seconds.append(time.perf_counter() - start)


def trainer(
    checkpoint: Checkpoint, factors: BoundFactors, rows: list[TokenIds], recompute: bool, measured: Steps
) -> None:
    """transformers' Trainer as it comes, told only what decides the step."""

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            measured.seconds.append(time.perf_counter() - self.start)

        def on_log(self, *_: Any, logs: Mapping[str, float], **__: Any) -> None:
            if "loss" in logs:
                measured.losses.append(float(logs["loss"]))

    model = build_model(checkpoint, factors).requires_grad_(True)
    assert model.config.rope_parameters == build_config(checkpoint, factors).rope_parameters
    with tempfile.TemporaryDirectory() as room:
        arguments = TrainingArguments(
            output_dir=room,
            per_device_train_batch_size=1,
            max_steps=len(rows),
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            gradient_checkpointing=recompute,
            optim="adamw_torch_fused",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        data: Any = [{"input_ids": ids, "labels": ids} for ids in rows]
        Trainer(model, arguments, train_dataset=data, data_collator=as_rows, callbacks=[Clock()]).train()


def as_rows(items: list[dict[str, TokenIds]]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.stack([item[name] for item in items])) for name in items[0]}


ENGINES: Mapping[str, Callable[..., None]] = {"ours": ours, "trainer": trainer}


# -- memory


def resident(field_name: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at the peak since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field_name))


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
