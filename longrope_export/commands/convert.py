"""`longrope-export convert`: one model to one format. Imports neither torch nor transformers unless the format needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters import conversion, registry
from longrope.errors import InputError
from longrope.files import refuse_existing, refuse_foreign
from longrope.locks import refuse_occupied
from longrope.options import ModelName, Tokens, option
from longrope_export import options
from longrope_export.conversion import known_factors
from longrope_export.models import open_model

if TYPE_CHECKING:
    from converters.conversion import Conversion
    from longrope.progress import Progress

WORDS = {"true": True, "false": False}


def weight_types() -> str:
    """`hf auto, f32; gguf f16, …`: what each of our formats can write."""
    return "; ".join(f"{name} {', '.join(registry.converter(name).outtypes)}" for name in registry.OURS)


@dataclass(frozen=True, kw_only=True)
class ConvertRequest:
    """The options of `convert`."""

    model: ModelName = option(argument=True, help="Model to write: a folder, a Hub id, a GGUF file, or default.")
    factors: Path | None = option(
        None, section="Factors", unset="the model's own", help="Factors to embed: a factors.json, or a Hub id with one."
    )
    factor_sets: options.FactorSetsWish = options.factor_sets()
    original: Tokens | None = options.original()
    format: str = option(name="to", section="Output", metavar="hf|gguf|onnx", help="Format to write.")
    output: Path = options.output("File (gguf) or folder (hf, onnx) to write; in a folder, gguf names the file itself.")
    outtype: str | None = option(
        None, section="Output", metavar="TYPE", unset="the first", help=f"Weight type of the format: {weight_types()}."
    )
    overwrite: bool = options.overwrite()
    pairs: tuple[str, ...] = option(
        (), name="option", metavar="KEY=VALUE", help="An option of the format's own, see its docs; repeatable."
    )


@options.command(ConvertRequest)
def command(request: ConvertRequest) -> int:
    """Write MODEL with its factors embedded, read everything back, and only then give it its name."""
    from longrope_export.console import ConsoleProgress

    progress = ConsoleProgress()
    written = convert(request, progress)
    names = ", ".join(map(str, written.files))
    progress.line(f"{names}: written; {len(written.checks)} read-back checks passed.")
    return 0


def convert(request: ConvertRequest, progress: Progress) -> Conversion:
    """Write one artifact; what can be refused without the model is refused before it is opened, or downloaded.

    Raises:
        LongRopeError: nothing is left behind.
    """
    converter = registry.converter(request.format)
    if not (converter.suffix and request.output.is_dir()):
        refuse_occupied(request.output)
        refuse_existing(request.output, overwrite=request.overwrite)
        refuse_foreign(request.output, registry.wrote)
    own = parse_pairs(request.pairs)
    checkpoint = open_model(request.model, request.original)
    return conversion.convert(
        checkpoint,
        request.output,
        to=request.format,
        factors=known_factors(checkpoint, request.factors),
        factor_sets=request.factor_sets,
        outtype=request.outtype,
        options=own,
        overwrite=request.overwrite,
        progress=progress,
    )


def parse_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` options as a mapping; true, false and whole numbers are taken as such. Raises InputError otherwise."""
    parsed: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise InputError(f"--option {pair}: expected KEY=VALUE")
        parsed[key] = WORDS.get(value.lower(), int(value) if value.isdigit() else value)
    return parsed
