"""The residual stream of a transformers model: before its first layer and behind each, watched or given.

    ids ─► embeddings ─[0]─► layer 0 ─[1]─► layer 1 ─[2]─► … ─► norm ─► head

With states given, every layer gets another model's state in place of its own, so that what leaves it differs from that
model's next state by the fault of this layer alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from longrope.errors import UnsupportedError
from longrope.modeling import decoder, hidden_states


@dataclass(frozen=True)
class Stream:
    """What one pass gave.

    Args:
        states: [layers + 1, T, D]: what entered the first layer, and what left each.
        last: [T, D] behind the final norm, for the head.
    """

    states: Tensor
    last: Tensor


@torch.inference_mode()
def residual_stream(model: Any, ids_BT: Tensor, given: Tensor | None = None) -> Stream:
    """One pass over a window.

    Args:
        model: from `longrope.modeling.build_model`.
        ids_BT: [1, T] token ids.
        given: [layers + 1, T, D], what each layer gets in place of its own input, and the final norm of its own.

    Raises:
        UnsupportedError: the model's decoder has no list of layers.
    """
    found: list[Tensor] = []
    with _watched(_layers(model), found, given):
        last = hidden_states(model, ids_BT)[0]
    return Stream(torch.stack(found), last)


def _layers(model: Any) -> nn.ModuleList:
    layers = getattr(decoder(model), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UnsupportedError(f"the layers of {type(model).__name__} cannot be found")
    return layers


@contextmanager
def _watched(layers: nn.ModuleList, found: list[Tensor], given: Tensor | None) -> Iterator[None]:
    """Note what enters the first layer and leaves each, and give the given states to layers and final norm."""
    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            before = partial(_enter, index=index, found=found, given=given)
            stack.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
            last = given if index == len(layers) - 1 else None
            stack.callback(layer.register_forward_hook(partial(_leave, found=found, given=last)).remove)
        yield


def _enter(
    _: nn.Module, args: Any, kwargs: Any, *, index: int, found: list[Tensor], given: Tensor | None
) -> tuple[Any, Any] | None:
    own = args[0] if args else kwargs["hidden_states"]
    if index == 0:
        found.append(own[0].float().cpu())
    if given is None:
        return None
    state = given[index][None].to(own.device, own.dtype)
    return ((state, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": state})


def _leave(_: nn.Module, __: Any, output: Any, *, found: list[Tensor], given: Tensor | None) -> Any:
    own = output[0] if isinstance(output, tuple) else output
    found.append(own[0].float().cpu())
    if given is None:
        return None
    state = given[-1][None].to(own.device, own.dtype)
    return (state, *output[1:]) if isinstance(output, tuple) else state
