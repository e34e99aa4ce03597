"""The Hugging Face folder: config.json that every engine reads alike, safetensors, tokenizer, generation_config."""

from converters.hf.converter import HuggingFaceConverter

__all__ = ["HuggingFaceConverter"]
