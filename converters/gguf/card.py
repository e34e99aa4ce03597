"""What a model is called, who made it and under which licence, as `gguf` finds it in the model card and config.json."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from converters.gguf.native import gguf
from longrope.reading import own_file

CARD = "README.md"
# What else `gguf` reads in a folder.
_SETTINGS: Sequence[str] = ("config.json", "generation_config.json")


def metadata_of(folder: Path, name: str | None, count: int) -> tuple[Any, str]:
    """A model's metadata, and what is wrong with its card; with a broken card, what is known without it.

    Args:
        folder: of the model; its name says something, too.
        name: what the model is called; None for what is found.
        count: of its weights.

    Raises:
        InputError: the card is a link to a file outside of the folder.
    """
    own_file(folder, CARD)
    try:
        return _usable(gguf.Metadata.load(None, folder, name, count)), ""
    except Exception as error:  # noqa: BLE001  whatever yaml, and the library on odd values, raise
        said = " ".join(str(error).split()) or type(error).__name__
    with tempfile.TemporaryDirectory() as room:
        bare = Path(room, folder.resolve().name)
        bare.mkdir()
        for file in _SETTINGS:
            if (folder / file).is_file():
                shutil.copyfile(own_file(folder, file), bare / file)
        return gguf.Metadata.load(None, bare, name, count), f"{CARD}: {said}"


def _usable(found: Any) -> Any:
    """Metadata that can be written. Raises TypeError, or what the library raises, for others."""
    for tag in (*(found.tags or ()), *(found.languages or ())):
        if not isinstance(tag, str):
            raise TypeError(f"expected tags and languages to be words, got {tag!r}")
    found.set_gguf_meta_model(gguf.GGUFWriter(None, "llama"))
    return found
