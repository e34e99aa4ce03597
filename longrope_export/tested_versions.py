"""Versions that this program has run with: the one table that `doctor` and DESIGN.md, "What ran where", go by.

Lower bounds are pyproject.toml's, read from the installed distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

DISTRIBUTION = "longrope-export"
# From the oldest to the newest. DESIGN.md says what ran with each; requirements-ci.txt has those that run every test.
TESTED: Mapping[str, Sequence[str]] = {
    "python": ("3.11", "3.12"),
    "torch": ("2.6.0", "2.11", "2.13", "2.14.1", "2.15.0"),
    "transformers": ("5.0.0", "5.17", "5.24"),
    "tokenizers": ("0.23",),
    "safetensors": ("0.8",),
    "numpy": ("2.4",),
    "gguf": ("0.19",),
    "llama-cpp-python": ("0.3.36",),
    "onnx": ("1.23",),
    "onnx-ir": ("1.1",),
    "onnxruntime": ("1.32",),
    "peft": ("0.21",),
}


def minimum(package: str, installed: str) -> str:
    """The version that pyproject.toml asks for at least, where the installed one is below it; else empty."""
    try:
        wanted = [Requirement(text) for text in requires(DISTRIBUTION) or ()]
        here = Version(installed)
    except (PackageNotFoundError, InvalidVersion):  # run from a folder, or a build of somebody's own
        return ""
    bounds = [
        part.version
        for each in wanted
        if each.name == package
        for part in each.specifier
        if part.operator == ">=" and here < Version(part.version)
    ]
    return max(bounds, key=Version, default="")


def newer_than_tested(package: str, installed: str) -> bool:
    """Whether a version is above every one in the table, by the parts that the table's last one has."""
    if package not in TESTED:
        return False
    try:
        here, last = Version(installed).release, Version(TESTED[package][-1]).release
    except InvalidVersion:
        return True
    return here[: len(last)] > last
