"""Static checks: a finished file against the blueprint of what it must hold. Ids are stable; docs/gguf.md lists them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.base import Check
from converters.gguf.blueprint import Blueprint
from converters.gguf.container import Bytes, GgufFile, Value, dequantize, type_name
from converters.gguf.library import gguf_library
from converters.gguf.meanings import MEANINGS
from converters.gguf.rounding import encode
from converters.gguf.target import FREQS, LONG, SHORT
from converters.gguf.vocabulary import PREFIX
from converters.gguf.weights import Planned
from longrope.errors import UnsupportedError

# Keys that may be missing: llama.cpp derives them, and other tools leave them out.
_OPTIONAL = {"vocab_size", "attention.key_length", "attention.value_length", "rope.dimension_count"}
# Keys of other tools that change nothing for a text model.
_HARMLESS = {"rope.scaling.finetuned"}
# Largest relative error of a row, root mean square, that rounding to a quantized type explains.
_ROUNDING = {
    "q8_0": 0.02,
    "q6_k": 0.05,
    "q5_0": 0.08,
    "q5_1": 0.08,
    "q5_k": 0.08,
    "q4_0": 0.2,
    "q4_1": 0.2,
    "q4_k": 0.2,
}
_ROUNDING_BELOW_4_BITS = 0.7
_SAMPLED_ROWS, _SAMPLED_ROWS_OF_OWN = 64, 8
_FLOATS = ("f32", "f16", "bf16")

Floats = NDArray[np.float32]


def static_checks(file: GgufFile, blueprint: Blueprint, *, whole: bool = True) -> list[Check]:
    """All checks of one file.

    Args:
        whole: compare every weight of float tensors; else some rows of each, as of quantized ones always.
    """
    return [
        *_key_checks(file, blueprint),
        *_factor_checks(file, blueprint),
        *_vocabulary_checks(file, blueprint),
        *_tensor_checks(file, blueprint, whole=whole),
    ]


# -- keys


def _key_checks(file: GgufFile, blueprint: Blueprint) -> Iterator[Check]:
    yield Check.equal("gguf.arch", blueprint.architecture, file.architecture, "llama.cpp would build another network")
    expected = blueprint.model_values()
    for name, value in expected.items():
        message = MEANINGS.get(name, f"llama.cpp would build another network with this {name}")
        yield _key_check(f"gguf.{name}", value, file.values.get(f"{file.architecture}.{name}"), name, message)
    for key, value in blueprint.scalar_values().items():
        yield Check.equal(f"gguf.{key}", value.data, file.get(key), "the activation's own numbers")
    yield Check.equal(
        "gguf.rope.scaling.factor",
        None,
        file.model_key("rope.scaling.factor"),
        MEANINGS["rope.scaling.factor"],
    )
    prefix = file.architecture + "."
    present = {key.removeprefix(prefix) for key in file.values if key.startswith(prefix)}
    strange = sorted(present - set(expected) - _HARMLESS - {"rope.scaling.factor"})
    yield Check.equal(
        "gguf.keys", [], strange, "keys that the reference model does not call for change what is computed"
    )


def _key_check(id: str, expected: Value, actual: Value | None, name: str, message: str) -> Check:
    if actual is None and name in _OPTIONAL:
        return Check(id, "skip", expected.data, None, "left out; llama.cpp derives it")
    return Check.equal(id, expected.data, actual.data if actual else None, message)


# -- factors


def _factor_checks(file: GgufFile, blueprint: Blueprint) -> Iterator[Check]:
    f32 = int(gguf_library().GGMLQuantizationType.F32)
    arrays = blueprint.factor_arrays()
    wrong = {name: type_name(file.tensors[name].type) for name in arrays if _not_f32(file, name, f32)}
    yield Check.equal("gguf.factors.dtype", {}, wrong, "llama.cpp reads factors as f32 only")
    for name, expected in arrays.items():
        actual = file.floats(name).ravel().tolist() if name in file.tensors and name not in wrong else None
        yield _factor_check(f"gguf.factors.{blueprint.target.factor_tensors[name]}", expected.tolist(), actual)
    yield Check.equal(
        "gguf.rope_freqs",
        FREQS in arrays,
        FREQS in file.tensors,
        "rope_freqs.weight takes the place of both sets at every length, or stops the load",
    )


def _not_f32(file: GgufFile, name: str, f32: int) -> bool:
    return name in file.tensors and file.tensors[name].type != f32


def _factor_check(id: str, expected: list[float], actual: list[float] | None) -> Check:
    if actual is None:
        return Check(
            id, "fail", f"{len(expected)} factors", None, "missing: llama.cpp runs the unscaled RoPE, silently"
        )
    if len(actual) != len(expected):
        return Check(id, "fail", f"{len(expected)} factors", f"{len(actual)} factors", "llama.cpp refuses the file")
    off = next((i for i, (a, b) in enumerate(zip(expected, actual, strict=True)) if a != b), None)
    if off is None:
        return Check(id, "pass", f"{len(expected)} factors", "equal to the last bit")
    return Check(id, "fail", expected[off], actual[off], f"factor {off} differs; other sets hide behind low perplexity")


# -- vocabulary


def _vocabulary_checks(file: GgufFile, blueprint: Blueprint) -> Iterator[Check]:
    try:
        expected = blueprint.vocabulary.values
    except UnsupportedError as error:
        yield Check("gguf.vocab", "skip", message=f"the reference's tokenizer cannot be expressed: {error}")
        return
    for key, value in expected.items():
        if key.startswith(PREFIX):
            yield _vocabulary_check(key.removeprefix(PREFIX), value.data, file.get(key))


def _vocabulary_check(name: str, expected: Any, actual: Any) -> Check:
    id = f"gguf.vocab.{name}"
    if not isinstance(expected, list):
        return Check.equal(id, expected, actual, "text is split otherwise than by the reference's tokenizer")
    if not isinstance(actual, list) or len(actual) != len(expected):
        found = len(actual) if isinstance(actual, list) else None
        return Check(id, "fail", f"{len(expected)} entries", found, "another vocabulary")
    off = next((i for i, (a, b) in enumerate(zip(expected, actual, strict=True)) if a != b), None)
    if off is None:
        return Check(id, "pass", f"{len(expected)} entries", "equal")
    return Check(id, "fail", expected[off], actual[off], f"entry {off} differs: another vocabulary")


# -- weights


def _tensor_checks(file: GgufFile, blueprint: Blueprint, *, whole: bool) -> Iterator[Check]:
    planned = {entry.info.name: entry for entry in blueprint.tensors}
    present = set(file.tensors) - {LONG, SHORT, FREQS}
    missing, extra = sorted(set(planned) - present), sorted(present - set(planned))
    yield Check.equal("gguf.tensors.missing", [], missing, "llama.cpp refuses the file")
    yield Check.equal("gguf.tensors.extra", [], extra, "tensors the reference does not have; llama.cpp refuses most")
    shared = [planned[name] for name in planned if name in present]
    wrong = {
        e.info.name: file.tensors[e.info.name].shape for e in shared if file.tensors[e.info.name].shape != e.info.shape
    }
    yield Check.equal("gguf.tensors.shapes", {}, wrong, "another network")
    different = [
        found for entry in shared if entry.info.name not in wrong and (found := _weight_fault(file, entry, whole=whole))
    ]
    yield Check.equal(
        "gguf.weights", [], different[:5], f"{len(different)} tensors differ from the reference's weights"
    )


def _weight_fault(file: GgufFile, planned: Planned, *, whole: bool) -> str | None:
    """What is wrong with a tensor's values; None when they are the reference's, rounded."""
    stored = file.tensors[planned.info.name]
    name = type_name(stored.type)
    actual = planned.retyped(stored.type)
    if whole and name in _FLOATS:
        return None if _same_bytes(file, actual) else f"{stored.name}: {_kind_of_fault(file, actual)}"
    count = _SAMPLED_ROWS if whole else _SAMPLED_ROWS_OF_OWN
    if all(_rounds_alike(expected, rows, stored.type) for expected, rows in _sampled(file, actual, count)):
        return None
    if name in _FLOATS:
        return f"{stored.name}: {_kind_of_fault(file, actual)}"
    error = max(_row_error(expected, rows, stored.type) for expected, rows in _sampled(file, actual, count))
    if error <= _ROUNDING.get(name, _ROUNDING_BELOW_4_BITS):
        return None
    return f"{stored.name}: a row is off by {100 * error:.0f} %, beyond the rounding of {name}"


def _kind_of_fault(file: GgufFile, planned: Planned) -> str:
    permuted = any(piece.heads for piece in planned.pieces)
    if permuted and _same_bytes(file, planned.unpermuted()):
        return "its rows are in the reference's order; llama.cpp wants the halves of each head interleaved"
    return "differs from the reference's"


def _same_bytes(file: GgufFile, planned: Planned) -> bool:
    actual, at = file.raw(planned.info.name), 0
    for block in planned.encoded():
        expected = block.reshape(-1).view(np.uint8)
        if not np.array_equal(actual[at : at + len(expected)], expected):
            return False
        at += len(expected)
    return at == len(actual)


def _sampled(file: GgufFile, planned: Planned, count: int) -> Iterator[tuple[Floats, Bytes]]:
    """About `count` rows of a tensor, evenly spread: (the reference's floats, the bytes in the file)."""
    rows, first = file.rows(planned.info.name), 0
    places = np.arange(0, len(rows), max(len(rows) // count, 1))
    for expected in planned.picked(places):
        yield expected, rows[places[first : first + len(expected)]]
        first += len(expected)


def _rounds_alike(expected: Floats, rows: Bytes, type: int) -> bool:
    """Whether these are the bytes that the floats round to; llama.cpp's own quantizer may give others."""
    try:
        rounded = encode(expected, type)
    except NotImplementedError:
        return False
    return bool(np.array_equal(rounded.view(np.uint8), rows))


def _row_error(expected: Floats, rows: Bytes, type: int) -> float:
    """Largest relative root-mean-square difference of a row; infinite where the file holds none or odd numbers."""
    scale = np.maximum(np.linalg.norm(expected, axis=1), np.finfo(np.float32).tiny)
    worst = float((np.linalg.norm(dequantize(rows, type) - expected, axis=1) / scale).max())
    return worst if np.isfinite(worst) else float("inf")
