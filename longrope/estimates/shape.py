"""The numbers of a decoder that decide what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# How configurations call the number of experts in a layer.
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder.

    Args:
        layers, hidden, mlp, heads, kv_heads, head_dim, vocab: as in config.json; `mlp` is one expert's.
        tied: the head is the embedding.
        experts, active_experts: MLPs in a layer, and how many of them work for a token.
        capped_scores: attention scores are capped, so they are written out instead of fused (Gemma 2).
    """

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False
    experts: int = 1
    active_experts: int = 1
    capped_scores: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> DecoderShape:
        """From a parsed config.json. MLPs are taken to be gated, as almost all are."""
        heads = int(config["num_attention_heads"])
        mlp = int(config.get("moe_intermediate_size") or config.get("intermediate_size") or 4 * config["hidden_size"])
        return cls(
            layers=int(config["num_hidden_layers"]),
            hidden=int(config["hidden_size"]),
            mlp=mlp,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            vocab=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            experts=int(next((config[key] for key in EXPERTS if config.get(key)), 1)),
            active_experts=int(config.get("num_experts_per_tok") or 1),
            capped_scores=bool(config.get("attn_logit_softcapping")),
        )

    @property
    def layer_parameters(self) -> int:
        return self._layer(self.experts)

    @property
    def active_parameters(self) -> int:
        """Of all layers, those that work for a token."""
        return self.layers * self._layer(self.active_experts)

    @property
    def end_parameters(self) -> int:
        """Embedding, last norm and head."""
        return self.vocab * self.hidden * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        """All but biases and routers; `Checkpoint.num_parameters` counts what is stored."""
        return self.layers * self.layer_parameters + self.end_parameters

    def _layer(self, experts: int) -> int:
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + experts * 3 * self.hidden * self.mlp + 2 * self.hidden
