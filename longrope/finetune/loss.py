"""Next-token loss of packed rows, with the head fused into it: logits exist for one chunk of rows at a time.

    ids ──decoder──► hidden [N, D] ──chunks──► logits [n, V] ──► Σ weight · NLL          (of taught tokens: to a teacher's
                                                                                          distribution, see `teacher`)

`linear_loss` has the head and the loss, in one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from longrope.errors import UnsupportedError
from longrope.finetune.batch import IGNORED, PackedBatch
from longrope.finetune.linear_loss import chunk_rows, weighted_loss
from longrope.finetune.rotary import SequenceRotary
from longrope.finetune.teacher import Lesson, taught_loss
from longrope.modeling import decoder


class TrainingLoss(nn.Module):
    """A causal model with its loss, as one module: what is trained, and what `fully_shard` takes as the root.

    Args:
        model: transformers' causal model, with `rotary` in it and attention inside documents.
        rotary: given the factor set of every token before each pass.
        dtype: of the head's matrix product; sums are in float32.
    """

    def __init__(self, model: Any, rotary: SequenceRotary, dtype: torch.dtype = torch.float32) -> None:
        """Raises UnsupportedError when the model caps its logits, which the fused loss cannot."""
        super().__init__()
        if getattr(model.config, "final_logit_softcapping", None) is not None:
            raise UnsupportedError("training: this model caps its logits (final_logit_softcapping)")
        self.model, self.rotary, self.dtype = model, rotary, dtype

    def forward(self, batch: PackedBatch, lesson: Lesson | None = None) -> Tensor:
        """Σ weight · NLL over the batch's tokens, nats, float32; divide by the step's total weight yourself.

        With a lesson, taught tokens' loss is the cross-entropy to the teacher's distribution.
        """
        self.rotary.assign(batch.sets)
        hidden_BTD = decoder(self.model)(
            input_ids=batch.ids,
            position_ids=batch.positions,
            cu_seqlens=batch.cu_seqlens,
            use_cache=False,
        ).last_hidden_state
        labels_N, taught_N = batch.labels.flatten(), batch.taught.flatten()
        if lesson is not None:
            labels_N = labels_N.masked_fill(taught_N, IGNORED)
        return self._head_loss(hidden_BTD.flatten(0, 1), labels_N, batch.weights.flatten(), taught_N, lesson)

    def _head_loss(
        self, hidden_ND: Tensor, labels_N: Tensor, weights_N: Tensor, taught_N: Tensor, lesson: Lesson | None
    ) -> Tensor:
        head = self.model.get_output_embeddings()
        scaling = getattr(self.model.config, "logits_scaling", None)
        if scaling is not None:
            hidden_ND = hidden_ND / scaling
        head_weight = head.weight.to(self.dtype)
        bias = None if getattr(head, "bias", None) is None else head.bias.to(self.dtype)

        def logits(hidden_ND: Tensor) -> Tensor:
            return nn.functional.linear(hidden_ND, head_weight, bias)

        with torch.autocast(hidden_ND.device.type, enabled=False):
            hidden_ND = hidden_ND.to(self.dtype)
            total = weighted_loss(hidden_ND, head_weight, bias, labels_N, weights_N)
            if lesson is not None:
                total = total + taught_loss(hidden_ND[taught_N], logits, lesson, chunk_rows(head_weight.shape[0]))
        return total
