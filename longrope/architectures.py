"""What is known of each model type: one table, one row a type, no branches elsewhere.

A row says how transformers builds the rotary embedding; what a format can express stands in its own package, for llama.cpp
in `converters/gguf/carriers.py`:
  refusal     why nothing can be done with this type
  sliding_window  config.sliding_window limits attention, in every layer where layer_types says nothing else
  default_window  transformers' sliding_window where config.json is silent
  hybrid      layers that slide beside layers that see everything are no obstacle: what they look back on does not change
  rotary      which layers rotate, and with what: "all" of them share one embedding; "by_type": layers that see everything
              have one, which is extended, and those that slide have their own; "local": those that slide rotate and those
              that see everything do not, where there are both; "listed": as no_rope_layers says
  default_theta, default_partial  θ and the rotated part of a head where config.json is silent
  local_theta  the v4 spelling's key of the sliding layers' θ; v5_only: there is no v4 spelling
  softmax_scale  the softmax scale is computed from the rotary parameters factor and mscale_all_dim, which stay
  drops_cache_at_crossing  transformers' generate empties the cache where the factor sets change
  longrope_only  transformers' configuration refuses every rope_type but longrope
  per_set_attention  transformers takes the attention factor from short_mscale and long_mscale, and rotates by the short set
              at every length, so that one set is all that it computes
Rows were checked against llama.cpp as vendored by llama-cpp-python 0.3.36 and transformers 5.23.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from longrope.errors import UnsupportedError

RotaryLayers = Literal["all", "by_type", "local", "listed"]
Rotates = Literal["extended", "local", "none"]
# transformers' max_window_layers where a Qwen configuration is silent.
_MAX_WINDOW_LAYERS = 28
FULL, SLIDING = "full_attention", ("sliding_attention", "chunked_attention")


@dataclass(frozen=True)
class Architecture:
    """Facts about one transformers model type; see the module's docstring."""

    model_type: str
    sliding_window: bool = False
    hybrid: bool = False
    default_window: int | None = None
    rotary: RotaryLayers = "all"
    default_theta: float = 10_000.0
    default_partial: float | None = None
    local_theta: str | None = None
    v5_only: bool = False
    softmax_scale: bool = False
    drops_cache_at_crossing: bool = False
    longrope_only: bool = False
    per_set_attention: bool = False
    refusal: str = ""

    @property
    def one_base(self) -> bool:
        """Whether layers that slide have the θ of the others without a key of their own (OLMo 3)."""
        return self.rotary == "by_type" and not self.local_theta and not self.v5_only

    @property
    def needs_layer_types(self) -> bool:
        """Whether a layer's kind decides how it rotates, so that a configuration that is silent about it is completed."""
        return self.hybrid or self.rotary != "all"

    def rotates(self, config: Mapping[str, Any], layer_types: Sequence[str], layer: int) -> Rotates:
        """Which rotary embedding a layer uses.

        Args:
            config: parsed config.json of the text model.
            layer_types: what every layer is, by transformers' names.
            layer: its index.
        """
        kind = layer_types[layer]
        if config.get("position_embedding_type", "rope") != "rope" or kind not in (FULL, "attention", *SLIDING):
            return "none"  # no rotation anywhere, or a layer without attention
        slides = kind in SLIDING
        if self.rotary == "by_type":
            return "local" if slides else "extended"
        if self.rotary == "local" and any(each in SLIDING for each in layer_types):
            return "local" if slides else "none"
        if self.rotary == "listed":
            listed = config.get("no_rope_layers") or [(index + 1) % 4 for index in range(len(layer_types))]
            return "none" if not listed[layer] else "local" if slides else "extended"
        return "extended"


def _table(*rows: Architecture) -> Mapping[str, Architecture]:
    return {row.model_type: row for row in rows}


_NOWHERE = (
    "its attention layers rotate nothing (NoPE), so that there is nothing to rescale; it reads longer texts as it is"
)
_REMOTE = "transformers has no class for it, only code that comes with the checkpoint, which is never run here"
# Families whose checkpoints bring their own code, and what can be had instead.
_REMOTE_TYPES = {
    "phi3small": "Phi-3-mini, Phi-3-medium and Phi-4 are of type phi3",
    "internlm2": "InternLM3 is supported, and so is an InternLM2 whose weights were renamed to Llama's",
    "baichuan": "a checkpoint whose weights were renamed to Llama's is supported (W_pack split into q, k and v)",
    "chatglm": "use the checkpoint in transformers' own format, whose name ends in -hf (model type glm)",
    "minicpm": "MiniCPM3 is supported",
    "kimi_k2": "the network is DeepSeek-V3's: a copy whose config.json says model_type deepseek_v3 is supported",
}
# Multimodal types whose `text_config` is one of the table, and the text model's type where that does not say it.
WRAPPERS = {
    "mistral3": "mistral",
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "llama4": "llama4_text",
}

ARCHITECTURES = _table(
    Architecture("llama"),
    Architecture("mistral", sliding_window=True, default_window=4096),
    Architecture("mixtral", sliding_window=True),
    Architecture("ministral3", sliding_window=True),
    Architecture("granite"),
    Architecture("granitemoe"),
    Architecture("granitemoeshared"),
    Architecture("minicpm3", softmax_scale=True),
    Architecture("phi3", sliding_window=True, drops_cache_at_crossing=True, longrope_only=True),
    Architecture("phimoe", sliding_window=True, longrope_only=True, per_set_attention=True),
    Architecture("apertus"),
    Architecture("arcee"),
    Architecture("exaone4", sliding_window=True, hybrid=True, rotary="local", default_window=4096),
    Architecture("seed_oss"),
    Architecture("qwen2", sliding_window=True),
    Architecture("qwen3", sliding_window=True),
    Architecture("olmo2"),
    Architecture("gemma"),
    Architecture("gemma2", sliding_window=True, hybrid=True),
    Architecture("smollm3", rotary="listed"),
    Architecture("qwen2_moe", sliding_window=True),
    Architecture("qwen3_moe", sliding_window=True),
    Architecture("qwen3_next", default_partial=0.25),
    Architecture("qwen3_5_text", default_partial=0.25),
    Architecture("qwen3_5_moe_text", default_partial=0.25),
    Architecture(
        "gemma3_text",
        sliding_window=True,
        hybrid=True,
        rotary="by_type",
        default_theta=1_000_000.0,
        local_theta="rope_local_base_freq",
    ),
    Architecture("gemma4_text", sliding_window=True, hybrid=True, rotary="by_type", v5_only=True),
    Architecture("olmo"),
    Architecture("olmo3", sliding_window=True, hybrid=True, rotary="by_type"),
    Architecture("olmoe"),
    Architecture("phi", default_partial=0.5),
    Architecture("glm", default_partial=0.5),
    Architecture("glm4", default_partial=0.5),
    Architecture("glm4_moe", default_partial=0.5),
    Architecture("starcoder2", sliding_window=True),
    Architecture("stablelm", default_partial=0.25),
    Architecture("nemotron", default_partial=0.5),
    Architecture("ernie4_5", default_theta=500_000.0),
    Architecture("ernie4_5_moe", default_theta=500_000.0),
    Architecture("internlm3"),
    Architecture("exaone", default_theta=500_000.0),
    Architecture("lfm2", default_theta=1_000_000.0),
    Architecture("gpt_neox", default_partial=0.25),
    Architecture("minimax_m2", default_theta=5_000_000.0),
    Architecture("gpt_oss", sliding_window=True, hybrid=True, default_theta=150_000.0),
    Architecture("cohere", default_theta=500_000.0),
    Architecture("cohere2", sliding_window=True, hybrid=True, rotary="local"),
    Architecture("deepseek_v2", softmax_scale=True),
    Architecture("deepseek_v3", softmax_scale=True),
    Architecture("bamba", default_partial=0.5),
    Architecture("falcon_h1"),
    Architecture("granitemoehybrid"),
    Architecture("hunyuan_v1_dense"),
    Architecture("hunyuan_v1_moe"),
    Architecture("llama4_text", hybrid=True, rotary="listed", default_theta=500_000.0),
    Architecture("nemotron_h", refusal=_NOWHERE),
    Architecture("jamba", refusal=_NOWHERE),
    *(Architecture(name, refusal=f"{_REMOTE}; {way}") for name, way in _REMOTE_TYPES.items()),
)


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The row of a config.json.

    Raises:
        UnsupportedError: the type is not in the table, or the config uses a feature that extension would break.
    """
    model_type = config.get("model_type")
    row = ARCHITECTURES.get(str(model_type))
    if row is None:
        near = _near_miss(str(model_type))
        hint = f"did you mean {near}? " if near else ""
        known = ", ".join(sorted(name for name, row in ARCHITECTURES.items() if not row.refusal))
        raise UnsupportedError(f"model type {model_type!r} is not supported; {hint}expected one of {known}")
    if row.refusal:
        raise UnsupportedError(f"model type {model_type!r} is not supported: {row.refusal}")
    _refuse_sliding_window(config, row)
    return row


def _near_miss(written: str) -> str | None:
    """A type of the same version whose name differs in a letter or two; another generation's is none, nor a family's
    name (falcon) of one of its branches' (falcon_h1)."""

    def letters(name: str) -> str:
        return "".join(filter(str.isalpha, name.lower()))

    def digits(name: str) -> str:
        return "".join(filter(str.isdigit, name))

    def is_branch(name: str) -> bool:
        stem, _, rest = name.partition("_")
        return bool(rest) and letters(stem) == letters(written)

    same = [name for name in ARCHITECTURES if digits(written) in ("", digits(name)) and not is_branch(name)]
    near = difflib.get_close_matches(letters(written), [letters(name) for name in same], n=1, cutoff=0.85)
    return next((name for name in same if near and letters(name) == near[0]), None)


def sliding_window_of_all(config: Mapping[str, Any]) -> int | None:
    """Tokens that every layer of a model attends to, where all of them slide; None where some layer sees everything.

    An extension beyond makes them attend to everything, as Microsoft's Phi-3-mini-128k does.
    """
    row = ARCHITECTURES.get(str(config.get("model_type")))
    if row is None or row.rotary != "all":
        return None
    if types := config.get("layer_types"):
        slides = all(kind == "sliding_attention" for kind in types)
    else:
        slides = row.sliding_window and not row.hybrid and config.get("use_sliding_window", True)
        slides = slides and not _first_sliding(config)
    return config.get("sliding_window", row.default_window) or None if slides else None


def sliding_window_below(config: Mapping[str, Any], length: int | float) -> int | None:
    """The sliding window of all layers, where it is below `length` tokens, so that an extension to these widens it."""
    window = sliding_window_of_all(config)
    return window if window is not None and window < length else None


def attending_to(config: Mapping[str, Any], length: int | float) -> dict[str, Any]:
    """A config.json whose layers attend to so many tokens, where all of them slide over fewer: to everything."""
    if sliding_window_below(config, length) is None:
        return dict(config)
    widened = {**config, "sliding_window": None}
    if "use_sliding_window" in config:
        widened["use_sliding_window"] = False
    if types := config.get("layer_types"):
        widened["layer_types"] = [FULL] * len(types)
    return widened


def _first_sliding(config: Mapping[str, Any]) -> int:
    """Qwen's first layers see everything; the number of the first that slides, 0 for other types."""
    return int(config.get("max_window_layers", _MAX_WINDOW_LAYERS)) if "use_sliding_window" in config else 0


def _refuse_sliding_window(config: Mapping[str, Any], row: Architecture) -> None:
    """Where only some layers look back fewer tokens than the window, what they compute beyond is not known here."""
    window, layers = config.get("sliding_window", row.default_window), _sliding_layers(config, row)
    if not layers or not window or window >= config.get("max_position_embeddings", 0):
        return
    raise UnsupportedError(
        f"{layers} of this {row.model_type} model attend to the last {window} tokens only (sliding_window); a longer "
        "window has no effect on them. Set sliding_window to null in config.json if they were trained in full"
    )


def _sliding_layers(config: Mapping[str, Any], row: Architecture) -> str:
    """Which layers slide, in words; empty if none does, if all do, or if the row says that a mixture is handled."""
    if sliding_window_of_all(config):
        return ""
    if types := config.get("layer_types"):
        count = sum("sliding" in str(kind) or "chunked" in str(kind) for kind in types)
        handled = count == 0 or (row.hybrid and count < len(types))
        return "" if handled else f"{count} of {len(types)} layers"
    slides = row.sliding_window and not row.hybrid and config.get("use_sliding_window", True)
    first = _first_sliding(config)
    return f"layers from {first} on" if slides and first < config.get("num_hidden_layers", math.inf) else ""
