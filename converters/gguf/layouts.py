"""What a file of each architecture holds: its hyperparameters, and where each weight goes. Data only.

    model.layers.3.self_attn.q_proj.weight ──Layout──► blk.3.attn_q.weight, rows interleaved by head
    …experts.0.w1, experts.1.w1, …         ──Layout──► ffn_gate_exps, stacked
    …input_linear (gate above up)          ──Layout──► ffn_gate_exps and ffn_up_exps, halves

Names of hyperparameters stand as in the file, without the architecture, for the ids of checks hold them; a test compares them
with `gguf.Keys`. `tensor_planner` follows a layout.

Source: llama.cpp as vendored by llama-cpp-python 0.3.36 (src/llama-arch.cpp, src/models/*.cpp).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from converters.gguf.carriers import Target
from converters.gguf.container import Value, array, f32, flag, u32
from converters.gguf.native import gguf
from converters.gguf.parts import (
    Part,
    by_kind,
    columns_as_rows,
    columns_in_turns,
    even_columns,
    even_columns_as_rows,
    minus_exp,
    odd_columns,
    odd_columns_as_rows,
    one_more_scaling_queries,
    values_in_turns,
    values_in_turns_behind_keys,
)


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
        default: when config.json is silent or says null; None leaves the key out.
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
_POST_NORMS = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
_SANDWICH_NORMS = {
    "input_layernorm": "attn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    **_POST_NORMS,
}
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
_QWEN_EXPERTS = {
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.*.gate_proj": "ffn_gate_exps",
    "mlp.experts.*.up_proj": "ffn_up_exps",
    "mlp.experts.*.down_proj": "ffn_down_exps",
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


def _slides(layer_types: Any) -> Value:
    """Which layers look back over the sliding window only."""
    return array(gguf.GGUFValueType.BOOL, [kind == "sliding_attention" for kind in layer_types])


def _recurrent(layer_types: Any) -> Value:
    """Which layers carry a state instead of attending."""
    return array(gguf.GGUFValueType.BOOL, [kind == "linear_attention" for kind in layer_types])


_SLIDING_KEYS = (
    Key("attention.sliding_window", "sliding_window"),
    Key("attention.sliding_window_pattern", "layer_types", _slides),
)
_LAYER_NORM_KEYS = (Key("attention.layer_norm_epsilon", "layer_norm_eps", f32, 1e-5),)
_DELTA_NET_KEYS = (
    Key("ssm.conv_kernel", "linear_conv_kernel_dim", u32, 4),
    Key("ssm.state_size", "linear_key_head_dim"),
    Key("ssm.group_count", "linear_num_key_heads"),
    Key("ssm.time_step_rank", "linear_num_value_heads"),
    Key("attention.recurrent_layers", "layer_types", _recurrent),
)
_DELTA_NET = {
    "linear_attn.conv1d.weight": (Part("ssm_conv1d.weight", values_in_turns_behind_keys),),
    "linear_attn.A_log": (Part("ssm_a", values_in_turns, minus_exp),),
    "linear_attn.dt_bias": (Part("ssm_dt.bias", values_in_turns),),
    "linear_attn.out_proj.weight": (Part("ssm_out.weight", columns_in_turns),),
}
# Where the key is missing, llama.cpp's gemma4 caps logits at 30.
_FINAL_CAP = Key("final_logit_softcapping", "final_logit_softcapping", f32, 0.0)
_GEMMA_NEEDS = {"hidden_activation": "gelu_pytorch_tanh"}


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
        norm_plus_one: norms are stored as offsets from 1, and are whole in the file.
        parts: weights within `model.layers.N.` by full name → the tensors that are made of them.
    """

    layer: Mapping[str, str | Halves]
    outer: Mapping[str, str] = field(default_factory=lambda: _OUTER)
    keys: tuple[Key, ...] = ()
    scalars: Mapping[str, str] = field(default_factory=dict)
    model_class: str = ""
    needs: Mapping[str, Any] = field(default_factory=lambda: {"hidden_act": "silu"})
    norm_plus_one: bool = False
    parts: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)


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
        {**_POST_NORMS, **_ATTENTION, **_QK_NORM, **_GATED_MLP},
        needs={"hidden_act": "silu", "sliding_window": None},
        model_class="Exaone4ForCausalLM",
    ),
    # Architectures that load no factors: their own keys rescale (`longrope.family`).
    "qwen2": Layout({**_NORMS, **_ATTENTION, **_GATED_MLP}, model_class="Qwen2ForCausalLM"),
    "seed_oss": Layout({**_NORMS, **_ATTENTION, **_GATED_MLP, "post_attention_layernorm": "post_attention_norm"}),
    "smollm3": Layout(
        {**_NORMS, **_ATTENTION, **_GATED_MLP}, needs={"hidden_act": "silu", "no_rope_layer_interval": 4}
    ),
    "olmo2": Layout({**_POST_NORMS, **_ATTENTION, **_QK_NORM, **_GATED_MLP}),
    "gemma": Layout(
        {**_NORMS, **_ATTENTION, **_GATED_MLP},
        keys=(_FINAL_CAP,),
        needs={"hidden_act": "gelu_pytorch_tanh"},
        norm_plus_one=True,
    ),
    "gemma2": Layout(
        {**_SANDWICH_NORMS, **_ATTENTION, **_GATED_MLP},
        keys=(
            Key("attn_logit_softcapping", "attn_logit_softcapping", f32),
            Key("final_logit_softcapping", "final_logit_softcapping", f32),
            *_SLIDING_KEYS,
        ),
        needs=_GEMMA_NEEDS,
        norm_plus_one=True,
    ),
    "gemma3": Layout(
        {**_SANDWICH_NORMS, **_ATTENTION, **_QK_NORM, **_GATED_MLP},
        keys=(
            Key("final_logit_softcapping", "final_logit_softcapping", f32),
            Key("rope.freq_base_swa", "rope_local_base_freq", f32, 10_000.0),
            *_SLIDING_KEYS,
        ),
        needs={**_GEMMA_NEEDS, "attn_logit_softcapping": None, "use_bidirectional_attention": False},
        norm_plus_one=True,
    ),
    "qwen3moe": Layout(
        {**_NORMS, **_ATTENTION, **_QK_NORM, **_QWEN_EXPERTS},
        keys=(
            Key("expert_count", "num_experts"),
            Key("expert_used_count", "num_experts_per_tok"),
            Key("expert_feed_forward_length", "moe_intermediate_size"),
        ),
        needs={"hidden_act": "silu", "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
    ),
    "olmo3": Layout(
        {**_POST_NORMS, **_ATTENTION, **_QK_NORM, **_GATED_MLP}, keys=_SLIDING_KEYS, needs={"hidden_act": "silu"}
    ),
    "glm4": Layout(
        {
            **_ATTENTION,
            "mlp.gate_up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down",
            "input_layernorm": "attn_norm",
            "post_self_attn_layernorm": "post_attention_norm",
            "post_attention_layernorm": "ffn_norm",
            "post_mlp_layernorm": "post_ffw_norm",
        }
    ),
    "command-r": Layout(
        {"input_layernorm": "attn_norm", **_ATTENTION, **_GATED_MLP},
        keys=(*_LAYER_NORM_KEYS, Key("logit_scale", "logit_scale", f32, 0.0625)),
        needs={"hidden_act": "silu", "use_qk_norm": False},
    ),
    "phi2": Layout(
        {
            "input_layernorm": "attn_norm",
            **_ATTENTION,
            "self_attn.dense": "attn_output",
            "mlp.fc1": "ffn_up",
            "mlp.fc2": "ffn_down",
        },
        outer={**_OUTER, "model.final_layernorm": "output_norm"},
        keys=_LAYER_NORM_KEYS,
        needs={"hidden_act": "gelu_new", "qk_layernorm": False},
    ),
    "gptneox": Layout(
        {
            "input_layernorm": "attn_norm",
            "post_attention_layernorm": "ffn_norm",
            "attention.dense": "attn_output",
            "mlp.dense_h_to_4h": "ffn_up",
            "mlp.dense_4h_to_h": "ffn_down",
        },
        outer={
            "gpt_neox.embed_in": "token_embd",
            "gpt_neox.final_layer_norm": "output_norm",
            "embed_out": "output",
        },
        keys=(*_LAYER_NORM_KEYS, Key("use_parallel_residual", "use_parallel_residual", flag, True)),
        needs={"hidden_act": "gelu", "attention_bias": True},
        parts={
            "attention.query_key_value.weight": (Part("attn_qkv.weight", by_kind),),
            "attention.query_key_value.bias": (Part("attn_qkv.bias", by_kind),),
        },
    ),
    "gpt-oss": Layout(
        {
            "input_layernorm": "attn_norm",
            "post_attention_layernorm": "post_attention_norm",
            **_ATTENTION,
            "mlp.router": "ffn_gate_inp",
        },
        keys=(*_EXPERT_KEYS, Key("expert_feed_forward_length", "intermediate_size"), *_SLIDING_KEYS),
        needs={"swiglu_limit": 7.0, "swiglu_alpha": 1.702},
        parts={
            "self_attn.sinks": (Part("attn_sinks.weight"),),
            "mlp.experts.gate_up_proj": (
                Part("ffn_gate_exps.weight", even_columns_as_rows, stacked=True),
                Part("ffn_up_exps.weight", odd_columns_as_rows, stacked=True),
            ),
            "mlp.experts.gate_up_proj_bias": (
                Part("ffn_gate_exps.bias", even_columns),
                Part("ffn_up_exps.bias", odd_columns),
            ),
            "mlp.experts.down_proj": (Part("ffn_down_exps.weight", columns_as_rows, stacked=True),),
            "mlp.experts.down_proj_bias": (Part("ffn_down_exps.bias"),),
        },
    ),
    "deepseek2": Layout(
        {
            **_NORMS,
            **_LATENT_ATTENTION,
            "self_attn.q_proj": "attn_q",
            "self_attn.o_proj": "attn_output",
            **_GATED_MLP,
            **_QWEN_EXPERTS,
            "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
            "mlp.shared_experts.up_proj": "ffn_up_shexp",
            "mlp.shared_experts.down_proj": "ffn_down_shexp",
        },
        keys=(
            Key("leading_dense_block_count", "first_k_dense_replace", u32, 0),
            Key("attention.q_lora_rank", "q_lora_rank"),
            Key("attention.kv_lora_rank", "kv_lora_rank"),
            Key("expert_count", "n_routed_experts"),
            Key("expert_used_count", "num_experts_per_tok"),
            Key("expert_shared_count", "n_shared_experts"),
            Key("expert_feed_forward_length", "moe_intermediate_size"),
            Key("expert_weights_scale", "routed_scaling_factor", f32, 1.0),
            Key("expert_weights_norm", "norm_topk_prob", flag, False),
        ),
        needs={"hidden_act": "silu", "topk_method": "greedy"},
    ),
    "qwen35": Layout(
        {
            "input_layernorm": "attn_norm",
            "post_attention_layernorm": "post_attention_norm",
            **_ATTENTION,
            **_QK_NORM,
            **_GATED_MLP,
            "linear_attn.norm": "ssm_norm",
        },
        keys=_DELTA_NET_KEYS,
        norm_plus_one=True,
        parts={
            **_DELTA_NET,
            "linear_attn.in_proj_qkv.weight": (Part("attn_qkv.weight", values_in_turns_behind_keys),),
            "linear_attn.in_proj_z.weight": (Part("attn_gate.weight", values_in_turns),),
            "linear_attn.in_proj_a.weight": (Part("ssm_alpha.weight", values_in_turns),),
            "linear_attn.in_proj_b.weight": (Part("ssm_beta.weight", values_in_turns),),
        },
    ),
    "gemma4": Layout(
        {
            **_SANDWICH_NORMS,
            **_ATTENTION,
            **_QK_NORM,
            **_GATED_MLP,
            "per_layer_input_gate": "inp_gate",
            "per_layer_projection": "proj",
            "post_per_layer_input_norm": "post_norm",
        },
        outer={
            **_OUTER,
            "model.embed_tokens_per_layer": "per_layer_token_embd",
            "model.per_layer_model_projection": "per_layer_model_proj",
            "model.per_layer_projection_norm": "per_layer_proj_norm",
        },
        keys=(
            _FINAL_CAP,
            Key("embedding_length_per_layer_input", "hidden_size_per_layer_input", u32, 0),
            Key("attention.shared_kv_layers", "num_kv_shared_layers", u32, 0),
        ),
        needs={
            **_GEMMA_NEEDS,
            "enable_moe_block": False,
            "attention_k_eq_v": False,
            "num_global_key_value_heads": None,
            "use_bidirectional_attention": None,
        },
        parts={"layer_scalar": (Part("layer_output_scale.weight"),)},
    ),
    # Types whose names are not those of the architecture that carries them.
    "gemma3 as gemma4": Layout(
        {**_SANDWICH_NORMS, **_ATTENTION, **_QK_NORM, **_GATED_MLP},
        keys=(_FINAL_CAP,),
        needs={**_GEMMA_NEEDS, "attn_logit_softcapping": None, "use_bidirectional_attention": False},
        norm_plus_one=True,
        parts={"self_attn.q_norm.weight": (Part("attn_q_norm.weight", change=one_more_scaling_queries),)},
    ),
    "exaone": Layout(
        {
            "ln_1": "attn_norm",
            "ln_2": "ffn_norm",
            "attn.attention.q_proj": "attn_q",
            "attn.attention.k_proj": "attn_k",
            "attn.attention.v_proj": "attn_v",
            "attn.attention.out_proj": "attn_output",
            "mlp.c_fc_0": "ffn_gate",
            "mlp.c_fc_1": "ffn_up",
            "mlp.c_proj": "ffn_down",
        },
        outer={"transformer.wte": "token_embd", "transformer.ln_f": "output_norm", "lm_head": "output"},
    ),
    "granitemoehybrid": Layout(
        {
            **_NORMS,
            **_ATTENTION,
            "shared_mlp.input_linear": Halves("ffn_gate", "ffn_up"),
            "shared_mlp.output_linear": "ffn_down",
        },
        keys=(*_GRANITE_KEYS, Key("feed_forward_length", "shared_intermediate_size")),
    ),
    "qwen3": Layout({**_NORMS, **_ATTENTION, **_QK_NORM, **_GATED_MLP}, model_class="Qwen3ForCausalLM"),
    "qwen3_moe": Layout({**_NORMS, **_ATTENTION, **_QK_NORM, **_QWEN_EXPERTS}),
}
# Other spellings of the fields of config.json that hyperparameters are made of.
ALIASES = {
    "num_local_experts": "num_experts",
    "num_layers": "num_hidden_layers",
    "layer_norm_epsilon": "rms_norm_eps",
    "activation_function": "hidden_act",
}


def layout_of(target: Target) -> Layout:
    """Where its weights go."""
    return LAYOUTS[target.layout_name]


def renamed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with the fields that hyperparameters are made of under their usual names."""
    return {**{ALIASES[name]: value for name, value in config.items() if name in ALIASES}, **config}
