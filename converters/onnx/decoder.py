"""What the graph needs to know of a model: sizes, scales and the structure of each layer, taken from its configuration.

transformers' configuration class fills in what a config.json leaves out; the table of blocks says what no configuration
does. No weights are read here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from converters.onnx.blocks import BLOCKS, Bias, DecoderBlock
from longrope.base_rope import BaseRope, base_rope
from longrope.checkpoint import Checkpoint
from longrope.errors import UnsupportedError
from longrope.modeling import build_config
from longrope.rope import yarn_attention_factor

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu2": "relu_squared",
    "xielu": "xielu",
}
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
LATENT_EPSILON = 1e-6  # of the norms of latent vectors, whatever config.json says of the others
# Settings of config.json that change what a layer computes.
NOT_IN_THE_GRAPH = ("clip_qkv", "use_bidirectional_attention")
Rotary = Literal["extended", "local", "none"]


@dataclass(frozen=True)
class Layer:
    """One decoder layer.

    Args:
        window: how far its attention looks back; None: to the start.
        rotary: by which table q and k are rotated, if at all.
        linear: a gated delta net in place of attention.
        experts: a mixture of experts in place of the MLP.
    """

    window: int | None
    rotary: Rotary
    linear: bool = False
    experts: bool = False


@dataclass(frozen=True)
class Latent:
    """Sizes of latent attention: of the latent vectors, and of each head's parts. `query_rank` None: queries have none."""

    query_rank: int | None
    rank: int
    unrotated: int
    rotated: int
    value: int


@dataclass(frozen=True)
class Router:
    """How tokens find their experts: how many there are and are chosen, and how the choice is weighted.

    Args:
        normalized: the chosen ones' weights sum to 1.
        scale: what the weights are multiplied by.
        groups, groups_chosen: experts are chosen from the best groups only; 1 and 1 where there are none.
        alpha, limit: of clamped experts.
    """

    num_experts: int
    chosen: int
    normalized: bool
    scale: float = 1.0
    groups: int = 1
    groups_chosen: int = 1
    alpha: float = 0.0
    limit: float = 0.0


@dataclass(frozen=True)
class DeltaNet:
    """Sizes of linear attention: heads of keys and values, their sizes, taps of the convolution."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int

    @property
    def key_width(self) -> int:
        return self.key_heads * self.key_dim

    @property
    def value_width(self) -> int:
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        return 2 * self.key_width + self.value_width


@dataclass(frozen=True)
class QueryScale:
    """Llama 4's: queries grow by beta × ln(1 + whole windows that lie before them)."""

    beta: float
    window: int


@dataclass(frozen=True)
class Decoder:
    """A decoder-only transformer.

    Args:
        embedding_scale, residual_scale, logits_divisor: Granite's multipliers; 1 elsewhere.
        attention_scale: what query-key products are multiplied by.
        attention_softcap, logits_softcap: Gemma 2 keeps scores and logits within ± this; 0 for no limit.
        tied: the output head is the embedding matrix, says the configuration.
        biases: which matrices have biases, by part: qkv, out, mlp, head.
        bias_keys: the keys of config.json that say so.
        local: the table of layers that are rotated by another one.
    """

    model_type: str
    block: DecoderBlock
    layers: tuple[Layer, ...]
    vocab_size: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    norm_eps: float
    activation: str
    attention_scale: float
    attention_softcap: float
    embedding_scale: float
    residual_scale: float
    logits_divisor: float
    logits_softcap: float
    tied: bool
    biases: Mapping[str, bool]
    bias_keys: Mapping[str, str]
    local: BaseRope | None = None
    latent: Latent | None = None
    router: Router | None = None
    delta_net: DeltaNet | None = None
    query_scale: QueryScale | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Decoder:
        """The decoder of a checkpoint.

        Raises:
            UnsupportedError: the architecture has not been tested with ONNX, or its activation is not known.
        """
        block = BLOCKS.get(checkpoint.model_type)
        if block is None:
            raise UnsupportedError(
                f"{checkpoint.model_type}: export to ONNX has not been tested for this model type; --to hf holds the same "
                f"factors. Tested: {', '.join(sorted(BLOCKS))}"
            )
        config = build_config(checkpoint, None).get_text_config()
        for key in NOT_IN_THE_GRAPH:
            if getattr(config, key, None):
                raise UnsupportedError(
                    f"{checkpoint.name}: config.json says {key}, which the ONNX graph cannot express; --to hf can"
                )
        latent = _latent(config) if block.latent else None
        rules = {"qkv": block.qkv_bias, "out": block.out_bias, "mlp": block.mlp_bias, "head": block.head_bias}
        return cls(
            model_type=checkpoint.model_type,
            block=_resolved(block, config),
            layers=tuple(_layer(checkpoint, config, block, index) for index in range(config.num_hidden_layers)),
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_attention_heads if latent else _kv_heads(config),
            head_dim=latent.unrotated + latent.rotated if latent else checkpoint.head_dim,
            rotary_dim=checkpoint.rotary_dim,
            norm_eps=_norm_eps(config),
            activation=_activation(config),
            attention_scale=_attention_scale(config, latent, checkpoint.head_dim),
            attention_softcap=getattr(config, "attn_logit_softcapping", None) or 0.0,
            embedding_scale=_embedding_scale(config, block),
            residual_scale=_residual_scale(config),
            logits_divisor=_logits_divisor(config),
            logits_softcap=getattr(config, "final_logit_softcapping", None) or 0.0,
            tied=bool(config.tie_word_embeddings),
            biases={part: _has_bias(config, rule) for part, rule in rules.items()},
            bias_keys={part: rule for part, rule in rules.items() if isinstance(rule, str)},
            local=_local_base(checkpoint, config),
            latent=latent,
            router=_router(config, block),
            delta_net=_delta_net(config) if block.linear_attention else None,
            query_scale=_query_scale(config),
        )

    @property
    def query_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def value_dim(self) -> int:
        """Size of a head's values."""
        return self.latent.value if self.latent else self.head_dim


def _resolved(block: DecoderBlock, config: Any) -> DecoderBlock:
    """Some types say in config.json whether attention and MLP stand side by side, norm q and k, or interleave pairs."""
    parallel = block.norms.startswith("parallel") and getattr(config, "use_parallel_residual", True)
    return dataclasses.replace(
        block,
        norms=block.norms if parallel or not block.norms.startswith("parallel") else "pre",
        qk_norm=block.qk_norm if getattr(config, "use_qk_norm", True) else None,
        interleaved=block.interleaved and getattr(config, "rope_interleave", True),
    )


def _kv_heads(config: Any) -> int:
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def _norm_eps(config: Any) -> float:
    return float(next(getattr(config, name) for name in EPSILONS if hasattr(config, name)))


def _activation(config: Any) -> str:
    named = getattr(config, "hidden_activation", None) or config.hidden_act
    if named not in ACTIVATIONS:
        raise UnsupportedError(f"activation {named!r}: expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[named]


def _attention_scale(config: Any, latent: Latent | None, head_dim: int) -> float:
    """Granite says the number, Gemma what to take for the head size; else head_dim**-0.5.

    Latent attention takes a yarn RoPE's mscale_all_dim into the scores, squared, and not into the tables.
    """
    if hasattr(config, "attention_multiplier"):
        return float(config.attention_multiplier)
    if latent is None:
        return float(getattr(config, "query_pre_attn_scalar", head_dim) ** -0.5)
    rope = config.rope_parameters
    mscale = rope.get("mscale_all_dim") if rope.get("rope_type", "default") != "default" else None
    grown = yarn_attention_factor(rope["factor"], mscale) if mscale else 1.0
    return float((latent.unrotated + latent.rotated) ** -0.5) * grown**2


def _embedding_scale(config: Any, block: DecoderBlock) -> float:
    if block.scaled_embedding:
        return float(config.hidden_size**0.5)
    return float(getattr(config, "embedding_multiplier", getattr(config, "scale_emb", 1.0)))


def _residual_scale(config: Any) -> float:
    if hasattr(config, "scale_depth"):  # MiniCPM
        return float(config.scale_depth / math.sqrt(config.num_hidden_layers))
    return float(getattr(config, "residual_multiplier", 1.0))


def _logits_divisor(config: Any) -> float:
    if hasattr(config, "logit_scale"):  # Cohere
        return 1.0 / float(config.logit_scale)
    return float(getattr(config, "logits_scaling", 1.0))


def _has_bias(config: Any, rule: Bias) -> bool:
    return rule if isinstance(rule, bool) else bool(getattr(config, rule, False))


def _latent(config: Any) -> Latent:
    return Latent(
        query_rank=config.q_lora_rank,
        rank=config.kv_lora_rank,
        unrotated=config.qk_nope_head_dim,
        rotated=config.qk_rope_head_dim,
        value=config.v_head_dim,
    )


def _router(config: Any, block: DecoderBlock) -> Router | None:
    if block.experts is None:
        return None
    normalized = block.experts.normalized
    by_method = getattr(config, "topk_method", None) == "group_limited_greedy"
    grouped = by_method or (block.experts.scores == "sigmoid" and hasattr(config, "n_group"))
    return Router(
        num_experts=getattr(config, "num_experts", None) or config.num_local_experts,
        chosen=config.num_experts_per_tok,
        normalized=bool(config.norm_topk_prob) if normalized is None else normalized,
        scale=float(getattr(config, "routed_scaling_factor", 1.0)),
        groups=config.n_group if grouped else 1,
        groups_chosen=config.topk_group if grouped else 1,
        alpha=float(getattr(config, "swiglu_alpha", 0.0)),
        limit=float(getattr(config, "swiglu_limit", 0.0)),
    )


def _delta_net(config: Any) -> DeltaNet:
    return DeltaNet(
        key_heads=config.linear_num_key_heads,
        value_heads=config.linear_num_value_heads,
        key_dim=config.linear_key_head_dim,
        value_dim=config.linear_value_head_dim,
        kernel=config.linear_conv_kernel_dim,
    )


def _query_scale(config: Any) -> QueryScale | None:
    rope = getattr(config, "rope_parameters", None) or {}
    beta = rope.get("llama_4_scaling_beta")
    return QueryScale(float(beta), int(rope["original_max_position_embeddings"])) if beta else None


def _layer(checkpoint: Checkpoint, config: Any, block: DecoderBlock, index: int) -> Layer:
    types = getattr(config, "layer_types", None)
    kind = types[index] if types else "sliding_attention"
    return Layer(
        window=getattr(config, "sliding_window", None) if kind == "sliding_attention" else None,
        rotary=checkpoint.rotates(index),
        linear=kind == "linear_attention",
        experts=block.experts is not None and _is_sparse(config, index),
    )


def _local_base(checkpoint: Checkpoint, config: Any) -> BaseRope | None:
    """The rotary embedding of the layers that keep a local one; None where no layer does."""
    if all(checkpoint.rotates(index) != "local" for index in range(config.num_hidden_layers)):
        return None
    parameters = config.rope_parameters.get("sliding_attention", config.rope_parameters)
    window = checkpoint.max_position_embeddings
    return base_rope(checkpoint.config, parameters, rotary_dim=checkpoint.rotary_dim, window=window)


def _is_sparse(config: Any, index: int) -> bool:
    """Whether a layer of a mixture-of-experts model has experts."""
    if index in (getattr(config, "mlp_only_layers", None) or ()):
        return False
    step = getattr(config, "decoder_sparse_step", 1)
    return index >= getattr(config, "first_k_dense_replace", 0) and (index + 1) % step == 0
