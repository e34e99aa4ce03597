"""Is an artifact's model, as transformers loads it, the reference itself? Then its windows need not be run twice.

class, settings, parameters, buffers, frequencies of each set ─ equal, bit for bit ─────────────────┐
logits of a few tokens at the end of the original window, and across it ────────── the same, too ─┴─► one computation
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from longrope.factors import FactorSet
from longrope.modeling import PinnedRotary, TorchSource, frequency_sets, rotary_module
from longrope.scoring import LogitSource
from longrope.text import TokenIds

# Tokens of a window that both are run on.
PROBE_TOKENS = 64
TWIN = "transformers makes the reference of it: every setting, weight and frequency, and the logits of a probe, bit for bit"
# Settings that name the files or say what `frequency_sets` says, too; transformers' own modules compute nothing from them.
_OF_FILES = ("_name_or_path", "transformers_version", "architectures", "dtype", "rope_parameters")


def is_twin(
    source: LogitSource, base: TorchSource, sets: Mapping[FactorSet, FactorSet], ids: TokenIds, original: int
) -> bool:
    """Whether a source computes what `base` does.

    Args:
        source: an artifact in its runtime, which chooses its sets itself.
        base: the reference, or the reference with the artifact's weights.
        sets: the source's set in a regime → the base's that it must be.
        ids: tokens to try.
        original: the window where sets change.
    """
    if not isinstance(source, TorchSource) or not same_model(source.model, base.model, sets):
        return False
    probe = ids[: min(PROBE_TOKENS, original)]
    # The last position is the original window's, and one beyond, which makes transformers use the long set.
    starts = {"short": original - len(probe), "long": original + 1 - len(probe)}
    return all(
        torch.equal(
            *(each.shifted_logits(probe, name, starts[used]) for each, name in ((source, used), (base, expected)))
        )
        for used, expected in sets.items()
    )


def same_model(one: Any, other: Any, sets: Mapping[FactorSet, FactorSet]) -> bool:
    """Whether two built models are equal in class, settings, parameters, buffers, and the given sets of their embeddings."""
    if type(one) is not type(other) or one.device != other.device:  # another device sums in another order
        return False
    if _settings(one) != _settings(other) or not _same_rotation(one, other, sets):
        return False
    ours, theirs = dict(_tensors(one)), dict(_tensors(other))
    return ours.keys() == theirs.keys() and all(_equal(tensor, theirs[name]) for name, tensor in ours.items())


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """torch takes numbers of two types for equal; products of theirs are not."""
    return one.dtype == other.dtype and torch.equal(one, other)


def _settings(model: Any) -> dict[str, Any]:
    config = model.config.to_dict()
    return {name: value for name, value in config.items() if name not in _OF_FILES}


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers; those of the rotary embedding change with the set in use."""
    for found in (model.named_parameters(), model.named_buffers()):
        yield from ((name, tensor) for name, tensor in found if "rotary_emb" not in name)


def _same_rotation(one: Any, other: Any, sets: Mapping[FactorSet, FactorSet]) -> bool:
    """Of models with one rotation for all layers; others are run."""
    mine, its = (
        module.inner if isinstance(module, PinnedRotary) else module for module in map(rotary_module, (one, other))
    )
    scaling = getattr(mine, "attention_scaling", None)
    if type(mine) is not type(its) or scaling is None or scaling != its.attention_scaling:
        return False
    ours, theirs = frequency_sets(mine), frequency_sets(its)
    return all(torch.equal(ours[used], theirs[expected]) for used, expected in sets.items())
