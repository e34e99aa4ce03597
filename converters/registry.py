"""All formats by name: ours, and those that third parties register by entry point. Each is loaded when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from converters.base import Converter
from longrope.errors import InputError, LongRopeError, choices
from longrope.hub import hint_for

GROUP = "longrope_export.formats"
OURS = {
    "hf": "converters.hf:HuggingFaceConverter",
    "gguf": "converters.gguf:GgufConverter",
    "onnx": "converters.onnx:OnnxConverter",
}


@dataclass(frozen=True)
class Format:
    """A registered format: its name, where its converter is, and which distribution brought it."""

    name: str
    target: str
    origin: str

    def load(self) -> Converter:
        """Import and instantiate the converter. Raises LongRopeError when it is not a Converter."""
        found = EntryPoint(self.name, self.target, GROUP).load()
        if not (isinstance(found, type) and issubclass(found, Converter)):
            raise LongRopeError(f"format {self.name!r} of {self.origin}: expected a Converter class, got {found!r}")
        return found()


@cache
def formats() -> dict[str, Format]:
    """Every format by name. A third party's entry cannot take the name of one of ours."""
    found = {name: Format(name, target, "longrope-export") for name, target in OURS.items()}
    for entry in entry_points(group=GROUP):
        if entry.name not in OURS:
            found[entry.name] = Format(entry.name, entry.value, entry.dist.name if entry.dist else "unknown")
    return found


def converter(name: str) -> Converter:
    """The converter of a format. Raises InputError, with what was meant, for an unknown name."""
    known = formats()
    if name not in known:
        raise InputError(f"unknown format {name!r}; {choices(name, known)}")
    return known[name].load()


def wrote(folder: Path) -> bool:
    """Whether a folder is an artifact that one of the formats wrote here, and may be replaced by another."""
    return any(entry.load().wrote(folder) for entry in formats().values())


def recognize(path: Path) -> Converter:
    """The converter of an existing artifact. Raises InputError when there is no such path or no format knows it."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder{hint_for(str(path))}")
    candidates = [entry.load() for entry in formats().values()]
    for candidate in candidates:
        if candidate.recognizes(path):
            return candidate
    raise InputError(
        f"{path}: expected an artifact of one of the formats {', '.join(sorted(formats()))}; recognized by none of them"
    )
