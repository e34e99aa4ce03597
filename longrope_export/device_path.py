"""A device with a tiny model: every precision and every attention that runs there, against float32 on the CPU.

`doctor` runs this in seconds; `doctor --gpu` (`longrope_export.gpu_check`) measures the device itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from longrope.checkpoint import Checkpoint
from longrope.machine import PRECISIONS, Precision
from longrope.modeling import build_model
from longrope_export.models import DEFAULT, open_model

TOKENS = 128
# Largest mean KL divergence that rounding to each precision explains, in nats per token: the rows of validate's tolerances.
LIMITS: dict[Precision, float] = {"float32": 1e-6, "float16": 1e-4, "bfloat16": 1e-3}
ATTENTION = {"eager": "plain attention", "sdpa": "SDPA", "flash_attention_2": "flash-attention"}
CHECKED = f"{', '.join(PRECISIONS)}; {', '.join(ATTENTION.values())}"


@dataclass(frozen=True)
class Found:
    """What came of one precision with one attention.

    Args:
        what: both, in words.
        right: whether it computes the reference's model, or has a reason not to run.
        detail: how far off it is, or why it did not run.
    """

    what: str
    right: bool
    detail: str


def device_path(device: str) -> Iterator[Found]:
    """Every combination on a torch device, one after the other."""
    checkpoint = open_model(DEFAULT)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, checkpoint.vocab_size, (1, TOKENS)))
    reference = _log_probabilities(checkpoint, ids, "cpu", "float32", "eager")
    for precision in PRECISIONS:
        for attention, words in ATTENTION.items():
            if attention != "flash_attention_2" or precision != "float32":  # which has 16 bits only
                yield _compared(checkpoint, ids, reference, device, precision, attention, f"{precision}, {words}")


def _compared(
    checkpoint: Checkpoint,
    ids: torch.Tensor,
    reference: torch.Tensor,
    device: str,
    precision: Precision,
    attention: str,
    words: str,
) -> Found:
    from transformers.utils import is_flash_attn_2_available

    what = f"{device}: {words}"
    if attention == "flash_attention_2" and not (device.startswith("cuda") and is_flash_attn_2_available()):
        return Found(what, True, "not installed, or not for this device: SDPA is used")
    try:
        found = _log_probabilities(checkpoint, ids, device, precision, attention)
    except (RuntimeError, ValueError, ImportError) as error:
        return Found(what, False, f"does not run ({type(error).__name__})")
    kl = float((reference.exp() * (reference - found)).sum(-1).mean())
    return Found(
        what, abs(kl) <= LIMITS[precision], f"KL {kl:.1e} to float32 on the CPU (at most {LIMITS[precision]:g})"
    )


def _log_probabilities(
    checkpoint: Checkpoint, ids: torch.Tensor, device: str, precision: Precision, attention: str
) -> torch.Tensor:
    """[1, TOKENS, vocabulary] in float64, on the CPU."""
    model = build_model(checkpoint, dtype=precision, device=device, as_it_is=True)
    model.set_attn_implementation(attention)
    with torch.inference_mode():
        logits = model(ids.to(device)).logits
    return torch.log_softmax(logits.double().cpu(), -1)
