"""How each llama.cpp architecture names tensors and hyperparameters: data, one `Layout` an architecture.

Source: llama.cpp as vendored by llama-cpp-python 0.3.36 (src/llama-arch.cpp, src/models/*.cpp).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from converters.gguf.container import Value, f32, u32


@dataclass(frozen=True)
class Halves:
    """A source tensor whose rows are two tensors: the upper half and the lower one, in each expert where it has some."""

    upper: str
    lower: str


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


# Names outside the layers: transformers' module → GGUF's.
_OUTER = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
_QK_NORM = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_UNGATED_MLP = {"mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
_GATED_MLP = {"mlp.gate_proj": "ffn_gate", **_UNGATED_MLP}
# `*` stands for the number of an expert; its tensors are stacked.
_MIXTRAL_EXPERTS = {
    "block_sparse_moe.gate": "ffn_gate_inp",
    "block_sparse_moe.experts.*.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.*.w2": "ffn_down_exps",
    "block_sparse_moe.experts.*.w3": "ffn_up_exps",
}
_GRANITE_EXPERTS: Mapping[str, str | Halves] = {
    "block_sparse_moe.router.layer": "ffn_gate_inp",
    "block_sparse_moe.input_linear": Halves("ffn_gate_exps", "ffn_up_exps"),
    "block_sparse_moe.output_linear": "ffn_down_exps",
    "shared_mlp.input_linear": Halves("ffn_gate_shexp", "ffn_up_shexp"),
    "shared_mlp.output_linear": "ffn_down_shexp",
}
_LATENT_ATTENTION = {
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
}

# What every architecture here has. Lengths and rotary facts come from the factors, head sizes from the checkpoint.
COMMON_KEYS = (
    Key("block_count", "num_hidden_layers"),
    Key("embedding_length", "hidden_size"),
    Key("feed_forward_length", "intermediate_size"),
    Key("attention.head_count", "num_attention_heads"),
    Key("attention.layer_norm_rms_epsilon", "rms_norm_eps", f32, 1e-6),
    Key("vocab_size", "vocab_size"),
)
_EXPERT_KEYS = (Key("expert_count", "num_local_experts"), Key("expert_used_count", "num_experts_per_tok"))
_GRANITE_KEYS = (
    Key("attention.scale", "attention_multiplier", f32),
    Key("embedding_scale", "embedding_multiplier", f32),
    Key("residual_scale", "residual_multiplier", f32),
    Key("logit_scale", "logits_scaling", f32),
)


@dataclass(frozen=True)
class Layout:
    """One llama.cpp architecture.

    Args:
        layer: module names within `model.layers.N.` → within `blk.N.`.
        outer: module names outside the layers, transformers' → GGUF's.
        keys: hyperparameters beside the common ones.
        scalars: numbers that transformers keep as tensors of each layer → metadata arrays over the layers.
        model_class: transformers' class, for the config.json that is rebuilt from a file; "" where none is.
        needs: fields of config.json with the only value llama.cpp computes; None for absent or null.
    """

    layer: Mapping[str, str | Halves]
    outer: Mapping[str, str] = field(default_factory=lambda: _OUTER)
    keys: tuple[Key, ...] = ()
    scalars: Mapping[str, str] = field(default_factory=dict)
    model_class: str = ""
    needs: Mapping[str, Any] = field(default_factory=lambda: {"hidden_act": "silu"})


LAYOUTS: Mapping[str, Layout] = {
    "llama": Layout(
        {**_NORMS, **_ATTENTION, **_GATED_MLP, **_MIXTRAL_EXPERTS}, keys=_EXPERT_KEYS, model_class="LlamaForCausalLM"
    ),
    "mistral3": Layout(
        {**_NORMS, **_ATTENTION, **_GATED_MLP},
        keys=(Key("attention.temperature_scale", "llama_4_scaling_beta", f32),),
    ),
    "granite": Layout({**_NORMS, **_ATTENTION, **_GATED_MLP}, keys=_GRANITE_KEYS, model_class="GraniteForCausalLM"),
    "granitemoe": Layout(
        {**_NORMS, **_ATTENTION, **_GRANITE_EXPERTS},
        keys=(*_GRANITE_KEYS, *_EXPERT_KEYS, Key("expert_shared_feed_forward_length", "shared_intermediate_size")),
    ),
    "minicpm3": Layout(
        {**_NORMS, **_LATENT_ATTENTION, "self_attn.o_proj": "attn_output", **_GATED_MLP},
        keys=(Key("attention.q_lora_rank", "q_lora_rank"), Key("attention.kv_lora_rank", "kv_lora_rank")),
        needs={"hidden_act": "silu", "dim_model_base": 256, "scale_emb": 12, "scale_depth": 1.4},
    ),
    "phi3": Layout(
        {
            **_NORMS,
            "self_attn.qkv_proj": "attn_qkv",
            "self_attn.o_proj": "attn_output",
            "mlp.gate_up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down",
        },
        model_class="Phi3ForCausalLM",
    ),
    "apertus": Layout(
        {
            **_ATTENTION,
            **_QK_NORM,
            **_UNGATED_MLP,
            "attention_layernorm": "attn_norm",
            "feedforward_layernorm": "ffn_norm",
        },
        scalars={f"mlp.act_fn.{name}": f"xielu.{name}" for name in ("alpha_n", "alpha_p", "beta", "eps")},
        needs={"hidden_act": "xielu"},
    ),
    "arcee": Layout(
        {**_NORMS, **_ATTENTION, **_UNGATED_MLP}, model_class="ArceeForCausalLM", needs={"hidden_act": "relu2"}
    ),
    "exaone4": Layout(
        {
            **_ATTENTION,
            **_QK_NORM,
            **_GATED_MLP,
            "post_attention_layernorm": "post_attention_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        },
        needs={"hidden_act": "silu", "sliding_window": None},
        model_class="Exaone4ForCausalLM",
    ),
}

# What llama.cpp uses, whether transformers has such a type or not: files of these can be patched.
LOADS_SETS = frozenset({"llama", "mistral3", "deci", "granite", "granitemoe", "minicpm", "minicpm3", "phi3", "apertus"})
LOADS_FREQS = frozenset({"arcee", "exaone", "exaone4"})
