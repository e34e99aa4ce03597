"""Built models: factors applied before construction, the rotary module of the search, and models as logit sources.

Two rotary modules live here, each with one purpose:
  RescaledRotary  the engine's own: float64 angles, n_hat, differentiable factors. Search and training use it.
  PinnedRotary    transformers' own arithmetic with the set given from outside. References use it, so that a window
                  scored in chunks is not rotated by the short set in its first chunks.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from longrope import blockwise, rope
from longrope.base_rope import BaseRope
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError, LongRopeError, MissingRequirementError, UnsupportedError
from longrope.factors import BoundFactors, FactorSet
from longrope.hf_config import FULL, transformers_config
from longrope.loading import load_pretrained
from longrope.machine import SHARDED
from longrope.pass_cache import PassCache
from longrope.sources import Stop, never
from longrope.text import TokenIds

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# A window is prefilled in one pass up to this many tokens, in chunks through the KV cache beyond.
PREFILL_TOKENS = 32_768
# Those chunks of a prompt: each is masked against the whole cache, chunk × T booleans (and as many floats on a CPU).
LATER_TOKENS = 1024


def build_config(checkpoint: Checkpoint, factors: BoundFactors | None) -> Any:
    """transformers' configuration object of a checkpoint, with the factors set before any model is built from it."""
    data = dict(checkpoint.whole_config)
    if factors is not None:
        data = checkpoint.extended_config(factors)
        text = data if checkpoint.wrapper is None else data["text_config"]
        text.pop("rope_scaling", None)  # one spelling is enough in memory, and two would be merged
    return transformers_config(data)


# -- models


def _require_accelerate() -> None:
    """Raise MissingRequirementError where nothing spreads models over devices."""
    if importlib.util.find_spec("accelerate") is None:
        raise MissingRequirementError(
            "device sharded: accelerate is missing; install with: pip install 'longrope-export[sharded]'"
        )


def require_device(device: str) -> None:
    """Refuse a device that is not there, before any work is done.

    Raises:
        InputError: torch knows no device of this name.
        MissingRequirementError: this machine has none of this kind, or not so many.
    """
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise InputError(f"device: expected cpu, cuda, cuda:1 or mps, got {device!r}") from None
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    there = counts.get(wanted.type)
    if there is not None and (wanted.index or 0) >= there:
        raise MissingRequirementError(
            f"device {device}: torch finds {there} of kind {wanted.type} here; `longrope-export doctor` says more"
        )


def build_model(
    checkpoint: Checkpoint,
    factors: BoundFactors | None = None,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    as_it_is: bool = False,
    weights: Mapping[str, Any] | None = None,
) -> Any:
    """Load a checkpoint as transformers' causal model in eval mode, with factors in its configuration if given.

    With n_hat > 0, which no configuration can hold, the model gets the engine's own rotary embedding instead.

    Args:
        checkpoint: what `open_checkpoint` returned.
        factors: None leaves the checkpoint's own rotary embedding, extended or not.
        dtype: a name of `DTYPES`.
        device: a torch device, or `machine.SHARDED`.
        as_it_is: do not compare the model with its own factors; for artifacts whose faults are to be measured.
        weights: tensors by their name in the checkpoint's files, to be taken in place of those; None for the files'.

    Raises:
        InputError: transformers does not read it, or its weights do not fit its configuration.
        MissingRequirementError: the device is not there.
        UnsupportedError: its weights are quantized.
        LongRopeError: the model's inverse frequencies are not the factors'.
    """
    options: dict[str, Any] = {"weights": weights, "dtype": DTYPES[dtype]}
    if device == SHARDED:
        _require_accelerate()
        options["device_map"] = "auto"
    else:
        require_device(device)
    checkpoint.require_float_weights()
    in_config = None if factors is not None and factors.n_hat else factors
    model = load_pretrained(checkpoint, build_config(checkpoint, in_config), **options)
    if device != SHARDED:
        model = model.to(device)
    model.eval().requires_grad_(False)
    if factors is not None and factors.n_hat:
        replace_rotary(model, RescaledRotary.of(factors, detect_layout(model, checkpoint.base)))
    elif not as_it_is and (active := factors or checkpoint.factors) is not None:
        assert_frequencies(model, active)
    return model


def use_fastest_attention(model: Any, device: str, dtype: str) -> None:
    """flash-attention where it is installed, on a GPU, in 16 bits; on a CPU in bfloat16 what uses its products
    (`longrope.blockwise`); elsewhere the model's own choice, mostly torch's SDPA.

    A model or a GPU that flash-attention does not serve keeps its own choice, too.
    """
    from transformers.utils import is_flash_attn_2_available

    if blockwise.is_faster(device, DTYPES[dtype]):
        blockwise.use(model)
    if device.startswith("cuda") and DTYPES[dtype].itemsize == 2 and is_flash_attn_2_available():
        with suppress(ImportError, ValueError):  # how transformers refuses an old GPU and a model without the kernel
            model.set_attn_implementation("flash_attention_2")


def set_threads(threads: int | None) -> None:
    """Use so many threads in torch; None leaves its own choice."""
    if threads is not None:
        torch.set_num_threads(threads)


def text_config(model: Any) -> Any:
    """The configuration of the model's text part, which is its own where it has no other part."""
    return model.config.get_text_config()


def input_device(model: Any) -> torch.device:
    """Where a model takes its tokens; one whose weights come from elsewhere layer by layer takes them anywhere."""
    device: torch.device = model.device
    return torch.device("cpu") if device.type == "meta" else device


def decoder(model: Any) -> Any:
    """A model without its head; transformers' own answer is the whole model where it looks for another name (Llama 4)."""
    found = model.get_decoder()
    return model.model if found is model and model.get_output_embeddings() is not None else found


def rotary_module(model: nn.Module) -> Any:
    """The one rotary embedding of a model's decoder; refuses decoders with none or several."""
    found = [module for _, module in _rotary_modules(model)]
    if len(found) != 1:
        raise UnsupportedError(f"expected one rotary embedding in {type(model).__name__}, found {len(found)}")
    return found[0]


def _rotary_modules(model: Any) -> list[tuple[str, nn.Module]]:
    """Rotary embeddings by their full names; a multimodal model's vision tower has its own, which is not looked at."""
    inside = {id(module) for module in (decoder(model) if hasattr(model, "get_decoder") else model).modules()}
    named = ((name, module) for name, module in model.named_modules() if name.rsplit(".", 1)[-1] == "rotary_emb")
    return [(name, module) for name, module in named if id(module) in inside]


def replace_rotary(model: nn.Module, module: nn.Module) -> Any:
    """Put `module` where the model's rotary embedding is; returns the old one."""
    old = rotary_module(model)
    (name, _), *_ = _rotary_modules(model)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
    return old


def assert_frequencies(model: nn.Module, factors: BoundFactors) -> None:
    """Compare a built model's two inverse-frequency sets and its attention factor with what the factors mean.

    Setting rope parameters on a built model does nothing, and transformers only warns about lists it ignores; so a
    model is believed only after this.

    Raises:
        LongRopeError: they differ by more than float32 rounding.
    """
    module, wanted = rotary_module(model), factors.family.type if factors.family else "longrope"
    rope_type = _by_layer(module, module.rope_type)
    if rope_type != wanted:
        raise LongRopeError(f"the built model's rotary embedding is of type {rope_type!r}, expected {wanted!r}")
    for name, actual in frequency_sets(module).items():
        expected = rope.inv_freq(factors.rope_theta, 2 * factors.num_pairs, factors.set(name))
        if actual.shape != expected.shape or not np.allclose(
            actual.double().cpu().numpy(), expected, rtol=1e-5, atol=1e-30
        ):
            raise LongRopeError(f"the built model's {name} inverse frequencies are not those of the factors")
    scaling = getattr(module, f"{_prefix(module)}attention_scaling")
    if not math.isclose(scaling, factors.effective_attention_factor, rel_tol=1e-6):
        raise LongRopeError(
            f"the built model's attention factor is {scaling}, expected {factors.effective_attention_factor}"
        )


def _prefix(module: Any) -> str:
    """What the names of a rotary embedding's buffers begin with: nothing, or the layers that see everything."""
    return f"{FULL}_" if isinstance(module.rope_type, dict) else ""


def _by_layer(module: Any, value: Any) -> Any:
    """A rotary embedding's value, of the layers that see everything where it has one for each layer type."""
    return value.get(FULL) if isinstance(module.rope_type, dict) else value


def _parameters(module: Any) -> Any:
    return _by_layer(module, module.config.rope_parameters)


def frequency_sets(module: Any) -> dict[FactorSet, Tensor]:
    """Both inverse-frequency sets of transformers' embedding, [d/2] each, by its own formula; of other types, one twice."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    original = _parameters(module).get("original_max_position_embeddings", 0)
    device, layer = getattr(module, f"{_prefix(module)}inv_freq").device, {}
    config = module.config
    if _prefix(module):
        layer = {"layer_type": FULL}
        if config.is_heterogeneous:
            config = config.per_layer_config[FULL]
    init = partial(ROPE_INIT_FUNCTIONS[_by_layer(module, module.rope_type)], config, device, **layer)
    return {"short": init(seq_len=original)[0], "long": init(seq_len=original + 1)[0]}


class PinnedRotary(nn.Module):
    """transformers' embedding with the set chosen by `use`, not by the largest position of each forward."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.sets = frequency_sets(inner)
        self._unswitched: Any = inspect.unwrap(type(inner).forward)  # the arithmetic below transformers' own switch

    def use(self, name: FactorSet) -> None:
        getattr(self.inner, f"{_prefix(self.inner)}inv_freq").copy_(self.sets[name])

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor, *layer: str, **named: str) -> Any:
        """x [B, T, D], position_ids [B, T] → cos, sin [B, T, d], or whatever the model's layout is."""
        return self._unswitched(self.inner, x, position_ids.to(x.device), *layer, **named)


# -- the engine's own rotary embeddings, in the layout of each model


@dataclass(frozen=True)
class Layout:
    """How a model's attention takes its rotary tables, found out by comparing with its own.

    Args:
        name: `halves`: cos, sin [B, T, d] with pair i at i and d/2 + i; `pairs`: at 2 i and 2 i + 1; `once`: cos, sin
            [B, T, d/2]; `complex`: one table [B, T, d/2] of cos + i sin.
        own: the model's own embedding where layers that do not see everything keep it; None where there are none.
    """

    name: Literal["halves", "pairs", "once", "complex"] = "halves"
    own: Any = None

    def tables(self, angles: Tensor, scale: float | Tensor, dtype: torch.dtype) -> Any:
        """Angles [B, T, d/2] as the model wants them, cos and sin times `scale`."""
        cos, sin = angles.cos() * scale, angles.sin() * scale
        if self.name == "complex":
            return torch.complex(cos.float(), sin.float())
        return self.spread(cos).to(dtype), self.spread(sin).to(dtype)

    def spread(self, values: Tensor) -> Tensor:
        """Values of pairs [B, T, d/2] where a table has them."""
        if self.name == "halves":
            return torch.cat((values, values), dim=-1)
        return values.repeat_interleave(2, dim=-1) if self.name == "pairs" else values

    def keeps_own(self, layer_type: str | None) -> bool:
        """Whether a layer keeps the model's own embedding."""
        return self.own is not None and layer_type is not None and layer_type != FULL


def text_positions(position_ids: Tensor, device: torch.device, wide: torch.dtype) -> Tensor:
    """[B, T, 1] positions; of three-dimensional ones [3, B, T] the first, which for text are all equal."""
    flat = position_ids[0] if position_ids.ndim == 3 else position_ids
    return flat.to(device, wide)[..., None]


def detect_layout(model: Any, base: BaseRope) -> Layout:
    """The layout in which the engine's rotary tables equal the built model's own, at positions up to its window.

    Raises:
        UnsupportedError: in none; the engine would compute another model.
    """
    module = rotary_module(model)
    by_layer = isinstance(getattr(module, "rope_type", None), dict)
    layer = {"layer_type": FULL} if by_layer else {}
    own, x = module if by_layer else None, torch.zeros(1, 1, 1, device=model.device)
    for layout in (Layout(name, own) for name in ("halves", "pairs", "once", "complex")):
        if all(_agrees(layout, module, base, name, x, layer) for name in ("short", "long")):
            return layout
    raise UnsupportedError(
        f"the rotary embedding of {type(model).__name__} is none that can be rescaled here: the engine's tables differ from "
        "it in every layout; nothing that it measures would be this model's"
    )


def _agrees(layout: Layout, module: Any, base: BaseRope, name: FactorSet, x: Tensor, layer: Mapping[str, str]) -> bool:
    """Whether the tables of a base's set equal a module's own near the end of the window that the set is for."""
    last = base.switch if name == "short" else base.window
    positions = torch.tensor([[0, 1, 2, 3, *range(max(last - 4, 4), last)]])
    factors = base.short_factor if name == "short" else base.long_factor
    angles = positions[..., None].double() * torch.from_numpy(rope.inv_freq(base.rope_theta, base.rotary_dim, factors))
    ours = layout.tables(angles, base.attention_factor, torch.float32)
    with torch.no_grad():
        theirs = module(x, positions.to(x.device), **layer)
    # Their frequencies and angles are rounded to float32 on the way, each by up to half of the last place.
    allowed = layout.spread(1e-5 + 4 * 2.0**-24 * angles)
    mine, its = (list(tables) if isinstance(tables, tuple) else [tables] for tables in (ours, theirs))
    return [table.shape for table in mine] == [table.shape for table in its] and all(
        bool(((table - other.cpu()).abs() <= allowed).all()) for table, other in zip(mine, its, strict=True)
    )


class RescaledRotary(nn.Module):
    """The engine's rotary embedding: float64 angles, any factors, n_hat start tokens, gradients if wanted.

    It holds no buffers and no parameters of its own, so `model.to(dtype)` cannot round it and checkpoints do not see it.

    Args:
        rope_theta: base θ.
        rotary_dim: d.
        layout: of the model that it goes into, from `detect_layout`.
    """

    def __init__(self, rope_theta: float, rotary_dim: int, layout: Layout | None = None) -> None:
        super().__init__()
        self.layout = layout or Layout()
        self.own = self.layout.own
        self._base = torch.from_numpy(rope.inv_freq(rope_theta, rotary_dim))
        self._factors = torch.ones_like(self._base)
        self._attention_factor: float | Tensor = 1.0
        self._n_hat: int | Tensor = 0
        self._bound: BoundFactors | None = None

    @classmethod
    def of(cls, factors: BoundFactors, layout: Layout | None = None) -> RescaledRotary:
        """The embedding of these factors; starts with the long set."""
        module = cls(factors.rope_theta, factors.rotary_dim, layout)
        module._bound = factors
        module.use("long")
        return module

    def use(self, name: FactorSet) -> None:
        """Switch to one set of the factors given to `of`."""
        if self._bound is None:
            raise ValueError("this embedding was not made from factors")
        self.set(self._bound.set(name), self._bound.effective_attention_factor, self._bound.n_hat)

    def set(self, factors: Tensor | Any, attention_factor: float | Tensor = 1.0, n_hat: int = 0) -> None:
        """Use these [d/2] factors from now on; tensors that require gradients keep their graph."""
        self._factors = torch.as_tensor(factors, dtype=torch.float64)
        self._attention_factor = attention_factor
        self._n_hat = n_hat

    def set_rows(self, factors_BP: Any, attention_factors_B: Any, n_hats_B: Any) -> None:
        """Use other factors in each row of a batch from now on."""
        self._factors, self._attention_factor = (
            torch.as_tensor(values, dtype=torch.float64).reshape(len(n_hats_B), 1, -1)
            for values in (factors_BP, attention_factors_B)
        )
        self._n_hat = torch.as_tensor(n_hats_B).reshape(-1, 1, 1) if any(n_hats_B) else 0

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
        """x [B, T, D] (for its device and dtype), position_ids [B, T] → cos, sin [B, T, d] in x's dtype and the layout."""
        if self.layout.keeps_own(layer_type):
            return self.own(x, position_ids, layer_type=layer_type)
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        base = self._base.to(x.device, wide)
        n_BT1 = text_positions(position_ids, x.device, wide)
        angles = n_BT1 * (base / self._factors.to(x.device, wide))
        if isinstance(self._n_hat, Tensor) or self._n_hat:
            first = torch.as_tensor(self._n_hat, device=x.device)
            angles = torch.where(n_BT1 < first, n_BT1 * base, angles)
        scale = self._attention_factor
        return self.layout.tables(angles, scale.to(x.device, wide) if isinstance(scale, Tensor) else scale, x.dtype)


# -- hidden states and logits


def hidden_states(model: Any, ids_BT: Tensor) -> Tensor:
    """Last hidden states [B, T, D] of one full pass, positions from 0."""
    hidden: Tensor = decoder(model)(input_ids=ids_BT, use_cache=False).last_hidden_state
    return hidden


def hidden_blocks(model: Any, ids_BT: Tensor, tokens: int) -> Iterator[Tensor]:
    """Last hidden states [t, D] of one window, in one full pass or in passes of so many tokens through the KV cache."""
    if ids_BT.shape[1] <= tokens:
        yield hidden_states(model, ids_BT)[0]
        return
    cache = None
    for part in ids_BT.split(tokens, dim=1):
        output, cache = read_on(decoder(model), part, cache)
        yield output.last_hidden_state[0]


def read_on(module: Any, ids_BT: Tensor, cache: Any, **options: Any) -> tuple[Any, Any]:
    """A pass over the tokens after those in the KV cache (None: from the start); its output, and the cache with them.

    transformers called the cache `past_key_values` before it was `cache`. Positions are given: Bamba counts them from 0
    in every pass.
    """
    name = "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"
    start = cache.get_seq_length() if cache is not None else 0
    positions_1T = torch.arange(start, start + ids_BT.shape[1], device=ids_BT.device)[None]
    output = module(input_ids=ids_BT, position_ids=positions_1T, use_cache=True, **{name: cache}, **options)
    return output, getattr(output, name)


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """Logits [..., V] of hidden states [..., D], with the scaling and soft-capping the model's own forward applies."""
    config = text_config(model)
    logits: Tensor = model.get_output_embeddings()(hidden)
    for name in ("logit_scale", "lm_head_multiplier"):  # Cohere, Falcon-H1
        if (factor := getattr(config, name, None)) is not None:
            logits = logits * factor
    scaling = getattr(config, "logits_scaling", None)
    if scaling is not None:
        logits = logits / scaling
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


class Pin(Protocol):
    """What chooses the set that a model's rotary embedding uses."""

    def use(self, name: FactorSet) -> None: ...


def _pin(model: nn.Module) -> Pin:
    """Something whose `use` chooses the set, in the place of the model's rotary embedding."""
    module = rotary_module(model)
    if isinstance(module, RescaledRotary):
        return module
    pinned = PinnedRotary(module)
    replace_rotary(model, pinned)
    return pinned


class TorchSource:
    """A transformers model as a source of logits (see `longrope.scoring.LogitSource`).

    Args:
        model: from `build_model`.
        factors: the factors in it; None for a model that was not extended.
        name: for messages.
        pinned: choose the set from outside; False leaves transformers' own switch, which is what an artifact's user gets.
        prefill_tokens: longest pass; beyond, the window goes through the KV cache in chunks of this size.
        pin: chooses the set before each pass, where several sources share the model; None for its rotary embedding.
        passes: where passes over whole windows are kept between calls; None for nowhere.
    """

    rule: Literal["per_forward", "per_context"] = "per_forward"

    def __init__(
        self,
        model: Any,
        factors: BoundFactors | None,
        *,
        name: str = "transformers",
        pinned: bool = True,
        prefill_tokens: int = PREFILL_TOKENS,
        pin: Pin | None = None,
        passes: PassCache | None = None,
    ) -> None:
        self.model, self.factors, self.name, self.passes = model, factors, name, passes
        self.vocab_size = int(text_config(model).vocab_size)
        self.prefill_tokens = prefill_tokens
        self._pin = _pin(model) if pin is None and pinned and factors is not None else pin
        self._held: _Held | None = None

    def set_for(self, length: int) -> FactorSet:
        return self.factors.set_for_length(length) if self.factors else "short"

    @torch.inference_mode()
    def logits(self, ids: TokenIds, factor_set: FactorSet, chunk: int) -> Iterator[Tensor]:
        """Logits of one window [T], in blocks of `chunk` rows: [chunk, V] float32 on the CPU, the last one shorter."""
        tokens = max(self.prefill_tokens // chunk, 1) * chunk
        for hidden_TD in self._kept_passes(ids, factor_set, tokens):
            for block in hidden_TD.split(chunk):
                yield head_logits(self.model, block).float().cpu()

    def _kept_passes(self, ids: TokenIds, factor_set: FactorSet, tokens: int) -> Iterator[Tensor]:
        """The hidden states [t, D] of `_passes`, from the cache where they are in it."""
        ids_BT = self._ids(ids)
        if self.passes is None or len(ids) > tokens:  # several passes are of this size only
            yield from self._passes(ids_BT, factor_set, tokens)
            return
        if (known_TD := self.passes.get(ids, factor_set)) is not None:
            yield known_TD.to(input_device(self.model))
            return
        for hidden_TD in self._passes(ids_BT, factor_set, tokens):
            self.passes.put(ids, factor_set, hidden_TD)
            yield hidden_TD

    def _passes(self, ids_BT: Tensor, factor_set: FactorSet, tokens: int) -> Iterator[Tensor]:
        """As `hidden_blocks`; between two passes another source may have used the model under another set."""
        blocks = hidden_blocks(self.model, ids_BT, tokens)
        while True:
            if self._pin is not None:
                self._pin.use(factor_set)
            if (hidden_TD := next(blocks, None)) is None:
                return
            yield hidden_TD

    @torch.inference_mode()
    def decode_logits(self, ids: TokenIds, prefill: int) -> Tensor:
        """Logits as a generating user gets them: `prefill` tokens at once, then one by one through the cache.

        Returns:
            [T - prefill + 1, V] float32: the rows of positions prefill - 1 … T - 1.
        """
        return self._decoded(ids, prefill)

    @torch.inference_mode()
    def stale_logits(self, ids: TokenIds, prefill: int, original: int) -> Tensor:
        """As `decode_logits`, with the long set from the token behind the original window on and the cache kept as it is.

        That is what a runtime gives whose graph is right, and which does not fill its cache again there.
        """
        return self._decoded(ids, prefill, lambda length: "short" if length <= original else "long")

    def _decoded(self, ids: TokenIds, prefill: int, set_of: Callable[[int], FactorSet] | None = None) -> Tensor:
        """`decode_logits`, by the set of each length where one is given."""
        rows, cache, length = list[Tensor](), None, 0
        for part in self._ids(ids).split([prefill, *[1] * (len(ids) - prefill)], dim=1):
            length += part.shape[1]
            if self._pin is not None and set_of is not None:
                self._pin.use(set_of(length))
            output, cache = read_on(self.model, part, cache, logits_to_keep=1)
            rows.append(output.logits[0, -1])
        return torch.stack(rows).float().cpu()

    def _ids(self, ids: TokenIds) -> Tensor:
        """Tokens [T] as [1, T] where the model takes them."""
        return torch.as_tensor(ids, device=input_device(self.model))[None]

    @torch.inference_mode()
    def shifted_logits(self, ids: TokenIds, factor_set: FactorSet, start: int) -> Tensor:
        """[T, V] float32: logits of a window [T] whose first position is `start`, with nothing before it.

        Where transformers switches sets by the largest position, a few tokens beyond the original window see the long one.
        """
        if self._pin is not None:
            self._pin.use(factor_set)
        ids_BT = self._ids(ids)
        positions_BT = torch.arange(start, start + len(ids), device=ids_BT.device)[None]
        output = decoder(self.model)(input_ids=ids_BT, position_ids=positions_BT, use_cache=False)
        return head_logits(self.model, output.last_hidden_state[0]).float().cpu()

    @torch.inference_mode()
    def tail_logits(self, ids: TokenIds, factor_set: FactorSet, first: int) -> Tensor:
        """[T - first, V] float32: the rows of positions first … T - 1; the head is computed for these only.

        The KV cache is kept: what the next prompt shares with this one from its start on is not read again.
        """
        return head_logits(self.model, self._tail(ids, factor_set, first)).float().cpu()

    @torch.inference_mode()
    def greedy(self, prompt: TokenIds, count: int, factor_set: FactorSet, stop: Stop = never) -> TokenIds:
        """At most `count` tokens after a prompt [T], each the likeliest, through the KV cache, all under one set."""
        ids, written = np.asarray(prompt, dtype=np.int64), list[int]()
        while len(written) < count and not (written and stop(written)):
            written.append(int(head_logits(self.model, self._tail(ids, factor_set, len(ids) - 1))[-1].argmax()))
            ids = np.append(ids, written[-1])
        return np.asarray(written, dtype=np.int64)

    def hidden_states(self, ids: TokenIds, factor_set: FactorSet, keep: int) -> Tensor:
        """The residual stream [layers + 1, keep, D] of the first positions of a window: before the first layer, behind each.

        Raises:
            UnsupportedError: the model's decoder has no list of layers.
        """
        from longrope.residual import residual_stream  # which imports this module

        if self._pin is not None:
            self._pin.use(factor_set)
        needed = ids[: self.prefill_tokens] if self._switches else ids[:keep]
        return residual_stream(self.model, self._ids(needed)).states[:, :keep]

    def close(self) -> None:
        """Free the model."""
        self.model = self._held = None

    def _tail(self, ids: TokenIds, factor_set: FactorSet, first: int) -> Tensor:
        """Last hidden states [T - first, D] of positions first … T - 1."""
        if self._pin is not None:
            self._pin.use(factor_set)
        cache, start = self._shared_cache(ids, factor_set, first)
        self._held = None
        rows = []
        while start < len(ids):
            stop = min(start + (self._first_pass(factor_set) if start == 0 else LATER_TOKENS), len(ids))
            part_BT = self._ids(ids[start:stop])
            output, cache = read_on(decoder(self.model), part_BT, cache)
            rows.append(output.last_hidden_state[0, max(first - start, 0) :])
            start = stop
        self._held = _Held(np.array(ids), factor_set, cache)
        return torch.cat(rows)

    def _shared_cache(self, ids: TokenIds, factor_set: FactorSet, first: int) -> tuple[Any, int]:
        """The kept cache, cut to what it shares with `ids` before `first`, and how many tokens that is."""
        held = self._held
        if held is None or held.factor_set != factor_set or self._switches or any(held.cache.is_sliding):
            return None, 0
        differ = np.flatnonzero(held.ids[:first] != ids[: min(first, len(held.ids))])
        shared = int(differ[0]) if len(differ) else min(first, len(held.ids))
        if shared == 0:
            return None, 0
        if shared < len(held.ids):
            held.cache.crop(shared - len(held.ids))  # tokens to remove, as a number below 0
        return held.cache, shared

    @property
    def _switches(self) -> bool:
        """Whether transformers changes sets by the positions of each pass."""
        return self._pin is None and self.factors is not None and self.factors.factor_sets == "dual"

    def _first_pass(self, factor_set: FactorSet) -> int:
        """Tokens of the first pass: beyond the original window where that is what makes transformers use the long set."""
        if self._switches and self.factors is not None and factor_set == "long":
            return max(self.prefill_tokens, self.factors.original + 1)
        return self.prefill_tokens


@dataclass
class _Held:
    """A KV cache with the tokens [T] that are in it."""

    ids: TokenIds
    factor_set: FactorSet
    cache: Any
