"""Write, read back and check a Hugging Face folder.

The weights are the source's own files, copied byte for byte (or cast tensor by tensor with --outtype); what changes is
config.json. transformers' `save_pretrained` is not used: it writes only the v5 spelling, which 4.57 misreads silently.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from converters.base import Check, Converter, Export, PlannedExport
from converters.companion_checks import companion_checks
from converters.expectations import record_check
from converters.folder import COMPANIONS, PROCESSOR_FILES, companions, config_checks, copy_files, raise_limits
from converters.hf import weights
from converters.hf.own_checks import own_checks
from converters.own_weights import WeightKind, tensors_of
from converters.precision import precision_check, transformers_angles
from longrope.base_rope import BaseRope
from longrope.checkpoint import Checkpoint, open_folder
from longrope.config_fields import Config
from longrope.errors import InputError, UnsupportedError
from longrope.factors import BoundFactors, RescaleFactors
from longrope.files import write_json
from longrope.loading import require_announced
from longrope.progress import Progress
from longrope.reading import own_file, read_object, said_by
from longrope.weights import has_weights

if TYPE_CHECKING:
    from longrope.scoring import LogitSource

PROVENANCE_FILE = "longrope.json"


class HuggingFaceExport(PlannedExport):
    """A folder that is planned: config.json with the factors in it, weights and companions to copy.

    Args:
        export: what is written.
        oddities: what transformers leaves out of the source, in words.

    Raises:
        UnsupportedError: config.json cannot hold the factors.
    """

    oddities: Sequence[str] = ()

    def __init__(self, export: Export, oddities: Sequence[str] = ()) -> None:
        super().__init__(export)
        self.oddities = oddities
        self.config = export.checkpoint.extended_config(export.factors)
        if export.outtype not in (None, "auto"):
            self.config["dtype"] = self.config["torch_dtype"] = weights.DTYPE_NAMES[str(export.outtype)]

    def with_factors(self, factors: BoundFactors) -> HuggingFaceExport:
        return HuggingFaceExport(replace(self.export, factors=factors), self.oddities)

    def write(self, path: Path, progress: Progress) -> None:
        path.mkdir()
        source, factors = self.export.checkpoint, self.export.factors
        if source.wrapper is not None:
            kind = source.wrapper["model_type"]
            progress.line(
                f"{kind} is multimodal: its text part ({source.model_type}) is extended, the rest kept as it is"
            )
        weights.copy(source, path, self.export.outtype or "auto", progress)
        copy_files(source, path, (*COMPANIONS, *PROCESSOR_FILES))
        write_json(path / "config.json", self.config, keep_non_finite=True)
        write_json(path / PROVENANCE_FILE, factors.to_json())
        raise_limits(path, source.window, factors.target)

    def own_weights(self, path: Path) -> Mapping[str, Any]:
        return tensors_of(open_folder(path))

    def check(self, path: Path, *, sampled: bool = False) -> list[Check]:
        source = self.export.checkpoint
        try:
            artifact = open_folder(path)
        except InputError as error:
            return [Check("hf.readable", "fail", "a sound Hugging Face folder", "a broken one", str(error))]
        return [
            Check("hf.readable", "pass"),
            *config_checks(artifact.config, self.export.factors, keys="hf.config", rope="hf", source=source.config),
            precision_check("hf", self.export.factors, transformers_angles),
            *_rest_checks(artifact, self.config),
            _dtype_check(artifact.config, self.config.get("text_config") or self.config),
            record_check("hf.record", lambda: _record(path), self.export.factors),
            weights.check(artifact, source, sampled=sampled),
            *companion_checks("hf", path, self.config, artifact.whole_config, source, self.export.factors.target),
        ]


class HuggingFaceConverter(Converter):
    """The `hf` format."""

    name = "hf"
    runs_in_torch = True
    foreign_runtime = False  # transformers, in which the reference runs, too
    auto_factor_sets = "single"
    outtypes: ClassVar[Sequence[str]] = ("auto", "f32", "f16", "bf16")

    def recognizes(self, path: Path) -> bool:
        known = any((path / name).is_file() for name in ("config.json", "adapter_config.json"))
        if not path.is_dir() or not known or any(path.glob("*.onnx")):
            return False
        return has_weights(path) or not any(path.glob("onnx/*.onnx"))

    def wrote(self, path: Path) -> bool:
        return self.recognizes(path) and (path / PROVENANCE_FILE).is_file()

    def check_requirements(self) -> None:
        """Nothing beyond the core is needed."""

    def plan(self, export: Export) -> HuggingFaceExport:
        if export.outtype not in (None, *self.outtypes):
            raise UnsupportedError(f"hf: expected --outtype {', '.join(self.outtypes)}, got {export.outtype}")
        if export.options:
            raise InputError(f"hf: unknown options {', '.join(export.options)}; it takes none")
        _ = export.checkpoint.tokenizer
        if export.outtype not in (None, "auto"):
            export.checkpoint.require_float_weights()  # packed ones would be cast as if they were weights
        return HuggingFaceExport(export, require_announced(export.checkpoint))

    def plan_like(self, path: Path, expected: BoundFactors, reference: Checkpoint) -> HuggingFaceExport:
        return HuggingFaceExport(Export(reference, expected))

    def read_factors(self, path: Path) -> RescaleFactors | None:
        return open_folder(path).factors

    def recorded_factors(self, path: Path) -> RescaleFactors | None:
        return _record(path)

    def base_rope(self, path: Path) -> BaseRope | None:
        artifact = open_folder(path)
        return super().base_rope(path) or (None if artifact.factors is not None else artifact.base)

    def own_checks(self, path: Path) -> list[Check]:
        return list(own_checks(open_folder(path), self.recorded_factors(path)))

    def open_source(
        self,
        path: Path,
        factors: BoundFactors | None,
        *,
        max_length: int,
        threads: int | None = None,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> LogitSource:
        """The folder in transformers, on a torch device and in a name of `longrope.modeling.DTYPES`."""
        from longrope.modeling import TorchSource, build_model, set_threads

        set_threads(threads)
        artifact = open_folder(path)
        _ = artifact.factors  # contradictory ones would fail in the middle of a forward pass
        model = build_model(artifact, dtype=dtype, device=device, as_it_is=True)
        return TorchSource(model, factors, name="transformers", pinned=False)

    def weight_kind(self, path: Path, reference: Checkpoint) -> WeightKind:
        types, source = weights.dtypes(open_folder(path)), weights.dtypes(reference)
        name = next((name for name in ("bf16", "f16") if name.upper() in types), "f32")
        return WeightKind(name, rounded=not types <= {*source, "F32"}, arithmetic="same")

    def hub_files(self, path: Path, name: str) -> dict[str, Path | bytes]:
        """What a checkpoint is made of; other weights, trainers' states and caches in the folder are left out."""
        names = ("config.json", "tokenizer.json", PROVENANCE_FILE, "model.safetensors.index.json")
        files = companions(path, (*names, *COMPANIONS, *PROCESSOR_FILES))
        found: dict[str, Path | bytes] = {file.name: file for file in open_folder(path).weight_files}
        return found | {name: path / name for name in files}

    def metadata_strings(self, path: Path) -> dict[str, str]:
        from safetensors import safe_open

        found: dict[str, str] = {}
        for file in open_folder(path).weight_files:
            with said_by("safetensors", str(file)), safe_open(file, framework="np") as opened:
                found |= {f"{file.name}: {key}": value for key, value in (opened.metadata() or {}).items()}
        return found

    def describe(self, path: Path) -> dict[str, Any]:
        artifact = _described(path)
        return {
            "architecture": artifact.model_type,
            "parameters": artifact.num_parameters,
            "bytes": sum(file.stat().st_size for file in artifact.weight_files),
            "weights": sorted(weights.dtypes(artifact)),
            "tensor_types": weights.types(artifact),
            **({"quantization": artifact.quantization} if artifact.quantization else {}),
            "files": [file.name for file in artifact.weight_files],
            "max_position_embeddings": artifact.config.get("max_position_embeddings"),
        }


def _dtype_check(config: Mapping[str, Any], planned: Mapping[str, Any]) -> Check:
    """The type that engines compute in; one that is not said is the weights' own."""
    wanted, found = (each.get("dtype") or each.get("torch_dtype") for each in (planned, config))
    if wanted == found or None in (wanted, found):
        return Check("hf.config.dtype", "pass", wanted, found)
    message = "engines compute in it, and float16 ends at 65504; pass the weights' own type to them"
    return Check("hf.config.dtype", "warn", wanted, found, message)


def _record(folder: Path) -> RescaleFactors | None:
    file = folder / PROVENANCE_FILE
    return RescaleFactors.load(file) if file.is_file() else None


def _described(path: Path) -> Checkpoint:
    """A folder to be described: of a model type that is not in the table what its own files say."""
    try:
        return open_folder(path)
    except UnsupportedError:
        config = read_object(own_file(path, "config.json"), f"{path}: config.json", non_finite=True)
        return Checkpoint(path, str(path), Config(config, str(path)))


def _rest_checks(artifact: Checkpoint, planned: Mapping[str, Any]) -> Iterator[Check]:
    """Of a multimodal model: everything in config.json that is not the text model's."""
    if artifact.wrapper is not None:
        wanted, found = ({**each, "text_config": None} for each in (planned, artifact.wrapper))
        yield Check.equal("hf.config.rest", wanted, found, "another part of the model than its text part was changed")
