"""The model before extension, frozen, as the teacher of short sequences.

    short sequence ──teacher, original RoPE──► softmax p ┐
                   ──model, short or long set──► log q ──┴─► −Σ p log q, summed over tokens, a chunk of them at a time

Inside the original window nothing is to be learned but to stay what the model was. The teacher's distribution says that
with far less noise than the text's next token, so the short window costs fewer steps. The long set learns it, too: a `single`
export has no other. Source: short-text distillation of LongReD (arXiv 2502.07365), on output distributions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from longrope.checkpoint import Checkpoint, unscaled_factors
from longrope.finetune.attention import NAME, use_document_attention
from longrope.finetune.batch import PackedBatch
from longrope.finetune.parallel import Parallel
from longrope.finetune.rotary import SequenceRotary
from longrope.finetune.ulysses import use_ulysses
from longrope.modeling import build_model, decoder, detect_layout, head_logits, replace_rotary

Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Lesson:
    """What the teacher says to one pass.

    Args:
        hidden: [n, D] of the taught tokens, in their order.
        logits: the teacher's head.
    """

    hidden: Tensor
    logits: Logits


class Teacher(nn.Module):
    """A frozen causal model under its own RoPE; called on a pass, it gives the lesson for the taught tokens."""

    def __init__(self, checkpoint: Checkpoint, parallel: Parallel, dtype: torch.dtype) -> None:
        """Build it and spread it over the processes.

        Args:
            checkpoint: the model before extension.
            parallel: as the trained model's: same attention, same shards.
            dtype: what layers compute in.
        """
        super().__init__()
        self.model: Any = build_model(checkpoint)
        layout = detect_layout(self.model, checkpoint.base)
        replace_rotary(self.model, SequenceRotary(unscaled_factors(checkpoint, checkpoint.window), layout))
        use_document_attention(self.model)
        use_ulysses(self.model, parallel, NAME)
        self.requires_grad_(False).eval()
        sharded = parallel.weights_mesh is not None
        parallel.shard(self, param_dtype=dtype if sharded and dtype != torch.float32 else None)

    @torch.no_grad()
    def forward(self, batch: PackedBatch) -> Lesson:
        """Read a whole pass, or this process's part of it, and keep what belongs to taught tokens."""
        hidden_BTD = decoder(self.model)(
            input_ids=batch.ids, position_ids=batch.positions, cu_seqlens=batch.cu_seqlens, use_cache=False
        ).last_hidden_state
        return Lesson(hidden_BTD[batch.taught].detach(), self._logits)

    def _logits(self, hidden_nD: Tensor) -> Tensor:
        return head_logits(self.model, hidden_nD)


def taught_loss(hidden_nD: Tensor, logits: Logits, lesson: Lesson, rows: int) -> Tensor:
    """−Σ p log q over tokens and vocabulary, nats, float32; `rows` tokens' logits exist at a time, in backward again.

    Args:
        hidden_nD: of the model in training, at the taught tokens.
        logits: its head.
        lesson: the teacher's for the same tokens.
        rows: of a chunk.
    """

    def chunk_loss(student_rD: Tensor, teacher_rD: Tensor) -> Tensor:
        with torch.no_grad():
            p_rV = lesson.logits(teacher_rD).float().softmax(-1)
        return -(p_rV * logits(student_rD).float().log_softmax(-1)).sum()

    total = hidden_nD.new_zeros((), dtype=torch.float32)
    for student_rD, teacher_rD in zip(hidden_nD.split(rows), lesson.hidden.split(rows), strict=True):
        total = total + recomputed(chunk_loss, student_rD, teacher_rD, use_reentrant=False)
    return total
