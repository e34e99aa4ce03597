"""Whether a config.json still describes the network that was planned: every field that an engine builds it by.

Fields that are always written are compared as they stand. Of the others, which tools leave out or fill in, what transformers
makes of them counts: a file that was saved again passes, a changed scale of the logits does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from converters.base import Check
from longrope.errors import InputError
from longrope.hf_config import transformers_config

# Fields that a network is built by, or that say where a text ends: missing is as wrong as another value. Engines read them
# of any model type, so that one which transformers does not know of this type counts, too.
FIELDS = (
    *("model_type", "architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "layer_norm_eps"),
    *("tie_word_embeddings", "attention_bias", "mlp_bias", "sliding_window", "use_sliding_window", "layer_types"),
    *("num_experts_per_tok", "bos_token_id", "eos_token_id", "pad_token_id", "partial_rotary_factor", "rotary_pct"),
    "quantization_config",
)
# Padding is masked: a model that names none may be given one.
_FREE_WHERE_UNSAID = frozenset({"pad_token_id", "bos_token_id"})
# What lies in other checks, or changes nothing that is computed at inference.
_ELSEWHERE = frozenset(
    {
        *("rope_parameters", "rope_scaling", "rope_theta", "max_position_embeddings"),
        *("original_max_position_embeddings", "text_config", "auto_map", "dtype", "torch_dtype"),
    }
)
_HARMLESS = frozenset(
    {
        *("transformers_version", "_name_or_path", "use_cache", "initializer_range", "pretraining_tp"),
        *("gradient_checkpointing", "router_aux_loss_coef", "output_router_logits", "router_jitter_noise"),
        *("output_attentions", "output_hidden_states", "return_dict", "_attn_implementation", "attn_implementation"),
        *("id2label", "label2id", "problem_type", "chunk_size_feed_forward", "classifier_dropout"),
        *("attention_dropout", "hidden_dropout", "residual_dropout", "embedding_dropout", "resid_pdrop", "embd_pdrop"),
        *("attn_pdrop", "mlp_dropout", "dropout"),
    }
)
_MESSAGE = "engines build another network, or stop at another token"


def fields_check(id: str, planned: Mapping[str, Any], config: Mapping[str, Any]) -> Check:
    """Compare the fields of a config.json with the planned ones; of a multimodal model those of its text part, too.

    Args:
        id: of the check.
        planned: the config.json that an export of the source has.
        config: the artifact's config.json.
    """
    try:
        odd = list(_different(planned, config))
    except InputError as error:
        return Check(id, "fail", "a configuration that transformers takes", "none", str(error))
    inner, found = planned.get("text_config"), config.get("text_config")
    if isinstance(inner, dict) and not odd:
        return fields_check(id, inner, found if isinstance(found, dict) else {})
    expected, actual = ({name: each.get(name) for name in odd} for each in (planned, config))
    return Check.equal(id, expected, actual, _MESSAGE)


def _different(planned: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """Names of fields that mean something else than planned."""
    names = [name for name in {**planned, **config} if planned.get(name) != config.get(name)]
    names = [name for name in names if name not in _ELSEWHERE | _HARMLESS]
    if not names:
        return
    wanted, found = _meaning(planned), _meaning(config)
    for name in names:
        said = planned.get(name) is not None
        if (
            (name in FIELDS and said)
            or (name in FIELDS and name not in wanted)
            or (name in wanted and wanted[name] != found.get(name) and (said or name not in _FREE_WHERE_UNSAID))
        ):
            yield name


def _meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers makes of a configuration, by the fields that it knows of this model type; empty where it knows none.

    Raises:
        InputError: it refuses the values.
    """
    from transformers import CONFIG_MAPPING

    model_type = config.get("model_type")
    if model_type not in CONFIG_MAPPING:
        return {}
    known = CONFIG_MAPPING[model_type]().to_dict()
    plain = {name: value for name, value in config.items() if name not in _ELSEWHERE}
    made: dict[str, Any] = transformers_config(plain).to_dict()
    return {name: made.get(name) for name in known}
