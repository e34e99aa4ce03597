"""Sections in their order, written as they come, resumed where they ended."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import torch

from longrope.errors import InputError
from longrope.files import write_json
from longrope.journal import differences
from longrope.progress import Progress
from longrope.provenance import provenance
from longrope.reading import OBJECT, check, read_object, record
from longrope_export.gpu_check.base import Row, Setting, Step

SECTIONS: Final = ("right", "memory", "speed", "headline")
RESULT_NAME: Final = "gpu_check.json"
SCHEMA_VERSION = 1


def run_sections(setting: Setting, names: Sequence[str], progress: Progress, *, resume: bool) -> dict[str, Any]:
    """Run sections and write `gpu_check.json` after every step.

    Args:
        setting: what is checked, and the folder the result is written into.
        names: of sections, in this order.
        progress: where bars go.
        resume: keep the sections that a former run of the same setting finished.

    Returns:
        The result as JSON: `checked` (model, device, budget), `sections` by name with `rows`, `seconds` and `finished`.

    Raises:
        InputError: a section is unknown, or the former run checked something else.
    """
    if unknown := [name for name in names if name not in SECTIONS]:
        raise InputError(f"sections: expected some of {', '.join(SECTIONS)}, got {unknown[0]!r}")
    checked, file = _checked(setting), setting.folder / RESULT_NAME
    sections = _former(file, checked) if resume else {}
    for name in names:
        if sections.get(name, {}).get("finished"):
            progress.line(f"{name}: finished before.")
            continue
        section: dict[str, Any] = {"finished": False, "seconds": 0.0, "rows": []}
        sections[name] = section
        steps: tuple[Step, ...] = import_module(f"longrope_export.gpu_check.{name}").STEPS
        start = time.perf_counter()
        with progress.task(name, len(steps)) as task:
            for step in steps:
                section["rows"] += [asdict(row) for row in _rows(step, setting)]
                section["seconds"] = round(time.perf_counter() - start, 1)
                write_json(file, _result(checked, sections))
                task.advance(1, step.__name__)
        section["finished"] = True
        write_json(file, _result(checked, sections))
    return _result(checked, sections)


def failures(result: Mapping[str, Any]) -> list[str]:
    """What failed, section and row."""
    return [
        f"{name}: {row['what']}"
        for name, section in result["sections"].items()
        for row in section["rows"]
        if row["state"] == "failed"
    ]


def _rows(step: Step, setting: Setting) -> list[Row]:
    """A step's rows; one that fails is a row itself, so that the rest still runs."""
    rows = []
    try:
        for row in step(setting):
            rows.append(row)
    except Exception as error:  # noqa: BLE001  whatever a device or a library does is a finding
        rows.append(Row(step.__name__, f"{type(error).__name__}: {error}", state="failed"))
    gc.collect()
    if setting.on_gpu:
        torch.cuda.empty_cache()
    return rows


def _checked(setting: Setting) -> dict[str, Any]:
    """What decides the result."""
    name = torch.cuda.get_device_name(setting.device) if setting.on_gpu else setting.device
    return {
        "model": setting.checkpoint.fingerprint,
        "device": name,
        "dtype": setting.dtype,
        "budget": asdict(setting.budget),
        "versions": dict(provenance()["versions"]),
    }


def _former(file: Path, checked: Mapping[str, Any]) -> dict[str, Any]:
    if not file.is_file():
        return {}
    stored = check(read_object(file, non_finite=True), record({"checked": OBJECT, "sections": OBJECT}), str(file))
    if changed := differences(stored["checked"], json.loads(json.dumps(checked))):
        raise InputError(f"{file}: cannot resume, what is checked has changed: {'; '.join(changed)}; start a new one")
    sections: dict[str, Any] = stored["sections"]
    return sections


def _result(checked: Mapping[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    made = {"schema_version": SCHEMA_VERSION, "checked": dict(checked), "sections": dict(sections)}
    return {**made, "provenance": dict(provenance())}
