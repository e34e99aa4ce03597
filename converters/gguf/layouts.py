"""How each llama.cpp architecture names tensors and hyperparameters: data, one `Layout` an architecture.

Source: llama.cpp as vendored by llama-cpp-python 0.3.36 (src/llama-arch.cpp, src/models/*.cpp).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from converters.gguf.container import Value, f32, u32

# Names outside the layers: transformers' module → GGUF's.
_OUTER = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_ATTENTION = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
_GATED_MLP = {
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class Key:
    """One hyperparameter: `{architecture}.{name}` from a field of config.json.

    Args:
        name: in the file, without the architecture.
        field: of config.json.
        make: Python value → typed value.
        default: when config.json is silent; None leaves the key out.
    """

    name: str
    field: str
    make: Callable[[Any], Value] = u32
    default: Any = None


# What every architecture here has. Lengths and rotary facts come from the factors, head sizes from the checkpoint.
COMMON_KEYS = (
    Key("block_count", "num_hidden_layers"),
    Key("embedding_length", "hidden_size"),
    Key("feed_forward_length", "intermediate_size"),
    Key("attention.head_count", "num_attention_heads"),
    Key("attention.layer_norm_rms_epsilon", "rms_norm_eps", f32, 1e-6),
    Key("vocab_size", "vocab_size"),
)


@dataclass(frozen=True)
class Layout:
    """One llama.cpp architecture.

    Args:
        outer: module names outside the layers, transformers' → GGUF's.
        layer: module names within `model.layers.N.` → within `blk.N.`.
        keys: hyperparameters beside the common ones.
        needs: fields of config.json with the only value llama.cpp computes.
    """

    outer: Mapping[str, str] = field(default_factory=lambda: _OUTER)
    layer: Mapping[str, str] = field(default_factory=lambda: {**_ATTENTION, **_GATED_MLP})
    keys: tuple[Key, ...] = ()
    needs: Mapping[str, Any] = field(default_factory=lambda: {"hidden_act": "silu"})


LAYOUTS: Mapping[str, Layout] = {
    "llama": Layout(),
    "granite": Layout(
        keys=(
            Key("attention.scale", "attention_multiplier", f32),
            Key("embedding_scale", "embedding_multiplier", f32),
            Key("residual_scale", "residual_multiplier", f32),
            Key("logit_scale", "logits_scaling", f32),
        )
    ),
}
