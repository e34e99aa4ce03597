"""`longrope-export inspect`: what an artifact holds, as data and in plain words."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrope.base_rope import BaseRope
from longrope.factors import RescaleFactors
from longrope.options import option
from longrope_export import options

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class InspectRequest:
    """The options of `inspect`."""

    artifact: str = option(argument=True, help="Artifact to look into: a folder, a GGUF file, or a Hub id.")
    json_path: str | None = options.json_file()
    isolate: options.Isolate = options.isolate()


@options.command(InspectRequest)
def command(request: InspectRequest) -> int:
    """Say what ARTIFACT holds: format, factor sets, lengths, and which runtime uses which set when."""
    from longrope.provenance import published_name
    from longrope_export.console import write_json
    from longrope_export.models import artifact_path

    result = inspected(artifact_path(request.artifact), request.isolate)
    if request.json_path is None:
        print_inspection(result)
    write_json({**result, "artifact": published_name(result["artifact"])}, request.json_path)
    return 0


def inspected(path: Path, isolate: options.Isolate) -> dict[str, Any]:
    """`inspect_artifact`, in a process of its own where its format's runtime gets one. Raises as there."""
    from converters import registry
    from converters.isolation import Limits, workplace_for

    converter = registry.recognize(path)
    converter.check_requirements()
    workplace = workplace_for(converter, path, isolate, runtime=False)
    if workplace is None:
        return inspect_artifact(path)
    with workplace:
        limits = Limits.of(converter, path, max_length=0, threads=1)
        head = {"do": "call", "function": f"{__name__}:inspect_by_name", "arguments": [str(path)]}
        found, _ = workplace.ask(head, seconds=limits.loading_seconds, memory=limits.memory)
        return dict(found)


def inspect_by_name(path: str) -> dict[str, Any]:
    """`inspect_artifact` of a path as text, which is how it travels to another process."""
    return inspect_artifact(Path(path))


def inspect_artifact(path: Path) -> dict[str, Any]:
    """Format, facts, factors and runtimes of an artifact, JSON-able. Raises InputError for a broken one."""
    from converters import registry

    converter = registry.recognize(path)
    factors, base = converter.read_factors(path), converter.base_rope(path)
    return {
        "schema_version": SCHEMA_VERSION,
        "artifact": str(path),
        "format": converter.name,
        "facts": converter.describe(path),
        "factor_sets": factors.factor_sets if factors else None,
        "factors": factors.to_json() if factors else None,
        "base": dataclasses.asdict(base) if base else None,
        "oddities": factors.oddities() if factors else [],
        "runtimes": [dataclasses.asdict(use) for use in converter.runtime_uses(factors)] if factors else [],
    }


def print_inspection(result: dict[str, Any]) -> None:
    """The same for a person."""
    from longrope_export.console import print_table, said, say

    say(f"{result['artifact']}: {result['format']}")
    for name, value in result["facts"].items():
        say(f"  {name}: {said(value)}")
    base = result["base"] and BaseRope.from_json(result["base"], "base")
    if result["factors"] is None:
        plain = base is None or base.rope_type == "default"
        own = "this is plain RoPE, not an extended model" if plain else f"its own RoPE is {base}"
        say(f"  no rescale factors: {own}")
        return
    if base:
        say(f"  put on: {base}")
    _print_factors(RescaleFactors.from_json(result["factors"]), result["oddities"])
    rows = [
        [use["runtime"], use["uses"], "yes" if use["safe"] else "no", use["advice"], use["checked"]]
        for use in result["runtimes"]
    ]
    print_table("Which runtime uses which set when", ("runtime", "uses", "safe", "advice", "checked"), rows)


def _print_factors(factors: RescaleFactors, oddities: list[str]) -> None:
    from longrope_export.console import said, say

    say(f"  factor sets: {factors.factor_sets}")
    window, target = said(factors.original_max_position_embeddings), said(factors.target_length)
    say(f"  window: {window} → {target} tokens")
    if factors.attention_factor is not None:
        say(f"  attention factor: {factors.attention_factor:.6g} (given)")
    elif factors.formula_attention_factor is not None:
        say(f"  attention factor: {factors.formula_attention_factor:.6g} (by the formula)")
    say(f"  start tokens (n_hat): {factors.n_hat}")
    for name, values in (("short", factors.short_factor), ("long", factors.long_factor)):
        say(f"  {name}_factor: {len(values)} pairs, {min(values):.6g} … {max(values):.6g}")
    for oddity in oddities:
        say(f"  note: {oddity}")
