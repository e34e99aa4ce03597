"""GGUF: files for llama.cpp with per-dimension rotary factors, written, read back, checked and run."""

from converters.gguf.converter import GgufConverter

__all__ = ["GgufConverter"]
