"""Write the artifact: model.onnx with its external data, config.json, tokenizer and generation_config."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import onnx_ir as ir

from converters.base import Export
from converters.hf.converter import COMPANIONS
from converters.onnx.decoder import Decoder
from converters.onnx.decoder_graph import DecoderGraph
from converters.onnx.rope_graph import TOTAL_LENGTH
from converters.onnx.weights import Weights
from longrope import __version__
from longrope.checkpoint import Checkpoint
from longrope.factors import RescaleFactors
from longrope.hf_config import extended_config
from longrope.progress import Progress

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
PRODUCER = "longrope-export"
METADATA_FACTORS = "longrope.factors"
METADATA_SETS = "longrope.factor_sets"
METADATA_CROSSING = "longrope.crossing"
METADATA_SOURCE = "longrope.source_fingerprint"
# Tensors up to this size stay in model.onnx, so that the factors can be read without the external data.
INLINE_BYTES = 8192
DTYPES = {"f32": ir.DataType.FLOAT}


def build(checkpoint: Checkpoint, factors: RescaleFactors, outtype: str | None) -> ir.Model:
    """The model that an export writes, with its weights unread; see `DecoderGraph.build` for what it raises."""
    dtype = DTYPES[outtype or "f32"]
    graph = DecoderGraph(Decoder.of(checkpoint), Weights(checkpoint), factors, dtype).build()
    return graph.model(
        checkpoint.model_type,
        producer_name=PRODUCER,
        producer_version=__version__,
        doc_string=f"{checkpoint.model_type}, extended with LongRoPE from {factors.original} to {factors.target} tokens",
        metadata_props=_metadata(checkpoint, factors),
    )


def write(export: Export, path: Path, progress: Progress) -> None:
    """Write the folder `path`."""
    path.mkdir()
    model = build(export.checkpoint, export.factors, export.outtype)
    total = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    with progress.task("write onnx", total) as task:
        ir.save(
            model,
            path / MODEL_FILE,
            external_data=DATA_FILE,
            size_threshold_bytes=INLINE_BYTES,
            callback=lambda tensor, _: task.advance(tensor.nbytes),
        )
    _write_companions(export, path)


def folder_config(checkpoint: Checkpoint, factors: RescaleFactors) -> dict[str, Any]:
    """config.json of the folder. It has no place for n_hat; the graph holds it, and no ONNX runtime asks config.json."""
    return extended_config(checkpoint.config, dataclasses.replace(factors, n_hat=0))


def _write_companions(export: Export, path: Path) -> None:
    for name in COMPANIONS:
        source = export.checkpoint.path / name
        if source.is_file():
            shutil.copyfile(source, path / name)
    config = folder_config(export.checkpoint, export.factors)
    (path / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _metadata(checkpoint: Checkpoint, factors: RescaleFactors) -> dict[str, str]:
    return {
        METADATA_FACTORS: json.dumps(factors.to_json()),
        METADATA_SETS: factors.factor_sets,
        METADATA_CROSSING: crossing_advice(factors),
        METADATA_SOURCE: checkpoint.fingerprint,
    }


def crossing_advice(factors: RescaleFactors) -> str:
    """What happens when a sequence grows past the original window with a filled cache, in plain words."""
    if factors.factor_sets == "single":
        return "safe: one factor set at every length"
    return (
        f"when a sequence passes {factors.original} tokens with a filled cache, the cached keys keep the short set and "
        f"logits are wrong: prefill again from the start there, or set the input {TOTAL_LENGTH} to the length that the "
        "sequence will have, from the first token on"
    )
