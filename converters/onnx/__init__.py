"""The ONNX folder: one graph with KV cache that holds both factor sets, the switch and n_hat."""

from converters.onnx.converter import OnnxConverter

__all__ = ["OnnxConverter"]
