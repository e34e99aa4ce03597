"""What a result was made with: versions, machine, inputs. Goes into every file that makes a claim."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

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


def usable_cpus() -> int:
    """Number of CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def provenance(**facts: Any) -> Mapping[str, Any]:
    """Versions, machine and time (UTC), with the caller's own facts: fingerprints, seed, options."""
    made = datetime.now(UTC).isoformat(timespec="seconds")
    return {"versions": versions(), "machine": machine(), "created": made, **facts}
