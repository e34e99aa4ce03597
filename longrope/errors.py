"""The errors a user can meet. Each says what was expected, what was found and what to do.

The exit codes are those of the command line's contract: 2 wrong usage or bad input, 3 the machine lacks something,
4 the model or the format cannot express what was asked. A failed check (1) is a result, not an error.
"""

from __future__ import annotations


class LongRopeError(Exception):
    """Base of every error that is shown to a user as one line."""

    exit_code = 2


class InputError(LongRopeError):
    """A path, file, option or combination of them that cannot be used."""

    exit_code = 2


class FactorError(InputError):
    """Rescale factors that contradict themselves or the model they are for."""


class MissingRequirementError(LongRopeError):
    """The machine lacks an extra, memory, disk, network or a tool."""

    exit_code = 3


class UnsupportedError(LongRopeError):
    """The model or the format cannot express what was asked."""

    exit_code = 4


def is_out_of_memory(error: BaseException) -> bool:
    """Python's own error, or torch's: a RuntimeError that on most devices only its text tells from others."""
    said = str(error).lower()
    words = ("allocate memory", "out of memory", "alloc_failed")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(word in said for word in words))
