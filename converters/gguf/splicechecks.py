"""Checks of a spliced file against the one it was made from: only what had to change may have changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from converters.base import Check
from converters.gguf.container import Bytes, GgufPart, Value
from converters.gguf.target import FREQS, SHORT

# Of larger tensors, this many bytes at each end are compared; the data was copied in one piece.
_COMPARED_BYTES = 1 << 20


def splice_checks(
    after: GgufPart,
    before: GgufPart,
    values: Mapping[str, Value],
    arrays: Mapping[str, NDArray[np.float32]],
    *,
    whole: bool = False,
) -> list[Check]:
    """Compare the two files.

    Args:
        values: what the metadata must be now.
        arrays: what the factor tensors must be now.
        whole: compare every byte of every tensor, not the ends of large ones.
    """
    return [
        _keys_check(after, values),
        *_factor_checks(after, arrays),
        _tensors_check(after, before, arrays),
        _data_check(after, before, arrays, whole=whole),
    ]


def _keys_check(after: GgufPart, values: Mapping[str, Value]) -> Check:
    keys = {*after.values, *values}
    wrong = sorted(key for key in keys if after.values.get(key) != values.get(key))
    return Check.equal("gguf.patch.keys", [], wrong, "metadata that should not have changed, or should have")


def _factor_checks(after: GgufPart, arrays: Mapping[str, NDArray[np.float32]]) -> Iterator[Check]:
    for name, expected in arrays.items():
        id = f"gguf.factors.{'short' if name == SHORT else 'long'}"
        found = after.raw(name) if name in after.tensors else np.empty(0, np.uint8)
        same = np.array_equal(found, expected.view(np.uint8))
        told = f"{len(expected)} factors"
        yield Check(id, "pass" if same else "fail", told, told if same else "others", "" if same else f"{name} differs")


def _tensors_check(after: GgufPart, before: GgufPart, arrays: Mapping[str, NDArray[np.float32]]) -> Check:
    old = [(info.name, info.shape, info.type) for info in before.tensors.values()]
    new = [(info.name, info.shape, info.type) for info in after.tensors.values()]
    added = [name for name in arrays if name not in before.tensors]
    odd = [pair for pair in zip_longest(old, new[: len(new) - len(added)]) if pair[0] != pair[1]]
    return Check.equal("gguf.patch.tensors", [], odd[:1], "a tensor changed its name, shape, type or place")


def _data_check(after: GgufPart, before: GgufPart, arrays: Mapping[str, NDArray[np.float32]], *, whole: bool) -> Check:
    names = [name for name in before.tensors if name in after.tensors and name not in {*arrays, FREQS}]
    wrong = [name for name in names if not _same(after.raw(name), before.raw(name), whole=whole)]
    return Check.equal("gguf.patch.data", [], wrong[:5], f"{len(wrong)} tensors are not the source's bytes")


def _same(one: Bytes, other: Bytes, *, whole: bool) -> bool:
    if len(one) != len(other):
        return False
    if whole or len(one) <= 2 * _COMPARED_BYTES:
        return bool(np.array_equal(one, other))
    ends = (slice(0, _COMPARED_BYTES), slice(len(one) - _COMPARED_BYTES, None))
    return all(np.array_equal(one[end], other[end]) for end in ends)
