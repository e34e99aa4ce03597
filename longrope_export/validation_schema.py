"""The JSON Schema of validation.json, made from the types that are written into it: docs/validation.schema.json."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from converters.base import Check
from converters.measurements import SCHEMA_VERSION, SCORES, Validation
from longrope.files import json_text
from longrope.measures import Quality, WindowScore
from longrope_export.recipes import SCHEMA

_PLAIN: Mapping[Any, Mapping[str, Any]] = {
    int: {"type": "integer"},
    float: {"type": ["number", "null"], "description": "null stands for NaN and infinity"},
    str: {"type": "string"},
    bool: {"type": "boolean"},
    Any: {},
    type(None): {"type": "null"},
}
# What was there from the start is required; what was added within the version may be missing.
_ADDED = {
    "found",
    "policy",
    *SCORES[1:],
    "batch",
    "weights",
    "factor_sets",
    "reference_dtype",
    "texts",
    "tied",
    "decided_agreements",
}
_ADDED |= {"kl_mean_low", "kl_median", "kl_median_low", "kl_p99_low", "kl_max", "ppl_delta_low", "ppl_delta_high"}
_ADDED |= {"explanation", "quality", "logit_diff_mean", "logit_diff_median", "logit_diff_p99", "non_finite_positions"}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_PROVENANCE = {
    "type": "object",
    "properties": {
        "versions": {**_TEXTS, "description": "installed packages"},
        "machine": {"type": "object"},
        "created": {"type": "string", "format": "date-time"},
        "reference_fingerprint": {"type": "string"},
        "text_fingerprint": {"type": "string"},
        "factors": {"type": "object", "description": "the expected factors"},
        "files": {**_TEXTS, "description": "SHA-256 of every validated file"},
        "seed": {"type": ["integer", "null"]},
    },
    "required": ["versions", "machine", "created"],
}


def schema_text() -> str:
    """docs/validation.schema.json; `make schema` writes it."""
    return json_text(validation_schema())


def validation_schema() -> dict[str, Any]:
    """The schema of what `validate --json` writes, or of a run's validation.json. Fields may be added within a version."""
    version = {"const": SCHEMA_VERSION}
    run = {
        "schema_version": version,
        "passed": _schema_of(bool),
        "artifacts": {"type": "array", "items": _reference("artifact")},
    }
    return {
        "$schema": SCHEMA,
        "title": f"validation.json of longrope-export, version {SCHEMA_VERSION}",
        "anyOf": [_reference("artifact"), _reference("run")],
        "$defs": {
            "artifact": _artifact(version),
            "run": {"description": "what `extend` writes into a run's folder", **_object(run)},
            "check": _schema_of(Check),
            "quality": _quality(),
            "window": _with(_schema_of(WindowScore), ppl_delta_percent=_schema_of(float)),
        },
    }


def _artifact(version: Mapping[str, Any]) -> dict[str, Any]:
    parts = {"checks": "check", **dict.fromkeys((*SCORES, "batch"), "window")}
    lists = {name: {"type": "array", "items": _reference(part)} for name, part in parts.items()}
    more = {"schema_version": version, "passed": _schema_of(bool), "provenance": _PROVENANCE}
    entry = _schema_of(Validation)
    del entry["properties"]["findings"]  # which are checks, with `found`
    written = _with(entry, **more, **lists, quality={"anyOf": [_reference("quality"), _schema_of(type(None))]})
    return {"description": "what `validate --json` writes about one artifact", **written}


def _quality() -> dict[str, Any]:
    window = _reference("window")
    lists = {
        "inside": {"type": "array", "items": window},
        "controls": {"type": "object", "additionalProperties": window},
    }
    return {"description": "with --quality", **_with(_schema_of(Quality), **lists)}


def _schema_of(hint: Any) -> dict[str, Any]:
    """The schema of a type hint: a dataclass, a plain type, a Literal, or a list, mapping or union of such."""
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint)
        return _object({field.name: _schema_of(hints[field.name]) for field in dataclasses.fields(hint)})
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema_of(each) for each in arguments]}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _schema_of(arguments[1])}
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return {"type": "array", "items": _schema_of(arguments[0])}
    return dict(_PLAIN[hint])


def _with(schema: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """An object's schema with further fields, or others in their place, all of them required."""
    return _object({**schema["properties"], **more})


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    required = [name for name in properties if name not in _ADDED]
    return {"type": "object", "properties": dict(properties), "required": required}


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}
