"""What can be said of a GGUF file without its reference: keys and factors against each other and against our own record."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from converters.base import Check
from converters.gguf.container import GgufFile, type_name
from converters.gguf.factors import (
    FACTOR_TENSORS,
    LONG,
    MEANINGS,
    NO_RAMP,
    SHORT,
    factors_of,
    record_of,
)
from converters.gguf.file_rope import YARN_OVERRIDES, file_rope
from converters.gguf.native import gguf
from longrope.errors import UnsupportedError
from longrope.factors import RescaleFactors


def own_checks(file: GgufFile) -> Iterator[Check]:
    """Checks of one file, those that hold left out."""
    sets = [name for name in (SHORT, LONG) if name in file.tensors]
    factors = factors_of(file)
    found = [*_rope(file), *(_of_sets(file) if sets else ())]
    recorded = record_of(file)
    if recorded and factors:
        found += _of_record(factors, recorded)
    elif recorded and recorded.family is None:  # a family's formula stands in keys, without factors
        found.append(_lost())
    found += [*_types(file), *_vocabulary(file)]
    yield from (check for check in found if check.status != "pass")


def _rope(file: GgufFile) -> Iterator[Check]:
    """What llama.cpp does not load, or computes otherwise than any model."""
    no_ramp = file.model_key("rope.scaling.original_context_length") == NO_RAMP  # our attention factor of full layers
    if no_ramp or any(
        file.model_key(f"rope.scaling.{name}") for name in YARN_OVERRIDES
    ):  # as DeepSeek's own files have
        return
    try:
        file_rope(file)
    except UnsupportedError as error:
        message = str(error).removeprefix(f"{file.path}: ")
        yield Check("gguf.rope.scaling.type", "fail", "one way to rescale", "several, or none", message)


def _of_sets(file: GgufFile) -> Iterator[Check]:
    """Keys that must, and must not, stand beside two factor sets."""
    original = file.model_key("rope.scaling.original_context_length")
    if original is None:
        id = "rope.scaling.original_context_length"
        yield Check(f"gguf.{id}", "fail", "the window of the short set", None, MEANINGS[id])
    factor = file.model_key("rope.scaling.factor")
    if factor not in (None, 0, 1):
        yield Check("gguf.rope.scaling.factor", "fail", None, factor, MEANINGS["rope.scaling.factor"])


def _lost() -> Check:
    """Our exporter recorded factors, and the file has none that a runtime reads."""
    message = "the factors that were exported are not there any more: runtimes compute plain RoPE"
    return Check("gguf.factors", "fail", "the recorded factors", None, message)


def _of_record(factors: RescaleFactors, recorded: RescaleFactors) -> Iterator[Check]:
    """What runtimes read against what our exporter recorded in the same file; sets as float32, which tensors hold."""
    for name in ("short", "long"):
        wanted = np.array(recorded.set(name), np.float32).astype(float).tolist()  # type: ignore[arg-type]
        yield Check.equal_factors(f"gguf.factors.{name}", wanted, factors.set(name))  # type: ignore[arg-type]
    if recorded.rope_theta is not None:
        wanted_theta, key = recorded.rope_theta, "rope.freq_base"
        yield Check.equal(f"gguf.{key}", wanted_theta, factors.rope_theta or wanted_theta, MEANINGS[key])
    wanted, key = recorded.attention_factor or recorded.formula_attention_factor, "rope.scaling.attn_factor"
    if wanted is not None and not np.isclose(factors.attention_factor or 1.0, wanted, rtol=1e-6):
        yield Check(f"gguf.{key}", "fail", wanted, factors.attention_factor, MEANINGS[key])
    key = "rope.scaling.original_context_length"
    original = factors.original_max_position_embeddings
    if recorded.factor_sets == "dual" and original not in (None, recorded.original_max_position_embeddings):
        yield Check(f"gguf.{key}", "fail", recorded.original_max_position_embeddings, original, MEANINGS[key])
    yield Check.equal("gguf.context_length", recorded.target_length, factors.target_length, MEANINGS["context_length"])


def _types(file: GgufFile) -> Iterator[Check]:
    wrong = {
        name: type_name(file.tensors[name].type)
        for name in FACTOR_TENSORS
        if name in file.tensors and file.tensors[name].type != gguf.GGMLQuantizationType.F32
    }
    yield Check.equal("gguf.factors.dtype", {}, wrong, "llama.cpp reads factors as f32 only")


def _vocabulary(file: GgufFile) -> Iterator[Check]:
    """llama.cpp splits text by a default of its own where a byte-level BPE vocabulary does not say how."""
    keys = gguf.Keys.Tokenizer
    if file.get(keys.MODEL) == "gpt2" and file.get(keys.PRE) in (None, "default"):
        message = "llama.cpp splits text by a rule of its own, not by this tokenizer's, and the model sees other tokens"
        yield Check("gguf.vocab.pre", "warn", "the name of a rule", file.get(keys.PRE), message)
