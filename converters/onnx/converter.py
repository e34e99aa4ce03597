"""The `onnx` format: what the registry loads. The libraries of the format are imported when a method needs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from converters.base import Check, Converter, Export
from converters.onnx.options import PRECISIONS, OnnxOptions
from converters.own_weights import WeightKind
from longrope.base_rope import BaseRope
from longrope.checkpoint import Checkpoint, open_folder
from longrope.errors import MissingRequirementError, UnsupportedError
from longrope.factors import BoundFactors, RescaleFactors
from longrope.loading import require_announced

if TYPE_CHECKING:
    from converters.onnx.export import OnnxExport
    from converters.onnx.runtime import OnnxRuntime
    from longrope.scoring import LogitSource

READING = ("onnx", "onnx_ir")
REQUIRED = (*READING, "onnxruntime")


class OnnxConverter(Converter):
    """A folder with model.onnx, its external data, config.json and tokenizer."""

    name = "onnx"
    auto_factor_sets = "single"
    outtypes: ClassVar[Sequence[str]] = tuple(PRECISIONS)
    extra = "onnx"

    def recognizes(self, path: Path) -> bool:
        if path.is_dir():
            return any(path.glob("*.onnx")) or any(path.glob("onnx/*.onnx"))
        return path.suffix == ".onnx"

    def wrote(self, path: Path) -> bool:
        from converters.onnx.genai import GENAI_FILE

        return self.recognizes(path) and (path / GENAI_FILE).is_file()

    def check_requirements(self) -> None:
        _require(REQUIRED)

    def check_reading(self) -> None:
        _require(READING)

    def plan(self, export: Export) -> OnnxExport:
        if export.outtype not in (None, *self.outtypes):
            raise UnsupportedError(f"onnx: expected --outtype {', '.join(self.outtypes)}, got {export.outtype}")
        OnnxOptions.of(export.options)
        from converters.onnx.export import OnnxExport

        _ = export.checkpoint.tokenizer
        require_announced(export.checkpoint, names_are_known=True)
        return OnnxExport.of(export)

    def plan_like(self, path: Path, expected: BoundFactors, reference: Checkpoint) -> OnnxExport:
        self.check_reading()
        from converters.onnx.export import OnnxExport
        from converters.onnx.readback import OnnxFile

        file = OnnxFile(path)
        return OnnxExport.of(Export(reference, expected, file.outtype, dataclasses.asdict(file.options)))

    def read_factors(self, path: Path) -> RescaleFactors | None:
        self.check_reading()
        from converters.onnx.readback import OnnxFile

        return OnnxFile(path).factors()

    def base_rope(self, path: Path) -> BaseRope | None:
        known = self.read_factors(path)
        return known.base if known is not None else _configured_base(path)

    def own_checks(self, path: Path) -> list[Check]:
        self.check_reading()
        from converters.onnx.checks import own_checks
        from converters.onnx.readback import OnnxFile

        return list(own_checks(OnnxFile(path)))

    def open_source(
        self, path: Path, factors: BoundFactors | None, *, max_length: int, threads: int | None = None
    ) -> LogitSource:
        self.check_requirements()
        from converters.onnx.runtime import OnnxSource

        return OnnxSource(path, factors, threads=threads)

    def open_runtime(
        self, path: Path, factors: BoundFactors | None, *, max_length: int, threads: int | None = None, **options: Any
    ) -> OnnxRuntime:
        from converters.onnx.runtime import OnnxRuntime

        return OnnxRuntime(path, factors, threads=threads, **options)

    def load_runtime(self) -> None:
        import_module("converters.onnx.runtime")

    def weight_kind(self, path: Path, reference: Checkpoint) -> WeightKind:
        self.check_reading()
        from converters.onnx.readback import OnnxFile

        file = OnnxFile(path)
        source = {entry["dtype"].lower() for header in reference.weight_headers.values() for entry in header.values()}
        precision = PRECISIONS[file.outtype]
        arithmetic = "f32" if precision.bits and file.options.compute == "float32" else precision.arithmetic
        return WeightKind(file.outtype, rounded=file.outtype not in {*source, "f32"}, arithmetic=arithmetic)

    def hub_files(self, path: Path, name: str) -> dict[str, Path | bytes]:
        """transformers.js's layout: the graph under `onnx/` by its weight type, what describes the model at the root."""
        self.check_reading()
        from converters.onnx.hub import hub_files

        return hub_files(path)

    def metadata_strings(self, path: Path) -> dict[str, str]:
        self.check_reading()
        from converters.onnx.hub import metadata_strings

        return metadata_strings(path)

    def describe(self, path: Path) -> dict[str, Any]:
        self.check_reading()
        from converters.onnx.readback import OnnxFile, describe

        return describe(OnnxFile(path))


def _configured_base(path: Path) -> BaseRope | None:
    """The RoPE that config.json beside a graph of another tool says, whose own tables are constants without names."""
    folder = path if path.is_dir() else path.parent
    places = (folder, folder.parent) if folder.name == "onnx" else (folder,)
    place = next((each for each in places if (each / "config.json").is_file()), None)
    return open_folder(place, needs_weights=False).base if place else None


def _require(names: Sequence[str]) -> None:
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise MissingRequirementError(
            f"ONNX needs {', '.join(missing)}; install with: pip install 'longrope-export[onnx]'"
        )
