"""The errors a user can meet. Each says what was expected, what was found and what to do.

The exit codes are those of the command line (README): 2 wrong usage or bad input, 3 the machine lacks something,
4 the model or the format cannot express what was asked. A failed check (1) is a result, not an error.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LongRopeError(Exception):
    """Base of every error that is shown to a user as one line.

    Args:
        message: what is wrong and what mends it, in words that hold in Python and on the command line.
        option: the option that mends it, without dashes and with its value, as in `factor-sets single`; the command line
            adds it to the message.
    """

    exit_code = 2

    def __init__(self, message: str, *, option: str = "") -> None:
        super().__init__(message)
        self.option = option


class InputError(LongRopeError):
    """A path, file, option or combination of them that cannot be used."""

    exit_code = 2


class FactorError(InputError):
    """Rescale factors that contradict themselves or the model they are for."""


class RuntimeFailedError(InputError):
    """An artifact's runtime died of it, took more than it may, or failed in the middle: a failed check, `FORMAT.loads`."""

    exit_code = 1


class MissingRequirementError(LongRopeError):
    """The machine lacks an extra, memory, disk, network or a tool."""

    exit_code = 3


class UnsupportedError(LongRopeError):
    """The model or the format cannot express what was asked."""

    exit_code = 4


def choices(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known one that is near it, if any, and all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.75)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}expected one of {', '.join(names)}"


# What Python, torch, onnxruntime and the system's loader of libraries say where memory, or room for a thread, ran out.
_OUT_OF_MEMORY = (
    *("allocate memory", "out of memory", "alloc_failed", "bad_alloc", "memory allocation", "start new thread"),
    *("failed to map segment", "os error 12", "resource temporarily unavailable"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Python's own error, or a library's, which on most devices only its text tells from others."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        not isinstance(error, LongRopeError | OSError | ValueError) and any(words in said for words in _OUT_OF_MEMORY)
    )
