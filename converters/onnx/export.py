"""Write the artifact: the model with its external data, and what each runtime looks for beside it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir

from converters.base import Check, Export, PlannedExport
from converters.hf.converter import COMPANIONS
from converters.onnx.decoder import Decoder
from converters.onnx.decoder_graph import DecoderGraph
from converters.onnx.genai import GENAI_FILE, genai_config
from converters.onnx.options import PRECISIONS, OnnxOptions
from converters.onnx.rope_graph import TOTAL_LENGTH
from converters.onnx.weights import Weights
from longrope import __version__
from longrope.checkpoint import Checkpoint
from longrope.factors import BoundFactors
from longrope.files import write_json
from longrope.hf_config import extended_config
from longrope.progress import Progress

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx_data"  # the name transformers.js and optimum look for
PRODUCER = "longrope-export"
METADATA_FACTORS = "longrope.factors"
METADATA_SETS = "longrope.factor_sets"
METADATA_CROSSING = "longrope.crossing"
METADATA_SOURCE = "longrope.source_fingerprint"
METADATA_OUTTYPE = "longrope.outtype"
METADATA_OPTIONS = "longrope.options"
# Tensors up to this size stay in model.onnx, so that the factors can be read without the external data.
INLINE_BYTES = 8192


def build(
    checkpoint: Checkpoint, factors: BoundFactors, outtype: str = "f32", options: OnnxOptions | None = None
) -> ir.Model:
    """The model that an export writes, with its weights unread; see `DecoderGraph.build` for what it raises."""
    options = options or OnnxOptions()
    decoder, weights = Decoder.of(checkpoint), Weights(checkpoint)
    graph = DecoderGraph(decoder, weights, factors, PRECISIONS[outtype], options).build()
    return graph.model(
        checkpoint.model_type,
        producer_name=PRODUCER,
        producer_version=__version__,
        doc_string=f"{checkpoint.model_type}, extended with LongRoPE from {factors.original} to {factors.target} tokens",
        metadata_props={
            METADATA_FACTORS: json.dumps(factors.to_json()),
            METADATA_SETS: factors.factor_sets,
            METADATA_CROSSING: crossing_advice(factors),
            METADATA_SOURCE: checkpoint.fingerprint,
            METADATA_OUTTYPE: outtype,
            METADATA_OPTIONS: json.dumps(dataclasses.asdict(options)),
        },
    )


class OnnxExport(PlannedExport):
    """A folder that is planned: the graph is built, its weights are unread.

    Raises:
        UnsupportedError: the graph cannot express the model.
    """

    def __init__(self, export: Export) -> None:
        super().__init__(export)
        self.outtype, self.options = export.outtype or "f32", OnnxOptions.of(export.options)
        self.config = folder_config(export.checkpoint, export.factors, self.outtype)
        self.model = build(export.checkpoint, export.factors, self.outtype, self.options)

    def with_factors(self, factors: BoundFactors) -> OnnxExport:
        return OnnxExport(dataclasses.replace(self.export, factors=factors))

    def write(self, path: Path, progress: Progress) -> None:
        path.mkdir()
        checkpoint, factors = self.export.checkpoint, self.export.factors
        total = sum(value.const_value.nbytes for value in self.model.graph.initializers.values() if value.const_value)
        with progress.task("write onnx", total) as task, _own_errors():
            ir.save(
                self.model,
                path / MODEL_FILE,
                external_data=DATA_FILE,
                size_threshold_bytes=INLINE_BYTES,
                callback=lambda tensor, _: task.advance(tensor.nbytes),
            )
        _write_companions(checkpoint, path)
        write_json(path / "config.json", self.config, keep_non_finite=True)
        config = genai_config(checkpoint, Decoder.of(checkpoint), factors, self.options, MODEL_FILE)
        write_json(path / GENAI_FILE, config)

    def check(self, path: Path, *, sampled: bool = False) -> list[Check]:
        from converters.onnx.checks import static_checks

        return static_checks(path, self.export.factors, self.model)


@contextmanager
def _own_errors() -> Iterator[None]:
    """Errors of reading a weight or of the disk, which onnx_ir wraps in its own, as they were raised."""
    try:
        yield
    except ir.serde.SerdeError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise cause from None


def folder_config(checkpoint: Checkpoint, factors: BoundFactors, outtype: str = "f32") -> dict[str, Any]:
    """config.json of the folder, with what transformers.js looks for.

    It has no place for n_hat; the graph holds it, and no ONNX runtime asks config.json about positions.
    """
    config = extended_config(checkpoint.config, dataclasses.replace(factors, n_hat=0))
    cache = "float16" if PRECISIONS[outtype].dtype == "FLOAT16" else "float32"
    config["transformers.js_config"] = {"dtype": "fp32", "use_external_data_format": 1, "kv_cache_dtype": cache}
    return config


def _write_companions(checkpoint: Checkpoint, path: Path) -> None:
    for name in COMPANIONS:
        if (checkpoint.path / name).is_file():
            shutil.copyfile(checkpoint.path / name, path / name)


def crossing_advice(factors: BoundFactors) -> str:
    """What happens when a sequence grows past the original window with a filled cache, in plain words."""
    if factors.factor_sets == "single":
        return "safe: one factor set at every length"
    return (
        f"when a sequence passes {factors.original} tokens with a filled cache, the cached keys keep the short set and "
        f"logits are wrong: prefill again from the start there, or set the input {TOTAL_LENGTH} to the length that the "
        "sequence will have, from the first token on"
    )
