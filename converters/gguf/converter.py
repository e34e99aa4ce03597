"""`GgufConverter`: the GGUF format as every command knows it, and `GgufExport`: a file planned from its blueprint.

Export ──► keeps_weights? ──yes──► patch.GgufCopy: the source's bytes, other factors
                  └─────no──► GgufExport: Blueprint ──► rounded here, or quantized by llama.cpp; one file or parts
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from converters.base import Check, Converter, Export, PlannedExport
from converters.gguf import native
from converters.gguf.blueprint import Blueprint, GgufOptions, write_export
from converters.gguf.carriers import TARGETS, candidates
from converters.gguf.checks import checks_of_file, static_checks
from converters.gguf.container import MAGIC, GgufFile, Value, block_size, first_part, part_path, parts_named, type_name
from converters.gguf.factors import (
    CARRIED_KEY,
    FACTOR_TENSORS,
    factors_of,
    read_factors,
    record_of,
    recorded_factors,
)
from converters.gguf.file_rope import base_of
from converters.gguf.native import EXTRA, gguf, llama_cpp
from converters.gguf.own_checks import own_checks
from converters.gguf.own_weights import own_weights
from converters.gguf.patch import GgufCopy, keeps_weights, may_be_copy
from converters.gguf.source import GgufCheckpoint
from converters.gguf.tokenizer import difference
from converters.gguf.weights import FLOATS, OUTTYPES, OutType, outtype_named, read_importance
from converters.gguf.writing import Content, total_bytes, write_gguf, write_parts
from converters.own_weights import WeightKind
from longrope.base_rope import BaseRope
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError, UnsupportedError
from longrope.factors import BoundFactors, FactorSets, RescaleFactors
from longrope.loading import require_announced
from longrope.progress import Progress

if TYPE_CHECKING:
    from converters.gguf.runtime import LlamaCppRuntime

# Architectures whose MLP is GELU, which llama.cpp looks up in a table of float16 on a CPU: up to 3.6e-3 in the logits of
# pico models whose scale is 7, whatever rescales their RoPE.
HALF_GELU = ("gemma", "gemma2", "gemma3", "gemma4", "gptneox", "phi2")


class GgufConverter(Converter):
    """Llama-type models as GGUF files for llama.cpp, with both factor sets inside."""

    name = "gguf"
    suffix = ".gguf"
    hub_suffix = "-GGUF"
    auto_factor_sets: ClassVar[FactorSets] = "dual"
    outtypes: ClassVar[Sequence[str]] = tuple(OUTTYPES)
    extra: ClassVar[str | None] = EXTRA

    def recognizes(self, path: Path) -> bool:
        file = first_part(path)
        if not file.is_file():
            return False
        with file.open("rb") as handle:
            return file.suffix == self.suffix or handle.read(len(MAGIC)) == MAGIC

    def preferred_sets(self, checkpoint: Checkpoint | None = None) -> FactorSets:
        """Both, unless the architecture that a model is written as by default holds one."""
        rows = TARGETS.get(checkpoint.model_type, ()) if checkpoint else ()
        return "single" if rows and rows[0].rope != "sets" else self.auto_factor_sets

    def files_of(self, path: Path) -> tuple[Path, ...]:
        first = max(parts_named(path), key=lambda part: part.stat().st_mtime, default=path)
        if path.exists() or first == path:
            return (path,)
        with GgufFile(first) as file:
            return tuple(part.path for part in file.parts)

    def check_requirements(self) -> None:
        self.check_reading()
        llama_cpp.require()

    def check_reading(self) -> None:
        gguf.require()

    def plan(self, export: Export) -> GgufExport | GgufCopy:
        checkpoint = export.checkpoint
        planned: GgufExport | GgufCopy
        if isinstance(checkpoint, GgufCheckpoint) and keeps_weights(checkpoint, export.factors, export.outtype):
            planned = GgufCopy(export, checkpoint)
        else:
            if not isinstance(checkpoint, GgufCheckpoint):
                require_announced(checkpoint, names_are_known=True)
            planned = GgufExport.of(export)
        infos = [content.info for content in planned.contents()]
        found = difference(checkpoint.tokenizer, planned.values(), infos, name=checkpoint.name)
        if found:
            raise UnsupportedError(
                f"{checkpoint.name}: llama.cpp would split text otherwise than this tokenizer: {found}. "
                "Export to HF or ONNX instead"
            )
        return planned

    def plan_like(self, path: Path, expected: BoundFactors, reference: Checkpoint) -> GgufExport | GgufCopy:
        with GgufFile(path) as file:
            if isinstance(reference, GgufCheckpoint) and may_be_copy(file, reference.file):
                return GgufCopy(Export(reference, expected), reference)
            carrier: str | None = file.architecture
        if carrier not in {row.architecture for row in candidates(reference, expected)}:
            carrier = None  # the check of the architecture will say so
        options = GgufOptions(carrier=carrier)
        return GgufExport(Export(reference, expected), Blueprint.of(reference, expected, carrier=carrier), options)

    def read_factors(self, path: Path) -> RescaleFactors | None:
        return read_factors(path)

    def base_rope(self, path: Path) -> BaseRope | None:
        if (recorded := super().base_rope(path)) is not None:
            return recorded
        with GgufFile(path) as file:
            return None if factors_of(file) else base_of(file)

    def recorded_factors(self, path: Path) -> RescaleFactors | None:
        return recorded_factors(path)

    def own_checks(self, path: Path) -> list[Check]:
        with GgufFile(path) as file:
            return list(own_checks(file))

    def open_source(
        self,
        path: Path,
        factors: BoundFactors | None,
        *,
        max_length: int,
        threads: int | None = None,
        kv: str = "f32",
    ) -> Any:
        """The file in llama.cpp. `kv` is the type of the key/value cache: f32 for parity, f16 as users run it."""
        from converters.gguf.runtime import LlamaCppSource

        return LlamaCppSource(path, factors, max_length=max_length, threads=threads, kv=kv)  # type: ignore[arg-type]

    def open_runtime(
        self,
        path: Path,
        factors: BoundFactors | None,
        *,
        max_length: int,
        threads: int | None = None,
        **options: Any,
    ) -> LlamaCppRuntime:
        from converters.gguf.runtime import LlamaCppRuntime

        return LlamaCppRuntime(path, factors, max_length=max_length, threads=threads, **options)

    def load_runtime(self) -> None:
        native.llama()

    def weight_kind(self, path: Path, reference: Checkpoint) -> WeightKind:
        with GgufFile(path) as file:
            names = {type_name(info.type) for info in file.tensors.values()}
            half_gelu = file.architecture in HALF_GELU
            copy = isinstance(reference, GgufCheckpoint) and may_be_copy(file, reference.file)
        source = {entry["dtype"].lower() for header in reference.weight_headers.values() for entry in header.values()}
        coarsest = max(names, key=_coarseness, default="f32")
        # llama.cpp multiplies floats in their own type, and rounds the activations to 8 bits for all others.
        arithmetic = coarsest if coarsest in FLOATS else "int8"
        return WeightKind(
            coarsest,
            rounded=not copy and not names <= {*(source & set(FLOATS)), "f32"},
            arithmetic="f16" if half_gelu and arithmetic == "f32" else arithmetic,
        )

    def files(self, path: Path) -> list[Path]:
        try:
            with GgufFile(path) as file:
                return [part.path for part in file.parts]
        except InputError:  # damaged, which checks report
            return [path]

    def hub_files(self, path: Path, name: str) -> dict[str, Path | bytes]:
        """Names by gguf's convention, weight type last, which the Hub's viewer and llama.cpp's and Ollama's tags go by."""
        with GgufFile(path) as file:
            parts, type = [part.path for part in file.parts], file.get(gguf.Keys.General.FILE_TYPE)
        encoding = gguf.LlamaFileType(type).name.split("_", 1)[1] if type is not None else None
        stem = gguf.naming_convention(name, None, None, None, None, encoding)
        if len(parts) == 1:
            return {f"{stem}.gguf": parts[0]}
        return {part_path(Path(f"{stem}.gguf"), i, len(parts)).name: part for i, part in enumerate(parts)}

    def metadata_strings(self, path: Path) -> dict[str, str]:
        with GgufFile(path) as file:
            values = {key: value.data for part in file.parts for key, value in part.values.items()}
        return {
            key: str(data)
            for key, data in values.items()
            if isinstance(data, str | tuple) and not key.startswith("tokenizer.ggml.")
        }

    def describe(self, path: Path) -> dict[str, Any]:
        with GgufFile(path) as file:
            record = record_of(file)
            types = Counter(type_name(info.type) for info in file.tensors.values())
            return {
                "format": "gguf",
                "name": file.get("general.name"),
                "architecture": file.architecture,
                **({"carried_architecture": carried} if (carried := file.get(CARRIED_KEY)) else {}),
                "parameters": sum(
                    math.prod(info.shape) for info in file.tensors.values() if info.name not in FACTOR_TENSORS
                ),
                "bytes": sum(part.size for part in file.parts),
                "tensors": len(file.tensors),
                "tensor_types": dict(types),
                "context_length": file.model_key("context_length"),
                "original_context_length": file.model_key("rope.scaling.original_context_length"),
                "rope_scaling_type": file.model_key("rope.scaling.type"),
                "attention_factor": file.model_key("rope.scaling.attn_factor"),
                "vocabulary": len(file.get("tokenizer.ggml.tokens", ())),
                "pre_tokenizer": file.get("tokenizer.ggml.pre"),
                "provenance": {"method": record.method, **record.provenance} if record else {},
            }


class GgufExport(PlannedExport):
    """A file planned from its blueprint.

    Args:
        export: what is written.
        blueprint: what it will hold.
        options: of the export.
    """

    def __init__(self, export: Export, blueprint: Blueprint, options: GgufOptions) -> None:
        super().__init__(export)
        self.blueprint, self.options = blueprint, options

    @classmethod
    def of(cls, export: Export) -> Self:
        """Plan a file. Raises UnsupportedError for what llama.cpp cannot express, InputError for options without effect."""
        options, outtype = GgufOptions.of(export.options), outtype_named(export.outtype)
        _check_imatrix(options, outtype)
        blueprint = Blueprint.of(
            export.checkpoint,
            export.factors,
            outtype,
            name=options.name,
            carrier=options.carrier,
            as_llama=options.as_llama,
        )
        return cls(export, blueprint, options)

    @property
    def file_name(self) -> str:
        """Named after the convention of llama.cpp and the Hub."""
        return self.blueprint.model.file_name

    def with_factors(self, factors: BoundFactors) -> Self:
        export = dataclasses.replace(self.export, factors=factors)
        return type(self)(export, self.blueprint.with_factors(factors), self.options)

    def values(self) -> dict[str, Value]:
        """All metadata."""
        return self.blueprint.values()

    def contents(self) -> list[Content]:
        """All tensors in the file's order."""
        return self.blueprint.contents()

    def write(self, path: Path, progress: Progress) -> None:
        """Writes `path`, or with the option split_max_size parts named after it."""
        if explanation := self.blueprint.model.target.explanation:
            progress.line(f"{self.export.checkpoint.name}: {explanation}.")
        if self.export.checkpoint.wrapper is not None:
            images = "the original's mmproj file for images fits as it is"
            if self.blueprint.model.target.carried:
                images = "images need the architecture of the model's own, which takes the YaRN family"
            progress.line(f"{self.export.checkpoint.name}: the text model only; {images}.")
        for name in self.blueprint.model.vocabulary.unapplied:
            progress.warn(f"llama.cpp does not apply this tokenizer's {name}: normalize text before you pass it on")
        if fault := self.blueprint.model.card_fault:
            progress.warn(f"the model card cannot be read, the file says only what is known without it ({fault})")
        if self.blueprint.model.outtype.matrix is None:
            self._write_quantized(path, progress)
        else:
            self._write_rounded(path, progress)

    def check(self, path: Path, *, sampled: bool = False) -> list[Check]:
        return checks_of_file(path, lambda file: static_checks(file, self.blueprint, whole=not sampled))

    def own_weights(self, path: Path) -> Mapping[str, Any]:
        with GgufFile(path) as file:
            return own_weights(file, self.blueprint)

    def _write_rounded(self, path: Path, progress: Progress) -> None:
        self._warn_of_odd_widths(progress)
        write_export(path, self.values(), self.contents(), self.options, self.export.checkpoint, progress)

    def _write_quantized(self, path: Path, progress: Progress) -> None:
        """The floats as they are into a file of their own, then llama.cpp's quantizer, then parts if wanted."""
        options, outtype = self.options, self.blueprint.model.outtype
        importance = read_importance(Path(options.imatrix)) if options.imatrix else None
        floats, whole = path.with_name(f"{path.name}.floats"), path.with_name(f"{path.name}.whole")
        contents = self.contents()
        with progress.task(f"writing {path.name}", 2 * total_bytes(contents)) as task:
            write_gguf(floats, self.values(), contents, task.advance, threads=options.writers)
            fell_back = native.quantize(
                floats, whole, outtype.file_type, importance=importance, threads=options.threads
            )
            floats.unlink()
            task.advance(total_bytes(contents))
        if fell_back:
            progress.warn(
                f"{fell_back} tensors have rows that do not divide into blocks of 256; llama.cpp gave them other types "
                f"than {outtype.name} has"
            )
        if not options.max_part_bytes:
            whole.replace(path)
            return
        with GgufFile(whole) as file:
            copies = [Content(info, partial(iter, (file.region(name),))) for name, info in file.tensors.items()]
            write_parts(path, file.values, copies, options.max_part_bytes, origin=file.fingerprint)
        whole.unlink()

    def _warn_of_odd_widths(self, progress: Progress) -> None:
        model = self.blueprint.model
        block = block_size(gguf.GGMLQuantizationType[model.outtype.matrix])[0]
        odd = [t.info.name for t in model.tensors if len(t.info.shape) > 1 and t.info.shape[-1] % block]
        if odd:
            progress.warn(
                f"{len(odd)} tensors, {odd[0]} the first, have rows that do not divide into blocks of {block}; they are "
                f"written as f16 instead of {model.outtype.name}"
            )


def _coarseness(name: str) -> tuple[bool, float]:
    """Orders weight types from finest to coarsest: floats, then by the bits that a weight takes."""
    size, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
    return name not in FLOATS, (FLOATS.index(name) if name in FLOATS else -nbytes / size)


def _check_imatrix(options: GgufOptions, outtype: OutType) -> None:
    """Refuse an importance matrix that is missing, of no use, or broken."""
    if outtype.needs_imatrix and not options.imatrix:
        raise UnsupportedError(
            f"llama.cpp quantizes to {outtype.name} only with an importance matrix; give one (option imatrix, made by "
            "llama-imatrix) or choose q2_k or larger"
        )
    if options.imatrix and outtype.matrix:
        raise InputError(f"an importance matrix has no effect on {outtype.name}; leave it out or choose e.g. q4_k_m")
    if options.imatrix:
        read_importance(Path(options.imatrix))
