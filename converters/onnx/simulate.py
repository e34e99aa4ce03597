"""The torch model that a quantized export really is: every matrix rounded as the export rounds it, then expanded.

An int4 file is far from its float model, and rightly so; what a runtime must reproduce is this one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from converters.onnx.options import PRECISIONS, OnnxOptions
from converters.onnx.quantize import BLOCK, dequantize, quantize

# Small matrices that decide, which every export keeps as floats (`Parts.exact_linear`).
EXACT = ("gate", "shared_expert_gate", "in_proj_a", "in_proj_b", "in_proj_ba")


@torch.no_grad()
def round_weights(model: Any, outtype: str, options: OnnxOptions | None = None) -> None:
    """Round a transformers model's matrices in place, as `--outtype int8` or `int4` does; other types change nothing."""
    bits, quantizer = PRECISIONS[outtype].bits, (options or OnnxOptions()).quantizer
    if bits is None:
        return
    embedding = model.get_input_embeddings().weight
    done: set[int] = set()
    for name, module in model.named_modules():
        _round_experts(module, bits, quantizer)
        if not isinstance(module, nn.Linear | nn.Embedding) or module.weight.data_ptr() in done:
            continue
        if name.rsplit(".", 1)[-1] in EXACT:
            continue
        is_embedding = module.weight.data_ptr() == embedding.data_ptr()
        if is_embedding and module.weight.shape[1] % BLOCK:
            continue
        module.weight.copy_(_rounded(module.weight, 8 if is_embedding else bits, quantizer))
        done.add(module.weight.data_ptr())


def _round_experts(module: nn.Module, bits: int, quantizer: str) -> None:
    """Matrices of all experts, stacked in one parameter: [E, out, in], or [E, in, out] where a module says so."""
    transposed = bool(getattr(module, "is_transposed", False))
    for name in ("gate_up_proj", "down_proj"):
        stack = getattr(module, name, None)
        if isinstance(stack, nn.Parameter) and stack.ndim == 3:
            for matrix in stack:
                ordered = matrix.T if transposed else matrix
                ordered.copy_(_rounded(ordered, bits, quantizer))


def _rounded(matrix: torch.Tensor, bits: int, quantizer: str) -> torch.Tensor:
    rows = np.ascontiguousarray(matrix.float().cpu().numpy())
    return torch.from_numpy(dequantize(quantize(rows, bits, quantizer)))
