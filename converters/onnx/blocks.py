"""How a decoder layer of each model type is put together: what its class does and its config.json does not say.

One row a type, and the graph follows the fields: no branches by model type elsewhere. A type without a row has not been
tested with ONNX. Rows were checked against transformers 5.24 by comparing logits; `names` turns a checkpoint's weight
names into those of Llama's layout, which the graph uses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# A key of config.json that says whether there are biases, or the answer itself.
Bias = str | bool


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of the MLP.

    Args:
        layout: each expert's matrices by themselves ("list"); or stacked [E, out, in], gate above up ("stacked"), or
            [E, in, out], gate and up in turns, with biases ("interleaved").
        scores: "sigmoid": each expert's own, chosen with a trained correction; else of all experts together.
        clamped: gate and up are kept within ± swiglu_limit: (up + 1) × gate × sigmoid(alpha × gate).
        normalized: the chosen experts' weights sum to 1; None: where config.json says norm_topk_prob.
        shared: name of an expert that every token uses, if there is one.
        shared_gate: it is weighted by the sigmoid of shared_expert_gate.
        router_bias: the router has a bias.
    """

    layout: Literal["list", "stacked", "interleaved"] = "list"
    scores: Literal["softmax", "sigmoid"] = "softmax"
    clamped: bool = False
    normalized: bool | None = True
    shared: str | None = None
    shared_gate: bool = False
    router_bias: bool = False


@dataclass(frozen=True)
class DecoderBlock:
    """Facts of a model type; see the module's docstring.

    Args:
        norms: where they sit: before attention and MLP ("pre"), after both ("post"), around both ("sandwich"), or one
            before attention and MLP side by side ("parallel"; "parallel_own" where each has its own).
        norm: RMS normalization, or layer normalization with ("layer") or without a bias ("layer_unbiased").
        norm_plus_one: the stored norm weight is an offset from 1.
        qk_norm: queries and keys are normalized per head, over all heads at once, or not.
        qk_norm_after_rope: after they were rotated.
        interleaved: pairs to rotate are neighbours, (0, 1), (2, 3), …; else halves, (0, d/2), (1, d/2 + 1), ….
        latent: keys and values come from a latent vector beside a rotated part that all heads share (MLA).
        linear_attention: layers of that type are gated delta nets; "joined": their projections lie head by head in two
            matrices.
        sinks: each head has a logit beside the scores that takes attention and gives nothing.
        attention_gate: q_proj gives a gate behind each head's query, whose sigmoid multiplies what attention gives.
        qkv: q, k, v lie in one matrix: one above the other ("packed"), or head by head ("by_head").
        packed_mlp: gate and up lie in one gate_up_proj.
        gated: the MLP has a gate; else it is up_proj, activation, down_proj.
        experts: in place of the MLP, where config.json does not say that a layer is dense.
        scaled_embedding: token embeddings are multiplied by the square root of the hidden size.
        qkv_bias, out_bias, mlp_bias, head_bias: whether these matrices have biases.
        names: what to replace in a checkpoint's weight names, in this order.
    """

    norms: Literal["pre", "post", "sandwich", "parallel", "parallel_own"] = "pre"
    norm: Literal["rms", "layer", "layer_unbiased"] = "rms"
    norm_plus_one: bool = False
    qk_norm: Literal["head", "all"] | None = None
    qk_norm_after_rope: bool = False
    interleaved: bool = False
    latent: bool = False
    linear_attention: Literal["separate", "joined"] | None = None
    sinks: bool = False
    attention_gate: bool = False
    qkv: Literal["packed", "by_head"] | None = None
    packed_mlp: bool = False
    gated: bool = True
    experts: Experts | None = None
    scaled_embedding: bool = False
    qkv_bias: Bias = "attention_bias"
    out_bias: Bias = "attention_bias"
    mlp_bias: Bias = "mlp_bias"
    head_bias: Bias = False
    names: tuple[tuple[str, str], ...] = ()


MIXTRAL_NAMES = (
    (".block_sparse_moe.gate.", ".mlp.gate."),
    (".block_sparse_moe.", ".mlp."),
    (".w1.", ".gate_proj."),
    (".w2.", ".down_proj."),
    (".w3.", ".up_proj."),
)
GRANITE_MOE = DecoderBlock(
    experts=Experts(layout="stacked"),
    names=(
        (".block_sparse_moe.router.layer.", ".mlp.gate."),
        (".block_sparse_moe.input_linear.weight", ".mlp.experts.gate_up_proj"),
        (".block_sparse_moe.output_linear.weight", ".mlp.experts.down_proj"),
        (".shared_mlp.output_linear.", ".mlp.shared_mlp.down_proj."),
        (".shared_mlp.input_linear.", ".mlp.shared_mlp.gate_up_proj."),
    ),
)
GLM_ROTARY_BLOCK = DecoderBlock(interleaved=True, packed_mlp=True, out_bias=False, mlp_bias=False)

BLOCKS: Mapping[str, DecoderBlock] = {
    "llama": DecoderBlock(),
    "granitemoeshared": dataclasses.replace(
        GRANITE_MOE, packed_mlp=True, mlp_bias=False, experts=Experts(layout="stacked", shared="shared_mlp")
    ),
    "mistral": DecoderBlock(qkv_bias=False, out_bias=False),
    "ministral3": DecoderBlock(qkv_bias=False, out_bias=False),
    "mixtral": DecoderBlock(qkv_bias=False, out_bias=False, experts=Experts(), names=MIXTRAL_NAMES),
    "granite": DecoderBlock(),
    "granitemoe": GRANITE_MOE,
    "phi3": DecoderBlock(qkv="packed", packed_mlp=True, qkv_bias=False, out_bias=False, mlp_bias=False),
    "phi": DecoderBlock(
        norms="parallel",
        norm="layer",
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        head_bias=True,
        names=(
            (".self_attn.dense.", ".self_attn.o_proj."),
            (".fc1.", ".up_proj."),
            (".fc2.", ".down_proj."),
            ("model.final_layernorm.", "model.norm."),
        ),
    ),
    "gpt_neox": DecoderBlock(
        norms="parallel_own",
        norm="layer",
        qkv="by_head",
        gated=False,
        mlp_bias=True,
        names=(
            ("gpt_neox.embed_in.", "model.embed_tokens."),
            ("gpt_neox.final_layer_norm.", "model.norm."),
            ("gpt_neox.layers.", "model.layers."),
            (".attention.dense.", ".self_attn.o_proj."),
            (".attention.query_key_value.", ".self_attn.qkv_proj."),
            (".dense_h_to_4h.", ".up_proj."),
            (".dense_4h_to_h.", ".down_proj."),
            ("embed_out.", "lm_head."),
        ),
    ),
    "stablelm": DecoderBlock(norms="parallel", norm="layer", qkv_bias="use_qkv_bias", out_bias=False, mlp_bias=False),
    "starcoder2": DecoderBlock(
        norm="layer",
        gated=False,
        qkv_bias="use_bias",
        out_bias="use_bias",
        mlp_bias="use_bias",
        names=((".c_fc.", ".up_proj."), (".c_proj.", ".down_proj.")),
    ),
    "nemotron": DecoderBlock(norm="layer", norm_plus_one=True, gated=False),
    "cohere": DecoderBlock(norms="parallel", norm="layer_unbiased", interleaved=True, mlp_bias=False),
    "glm": GLM_ROTARY_BLOCK,
    "glm4": DecoderBlock(
        norms="sandwich",
        interleaved=True,
        packed_mlp=True,
        out_bias=False,
        mlp_bias=False,
        names=(
            (".post_attention_layernorm.", ".pre_feedforward_layernorm."),
            (".post_self_attn_layernorm.", ".post_attention_layernorm."),
            (".post_mlp_layernorm.", ".post_feedforward_layernorm."),
        ),
    ),
    "ernie4_5": DecoderBlock(interleaved=True, qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias"),
    "arcee": DecoderBlock(gated=False),
    "apertus": DecoderBlock(
        gated=False,
        qk_norm="head",
        mlp_bias=False,
        names=(
            (".attention_layernorm.", ".input_layernorm."),
            (".feedforward_layernorm.", ".post_attention_layernorm."),
        ),
    ),
    "seed_oss": DecoderBlock(out_bias="attention_out_bias"),
    "qwen2": DecoderBlock(qkv_bias=True, out_bias=False, mlp_bias=False),
    "qwen2_moe": DecoderBlock(
        qkv_bias="qkv_bias",
        out_bias=False,
        mlp_bias=False,
        experts=Experts(normalized=None, shared="shared_expert", shared_gate=True),
    ),
    "qwen3": DecoderBlock(qk_norm="head", mlp_bias=False),
    "qwen3_moe": DecoderBlock(qk_norm="head", mlp_bias=False, experts=Experts(normalized=None)),
    "qwen3_5_text": DecoderBlock(
        norm_plus_one=True, qk_norm="head", attention_gate=True, linear_attention="separate", mlp_bias=False
    ),
    "qwen3_next": DecoderBlock(
        norm_plus_one=True,
        qk_norm="head",
        attention_gate=True,
        linear_attention="joined",
        mlp_bias=False,
        experts=Experts(normalized=None, shared="shared_expert", shared_gate=True),
    ),
    "qwen3_5_moe_text": DecoderBlock(
        norm_plus_one=True,
        qk_norm="head",
        attention_gate=True,
        linear_attention="separate",
        mlp_bias=False,
        experts=Experts(normalized=True, shared="shared_expert", shared_gate=True),
    ),
    "olmoe": DecoderBlock(qk_norm="all", mlp_bias=False, experts=Experts(normalized=None)),
    "olmo2": DecoderBlock(norms="post", qk_norm="all", mlp_bias=False),
    "olmo3": DecoderBlock(norms="post", qk_norm="all", mlp_bias=False),
    "gemma": DecoderBlock(norm_plus_one=True, scaled_embedding=True, mlp_bias=False),
    "gemma2": DecoderBlock(norms="sandwich", norm_plus_one=True, scaled_embedding=True, mlp_bias=False),
    "gemma3_text": DecoderBlock(
        norms="sandwich", norm_plus_one=True, scaled_embedding=True, qk_norm="head", mlp_bias=False
    ),
    "smollm3": DecoderBlock(),
    "exaone": DecoderBlock(
        names=(
            ("transformer.wte.", "model.embed_tokens."),
            ("transformer.ln_f.", "model.norm."),
            ("transformer.h.", "model.layers."),
            (".attn.attention.out_proj.", ".self_attn.o_proj."),
            (".attn.attention.", ".self_attn."),
            (".ln_1.", ".input_layernorm."),
            (".ln_2.", ".post_attention_layernorm."),
            (".c_fc_0.", ".gate_proj."),
            (".c_fc_1.", ".up_proj."),
            (".c_proj.", ".down_proj."),
        )
    ),
    "exaone4": DecoderBlock(norms="post", qk_norm="head", qkv_bias=False, out_bias=False, mlp_bias=False),
    "internlm3": DecoderBlock(),
    "hunyuan_v1_dense": DecoderBlock(
        qk_norm="head",
        qk_norm_after_rope=True,
        mlp_bias=False,
        names=((".query_layernorm.", ".q_norm."), (".key_layernorm.", ".k_norm.")),
    ),
    "minicpm3": DecoderBlock(latent=True),
    "deepseek_v2": DecoderBlock(
        latent=True, interleaved=True, experts=Experts(normalized=False, shared="shared_experts")
    ),
    "deepseek_v3": DecoderBlock(
        latent=True,
        interleaved=True,
        mlp_bias=False,
        experts=Experts(scores="sigmoid", normalized=None, shared="shared_experts"),
    ),
    "glm4_moe": DecoderBlock(
        qk_norm="head",
        out_bias=False,
        mlp_bias=False,
        experts=Experts(scores="sigmoid", normalized=None, shared="shared_experts"),
    ),
    "gpt_oss": DecoderBlock(
        sinks=True,
        mlp_bias=True,
        experts=Experts(layout="interleaved", clamped=True, router_bias=True),
        names=((".mlp.router.", ".mlp.gate."),),
    ),
}
