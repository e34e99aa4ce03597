"""A GGUF file whose weights were kept, against the one that it was made from: only the factors may have changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from converters.base import Check
from converters.gguf.container import Bytes, TensorInfo, Value
from converters.gguf.factors import FREQS, MEANINGS, OWN_PREFIX, SHORT
from converters.gguf.native import gguf

PATCHED_KEYS = (
    "context_length",
    "rope.scaling.type",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
)
# Of larger tensors, this many bytes at each end are compared; the data was copied in one piece.
_COMPARED_BYTES = 1 << 20


class Readable(Protocol):
    """A file or a part of one."""

    @property
    def values(self) -> Mapping[str, Value]: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def raw(self, name: str) -> Bytes: ...


def splice_checks(
    after: Readable,
    before: Readable,
    values: Mapping[str, Value],
    arrays: Mapping[str, NDArray[np.float32]],
    *,
    whole: bool = False,
) -> list[Check]:
    """Compare two files.

    Args:
        after: the file that was written.
        before: the one that it was made from.
        values: what the metadata must be now.
        arrays: what the factor tensors must be now.
        whole: compare every byte of every tensor, not the ends of large ones.
    """
    return [
        *_spliced_key_checks(after, values),
        *_spliced_factor_checks(after, arrays),
        _tensors_check(after, before, arrays),
        _data_check(after, before, arrays, whole=whole),
    ]


def _spliced_key_checks(after: Readable, values: Mapping[str, Value]) -> Iterator[Check]:
    """The keys that a patch writes one by one, then all others together; our own record is no fact about the model."""
    prefix = f"{values['general.architecture'].data}."
    changed = {prefix + name: name for name in PATCHED_KEYS}
    for key, name in changed.items():
        expected, actual = (found.data if (found := side.get(key)) else None for side in (values, after.values))
        yield Check.equal(f"gguf.{name}", expected, actual, MEANINGS[name])
    keys = {key for key in {*after.values, *values} if key not in changed and not key.startswith(OWN_PREFIX)}
    wrong = sorted(key for key in keys if after.values.get(key) != values.get(key))
    yield Check.equal("gguf.patch.keys", [], wrong, "metadata that a patch has no business with")


def _spliced_factor_checks(after: Readable, arrays: Mapping[str, NDArray[np.float32]]) -> Iterator[Check]:
    for name, expected in arrays.items():
        id = f"gguf.factors.{'short' if name == SHORT else 'long'}"
        info = after.tensors.get(name)
        readable = info is not None and info.type == gguf.GGMLQuantizationType.F32
        actual = after.raw(name).view(np.float32).tolist() if readable else None
        yield Check.equal_factors(id, expected.tolist(), actual)


def _tensors_check(after: Readable, before: Readable, arrays: Mapping[str, NDArray[np.float32]]) -> Check:
    """All but the factors, and the one set of a base RoPE, which gives its place to them."""
    factors = {*arrays, FREQS}
    old = [(info.name, info.shape, info.type) for info in before.tensors.values() if info.name not in factors]
    new = [(info.name, info.shape, info.type) for info in after.tensors.values() if info.name not in arrays]
    odd = [pair for pair in zip_longest(old, new) if pair[0] != pair[1]]
    return Check.equal("gguf.patch.tensors", [], odd[:1], "a tensor changed its name, shape, type or place")


def _data_check(after: Readable, before: Readable, arrays: Mapping[str, NDArray[np.float32]], *, whole: bool) -> Check:
    names = [name for name in before.tensors if name in after.tensors and name not in arrays]
    wrong = [name for name in names if not _same(after.raw(name), before.raw(name), whole=whole)]
    return Check.equal("gguf.patch.data", [], wrong[:5], f"{len(wrong)} tensors are not the source's bytes")


def _same(one: Bytes, other: Bytes, *, whole: bool) -> bool:
    if len(one) != len(other):
        return False
    if whole or len(one) <= 2 * _COMPARED_BYTES:
        return bool(np.array_equal(one, other))
    ends = (slice(0, _COMPARED_BYTES), slice(len(one) - _COMPARED_BYTES, None))
    return all(np.array_equal(one[end], other[end]) for end in ends)
