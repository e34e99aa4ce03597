"""`GgufConverter`: the GGUF format as every command knows it. The work is in the modules beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from converters.base import Check, Converter, Export, PlannedExport, RuntimeUse, window_words
from converters.gguf import readback
from converters.gguf.blueprint import Blueprint
from converters.gguf.checks import static_checks
from converters.gguf.container import MAGIC, GgufFile, first_part
from converters.gguf.copying import copy_checks, keeps_weights, plan_copy, write_copy
from converters.gguf.export import write_export
from converters.gguf.library import EXTRA, gguf_library, llama_library
from converters.gguf.options import GgufOptions
from converters.gguf.outtypes import OUTTYPES, outtype_named
from converters.gguf.quantize import read_importance
from converters.gguf.source import GgufCheckpoint
from converters.gguf.tokenizer_parity import difference
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError, UnsupportedError
from longrope.factors import BoundFactors, FactorSets, RescaleFactors
from longrope.progress import Progress


class GgufConverter(Converter):
    """Llama-type models as GGUF files for llama.cpp, with both factor sets inside."""

    name = "gguf"
    suffix = ".gguf"
    auto_factor_sets: ClassVar[FactorSets] = "dual"
    outtypes: ClassVar[Sequence[str]] = tuple(OUTTYPES)
    extra: ClassVar[str | None] = EXTRA

    def recognizes(self, path: Path) -> bool:
        file = first_part(path)
        if not file.is_file():
            return False
        with file.open("rb") as handle:
            return file.suffix == self.suffix or handle.read(len(MAGIC)) == MAGIC

    def check_requirements(self) -> None:
        gguf_library()
        llama_library()

    def plan(self, export: Export) -> GgufExport:
        planned = _planned(export)
        values, infos = planned.values_and_infos()
        found = difference(export.checkpoint.tokenizer, values, infos, name=export.checkpoint.name)
        if found:
            raise UnsupportedError(
                f"{export.checkpoint.name}: llama.cpp would split text otherwise than this tokenizer: {found}. "
                "Export to HF or ONNX instead"
            )
        return planned

    def plan_like(self, path: Path, expected: BoundFactors, reference: Checkpoint) -> GgufExport:
        with GgufFile(path) as file:
            as_llama = file.architecture == "llama" and reference.architecture.gguf_as_llama
        export = Export(reference, expected, options={"as_llama": as_llama})
        return GgufExport(export, Blueprint(reference, expected, options=GgufOptions(as_llama=as_llama)))

    def read_factors(self, path: Path) -> RescaleFactors | None:
        return readback.read_factors(path)

    def recorded_factors(self, path: Path) -> RescaleFactors | None:
        return readback.recorded_factors(path)

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
        from converters.gguf.runtime import LlamaCppSource  # imports torch

        return LlamaCppSource(path, factors, max_length=max_length, threads=threads, kv=kv)  # type: ignore[arg-type]

    def tolerance_name(self, path: Path, reference: Checkpoint) -> str:
        return readback.coarsest_type(path)

    def runtime_uses(self, factors: RescaleFactors) -> list[RuntimeUse]:
        if factors.factor_sets == "single":
            return [RuntimeUse("llama.cpp", "one set for every context", safe=True)]
        original = window_words(factors)
        return [
            RuntimeUse(
                "llama.cpp",
                f"the short set in contexts (-c, rounded up to a multiple of 256) of up to {original} tokens, the long set "
                "in larger ones; never both in one context",
                safe=True,
                advice=f"start it with -c {original} for short work; a larger context has the long set for short prompts too",
            )
        ]

    def describe(self, path: Path) -> dict[str, Any]:
        return readback.describe(path)


class GgufExport(PlannedExport):
    """A file that is planned: by a blueprint, or (None) as a copy of a GGUF source with other factors."""

    def __init__(self, export: Export, blueprint: Blueprint | None) -> None:
        super().__init__(export)
        self.blueprint = blueprint

    @property
    def file_name(self) -> str:
        """Named after the convention of llama.cpp and the Hub; a copied GGUF file keeps its name."""
        if self.blueprint is None and isinstance(self.export.checkpoint, GgufCheckpoint):
            return self.export.checkpoint.source.name
        return self.blueprint.file_name if self.blueprint else ""

    def with_factors(self, factors: BoundFactors) -> GgufExport:
        return _planned(dataclasses.replace(self.export, factors=factors))

    def values_and_infos(self) -> tuple[Any, Any]:
        """Metadata and tensors of the file."""
        if self.blueprint is None:
            return plan_copy(self.export)
        return self.blueprint.values(), [content.info for content in self.blueprint.contents()]

    def write(self, path: Path, progress: Progress) -> None:
        """Writes `path`, or with the option split_max_size parts named after it."""
        if self.blueprint is None:
            write_copy(self.export, path, progress)
        else:
            write_export(self.blueprint, path, progress)

    def check(self, path: Path, *, sampled: bool = False) -> list[Check]:
        export = self.export
        try:
            file = GgufFile(path)
        except InputError as error:
            return [Check("gguf.readable", "fail", "a sound GGUF file", "a broken one", str(error))]
        with file:
            checks = copy_checks(file, export.factors, export.checkpoint)
            if not checks:
                blueprint = self.blueprint or Blueprint(export.checkpoint, export.factors)
                checks = static_checks(file, blueprint, whole=not sampled)
        return [Check("gguf.readable", "pass"), *checks]


def _planned(export: Export) -> GgufExport:
    if keeps_weights(export):
        return GgufExport(export, None)
    blueprint = Blueprint(
        export.checkpoint, export.factors, outtype_named(export.outtype), GgufOptions.of(export.options)
    )
    _refuse_without_imatrix(blueprint)
    return GgufExport(export, blueprint)


def _refuse_without_imatrix(blueprint: Blueprint) -> None:
    options, outtype = blueprint.options, blueprint.outtype
    if outtype.needs_imatrix and not options.imatrix:
        raise UnsupportedError(
            f"llama.cpp quantizes to {outtype.name} only with an importance matrix; give one (option imatrix, made by "
            "llama-imatrix) or choose q2_k or larger"
        )
    if options.imatrix and outtype.matrix:
        raise InputError(f"an importance matrix has no effect on {outtype.name}; leave it out or choose e.g. q4_k_m")
    if options.imatrix:
        read_importance(Path(options.imatrix))
