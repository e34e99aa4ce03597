"""What a MODEL or ARTIFACT argument can name, the built-in model and texts included."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.progress import Progress
from longrope.text import Corpus, load_corpus
from longrope_export import default_model

# The name of the built-in model, unless a folder of that name is there.
DEFAULT = "default"


def open_model(name: str) -> Checkpoint:
    """A folder, a Hub id, a GGUF file, or `default` for the built-in model. Raises as `open_checkpoint`."""
    if name == DEFAULT and not Path(name).exists():
        return open_checkpoint(default_model.CHECKPOINT)
    return open_checkpoint(name)


def load_texts(checkpoint: Checkpoint, texts: Sequence[Path], builtin: Path, progress: Progress) -> Corpus:
    """The user's texts, or the built-in ones (old novels and speeches, English) with a line that says so."""
    if not texts:
        progress.line(f"No --text given: using the built-in English texts ({builtin.name}).")
    return load_corpus(list(texts) or [builtin], checkpoint.encode)
