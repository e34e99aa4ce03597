"""Files beside the weights of somebody else's model, held against what their names say before they are read or copied.

A folder from a stranger can hold links to the user's own files. Links are followed within the folder only
(`longrope.reading.own_file`); what a hard link hides is told by its content: a key or a password is no JSON object, no
Jinja template, no vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from longrope.errors import InputError
from longrope.reading import own_file, read_bytes, read_object, read_utf8

# A list of merges of 256k tokens has 5 MB, a sentencepiece model of as many 5 MB.
_MAX_BYTES = 64 << 20
_NOT_TEXT = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+")
_TEMPLATE_TAGS = ("{{", "{%")


def checked_companion(folder: Path, name: str) -> Path:
    """A file of a model's folder, which is the folder's own and what its name says.

    Args:
        folder: of the model.
        name: relative to it.

    Returns:
        Its path.

    Raises:
        InputError: a link that leads elsewhere, a hard link to a private file, or another kind of file than its name says.
    """
    file = own_file(folder, name)
    kind = _BY_NAME.get(file.name) or _BY_SUFFIX.get(file.suffix.lower(), _require_text)
    kind(file)
    return file


def require_template(text: str, name: str) -> None:
    """Raise InputError unless a text is a Jinja template: it can be cut into its tags, and there is at least one."""
    from jinja2 import Environment, TemplateSyntaxError

    try:
        for _ in Environment().lex(text):  # nothing is rendered
            pass
    except TemplateSyntaxError as error:
        raise InputError(f"{name}: not a Jinja template ({error.message}, line {error.lineno})") from None
    if not any(tag in text for tag in _TEMPLATE_TAGS):
        raise InputError(f"{name}: expected a chat template in Jinja, found a text without any tag; refused")


def _read(file: Path) -> bytes:
    return read_bytes(file, str(file), _MAX_BYTES)


def _text(file: Path) -> str:
    text = read_utf8(file, limit=_MAX_BYTES)
    if found := _NOT_TEXT.search(text):
        raise InputError(f"{file}: expected a text, found the control character {found[0]!r}; refused")
    return text


def _require_text(file: Path) -> None:
    _text(file)


def _require_object(file: Path) -> None:
    read_object(file, non_finite=True)


def _require_jinja(file: Path) -> None:
    require_template(_text(file), str(file))


def _require_merges(file: Path) -> None:
    """Two parts per line, after a line with the version."""
    lines = _text(file).split("\n")
    rules = lines[1:] if lines[0].startswith("#version") else lines
    odd = next((number for number, line in enumerate(rules, 1) if line and line.count(" ") != 1), None)
    if odd is not None:
        raise InputError(f"{file}: expected two tokens per line, as lists of merges have; line {odd} is none. Refused")


def _require_vocabulary(file: Path) -> None:
    """A token a line, each once."""
    tokens = _text(file).rstrip("\n").split("\n")
    if len(set(tokens)) < len(tokens):
        raise InputError(f"{file}: expected a token a line, each once, as vocabularies have; refused")


def _require_pdf(file: Path) -> None:
    if not _read(file).startswith(b"%PDF-"):
        raise InputError(f"{file}: not a PDF document; refused")


def _require_pieces(file: Path) -> None:
    """A sentencepiece model, which is one protocol buffer, or tiktoken's lines of base64 and rank."""
    content = _read(file)
    if not _is_protocol_buffer(content) and not all(map(_TIKTOKEN_LINE.fullmatch, content.splitlines())):
        raise InputError(f"{file}: neither a sentencepiece model nor a list of tiktoken's; refused")


def _is_protocol_buffer(content: bytes) -> bool:
    """Whether the bytes are fields to their end, the first of them a piece (field 1, of bytes)."""
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        kind = tag & 7
        if kind == 2:
            size, at = _varint(content, at)
            at += size
        elif kind == 0:
            _, at = _varint(content, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            return False
        if tag >> 3 == 0 or at > len(content):
            return False
    return content[:1] == b"\x0a"


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and where it ends; beyond the content for one that does not end."""
    value = shift = 0
    while at < len(content) and shift < 64:
        byte = content[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
    return value, len(content) + 1


_BY_NAME: Mapping[str, Callable[[Path], None]] = {"merges.txt": _require_merges, "vocab.txt": _require_vocabulary}
_BY_SUFFIX: Mapping[str, Callable[[Path], None]] = {
    ".json": _require_object,
    ".jinja": _require_jinja,
    ".model": _require_pieces,
    ".pdf": _require_pdf,
}
