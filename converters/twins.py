"""Is an artifact's model, as transformers loads it, the reference itself? Then its windows need not be run twice.

class, settings, parameters, buffers, frequencies of each set ─ equal, bit for bit ─┐
logits on a few tokens, and on one beyond the original window ─ equal, bit for bit ─┴─► one computation, measured once
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

# Tokens that both are run on under the short set.
PROBE_TOKENS = 64
TWIN = "transformers makes the reference of it: every setting, weight and frequency, and the logits of a probe, bit for bit"
# Settings that name the files or say what `frequency_sets` says, too; transformers' own modules compute nothing from them.
_OF_FILES = ("_name_or_path", "transformers_version", "architectures", "dtype", "rope_parameters")


def is_twin(
    source: LogitSource, base: TorchSource, sets: Mapping[FactorSet, FactorSet], ids: TokenIds, chunk: int
) -> bool:
    """Whether a source computes what `base` does, in the regimes that count.

    Args:
        source: an artifact in its runtime, which chooses its sets itself.
        base: the reference, or the reference with the artifact's weights.
        sets: the source's set in a regime → the base's that it must be.
        ids: tokens, one more than the original window where the long set counts.
        chunk: rows of logits held at a time.
    """
    if not isinstance(source, TorchSource) or not same_model(source.model, base.model, sets):
        return False
    probes = {"short": ids[:PROBE_TOKENS], "long": ids}
    return all(_same_logits(source, used, base, expected, probes[used], chunk) for used, expected in sets.items())


def same_model(one: Any, other: Any, sets: Mapping[FactorSet, FactorSet]) -> bool:
    """Whether two built models are equal in class, settings, parameters, buffers, and the given sets of their embeddings."""
    if type(one) is not type(other) or _settings(one) != _settings(other) or not _same_rotation(one, other, sets):
        return False
    ours, theirs = dict(_tensors(one)), dict(_tensors(other))
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


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


def _same_logits(
    one: TorchSource, used: FactorSet, other: TorchSource, expected: FactorSet, ids: TokenIds, chunk: int
) -> bool:
    blocks = zip(one.logits(ids, used, chunk), other.logits(ids, expected, chunk), strict=True)
    return one.set_for(len(ids)) == used and all(torch.equal(mine, its) for mine, its in blocks)
