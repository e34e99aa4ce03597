"""`longrope-export factors import|export|show|plot|diff`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from longrope.options import Tokens, option
from longrope_export import options

if TYPE_CHECKING:
    from longrope.factors import RescaleFactors

COMPARED = (
    "n_hat",
    "original_max_position_embeddings",
    "target_length",
    "attention_factor",
    "rope_theta",
    "rotary_dim",
)
# What holds factors.
SOURCE = "factors.json, the authors' CSV, a config.json, an artifact, or a Hub id"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Import, export, show, plot and compare factors: factors.json, the authors' CSV, config.json and artifacts."""


# -- import


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """The options of `factors import`."""

    file: Path = option(argument=True, help=f"File to import: {SOURCE}.")
    short: Path | None = option(None, section="Input", unset="FILE's own", help="File whose set becomes the short one.")
    original: Tokens | None = option(
        None, section="Input", unset="FILE's own", help="Window before the extension, where FILE does not say it."
    )
    target: Tokens | None = option(
        None, section="Input", unset="FILE's own", help="Window after the extension, where FILE does not say it."
    )
    output: Path = options.output("File of the factors to write, factors.json.")
    overwrite: bool = options.overwrite()


@options.command(ImportRequest, name="import", group=command)
def import_command(request: ImportRequest) -> int:
    """Turn the factors in FILE into factors.json."""
    from converters.factor_files import import_factors
    from longrope.files import refuse_existing
    from longrope_export.console import ConsoleProgress

    progress = ConsoleProgress()
    factors = import_factors(request.file, short=request.short, original=request.original, target=request.target)
    refuse_existing(request.output, overwrite=request.overwrite)
    for oddity in factors.oddities():
        progress.warn(oddity)
    factors.save(request.output)
    progress.line(f"{request.output}: {factors.num_pairs} pairs, {factors.factor_sets}.")
    return 0


# -- export


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """The options of `factors export`."""

    file: Path = option(argument=True, help=f"File to export: {SOURCE}.")
    kind: Literal["config", "gguf", "csv"] = option(
        name="to",
        section="Output",
        help="The rope keys of a config.json, a GGUF file without weights, or the authors' CSV.",
    )
    factor_set: Literal["long", "short"] = option("long", name="set", section="Output", help="Set that a CSV holds.")
    output: Path = options.output("File to write.")
    overwrite: bool = options.overwrite()


@options.command(ExportRequest, name="export", group=command)
def export_command(request: ExportRequest) -> int:
    """Write the factors in FILE as other tools read them; `import` takes each back."""
    from converters.factor_files import export_factors, read_factors
    from longrope.files import staged
    from longrope_export.console import ConsoleProgress

    factors, progress = read_factors(request.file), ConsoleProgress()
    if request.kind == "csv" and factors.factor_sets == "dual":
        progress.warn(f"a CSV holds one set: the {request.factor_set} one is written, --set chooses")
    with staged(request.output, overwrite=request.overwrite) as path:
        export_factors(factors, path, request.kind, factor_set=request.factor_set)
    progress.line(f"{request.output}: {factors.num_pairs} pairs, {request.kind}.")
    return 0


# -- show


@dataclass(frozen=True, kw_only=True)
class ShowRequest:
    """The options of `factors show`."""

    file: Path = option(argument=True, help=f"File to show: {SOURCE}.")
    json_path: str | None = options.json_file()


@options.command(ShowRequest, name="show", group=command)
def show_command(request: ShowRequest) -> int:
    """Print the factors in FILE beside PI, NTK and YaRN at the same length scale."""
    from converters.factor_files import read_factors
    from longrope_export.console import write_json

    factors = read_factors(request.file)
    if request.json_path is None:
        print_factors(str(request.file), factors)
    write_json(factors.to_json(), request.json_path)
    return 0


def print_factors(title: str, factors: RescaleFactors) -> None:
    """One row a rotary pair."""
    from converters.factor_files import known_methods
    from longrope_export.console import print_table, said, say

    columns = {"short": factors.short_factor, "long": factors.long_factor, **known_methods(factors)}
    rows = [[str(i), *(f"{values[i]:.6g}" for values in columns.values())] for i in range(factors.num_pairs)]
    print_table(title, ("pair", *columns), rows)
    for name in COMPARED:
        say(f"{name}: {said(getattr(factors, name))}")
    for oddity in factors.oddities():
        say(f"note: {oddity}")


# -- diff


@dataclass(frozen=True, kw_only=True)
class DiffRequest:
    """The options of `factors diff`."""

    first: Path = option(argument=True, help=f"File to compare: {SOURCE}.")
    second: Path = option(argument=True, help="File to compare it with.")


@options.command(DiffRequest, name="diff", group=command)
def diff_command(request: DiffRequest) -> int:
    """Compare two factor files; exit code 1 when they differ."""
    from converters.factor_files import read_factors

    first, second = request.first, request.second
    return 1 if print_differences(read_factors(first), read_factors(second), str(first), str(second)) else 0


def print_differences(first: RescaleFactors, second: RescaleFactors, first_name: str, second_name: str) -> int:
    """Print where two factor files differ; returns the number of differences."""
    from longrope_export.console import print_table, said, say

    rows = [
        [name, said(a), said(b)] for name in COMPARED if (a := getattr(first, name)) != (b := getattr(second, name))
    ]
    for field in ("short_factor", "long_factor"):
        rows += _set_differences(field, getattr(first, field), getattr(second, field))
    if rows:
        print_table("Differences", ("what", first_name, second_name), rows)
    else:
        say(f"{first_name} and {second_name} hold the same factors")
    return len(rows)


def _set_differences(field: str, first: tuple[float, ...], second: tuple[float, ...]) -> list[list[str]]:
    if len(first) != len(second):
        return [[field, f"{len(first)} pairs", f"{len(second)} pairs"]]
    return [[f"{field}[{i}]", repr(a), repr(b)] for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]


# -- plot


@dataclass(frozen=True, kw_only=True)
class PlotRequest:
    """The options of `factors plot`."""

    files: tuple[Path, ...] = option(argument=True, help=f"Files to plot: {SOURCE}.")
    beside: tuple[Path, ...] = option(
        (), section="Input", metavar="FILE", help="Other models' factors, drawn as shapes; repeatable."
    )
    output: Path = options.output("Picture to write, PNG or SVG.")
    overwrite: bool = options.overwrite()


@options.command(PlotRequest, name="plot", group=command)
def plot_command(request: PlotRequest) -> int:
    """Plot the factors of FILES over the rotary pairs, beside PI, NTK and YaRN at the first one's length scale.

    Files given with --beside, such as the sets that LongRoPE's authors published, are brought to its pairs and length scale.
    """
    from converters.factor_files import read_factors
    from longrope.files import refuse_existing
    from longrope_export.plots import plot_factors

    refuse_existing(request.output, overwrite=request.overwrite)
    shown, shapes = ({str(file): read_factors(file) for file in some} for some in (request.files, request.beside))
    plot_factors(shown, request.output, beside=shapes)
    return 0
