"""genai_config.json, which onnxruntime-genai reads beside the model: names, sizes and search defaults."""

from __future__ import annotations

from typing import Any

from converters.onnx.decoder import Decoder
from converters.onnx.options import OnnxOptions
from longrope.checkpoint import Checkpoint
from longrope.factors import BoundFactors

GENAI_FILE = "genai_config.json"
GENAI_MODEL = "filename"  # of the decoder: its graph
# A decoder and nothing more. The runtime's own types for Phi-3 rewind the cache at a length of their own.
MODEL_TYPE = "decoder"


def genai_config(
    checkpoint: Checkpoint, decoder: Decoder, factors: BoundFactors, options: OnnxOptions, model_file: str
) -> dict[str, Any]:
    """The object of genai_config.json.

    Only the fused attention can fill one cache buffer in place; the standard operator returns a new one.
    """
    config = checkpoint.config
    return {
        "model": {
            "type": MODEL_TYPE,
            "bos_token_id": _first(config.get("bos_token_id")),
            "eos_token_id": config.get("eos_token_id") or 0,
            "pad_token_id": _first(config.get("pad_token_id") or config.get("eos_token_id")),
            "context_length": factors.target,
            "vocab_size": decoder.vocab_size,
            "decoder": _decoder(decoder, model_file),
        },
        "search": {
            "max_length": factors.target,
            "min_length": 0,
            "do_sample": False,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": options.attention == "grouped",
        },
    }


def _decoder(decoder: Decoder, model_file: str) -> dict[str, Any]:
    return {
        "filename": model_file,
        "session_options": {"provider_options": []},
        "hidden_size": decoder.hidden_size,
        "head_size": decoder.head_dim,
        "num_attention_heads": decoder.num_heads,
        "num_key_value_heads": decoder.num_kv_heads,
        "num_hidden_layers": len(decoder.layers),
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }


def _first(token: Any) -> int:
    """Some configurations list several ids; None becomes 0, which the runtime wants as a number."""
    found = token[0] if isinstance(token, list) and token else token
    return int(found or 0)
