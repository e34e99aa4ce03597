"""GGUF as an export format of transformers' own exporter registry (experimental in transformers 5), with a runner.

    register()
    exported = AutoHfExporter.from_config(GgufConfig(tokenizer=FOLDER)).export(model, inputs, GgufConfig(…))
    exported.save_pretrained("out")                # model.gguf, config.json, export.json
    ExportedModel.from_pretrained("out")(**inputs) # runs in llama.cpp

An exporter there traces graphs; a GGUF file has none, so `export_program` writes the model's weights and factors
instead, and only the forward of input ids can be run: llama.cpp keeps its own cache. Importing this module imports
transformers; nothing else of the package does.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.exporters import ExportConfigMixin, ExportMetadata, HfExporter, ModelRunner, register_backend
from transformers.exporters.metadata import record_output_structure
from transformers.modeling_outputs import CausalLMOutputWithPast

from converters.base import Export
from converters.gguf.container import GgufFile
from converters.gguf.converter import GgufConverter
from converters.gguf.factors import bound_to_file, factors_of
from converters.gguf.runtime import LlamaCppSource
from longrope.checkpoint import Checkpoint, open_folder
from longrope.errors import InputError, UnsupportedError
from longrope.progress import Silent
from longrope.unfinished import temporary_folder

FORMAT = "gguf"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_ROWS = 256


def register() -> None:
    """Make "gguf" known to transformers' AutoHfExporter, AutoExportConfig and ExportedModel."""
    register_backend(GgufExporter, GgufModelRunner)


@dataclass
class GgufConfig(ExportConfigMixin):  # type: ignore[misc]  # transformers is untyped
    """What to write.

    Args:
        tokenizer: folder with the model's tokenizer.json; a GGUF file holds the vocabulary.
        outtype: weight type.
        options: of `converters.gguf.blueprint.GgufOptions`.
    """

    tokenizer: str = ""
    outtype: str = "f16"
    options: dict[str, Any] = field(default_factory=dict)
    export_format: str = FORMAT
    quantizer: Any = None


@dataclass(frozen=True)
class GgufProgram:
    """A GGUF file as the program of an export; `keep_alive` owns its folder while it is temporary."""

    path: Path
    keep_alive: Any = field(default=None, compare=False, repr=False)


class GgufExporter(HfExporter):  # type: ignore[misc]
    """Writes an extended causal model as GGUF."""

    export_format = FORMAT
    config_class = GgufConfig
    program_suffix = ".gguf"
    required_packages = ("gguf",)

    def export_program(
        self, model: Any, sample_inputs: Mapping[str, Any], config: GgufConfig
    ) -> tuple[GgufProgram, ExportMetadata]:
        """Write the model's weights and factors; the sample inputs only say which arguments the runner takes.

        Raises:
            UnsupportedError: the model has no factors, or GGUF cannot hold it.
        """
        room = temporary_folder("gguf")
        checkpoint = _saved(model, config, Path(room.name) / "model")
        path = Path(room.name) / "model.gguf"
        factors = checkpoint.factors
        if factors is None:
            raise UnsupportedError(
                "this model has no rope factors; extend it first, or export it with llama.cpp's converter"
            )
        GgufConverter().convert(Export(checkpoint, factors, config.outtype, config.options), path, Silent())
        shutil.rmtree(checkpoint.path)
        return GgufProgram(path, room), _metadata(model, sample_inputs)

    @classmethod
    def save_program(cls, program: GgufProgram, path: str | Path) -> None:
        shutil.copyfile(program.path, path)

    @classmethod
    def load_program(cls, path: str | Path) -> GgufProgram:
        return GgufProgram(Path(path))


class GgufModelRunner(ModelRunner):  # type: ignore[misc]
    """Runs an export in llama.cpp: `runner(input_ids=…)` returns the logits of every position."""

    def __init__(self, source: LlamaCppSource, metadata: ExportMetadata, keep_alive: Any = None) -> None:
        super().__init__(metadata)
        self.source = source
        self.keep_alive = keep_alive

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @classmethod
    def from_program(
        cls, program: GgufProgram, metadata: ExportMetadata, device: Any = None, threads: int | None = None
    ) -> GgufModelRunner:
        """Load the file; `threads` None for llama.cpp's own choice."""
        if device is not None and torch.device(device).type != "cpu":
            raise UnsupportedError(f"this runner is for the CPU, {device} was asked for")
        with GgufFile(program.path) as file:
            found = factors_of(file)
            factors = bound_to_file(file, found) if found else None
        longest = factors.target if factors else 1 << 31
        source = LlamaCppSource(program.path, factors, max_length=longest, threads=threads)
        return cls(source, metadata, program)

    def __call__(self, *_shares: bool, **inputs: Any) -> CausalLMOutputWithPast:
        """Logits [B, T, V] of `input_ids` [B, T]; each row gets the set that llama.cpp uses at its length.

        transformers' `share_inputs` and `share_outputs` change nothing: llama.cpp has buffers of its own.
        """
        mask = inputs.get("attention_mask")
        if mask is not None and not bool(mask.all()):
            raise InputError("attention_mask: llama.cpp takes whole sequences; run rows of different length one by one")
        rows = [torch.cat(list(self._logits(ids.numpy()))) for ids in inputs["input_ids"].cpu()]
        return CausalLMOutputWithPast(logits=torch.stack(rows))

    def _logits(self, ids: Any) -> Any:
        return self.source.logits(ids, self.source.set_for(len(ids)), _ROWS)


def _saved(model: Any, config: GgufConfig, folder: Path) -> Checkpoint:
    """The model and its tokenizer as a checkpoint."""
    tokenizer = Path(config.tokenizer)
    if not config.tokenizer or not (tokenizer / "tokenizer.json").is_file():
        raise InputError(f"tokenizer: expected a folder with a tokenizer.json, got {config.tokenizer!r}")
    model.save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
    return open_folder(folder, getattr(model.config, "name_or_path", "") or "model")


def _metadata(model: Any, sample_inputs: Mapping[str, Any]) -> ExportMetadata:
    taken = {name: value for name, value in sample_inputs.items() if name in ("input_ids", "attention_mask")}
    metadata = ExportMetadata(
        architecture=type(model).__name__,
        export_dtype=str(model.dtype).removeprefix("torch."),
        export_device="cpu",
        kwargs={
            name: {"rank": value.dim(), "dtype": str(value.dtype).removeprefix("torch.")}
            for name, value in taken.items()
        },
    )
    record_output_structure(metadata, CausalLMOutputWithPast(logits=torch.zeros(1)))
    return metadata
