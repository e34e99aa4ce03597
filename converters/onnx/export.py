"""Write the artifact: the model with its external data, and what each runtime looks for beside it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir

from converters.base import Check, Export, PlannedExport
from converters.folder import copy_files, raise_limits
from converters.onnx.decoder import Decoder
from converters.onnx.decoder_graph import DecoderGraph
from converters.onnx.genai import GENAI_FILE, genai_config
from converters.onnx.names import MODEL_FILE, TOTAL_LENGTH
from converters.onnx.options import PRECISIONS, OnnxOptions
from converters.onnx.rope_graph import factor_tensors, structure
from converters.onnx.weights import Weights
from longrope import __version__
from longrope.factors import BoundFactors
from longrope.files import write_json
from longrope.hf_config import extended_config
from longrope.progress import Progress

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


class OnnxExport(PlannedExport):
    """A folder that is planned: the graph is built, its weights are unread.

    Args:
        export: what is written.
        decoder: the structure of its model.
        model: its graph, with the factors in it.
    """

    def __init__(self, export: Export, decoder: Decoder, model: ir.Model) -> None:
        super().__init__(export)
        self.decoder, self.model = decoder, model
        self.config = folder_config(export)
        self.genai_config = genai_config(export.checkpoint, decoder, export.factors, options_of(export), MODEL_FILE)

    @classmethod
    def of(cls, export: Export) -> OnnxExport:
        """Build the graph.

        Raises:
            InputError: an unknown option, or a weight is missing or has another shape than the configuration says.
            UnsupportedError: the graph cannot express the model.
        """
        decoder = Decoder.of(export.checkpoint.attending_to(export.factors.target))
        return cls(export, decoder, _built(export, decoder))

    def with_factors(self, factors: BoundFactors) -> OnnxExport:
        export = dataclasses.replace(self.export, factors=factors)
        same = structure(factors) == structure(self.export.factors)
        model = _refilled(self.model, export) if same else _built(export, self.decoder)
        return OnnxExport(export, self.decoder, model)

    def write(self, path: Path, progress: Progress) -> None:
        path.mkdir()
        total = sum(value.const_value.nbytes for value in self.model.graph.initializers.values() if value.const_value)
        with progress.task("write onnx", total) as task, _own_errors():
            ir.save(
                self.model,
                path / MODEL_FILE,
                external_data=DATA_FILE,
                size_threshold_bytes=INLINE_BYTES,
                callback=lambda tensor, _: task.advance(tensor.nbytes),
            )
        copy_files(self.export.checkpoint, path)
        raise_limits(path, self.export.checkpoint.window, self.export.factors.target)
        write_json(path / "config.json", self.config, keep_non_finite=True)
        write_json(path / GENAI_FILE, self.genai_config)

    def own_weights(self, path: Path) -> Mapping[str, Any]:
        from converters.onnx.own_weights import own_weights

        return own_weights(path, self)

    def check(self, path: Path, *, sampled: bool = False) -> list[Check]:
        from converters.onnx.checks import static_checks

        return static_checks(path, self)


def outtype_of(export: Export) -> str:
    """The weight type; float32 unless another is asked for."""
    return export.outtype or "f32"


def options_of(export: Export) -> OnnxOptions:
    """The format's options. Raises InputError for an unknown option or value."""
    return OnnxOptions.of(export.options)


def _built(export: Export, decoder: Decoder) -> ir.Model:
    """The model that is written, with its weights unread; see `DecoderGraph.build` for what it raises."""
    precision = PRECISIONS[outtype_of(export)]
    weights = Weights(export.checkpoint, decoder.block.names)
    graph = DecoderGraph(decoder, weights, export.factors, precision, options_of(export)).build()
    model = graph.model(decoder.model_type, producer_name=PRODUCER, producer_version=__version__)
    _annotate(model, export)
    return model


def _refilled(model: ir.Model, export: Export) -> ir.Model:
    """A copy of a built model with the export's factors in it; nodes are copied, unread weights are shared."""
    copy = model.clone()
    for name, tensor in factor_tensors(export.factors).items():
        copy.graph.initializers[name].const_value = tensor
    _annotate(copy, export)
    return copy


def _annotate(model: ir.Model, export: Export) -> None:
    """Set what a model says of its factors outside the graph."""
    factors = export.factors
    model.doc_string = (
        f"{export.checkpoint.model_type}, extended with LongRoPE from {factors.original} to {factors.target} tokens"
    )
    model.metadata_props.update(
        {
            METADATA_FACTORS: json.dumps(factors.to_json()),
            METADATA_SETS: factors.factor_sets,
            METADATA_CROSSING: crossing_advice(factors),
            METADATA_SOURCE: export.checkpoint.fingerprint,
            METADATA_OUTTYPE: outtype_of(export),
            METADATA_OPTIONS: json.dumps(dataclasses.asdict(options_of(export))),
        }
    )


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


def folder_config(export: Export) -> dict[str, Any]:
    """config.json of the folder, with what transformers.js looks for.

    It has no place for n_hat; the graph holds it, and no ONNX runtime asks config.json about positions.
    """
    config = extended_config(export.checkpoint.config, dataclasses.replace(export.factors, n_hat=0))
    cache = "float16" if PRECISIONS[outtype_of(export)].dtype == "FLOAT16" else "float32"
    config["transformers.js_config"] = {"dtype": "fp32", "use_external_data_format": 1, "kv_cache_dtype": cache}
    return config


def crossing_advice(factors: BoundFactors) -> str:
    """What happens when a sequence grows past the original window with a filled cache, in plain words."""
    if factors.factor_sets == "single":
        return "safe: one factor set at every length"
    return (
        f"when a sequence passes {factors.original} tokens with a filled cache, the cached keys keep the short set and "
        f"logits are wrong: prefill again from the start there, or set the input {TOTAL_LENGTH} to the length that the "
        "sequence will have, from the first token on"
    )
