"""The two optional libraries of this format, imported when first used."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

from longrope.errors import MissingRequirementError

EXTRA = "gguf"


@cache
def gguf_library() -> ModuleType:
    """The `gguf` package: names of types, block sizes, quantizers. Raises MissingRequirementError."""
    return _required("gguf")


@cache
def llama_library() -> ModuleType:
    """The low-level bindings of llama-cpp-python. Raises MissingRequirementError."""
    return _required("llama_cpp")


def _required(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingRequirementError(
            f"GGUF needs the package {name!r}, which cannot be imported ({error}); "
            f"install it with: pip install 'longrope-export[{EXTRA}]'"
        ) from None
