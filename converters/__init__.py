"""Writers and readers of extended models: Hugging Face, GGUF, ONNX. Each format's library is imported in its package only."""
