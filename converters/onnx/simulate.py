"""The torch model that a quantized export really is: every matrix rounded as the export rounds it, then expanded.

An int4 file is far from its float model, and rightly so; what a runtime must reproduce is this one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from converters.onnx.options import PRECISIONS, OnnxOptions
from converters.onnx.quantize import BLOCK, dequantize, quantize


@torch.no_grad()
def round_weights(model: Any, outtype: str, options: OnnxOptions | None = None) -> None:
    """Round a transformers model's matrices in place, as `--outtype int8` or `int4` does; other types change nothing."""
    bits, quantizer = PRECISIONS[outtype].bits, (options or OnnxOptions()).quantizer
    if bits is None:
        return
    embedding = model.get_input_embeddings().weight
    done: set[int] = set()
    for module in model.modules():
        if not isinstance(module, nn.Linear | nn.Embedding) or module.weight.data_ptr() in done:
            continue
        is_embedding = module.weight.data_ptr() == embedding.data_ptr()
        if is_embedding and module.weight.shape[1] % BLOCK:
            continue
        matrix = quantize(module.weight.float().cpu().numpy(), 8 if is_embedding else bits, quantizer)
        module.weight.copy_(torch.from_numpy(dequantize(matrix)))
        done.add(module.weight.data_ptr())
