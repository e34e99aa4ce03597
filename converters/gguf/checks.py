"""Static checks of a file against the blueprint of what it must hold; converters/check_table.py lists their ids."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.base import Check
from converters.expectations import record_check
from converters.gguf.blueprint import Blueprint
from converters.gguf.container import Bytes, GgufFile, Value, dequantize, type_name
from converters.gguf.factors import FREQS, LONG, MEANINGS, SHORT, factor_tensors, record_of
from converters.gguf.native import gguf
from converters.gguf.vocabulary import PREFIX
from converters.gguf.weights import FLOATS, Planned, encode
from converters.precision import ggml_angles, precision_check
from longrope.errors import InputError, UnsupportedError

# Keys that may be missing: llama.cpp derives them, and other tools leave them out.
_OPTIONAL = {"vocab_size", "attention.key_length", "attention.value_length", "rope.dimension_count"}
# Keys of other tools that change nothing for a text model.
_HARMLESS = {"rope.scaling.finetuned"}
# Types of tokens that end something, by `gguf.TokenType`: control, user-defined.
_CONTROL = (3, 4)
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
# How far a whole tensor's scale may be off by a quantizer's own choice.
_SCALE_ROOM = 0.02
_SAMPLED_ROWS, _SAMPLED_ROWS_OF_OWN = 64, 8

Floats = NDArray[np.float32]


def checks_of_file(path: Path, checks: Callable[[GgufFile], Iterable[Check]]) -> list[Check]:
    """Whether a file can be read, and if so its other checks."""
    try:
        file = GgufFile(path)
    except InputError as error:
        return [Check("gguf.readable", "fail", "a sound GGUF file", "a broken one", str(error))]
    with file:
        return [Check("gguf.readable", "pass"), *checks(file)]


def static_checks(file: GgufFile, blueprint: Blueprint, *, whole: bool = True) -> list[Check]:
    """All checks of one file.

    Args:
        whole: compare every weight of float tensors; else some rows of each, as of quantized ones always.
    """
    return [
        *_key_checks(file, blueprint),
        *_factor_checks(file, blueprint),
        precision_check("gguf", blueprint.factors, ggml_angles),
        record_check("gguf.record", lambda: record_of(file), blueprint.factors),
        *_vocabulary_checks(file, blueprint),
        *_tensor_checks(file, blueprint, whole=whole),
    ]


# -- keys


def _key_checks(file: GgufFile, blueprint: Blueprint) -> Iterator[Check]:
    expected, model = blueprint.model_values(), blueprint.model
    kind = gguf.Keys.General.TYPE
    yield Check.equal(f"gguf.{kind}", "model", file.get(kind, "model"), "tools take it for an adapter or a vocabulary")
    yield Check.equal(
        "gguf.arch", model.target.architecture, file.architecture, "llama.cpp would build another network"
    )
    for name, value in expected.items():
        message = MEANINGS.get(name, f"llama.cpp would build another network with this {name}")
        yield _key_check(f"gguf.{name}", value, file.values.get(f"{file.architecture}.{name}"), name, message)
    for key, value in model.scalars.items():
        yield Check.equal(f"gguf.{key}", value.data, file.get(key), "the activation's own numbers")
    if "rope.scaling.factor" not in expected:
        given = file.model_key("rope.scaling.factor")
        yield Check.equal("gguf.rope.scaling.factor", None, given, MEANINGS["rope.scaling.factor"])
    prefix = file.architecture + "."
    present = {key.removeprefix(prefix) for key in file.values if key.startswith(prefix)}
    strange = sorted(present - set(expected) - _HARMLESS - {"rope.scaling.factor"})
    yield Check.equal(
        "gguf.keys", [], strange, "keys that the reference model does not call for change what is computed"
    )


def _key_check(id: str, expected: Value, actual: Value | None, name: str, message: str) -> Check:
    if actual is None and name in _OPTIONAL:
        return Check(id, "skip", expected.data, None, "left out; llama.cpp derives it")
    return _of_its_kind(id, expected, actual) or Check.equal(
        id, expected.data, actual.data if actual else None, message
    )


def _of_its_kind(id: str, expected: Value, actual: Value | None) -> Check | None:
    """A failed check where a value is stored as another type: llama.cpp converts none."""
    if actual is None or expected.kind == actual.kind:
        return None
    message = "llama.cpp refuses a file that stores this as another type"
    return Check(id, "fail", expected.kind.name.lower(), actual.kind.name.lower(), message)


# -- factors


def _factor_checks(file: GgufFile, blueprint: Blueprint) -> Iterator[Check]:
    arrays, held = blueprint.factor_arrays(), factor_tensors(blueprint.model.target.rope)
    wrong = {name: type_name(file.tensors[name].type) for name in arrays if _not_f32(file, name)}
    yield Check.equal("gguf.factors.dtype", {}, wrong, "llama.cpp reads factors as f32 only")
    for name, expected in arrays.items():
        actual = file.floats(name).ravel().tolist() if name in file.tensors and name not in wrong else None
        yield Check.equal_factors(f"gguf.factors.{held[name]}", expected.tolist(), actual)
    yield Check.equal(
        "gguf.rope_freqs",
        FREQS in arrays,
        FREQS in file.tensors,
        "rope_freqs.weight takes the place of both sets at every length, or stops the load",
    )


def _not_f32(file: GgufFile, name: str) -> bool:
    return name in file.tensors and file.tensors[name].type != gguf.GGMLQuantizationType.F32


# -- vocabulary


def _vocabulary_checks(file: GgufFile, blueprint: Blueprint) -> Iterator[Check]:
    try:
        expected = blueprint.model.vocabulary.values
    except UnsupportedError as error:
        yield Check("gguf.vocab", "skip", message=f"the reference's tokenizer cannot be expressed: {error}")
        return
    for key, value in expected.items():
        if key.startswith(PREFIX):
            name = key.removeprefix(PREFIX)
            odd = _of_its_kind(f"gguf.vocab.{name}", value, file.values.get(key))
            yield odd or _vocabulary_check(name, value.data, file.get(key))
    yield from _template_checks(file, expected)
    yield _token_ids(file, expected)


def _template_checks(file: GgufFile, expected: Mapping[str, Value]) -> Iterator[Check]:
    """The reference's chat templates, each by its name; one that the reference has not is no fault of its text."""
    keys = gguf.Keys.Tokenizer
    for key, value in expected.items():
        if key == keys.CHAT_TEMPLATE or key.startswith(f"{keys.CHAT_TEMPLATE}."):
            equal = file.get(key) == value.data
            message = "" if equal else "conversations are written for another model"
            name = key.removeprefix("tokenizer.")
            yield Check(
                f"gguf.{name}", "pass" if equal else "fail", "the reference's", None if equal else "another", message
            )


def _token_ids(file: GgufFile, expected: Mapping[str, Value]) -> Check:
    """Ids that the reference does not name must be control tokens: llama.cpp ends a text, or a turn, at eot and eom."""
    types = file.get(gguf.Keys.Tokenizer.TOKEN_TYPE, ())
    odd = {
        key.removeprefix(PREFIX): value.data
        for key, value in file.values.items()
        if key.startswith(PREFIX) and key.endswith("_token_id") and key not in expected
        if not (isinstance(value.data, int) and 0 <= value.data < len(types) and types[value.data] in _CONTROL)
    }
    return Check.equal("gguf.vocab.token_ids", {}, odd, "llama.cpp takes ordinary text for the end of a turn")


def _vocabulary_check(name: str, expected: Any, actual: Any) -> Check:
    id = f"gguf.vocab.{name}"
    if not isinstance(expected, tuple):
        return Check.equal(id, expected, actual, "text is split otherwise than by the reference's tokenizer")
    if not isinstance(actual, tuple) or len(actual) != len(expected):
        found = len(actual) if isinstance(actual, tuple) else None
        return Check(id, "fail", f"{len(expected)} entries", found, "another vocabulary")
    if actual == expected:
        return Check(id, "pass", f"{len(expected)} entries", "equal")
    off = next(i for i, (a, b) in enumerate(zip(expected, actual, strict=True)) if a != b)
    return Check(id, "fail", expected[off], actual[off], f"entry {off} differs: another vocabulary")


# -- weights


def _tensor_checks(file: GgufFile, blueprint: Blueprint, *, whole: bool) -> Iterator[Check]:
    planned = {entry.info.name: entry for entry in blueprint.model.tensors}
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
    if whole and name in FLOATS:
        return None if _same_bytes(file, actual) else f"{stored.name}: {_kind_of_fault(file, actual)}"
    count = _SAMPLED_ROWS if whole else _SAMPLED_ROWS_OF_OWN
    if all(_rounds_alike(expected, rows, stored.type) for expected, rows in _sampled(file, actual, count)):
        return None
    if name in FLOATS:
        return f"{stored.name}: {_kind_of_fault(file, actual)}"
    error = max(_row_error(expected, rows, stored.type) for expected, rows in _sampled(file, actual, count))
    if error > _ROUNDING.get(name, _ROUNDING_BELOW_4_BITS):
        return f"{stored.name}: a row is off by {100 * error:.0f} %, beyond the rounding of {name}"
    scale, low, high = _scale(_sampled(file, actual, count), stored.type)
    if low <= scale <= high or name not in _ROUNDING:  # below 4 bits quantizers shift scales themselves
        return None
    return f"{stored.name}: its numbers are {scale:.3f} times the reference's, which the rounding of {name} does not explain"


def _scale(pairs: Iterable[tuple[Floats, Bytes]], type: int) -> tuple[float, float, float]:
    """By what a tensor is the reference's, on average, and from what to what rounding explains it.

    Rounding to the nearest step keeps it at 1, a quantizer that puts each step in the middle of its numbers at 1 less the
    square of the relative error.
    """
    both = [(expected.astype(np.float64), dequantize(rows, type)) for expected, rows in pairs]
    square = sum(float((expected**2).sum()) for expected, _ in both)
    if not square:  # a layer of zeros, which some architectures want behind the model's
        return 1.0, 1.0, 1.0
    error = sum(float(((expected - found) ** 2).sum()) for expected, found in both) / square
    room = _SCALE_ROOM + 4 * math.sqrt(error / sum(expected.size for expected, _ in both))
    scale = sum(float((expected * found).sum()) for expected, found in both) / square
    return scale, 1 - error - room, 1 + room


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
    """Largest relative root-mean-square difference of a row; infinite where the file holds non-finite numbers."""
    scale = np.maximum(np.linalg.norm(expected, axis=1), np.finfo(np.float32).tiny)
    worst = float((np.linalg.norm(dequantize(rows, type) - expected, axis=1) / scale).max())
    return worst if np.isfinite(worst) else float("inf")
