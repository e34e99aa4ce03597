"""What a model is called, who made it and under which licence: its model card, as the library `gguf` reads it.

The library takes names apart by the Hub's conventions; what it raises on an odd card must not stop an export.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from converters.gguf.native import gguf
from longrope.reading import NUMBER, TEXT, WHOLE, Kind, check_fields, one_line, own_file, read_object, said_by
from longrope.unfinished import temporary_folder

# The model card, and what else `gguf` reads in a folder for a name, an author and a licence.
_CARD, _GENERATION = "README.md", "generation_config.json"
_SETTINGS = ("config.json", _GENERATION)
# What it may find several of in the card; of everything else there is one.
_LISTS = ("base_models", "datasets", "tags", "languages")
# What it takes of generation_config.json, which a GGUF file holds in 32 bits.
_NUMBER = Kind("a number of 32 bits", lambda value: NUMBER.fits(value) and abs(value) < 3e38).or_null()
_WHOLE = Kind("a whole number of 31 bits", lambda value: WHOLE.fits(value) and abs(value) < 1 << 31).or_null()
_SAMPLING = {
    "sequence": TEXT.or_null(),
    **dict.fromkeys(("top_k", "penalty_last_n", "mirostat"), _WHOLE),
    **dict.fromkeys(("top_p", "min_p", "xtc_probability", "xtc_threshold", "temperature", "penalty_repeat"), _NUMBER),
    **dict.fromkeys(("mirostat_tau", "mirostat_eta"), _NUMBER),
}


def model_metadata(folder: Path, name: str | None, count: int) -> tuple[Any, str]:
    """A model's metadata, and what is wrong with its card; with a broken card, what is known without it.

    Args:
        folder: of the model; its name says something, too.
        name: what the model is called; None for what is found.
        count: of its weights.

    Raises:
        InputError: the card is a link to a file outside of the folder.
    """
    own_file(folder, _CARD)
    for file in _SETTINGS:
        if (folder / file).is_file():
            settings = read_object(own_file(folder, file), non_finite=True)
            check_fields(settings, _SAMPLING if file == _GENERATION else {}, str(folder / file))
    try:
        return _usable(gguf.Metadata.load(None, folder, name, count)), ""
    except Exception as error:  # noqa: BLE001  whatever yaml, and the library on odd values, raise
        said = one_line(error)
    with temporary_folder("card") as room:
        bare = Path(room, folder.resolve().name)
        bare.mkdir()
        for file in _SETTINGS:
            if (folder / file).is_file():
                shutil.copyfile(own_file(folder, file), bare / file)
        with said_by("gguf", str(folder)):
            return gguf.Metadata.load(None, bare, name, count), f"{_CARD}: {said}"


def _usable(found: Any) -> Any:
    """Metadata that can be written. Raises TypeError, or what the library raises, for others."""
    for field in (field for field in dataclasses.fields(found) if not field.name.startswith("sampling_")):
        value = getattr(found, field.name)
        for word in _words_of(value) if field.name in _LISTS else (value,):
            if word is not None and not isinstance(word, str):
                raise TypeError(f"{field.name}: expected words, got {word!r}")
    found.set_gguf_meta_model(gguf.GGUFWriter(None, "llama"))
    return found


def _words_of(value: Any) -> Sequence[Any]:
    """The words that a field of the metadata holds: itself, those of a list, or those of the objects in one."""
    if isinstance(value, Mapping):
        return [word for each in value.values() for word in _words_of(each)]
    if isinstance(value, list | tuple):
        return [word for each in value for word in _words_of(each)]
    return (value,)
