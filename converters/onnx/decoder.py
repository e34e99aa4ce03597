"""What the graph needs to know of a model: sizes, scales and the structure of each layer, taken from its configuration.

transformers' configuration class fills in what a config.json leaves out; the architecture table says what no
configuration does. No weights are read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from longrope.architectures import DecoderBlock
from longrope.checkpoint import Checkpoint
from longrope.errors import UnsupportedError
from longrope.modeling import build_config

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu2": "relu_squared",
}


@dataclass(frozen=True)
class Layer:
    """One decoder layer: how far its attention looks back (None: to the start), and whether it rotates q and k."""

    window: int | None
    rotary: bool


@dataclass(frozen=True)
class Decoder:
    """A decoder-only transformer.

    Args:
        embedding_scale, residual_scale, logits_divisor: Granite's multipliers; 1 elsewhere.
        attention_scale: what query-key products are multiplied by.
        attention_softcap, logits_softcap: Gemma 2 keeps scores and logits within ± this; 0 for no limit.
        tied: the output head is the embedding matrix.
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

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Decoder:
        """The decoder of a checkpoint.

        Raises:
            UnsupportedError: the architecture has not been tested with ONNX, or its activation is not known.
        """
        block = checkpoint.architecture.onnx
        if block is None:
            raise UnsupportedError(f"{checkpoint.model_type}: export to ONNX has not been tested for this model type")
        config = build_config(checkpoint, None)
        named = getattr(config, "hidden_activation", None) or config.hidden_act
        activation = ACTIVATIONS.get(named)
        if activation is None:
            raise UnsupportedError(f"activation {named!r}: expected one of {', '.join(ACTIVATIONS)}")
        head_dim = checkpoint.head_dim
        return cls(
            model_type=checkpoint.model_type,
            block=block,
            layers=tuple(_layer(config, index) for index in range(config.num_hidden_layers)),
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=head_dim,
            rotary_dim=checkpoint.rotary_dim,
            norm_eps=config.rms_norm_eps,
            activation=activation,
            attention_scale=_attention_scale(config, head_dim),
            attention_softcap=getattr(config, "attn_logit_softcapping", None) or 0.0,
            embedding_scale=_embedding_scale(config, block),
            residual_scale=getattr(config, "residual_multiplier", 1.0),
            logits_divisor=getattr(config, "logits_scaling", 1.0),
            logits_softcap=getattr(config, "final_logit_softcapping", None) or 0.0,
            tied=bool(config.tie_word_embeddings),
        )

    @property
    def query_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.head_dim


def _attention_scale(config: Any, head_dim: int) -> float:
    """Granite says the number, Gemma what to take for the head size; else head_dim**-0.5."""
    if hasattr(config, "attention_multiplier"):
        return float(config.attention_multiplier)
    return float(getattr(config, "query_pre_attn_scalar", head_dim) ** -0.5)


def _embedding_scale(config: Any, block: DecoderBlock) -> float:
    if block.scaled_embedding:
        return float(config.hidden_size**0.5)
    return float(getattr(config, "embedding_multiplier", 1.0))


def _layer(config: Any, index: int) -> Layer:
    types = getattr(config, "layer_types", None)
    slides = types[index] == "sliding_attention" if types else True
    window = getattr(config, "sliding_window", None) if slides else None
    rotary = getattr(config, "no_rope_layers", None)  # SmolLM3: 1 where positions are used, despite the name
    return Layer(window=window, rotary=bool(rotary[index]) if rotary else True)
