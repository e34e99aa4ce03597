"""What a MODEL or ARTIFACT argument can name, the built-in model and texts included."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.errors import InputError
from longrope.hub import HUB_FILES, hub_id_of, hub_snapshot
from longrope.progress import Progress
from longrope.text import Corpus, load_corpus
from longrope_export import default_model

# The name of the built-in model, unless a folder of that name is there.
DEFAULT = "default"
# What an artifact on the Hub is made of, beyond a model's files; external data of ONNX comes under several names.
ARTIFACT_FILES = (*HUB_FILES, "*.onnx*", "*.gguf")
_LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")


def open_model(name: str, original: int | None = None) -> Checkpoint:
    """A folder, a Hub id, a GGUF file, or `default` for the built-in model.

    Args:
        name: of the model.
        original: L in tokens, where it is not the released window.

    Raises:
        LongRopeError: as `open_checkpoint` and `Checkpoint.from_original`.
    """
    checkpoint = open_checkpoint(default_model.CHECKPOINT if is_built_in(name) else name)
    return checkpoint if original is None else checkpoint.from_original(original)


def is_built_in(name: str) -> bool:
    """Whether a name means the built-in model."""
    return name == DEFAULT and not Path(name).exists()


def artifact_path(name: str) -> Path:
    """Where an artifact is: a path as it stands, `default`, or a Hub id, which is downloaded.

    Raises:
        InputError: a Hub repository of several GGUF files, or none such.
        MissingRequirementError: the Hub cannot be reached.
    """
    if is_built_in(name):
        return default_model.CHECKPOINT
    hub_id = hub_id_of(name)
    if hub_id is None:
        return Path(name)
    folder = hub_snapshot(hub_id, ARTIFACT_FILES)
    if (folder / "config.json").is_file():
        return folder
    files = [file.name for file in sorted(folder.glob("*.gguf")) if not _LATER_PART.search(file.name)]
    if len(files) != 1:
        found = ", ".join(files) or "none"
        raise InputError(
            f"{hub_id}: expected a model's folder or one GGUF file, found {found}; download one and name it"
        )
    return folder / files[0]


def load_texts(checkpoint: Checkpoint, texts: Sequence[Path], builtin: Path, progress: Progress) -> Corpus:
    """The user's texts, or the built-in ones (old novels and speeches, English) with a line that says so."""
    if not texts:
        progress.line(f"No --text given: using the built-in English texts ({builtin.name}).")
    return load_corpus(list(texts) or [builtin], checkpoint.encode)
