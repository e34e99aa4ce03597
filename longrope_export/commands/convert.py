"""`longrope-export convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from longrope_export import options


@click.command()
@click.argument("model")
@click.option("--to", "format_name", required=True, metavar="hf|gguf|onnx", help="Format to write.")
@options.output("File (gguf; in a folder that exists it is named by convention) or folder to write.")
@click.option("--factors", type=options.PATH, help="Factors to embed.  [default: the model's own]")
@options.factor_sets
@click.option("--outtype", help="Weight type: hf auto f32 f16 bf16; gguf f32 f16 bf16 q8_0 …; onnx fp32 ….")
@click.option(
    "--option", "pairs", multiple=True, metavar="KEY=VALUE", help="An option of the format's own; repeatable."
)
def command(
    model: str,
    format_name: str,
    output: Path,
    overwrite: bool,
    factors: Path | None,
    factor_sets: str,
    outtype: str | None,
    pairs: tuple[str, ...],
    **own: Any,
) -> int:
    """Write MODEL with its factors embedded, read everything back, and only then give it its name."""
    from longrope_export.console import ConsoleProgress
    from longrope_export.conversion import ConvertRequest, convert, parse_pairs

    progress = ConsoleProgress()
    given = {name: value for name, value in own.items() if value}
    request = ConvertRequest(
        model, format_name, output, factors, factor_sets, outtype, {**given, **parse_pairs(pairs)}, overwrite
    )
    path, checks = convert(request, progress)
    progress.line(f"{path}: written; {len(checks)} read-back checks passed.")
    return 0
