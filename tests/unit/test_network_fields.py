"""Fields of config.json that a model type is built by: none of them changes unseen, and files saved again pass."""

from __future__ import annotations

from typing import Any

import pytest

from converters.network_fields import fields_check
from longrope.hf_config import transformers_config
from tests.common import FEATURES, pico_config

# Model type → fields that change what it computes, and a value that is not the planned one.
OTHERS: dict[str, dict[str, Any]] = {
    "gemma2": {"final_logit_softcapping": 30.0, "attn_logit_softcapping": None, "query_pre_attn_scalar": 256},
    "gemma3_text": {"sliding_window": 4096, "layer_types": ["full_attention"] * 2, "final_logit_softcapping": 30.0},
    "granite": {"logits_scaling": 1.0, "residual_multiplier": 1.0, "embedding_multiplier": 12.0},
    "cohere": {"logit_scale": 1.0, "use_qk_norm": True},
    "qwen3_moe": {"norm_topk_prob": True, "decoder_sparse_step": 1, "num_experts_per_tok": 4},
    "deepseek_v3": {"routed_scaling_factor": 1.0, "topk_group": 4, "rope_interleave": False, "norm_topk_prob": False},
    "smollm3": {"no_rope_layers": [1, 1, 1, 1]},
    "qwen2": {"use_sliding_window": True, "tie_word_embeddings": False},
    "mixtral": {"num_local_experts": 8, "sliding_window": 4096},
    "glm4": {"attention_bias": False, "head_dim": 32},
}


@pytest.mark.parametrize("model_type", OTHERS)
def test_a_changed_field_is_named_and_a_file_saved_again_passes(model_type: str) -> None:
    planned = pico_config(model_type, **FEATURES.get(model_type, {})).to_dict()
    written = {name: value for name, value in planned.items() if value is not None}
    assert fields_check("id", written, transformers_config(written).to_dict()).status == "pass"
    assert fields_check("id", written, {**written, "transformers_version": "4.1", "mine": 3}).status == "pass"
    for field, value in OTHERS[model_type].items():
        check = fields_check("id", written, {**written, field: value})
        assert (check.status, field in str(check.actual)) == ("fail", True), field


def test_values_that_transformers_refuses_are_a_failed_check() -> None:
    planned = pico_config("gemma3_text", **FEATURES["gemma3_text"]).to_dict()
    check = fields_check("id", planned, {**planned, "layer_types": ["a", "b", "c"]})
    assert check.status == "fail"
