"""A whole training run in several processes gives the model that one process gives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.finetune.options import TrainOptions
from longrope.finetune.parallel import Parallel
from longrope.finetune.stages import Stage
from longrope.finetune.trainer import finetune
from longrope.text import load_corpus
from tests.common import pico_factors
from tests.processes import run_processes

# Where a gradient is as small as AdamW's epsilon (1e-8), its rounding decides the step: weights differ by parts of the rate.
STAGE = Stage(256, steps=4, learning_rate=1e-4, schedule="linear", batch=4, short_share=0.5)


@dataclass(frozen=True)
class Job:
    """One call of `finetune`, to be made in every process."""

    model: Path
    texts: Path
    folder: Path
    options: dict[str, Any]
    sequence_parallel: int = 1
    stage: Stage = STAGE
    resume: bool = False


def run(job: Job) -> list[float]:
    """Losses of the steps that the log holds."""
    with Parallel.from_environment(job.sequence_parallel, device="cpu") as parallel:
        checkpoint = open_checkpoint(job.model)
        training = finetune(
            checkpoint,
            pico_factors(),
            job.stage,
            load_corpus([job.texts], checkpoint.encode),
            job.folder,
            options=TrainOptions(threads=1, checkpointing=True, save_every=2, **job.options),
            resume=job.resume,
            parallel=parallel,
        )
        return [record.loss for record in training.records]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor for file in (folder / "model").glob("*.safetensors") for name, tensor in load_file(file).items()
    }


def test_processes_give_the_model_that_one_gives(pico: Checkpoint, texts: Path, tmp_path: Path) -> None:
    """Full training with weights in parts and sequences in parts, LoRA with weights in parts, a teacher with both."""
    full = Job(pico.path, texts, tmp_path / "full", {})
    taught = replace(full, folder=tmp_path / "taught", stage=replace(STAGE, distil_short=True))
    lora = replace(full, folder=tmp_path / "lora", options={"lora_rank": 4})
    together = {
        "full": replace(full, folder=tmp_path / "full-2", sequence_parallel=2),
        "lora": replace(lora, folder=tmp_path / "lora-2"),
        "taught": replace(taught, folder=tmp_path / "taught-2"),
        "taught in parts": replace(taught, folder=tmp_path / "taught-3", sequence_parallel=2),
    }
    found = run_processes(2, run, together)
    for name, alone in {"full": full, "lora": lora, "taught": taught, "taught in parts": taught}.items():
        losses = run(replace(alone, resume=alone.folder.exists()))
        assert found[name][0] == found[name][1] == pytest.approx(losses, abs=1e-5)
        expected, actual = weights(alone.folder), weights(together[name].folder)
        assert actual.keys() == expected.keys()
        assert max((actual[key] - expected[key]).abs().max().item() for key in expected) < 1e-5
