"""Which part of the model is at fault: the reference's, given the artifact's own residual stream, against what follows there.

    artifact: [0] ──► layer 0 ──► [1] ──► layer 1 ──► [2] ──► head ──► logits
               │                   │                   │
               └─► layer 0, ours ──┼─► [1]?            └─► head, ours ──► logits?
                                   └─► layer 1, ours ──► [2]?

A wrong layer shows in its own comparison alone, for the layers behind it get what the artifact's got.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from converters.explain.causes import Part
from converters.explain.reference import TrialModel
from converters.explain.rotations import Rotation
from converters.explain.windows import Window
from longrope.errors import UnsupportedError

# Positions whose hidden states are compared.
KEPT = 128
# Of the largest part's error, what another may have by chance.
_SMALL = 0.05
# A layer is right by itself with an error below this share of the largest: a rotation that is off is off in all.
_RIGHT = 0.01


def compare_parts(
    states: Tensor, logits: Tensor, reference: TrialModel, window: Window, rotation: Rotation, rounding: float
) -> tuple[Part, ...]:
    """Every part of the model by itself.

    Args:
        states: the artifact's residual stream [layers + 1, T, D].
        logits: the artifact's [T, V].
        rotation: that the artifact should have.
        rounding: relative error that the type of its weights explains.

    Raises:
        UnsupportedError: it has another number of layers, or the reference's cannot be found.
    """
    if len(states) != reference.num_layers + 1:
        raise UnsupportedError(f"the artifact has {len(states) - 1} layers, the reference {reference.num_layers}")
    found, head = reference.stream(window.ids[: states.shape[1]], rotation, states)
    measured = [("embeddings", *_errors(found.states[0], states[0], torch.zeros_like(states[0])))]
    for layer in range(len(states) - 1):
        measured.append((f"layer {layer}", *_errors(found.states[layer + 1], states[layer + 1], states[layer])))
    measured.append(("head", *_errors(head, logits, torch.zeros_like(head))))
    largest = max((error for _, error, _ in measured if error == error), default=0.0)
    limit = max(rounding, _SMALL * largest)
    return tuple(Part(name, error, start, not error <= limit) for name, error, start in measured)


def right_by_itself(parts: Sequence[Part], rotating: Sequence[int]) -> bool:
    """Whether a layer that the factors rotate is right, and another is not: no other rotation explains that."""
    layers = {part.name: part for part in parts if part.name.startswith("layer")}
    largest = max((part.error for part in layers.values()), default=0.0)
    rotated = [layers[name] for layer in rotating if (name := f"layer {layer}") in layers]
    return any(not part.differs and part.error < _RIGHT * largest for part in rotated)


def _errors(ours_TD: Tensor, theirs_TD: Tensor, before_TD: Tensor) -> tuple[float, float]:
    """How far what a part adds is from the reference's, relative to it: over all positions, and at the first one."""
    differs, adds = (ours_TD - theirs_TD).double(), (ours_TD - before_TD).double()
    tiny = torch.finfo(torch.float32).tiny
    return (
        float(differs.norm() / adds.norm().clamp_min(tiny)),
        float(differs[0].norm() / adds[0].norm().clamp_min(tiny)),
    )
