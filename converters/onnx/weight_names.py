"""What transformers.js calls weight types; read where onnx is not installed, too."""

# Weight type → what transformers.js appends to a graph's name, and calls the type.
SUFFIXES = {"f32": "", "f16": "_fp16", "bf16": "_bf16", "int8": "_quantized", "int4": "_q4"}
DTYPES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "int8": "q8", "int4": "q4"}
