"""What a result was made with: versions, machine, inputs. Goes into every file that makes a claim."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_CACHED = re.compile(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/[0-9a-f]{40}(?=/|$)")
# Lines of Linux's /proc/cpuinfo that name a model: of x86, and of ARM.
_OF_PROCESSOR = ("model name", "cpu family", "model\t", "CPU implementer", "CPU part")

PACKAGES = (
    "longrope-export",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "gguf",
    "llama-cpp-python",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "peft",
)


def versions() -> dict[str, str]:
    """Installed versions of the packages a result can depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Kind of machine, without its name."""
    return {"system": platform.system(), "machine": platform.machine(), "cpus": usable_cpus()}


def processor() -> str:
    """The processor's model, as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return "; ".join(sorted({line for line in lines if line.startswith(_OF_PROCESSOR)}))


def usable_cpus() -> int:
    """Number of CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def published_name(name: str | Path) -> str:
    """What results call a model, a text or an artifact: a Hub id, or the last part of a path, for its folders are private.

    Args:
        name: as the user gave it.
    """
    path = Path(name)
    if (found := cached_hub_id(path)) is not None:
        return found
    if path.is_absolute() or path.exists() or str(name).startswith(("~", "./", "../")):
        return path.name if path.name not in ("", "..") else path.resolve().name
    return str(name)


def cached_hub_id(path: Path) -> str | None:
    """`org/name` of a folder in the Hub's cache, `models--org--name/snapshots/COMMIT`, or a file in it; None elsewhere."""
    found = _CACHED.search(path.absolute().as_posix())
    return found and f"{found[1]}/{found[2]}"


def without_folders(value: Any) -> Any:
    """JSON-able data with `published_name` in the place of every absolute path, and of those in the user's home."""
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    is_path = isinstance(value, Path) or (isinstance(value, str) and Path(value).is_absolute())
    return published_name(value) if is_path or str(value).startswith("~/") else value


def provenance(**facts: Any) -> Mapping[str, Any]:
    """Versions, machine and time (UTC), with the caller's own facts: fingerprints, seed, options."""
    made = datetime.now(UTC).isoformat(timespec="seconds")
    return {"versions": versions(), "machine": machine(), "created": made, **facts}
