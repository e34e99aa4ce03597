"""`longrope-export factors import|show|plot|diff`."""

from __future__ import annotations

from pathlib import Path

import click

from longrope_export import options


@click.group()
def command() -> None:
    """Import, show, plot and compare factors: factors.json, the authors' CSV, config.json, HF, GGUF and ONNX artifacts."""


@command.command("import")
@click.argument("file", type=options.PATH)
@options.output("factors.json to write.")
@click.option("--short", type=options.PATH, help="File whose set becomes the short one.")
@click.option("--original", type=options.TOKENS, help="Window before extension, where FILE does not say it.")
@click.option("--target", type=options.TOKENS, help="Window after extension, where FILE does not say it.")
def import_command(
    file: Path, output: Path, overwrite: bool, short: Path | None, original: int | None, target: int | None
) -> int:
    """Turn the factors in FILE into factors.json."""
    from longrope.files import refuse_existing
    from longrope_export.console import ConsoleProgress
    from longrope_export.factor_files import import_factors

    progress = ConsoleProgress()
    factors = import_factors(file, short=short, original=original, target=target)
    refuse_existing(output, overwrite=overwrite)
    for oddity in factors.oddities():
        progress.warn(oddity)
    factors.save(output)
    progress.line(f"{output}: {factors.num_pairs} pairs, {factors.factor_sets}.")
    return 0


@command.command("show")
@click.argument("file", type=options.PATH)
@options.json_output
def show_command(file: Path, json_path: str | None) -> int:
    """Print the factors in FILE beside PI, NTK and YaRN at the same length scale."""
    from longrope_export.console import write_json
    from longrope_export.factor_files import read_factors
    from longrope_export.factor_tables import print_factors

    factors = read_factors(file)
    if json_path is None:
        print_factors(str(file), factors)
    write_json(factors.to_json(), json_path)
    return 0


@command.command("diff")
@click.argument("first", type=options.PATH)
@click.argument("second", type=options.PATH)
def diff_command(first: Path, second: Path) -> int:
    """Compare two factor files; exit code 1 when they differ."""
    from longrope_export.factor_files import read_factors
    from longrope_export.factor_tables import print_differences

    return 1 if print_differences(read_factors(first), read_factors(second), str(first), str(second)) else 0


@command.command("plot")
@click.argument("files", type=options.PATH, nargs=-1, required=True)
@options.output("PNG or SVG to write.")
@click.option(
    "--beside",
    type=options.PATH,
    multiple=True,
    metavar="FILE",
    help="Other models' factors, drawn as shapes; repeatable.",
)
def plot_command(files: tuple[Path, ...], output: Path, overwrite: bool, beside: tuple[Path, ...]) -> int:
    """Plot the factors of FILES over the rotary pairs, beside PI, NTK and YaRN at the first one's length scale.

    Files given with --beside, such as the sets that LongRoPE's authors published, are brought to its pairs and length scale.
    """
    from longrope.files import refuse_existing
    from longrope_export.factor_files import read_factors
    from longrope_export.plots import plot_factors

    refuse_existing(output, overwrite=overwrite)
    shown, shapes = ({str(file): read_factors(file) for file in some} for some in (files, beside))
    plot_factors(shown, output, beside=shapes)
    return 0
