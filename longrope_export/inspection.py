"""What an artifact holds, as data and in plain words."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from converters import registry
from longrope.factors import RescaleFactors
from longrope_export.console import print_table

SCHEMA_VERSION = 1


def inspect_artifact(path: Path) -> dict[str, Any]:
    """Format, facts, factors and runtimes of an artifact, JSON-able. Raises InputError for a broken one."""
    converter = registry.recognize(path)
    factors = converter.read_factors(path)
    return {
        "schema_version": SCHEMA_VERSION,
        "artifact": str(path),
        "format": converter.name,
        "facts": converter.describe(path),
        "factor_sets": factors.factor_sets if factors else None,
        "factors": factors.to_json() if factors else None,
        "oddities": factors.oddities() if factors else [],
        "runtimes": [dataclasses.asdict(use) for use in converter.runtime_uses(factors)] if factors else [],
    }


def print_inspection(result: dict[str, Any]) -> None:
    """The same for a person."""
    click.echo(f"{result['artifact']}: {result['format']}")
    for name, value in result["facts"].items():
        click.echo(f"  {name}: {value}")
    if result["factors"] is None:
        click.echo("  no rescale factors: this is plain RoPE, not an extended model")
        return
    _print_factors(RescaleFactors.from_json(result["factors"]), result["oddities"])
    rows = [[use["runtime"], use["uses"], "yes" if use["safe"] else "no", use["advice"]] for use in result["runtimes"]]
    print_table("Which runtime uses which set when", ("runtime", "uses", "safe", "advice"), rows)


def _print_factors(factors: RescaleFactors, oddities: list[str]) -> None:
    click.echo(f"  factor sets: {factors.factor_sets}")
    click.echo(f"  window: {factors.original_max_position_embeddings} → {factors.target_length} tokens")
    if factors.attention_factor is not None:
        click.echo(f"  attention factor: {factors.attention_factor:.6g} (given)")
    elif factors.formula_attention_factor is not None:
        click.echo(f"  attention factor: {factors.formula_attention_factor:.6g} (by the formula)")
    click.echo(f"  start tokens (n_hat): {factors.n_hat}")
    for name, values in (("short", factors.short_factor), ("long", factors.long_factor)):
        click.echo(f"  {name}_factor: {len(values)} pairs, {min(values):.6g} … {max(values):.6g}")
    for oddity in oddities:
        click.echo(f"  note: {oddity}")
