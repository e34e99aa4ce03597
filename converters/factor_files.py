"""Factors from what holds some (our JSON, the authors' CSV, config.json, an artifact, a Hub id), and what to compare with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from converters import registry
from converters.hub_factors import hub_factors
from longrope import rope
from longrope.config_fields import check_config
from longrope.errors import InputError
from longrope.factors import MODEL_FACTS, BoundFactors, FactorSet, RescaleFactors, read_authors_csv
from longrope.files import write_json
from longrope.hf_config import extended_config, from_config
from longrope.hub import hub_id_of
from longrope.reading import read_json

CSV_SUFFIXES = (".csv", ".txt")


def read_factors(file: str | Path) -> RescaleFactors:
    """Factors of a file or folder, exactly as stored; what it does not say is left open.

    Args:
        file: a factors.json, the LongRoPE authors' CSV (one set), a config.json, an artifact of any format, or where no
            such path is here a Hub id, `org/name` or `org/name@revision`, of which no weights are downloaded.

    Raises:
        InputError: no such file, or it holds no factors.
        MissingRequirementError: the Hub cannot be reached.
    """
    if hub_id := hub_id_of(str(file)):
        return hub_factors(hub_id)
    path = Path(file)
    if path.suffix.lower() in CSV_SUFFIXES:
        values = read_authors_csv(path)
        return RescaleFactors(values, values, method="imported", provenance={"imported_from": path.name})
    if path.suffix.lower() == ".json":
        return _read_json(path)
    found = registry.recognize(path).read_factors(path)
    if found is None:
        raise InputError(f"{path}: holds no rescale factors; `inspect` says which RoPE it has")
    return found


def known_methods(factors: RescaleFactors) -> dict[str, list[float]]:
    """PI, NTK and (where theta is known) YaRN at the factors' length scale; empty when the lengths are not known."""
    dim, scale, original = 2 * factors.num_pairs, factors.length_scale, factors.original_max_position_embeddings
    if scale is None or original is None:
        return {}
    methods = {"PI": rope.pi_factors(dim, scale), "NTK": rope.ntk_factors(dim, scale)}
    if factors.rope_theta is not None:
        methods["YaRN"] = rope.yarn_factors(dim, scale, rope_theta=factors.rope_theta, original=original)
    return {name: values.tolist() for name, values in methods.items()}


def import_factors(path: Path, *, short: Path | None, original: int | None, target: int | None) -> RescaleFactors:
    """Factors of `path` with the short set of another file and lengths that the files do not say.

    Raises:
        InputError: a given length contradicts the file's own.
    """
    factors = read_factors(path)
    changes: dict[str, object] = {}
    if short is not None:
        changes["short_factor"] = read_factors(short).long_factor
    for name, value in (("original_max_position_embeddings", original), ("target_length", target)):
        stored = getattr(factors, name)
        if value is not None and stored not in (None, value):
            raise InputError(f"{path} says {name} = {stored}, {value} was given; they contradict each other")
        changes[name] = value or stored
    return dataclasses.replace(factors, **changes)  # type: ignore[arg-type]


def export_factors(factors: RescaleFactors, path: Path, kind: str, *, factor_set: FactorSet = "long") -> None:
    """Write factors as other tools read them; `import_factors` takes each back.

    Args:
        factors: what to write.
        path: a new file.
        kind: `config` (the rope keys of a Hugging Face config.json), `gguf` (tensors and keys without weights), or `csv`
            (one set, as the LongRoPE authors' files).
        factor_set: that a CSV holds.

    Raises:
        InputError: the factors leave open what config.json and GGUF have to say.
        UnsupportedError: start tokens, which neither can hold.
    """
    if kind == "csv":
        path.write_text(",".join(map(repr, factors.set(factor_set))) + "\n", encoding="utf-8")
        return
    bound = _bound_to_itself(factors)
    if kind == "config":
        write_json(path, extended_config({"model_type": bound.model_type}, bound))
        return
    from converters.gguf.patch import write_factors

    write_factors(path, bound)


def _bound_to_itself(factors: RescaleFactors) -> BoundFactors:
    """The factors with the model's facts that they name themselves."""
    facts = {**{name: getattr(factors, name) for name in MODEL_FACTS}, "rotary_dim": 2 * factors.num_pairs}
    missing = [name for name in (*facts, "target_length") if facts.get(name, getattr(factors, name)) is None]
    if missing:
        raise InputError(
            f"the factors do not say {', '.join(missing)}; import them with what is missing first, or write csv"
        )
    return factors.bound_to(
        original=facts["original_max_position_embeddings"],
        rope_theta=facts["rope_theta"],
        rotary_dim=facts["rotary_dim"],
        model_type=facts["model_type"],
    )


def _read_json(path: Path) -> RescaleFactors:
    """factors.json or config.json, told apart by what is in it."""
    data = read_json(path, non_finite=True)
    if isinstance(data, dict) and "model_type" in data and "schema_version" not in data:
        check_config(data, str(path.parent))
        found = from_config(data)
        if found is None:
            raise InputError(f"{path}: a config.json without longrope factors")
        return found
    return RescaleFactors.from_json(data, source=str(path))
