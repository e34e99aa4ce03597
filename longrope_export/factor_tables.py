"""Factors as text: beside the known methods, and two sets against each other."""

from __future__ import annotations

import click

from longrope import rope
from longrope.factors import RescaleFactors
from longrope_export.console import print_table

COMPARED = (
    "n_hat",
    "original_max_position_embeddings",
    "target_length",
    "attention_factor",
    "rope_theta",
    "rotary_dim",
)


def known_methods(factors: RescaleFactors) -> dict[str, list[float]]:
    """PI, NTK and (where theta is known) YaRN at the factors' length scale; empty when the lengths are not known."""
    dim, scale, original = 2 * factors.num_pairs, factors.length_scale, factors.original_max_position_embeddings
    if scale is None or original is None:
        return {}
    methods = {"PI": rope.pi_factors(dim, scale), "NTK": rope.ntk_factors(dim, scale)}
    if factors.rope_theta is not None:
        methods["YaRN"] = rope.yarn_factors(dim, scale, rope_theta=factors.rope_theta, original=original)
    return {name: values.tolist() for name, values in methods.items()}


def print_factors(title: str, factors: RescaleFactors) -> None:
    """One row a rotary pair."""
    columns = {"short": factors.short_factor, "long": factors.long_factor, **known_methods(factors)}
    rows = [[str(i), *(f"{values[i]:.6g}" for values in columns.values())] for i in range(factors.num_pairs)]
    print_table(title, ("pair", *columns), rows)
    for name in COMPARED:
        value = getattr(factors, name)
        click.echo(f"{name}: {'not said' if value is None else value}")
    for oddity in factors.oddities():
        click.echo(f"note: {oddity}")


def print_differences(first: RescaleFactors, second: RescaleFactors, first_name: str, second_name: str) -> int:
    """Print where two factor files differ; returns the number of differences."""
    rows = [[name, str(a), str(b)] for name in COMPARED if (a := getattr(first, name)) != (b := getattr(second, name))]
    for field in ("short_factor", "long_factor"):
        rows += _set_differences(field, getattr(first, field), getattr(second, field))
    if rows:
        print_table("Differences", ("what", first_name, second_name), rows)
    else:
        click.echo(f"{first_name} and {second_name} hold the same factors")
    return len(rows)


def _set_differences(field: str, first: tuple[float, ...], second: tuple[float, ...]) -> list[list[str]]:
    if len(first) != len(second):
        return [[field, f"{len(first)} pairs", f"{len(second)} pairs"]]
    return [[f"{field}[{i}]", repr(a), repr(b)] for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
