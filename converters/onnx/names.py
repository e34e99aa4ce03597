"""Names that the graph's builder and its readers share; nothing is imported, so that a reader loads no more than it needs."""

from __future__ import annotations

from pathlib import Path

MODEL_FILE = "model.onnx"
BATCH, SEQUENCE = "batch_size", "sequence_length"
PAST, TOTAL = "past_sequence_length", "total_sequence_length"
TOTAL_LENGTH = "rope_total_length"
LOGITS_TO_KEEP = "num_logits_to_keep"  # transformers.js' name for it


def layer_outputs(layer: int) -> tuple[str, str]:
    """The names that the residual stream behind a layer may have: attention and MLP stand in turn, or in parallel."""
    return f"model.layers.{layer}.mlp_residual", f"model.layers.{layer}.residual"


def locate(path: Path) -> Path | None:
    """The model file of an artifact: the path itself, or model.onnx in the folder or its `onnx` subfolder."""
    if path.is_file():
        return path if path.suffix == ".onnx" else None
    for folder in (path, path / "onnx"):
        graphs = sorted(folder.glob("*.onnx"))
        if (folder / MODEL_FILE) in graphs:
            return folder / MODEL_FILE
        if len(graphs) == 1:
            return graphs[0]
    return None
