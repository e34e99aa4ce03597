"""tokenizer.json of a folder, or one made of what older folders have instead: tokenizer.model, or vocabulary and merges.

tokenizer.json ────────────────────────────────► used as it is
tokenizer.model │ vocab.json + merges.txt ──transformers──► tokenizer.json elsewhere, held against sentencepiece
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from longrope.errors import MissingRequirementError, UnsupportedError
from longrope.reading import own_file, read_object, refuse_pointer
from longrope.unfinished import temporary_folder

TOKENIZER = "tokenizer.json"
SENTENCEPIECE = "tokenizer.model"
BPE_FILES = ("vocab.json", "merges.txt")
# What says how the vocabulary is used, and which class reads it.
_SETTINGS = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_OTHERS = ("tekken.json", "*.tiktoken", "spiece.model", "vocab.txt")
# Texts on which a tokenizer that is made must agree with sentencepiece.
SAMPLES = (
    "In 1847, 36 houses stood – naïve, 日本語, 🙂; x_i != 0x1F.\nA line  with two spaces, and CAPITALS.",
    " A space first",
    "  and two",
    " ",
)
WAY_OUT = (
    "take a repository of this model that has tokenizer.json, or write one (transformers: "
    "AutoTokenizer.from_pretrained(...).save_pretrained(...))"
)


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer.json, and whatever owns it where it is temporary."""

    path: Path
    keep_alive: Any = field(default=None, repr=False)


def tokenizer_file(folder: Path, name: str) -> TokenizerFile:
    """The tokenizer.json of a model's folder, made where it is missing.

    Args:
        folder: of the model.
        name: what the user called it.

    Raises:
        MissingRequirementError: sentencepiece is not installed.
        UnsupportedError: there is nothing to make it of, or transformers cannot.
    """
    if (folder / TOKENIZER).is_file():
        with own_file(folder, TOKENIZER).open("rb") as file:
            refuse_pointer(file.read(128), f"{name}: {TOKENIZER}")
        return TokenizerFile(folder / TOKENIZER)
    if (folder / SENTENCEPIECE).is_file():
        return _made(folder, name, (SENTENCEPIECE,), _like_sentencepiece)
    if all((folder / file).is_file() for file in BPE_FILES):
        return _made(folder, name, BPE_FILES, _like_its_vocabulary)
    others = [path.name for pattern in _OTHERS for path in folder.glob(pattern)]
    found = f", only {others[0]}" if others else f" and neither {SENTENCEPIECE} nor {' with '.join(BPE_FILES)}"
    raise UnsupportedError(f"{name}: no {TOKENIZER}{found}; {WAY_OUT}")


def _made(folder: Path, name: str, sources: Sequence[str], proven: Callable[[Path, Any], Any]) -> TokenizerFile:
    """A tokenizer.json that transformers makes in a temporary folder, which holds copies of the sources and no code."""
    if SENTENCEPIECE in sources and find_spec("sentencepiece") is None:
        raise MissingRequirementError(
            f"{name}: reading {SENTENCEPIECE} needs sentencepiece; install with: pip install "
            "'longrope-export[sentencepiece]'"
        )
    room = temporary_folder("tokenizer")
    made = Path(room.name)
    for file in (*sources, *_SETTINGS):
        if (folder / file).is_file():
            shutil.copyfile(own_file(folder, file), made / file)
    try:
        proven(made, _converted(made)).save(str(made / TOKENIZER))
    except Exception as error:  # noqa: BLE001  whatever transformers and sentencepiece raise on a file they do not know
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnsupportedError(
            f"{name}: no {TOKENIZER}, and none can be made of {' and '.join(sources)} ({said}); {WAY_OUT}"
        ) from None
    return TokenizerFile(made / TOKENIZER, room)


def _converted(folder: Path) -> Any:
    """The tokenizers-library tokenizer that transformers builds from a folder."""
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    return AutoTokenizer.from_pretrained(
        folder, use_fast=True, trust_remote_code=False, local_files_only=True
    ).backend_tokenizer


def _like_sentencepiece(folder: Path, made: Any) -> Any:
    """The tokenizer as made, or with spaces handled as older files do, whichever splits text as sentencepiece itself.

    Raises:
        ValueError: neither does.
    """
    from sentencepiece import SentencePieceProcessor

    truth = SentencePieceProcessor(model_file=str(folder / SENTENCEPIECE))
    for tokenizer in (made, _prepending(made)):
        if all(tokenizer.encode(text, add_special_tokens=False).ids == truth.encode(text) for text in SAMPLES):
            return tokenizer
    raise ValueError("the one that transformers makes splits text otherwise than sentencepiece")


def _like_its_vocabulary(folder: Path, made: Any) -> Any:
    """The tokenizer as made, where it has the ids of vocab.json and gives texts back, as byte-level BPE does.

    Raises:
        ValueError: it does not.
    """
    known = made.get_vocab()
    if any(known.get(token) != id for token, id in read_object(folder / BPE_FILES[0]).items()):
        raise ValueError(f"the one that transformers makes has other ids than {BPE_FILES[0]}")
    if any(made.decode(made.encode(text, add_special_tokens=False).ids) != text for text in SAMPLES):
        raise ValueError("the one that transformers makes does not give texts back")
    return made


def _prepending(made: Any) -> Any:
    """The same vocabulary with a `▁` before every text, also before one that begins with a space (Llama 2's form)."""
    from tokenizers import Tokenizer

    steps = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    data = {
        **json.loads(made.to_str()),
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
    }
    return Tokenizer.from_str(json.dumps(data))
