"""What must not leave this machine: absolute paths, its name and its user's, in anything that is uploaded."""

from __future__ import annotations

import getpass
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from converters.base import Converter
from longrope_export.publish.content import Content

TEXT_SUFFIXES = {".json", ".md", ".txt", ".jinja", ".csv", ".yaml", ".yml", ""}
# Vocabularies hold every word and many paths; they are copies of the base model's.
VOCABULARIES = {"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json"}
# Copies of the base model's, too, which may speak of paths to whoever they instruct.
TEMPLATES = {"tokenizer_config.json", "chat_template.jinja", "chat_template.json"}
# Names of users and machines that are words of cards and chat templates and give nothing away.
COMMON = {"root", "user", "admin", "ubuntu", "debian", "runner", "nobody", "system", "assistant", "model", "localhost"}
_PATHS = re.compile(
    r"(?<![\w.:/-])(?:/(?:home|Users|root|tmp|work|mnt|media|data|private|srv|scratch|workspace|var/folders|var/tmp)/[\w.@+-]+"
    r"|[A-Za-z]:\\+(?:[\w.@+-]+\\+)+)[\w.@+\\/-]*"
)
SHORTEST_NAME = 3


def findings(contents: Iterable[Content], strings: Mapping[str, str]) -> list[str]:
    """One line for each thing that gives something away.

    Args:
        contents: that are uploaded; texts among them are read.
        strings: out of binary metadata, by what they are called.
    """
    found = [
        f"{each.place}: {what}"
        for each in contents
        if _is_text(each)
        for what in _in_text(_text(each), paths=PurePosixPath(each.place).name not in TEMPLATES)
    ]
    return found + [f"{place}: {what}" for place, text in strings.items() for what in _in_text(text)]


def metadata_of(converter: Converter, path: Path) -> dict[str, str]:
    """The texts in an artifact's binary metadata, called by its file's name."""
    return {f"{path.name}: {key}": text for key, text in converter.metadata_strings(path).items()}


def _is_text(content: Content) -> bool:
    place = PurePosixPath(content.place)
    return place.suffix in TEXT_SUFFIXES and place.name not in VOCABULARIES


def _text(content: Content) -> str:
    return content.read().decode("utf-8", errors="replace")


def _in_text(text: str, *, paths: bool = True) -> Iterator[str]:
    if paths and (path := _PATHS.search(text)):
        yield f"an absolute path of a machine ({path.group()})"
    for kind, name in (("the name of this user", _user()), ("the name of this machine", socket.gethostname())):
        if len(name) >= SHORTEST_NAME and name.lower() not in COMMON and re.search(rf"\b{re.escape(name)}\b", text):
            yield f"{kind} ({name})"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""
