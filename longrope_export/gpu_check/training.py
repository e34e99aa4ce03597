"""One training step that can be repeated: ours, and the one that transformers' Trainer takes, without its bookkeeping."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from longrope.estimates.training import training_memory
from longrope.finetune.batch import TrainingSequence, pack
from longrope.finetune.model import TrainedModel, recompute_activations
from longrope.finetune.options import TrainOptions
from longrope.finetune.parallel import Parallel
from longrope.finetune.stages import Stage
from longrope.finetune.trainer import make_optimizer
from longrope.modeling import DTYPES, build_model
from longrope_export.gpu_check.base import Setting


class Trainee:
    """The step of `longrope.finetune`, on one row."""

    def __init__(self, setting: Setting, length: int) -> None:
        dtype: Any = "float32" if setting.dtype == "float32" else "bfloat16"
        self.options = TrainOptions(device=setting.device, dtype=dtype)
        self.stage = Stage(max(length, setting.budget.target), batch=1, sequence_length=length)
        self.checkpointing = training_memory(setting.checkpoint, self.stage, self.options).checkpointing
        self._parallel = Parallel.single(setting.device)
        self.trained = TrainedModel(
            setting.checkpoint,
            setting.bound(setting.ntk),
            self.options,
            self._parallel,
            checkpointing=self.checkpointing,
        )
        self.optimizer = make_optimizer(self.trained, self.stage, self.options)
        self._batch = pack([TrainingSequence(setting.ids(length))]).map(lambda tensor: tensor.to(setting.device))

    def step(self) -> None:
        """Forward, backward, optimizer."""
        with torch.autocast(self._parallel.device.type, self.trained.compute, enabled=self.trained.autocast):
            loss = self.trained.loss(self._batch) / self._batch.weight
        loss.backward()
        self._parallel.clip_grad_norm(self.trained.loss, self.options.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class PlainTrainee:
    """What Trainer computes in a step with `bf16=True`: the model's own loss under autocast, clipping, fused AdamW."""

    def __init__(self, setting: Setting, length: int, *, checkpointing: bool) -> None:
        self._device = torch.device(setting.device)
        self._compute = DTYPES["float32" if setting.dtype == "float32" else "bfloat16"]
        self.model = build_model(setting.checkpoint, device=setting.device).requires_grad_(True).train()
        if checkpointing:
            recompute_activations(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-5, fused=True)
        self._ids = torch.as_tensor(setting.ids(length), device=self._device)[None]

    def step(self) -> None:
        """Forward, backward, optimizer."""
        with torch.autocast(self._device.type, self._compute, enabled=self._compute != torch.float32):
            loss = self.model(input_ids=self._ids, labels=self._ids, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
