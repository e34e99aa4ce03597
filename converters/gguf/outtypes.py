"""The weight types a user can ask for, one row each."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from longrope.errors import UnsupportedError


@dataclass(frozen=True)
class OutType:
    """A weight type.

    Args:
        name: what users call it.
        file_type: name of `general.file_type`, and of llama.cpp's LLAMA_FTYPE constant.
        matrix: ggml type of matrices where they are rounded in Python; None where llama.cpp's own quantizer does it,
            which mixes several types.
        needs_imatrix: llama.cpp refuses to quantize to it without an importance matrix.
    """

    name: str
    file_type: str
    matrix: str | None = None
    needs_imatrix: bool = False


def _rounded(name: str, file_type: str | None = None) -> OutType:
    return OutType(name, file_type or f"MOSTLY_{name.upper()}", matrix=name.upper())


def _mixed(name: str, *, needs_imatrix: bool = False) -> OutType:
    return OutType(name, f"MOSTLY_{name.upper()}", needs_imatrix=needs_imatrix)


_ROWS = (
    _rounded("f16"),
    _rounded("f32", "ALL_F32"),
    _rounded("bf16"),
    _rounded("q8_0"),
    _rounded("q5_1"),
    _rounded("q5_0"),
    _rounded("q4_1"),
    _rounded("q4_0"),
    _rounded("tq2_0"),
    _rounded("tq1_0"),
    _mixed("q6_k"),
    _mixed("q5_k_m"),
    _mixed("q5_k_s"),
    _mixed("q4_k_m"),
    _mixed("q4_k_s"),
    _mixed("q3_k_l"),
    _mixed("q3_k_m"),
    _mixed("q3_k_s"),
    _mixed("q2_k"),
    _mixed("q2_k_s", needs_imatrix=True),
    _mixed("iq4_nl"),
    _mixed("iq4_xs"),
    _mixed("iq3_m"),
    _mixed("iq3_s"),
    _mixed("iq3_xs", needs_imatrix=True),
    _mixed("iq3_xxs", needs_imatrix=True),
    _mixed("iq2_m", needs_imatrix=True),
    _mixed("iq2_s", needs_imatrix=True),
    _mixed("iq2_xs", needs_imatrix=True),
    _mixed("iq2_xxs", needs_imatrix=True),
    _mixed("iq1_m", needs_imatrix=True),
    _mixed("iq1_s", needs_imatrix=True),
)
OUTTYPES: Mapping[str, OutType] = {row.name: row for row in _ROWS}
DEFAULT = "f16"


def outtype_named(name: str | None) -> OutType:
    """The row of a name, the default's for None. Raises UnsupportedError for an unknown one."""
    wanted = (name or DEFAULT).lower()
    if wanted not in OUTTYPES:
        near = difflib.get_close_matches(wanted, OUTTYPES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UnsupportedError(f"GGUF cannot be written as {name!r}: {hint}expected one of {', '.join(OUTTYPES)}")
    return OUTTYPES[wanted]
