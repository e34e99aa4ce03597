"""GGUF: files for llama.cpp with per-dimension rotary factors, written, read back, checked and run.

converter        plans an export and writes it; what every command calls
blueprint        everything a file will hold: model and factors apart, each worked out once
factors          factor tensors and rope keys, into a file and out of it; the RoPE that llama.cpp computes from one
carriers         which architectures of llama.cpp a model type is written as: one table
architectures    hyperparameters, names of tensors, refusals
vocabulary, tokenizer, sentencepiece    tokenizer.json ⇄ tokenizer keys; does llama.cpp split text alike?
weights          weight types, safetensors to rounded blocks
container, writing    the bytes of a file, read and written
source, patch    a GGUF file as a model; other factors into one, its weights kept
checks           a finished file against its blueprint or its source
native, runtime  llama.cpp through ctypes; its logits
"""

from converters.gguf.converter import GgufConverter

__all__ = ["GgufConverter"]
