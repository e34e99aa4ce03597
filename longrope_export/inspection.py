"""What `inspect` finds: facts, RoPE in words, runtimes, and problems with the command that mends each. All from headers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from converters.base import Check, Converter
from longrope.base_rope import NOT_ROTATED, BaseRope, base_rope
from longrope.errors import InputError, UnsupportedError
from longrope.factors import RescaleFactors
from longrope_export.words import value_words

SCHEMA_VERSION = 1
Found = TypeVar("Found")
Severity = Literal["error", "warning", "note"]
_ANY: tuple[Severity, ...] = ("error", "warning")
# What `patch` mends. Other keys are the model's own to it: it would extend from a window, or refuse a RoPE, that is wrong.
_PATCHED = (
    *("gguf.factors", "gguf.factors.short", "gguf.factors.long"),
    *("gguf.rope.scaling.attn_factor", "gguf.rope.scaling.factor"),
)
# What mends what a check finds: the first row whose pattern and severities fit. `$artifact` is the artifact, `$record` the
# option that names the factors which our exporter recorded beside it.
MENDS: tuple[tuple[str, tuple[Severity, ...], str], ...] = (
    ("hf.files", _ANY, "remove these files, unless you trust who wrote them"),
    ("hf.tokenizer_config", _ANY, "set model_max_length in tokenizer_config.json to the model's window"),
    ("hf.rope_scaling", ("warning",), "in config.json, write rope_parameters under the name rope_scaling, too"),
    ("hf.factors.readable", _ANY, "longrope-export convert MODEL --to hf --factors FACTORS.json -o FIXED"),
    ("hf.*", _ANY, "longrope-export convert $artifact --to hf -o FIXED$record"),
    ("gguf.vocab.pre", _ANY, "longrope-export convert MODEL --to gguf -o FIXED.gguf   # from the Hugging Face model"),
    *((id, _ANY, "longrope-export patch $artifact --factors FACTORS.json -o FIXED.gguf") for id in _PATCHED),
    ("gguf.*", _ANY, "longrope-export convert MODEL --to gguf --factors FACTORS.json -o FIXED.gguf"),
    ("onnx.external_data", _ANY, "download or copy the folder again, every file of it"),
    ("onnx.*", _ANY, "longrope-export convert MODEL --to onnx --factors FACTORS.json -o FIXED"),
)
# Publishers' llama3 rescaling, which GGUF files hold as numbers without a name: factor, window before.
_LLAMA3 = tuple((factor, 8192) for factor in (8.0, 16.0, 32.0))
_PURPOSE = {
    "linear": "linear interpolation (PI)",
    "dynamic": "dynamic NTK",
    "llama3": "llama3 rescaling",
    "yarn": "YaRN",
    "longrope": "LongRoPE",
    "su": "LongRoPE",
    "proportional": "proportional RoPE",
}


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with an artifact, or that its user should know.

    Args:
        id: of the check that finds it; empty for notes about the factors.
        severity: `error` where a runtime computes another model or refuses it, `warning` where some do.
        message: what is wrong.
        mend: a command, or words, that mend it; empty where nothing has to be.
    """

    id: str
    severity: Severity
    message: str
    mend: str = ""


def inspect_artifact(path: Path) -> dict[str, Any]:
    """Format, facts, factors, RoPE in words, problems and runtimes of an artifact, JSON-able.

    Raises:
        InputError: a broken one.
        UnsupportedError: nothing of it can be described.
    """
    from converters import registry

    converter, problems = registry.recognize(path), list[Problem]()
    facts, factors, base = converter.describe(path), None, None
    try:
        factors = _tried(lambda: converter.read_factors(path), problems)
    except InputError as error:  # the model is described all the same; nothing more can be said of its RoPE
        problems.append(_unreadable(error, converter, path))
        rope = ["not known: its factors cannot be read"]
    else:
        base = _tried(lambda: converter.base_rope(path), problems)
        problems += _found(converter, path)
        rope = rope_words(factors, base)
    problems += [Problem("", "note", oddity) for oddity in _oddities(factors)]
    return {
        "schema_version": SCHEMA_VERSION,
        "artifact": str(path),
        "format": converter.name,
        "facts": facts,
        "factor_sets": factors.factor_sets if factors else None,
        "factors": factors.to_json() if factors else None,
        "base": dataclasses.asdict(base) if base else None,
        "rope": rope,
        "oddities": factors.oddities() if factors else [],
        "problems": [dataclasses.asdict(problem) for problem in problems],
        "runtimes": [dataclasses.asdict(use) for use in converter.runtime_uses(factors)] if factors else [],
        "others": [],
    }


def inspect_by_name(path: str) -> dict[str, Any]:
    """`inspect_artifact` of a path as text, which is how it travels to another process."""
    return inspect_artifact(Path(path))


# -- problems


def _tried(look: Callable[[], Found], problems: list[Problem]) -> Found | None:
    """What a look finds; a model that this program cannot express is a problem and no end of the inspection."""
    try:
        return look()
    except UnsupportedError as error:
        problem = Problem("unsupported", "warning", str(error))
        if problem not in problems:
            problems.append(problem)
        return None


def _unreadable(error: InputError, converter: Converter, path: Path) -> Problem:
    """Factors that are there and broken."""
    id = f"{converter.name}.factors.readable"
    return Problem(id, "error", str(error).removeprefix(f"{path}: "), _mend(id, "error", path))


def _found(converter: Converter, path: Path) -> Iterator[Problem]:
    """What checks without a reference find."""
    for check in _tried(lambda: converter.own_checks(path), []) or []:
        severity: Severity = "error" if check.status == "fail" else "warning"
        yield Problem(check.id, severity, _said(check), _mend(check.id, severity, path))


def _oddities(factors: RescaleFactors | None) -> list[str]:
    """What the factors themselves show; of one set what would be said twice, once."""
    said = factors.oddities() if factors else []
    if factors is None or factors.factor_sets == "dual":
        return said
    return [oddity for oddity in said if not oddity.startswith("short_factor")]


def _said(check: Check) -> str:
    """A check's message with what stands there."""
    return f"{check.message or 'differs'} (expected {value_words(check.expected, 60)}, got {value_words(check.actual, 60)})"


def _mend(id: str, severity: Severity, path: Path) -> str:
    found = (mend for pattern, severities, mend in MENDS if fnmatchcase(id, pattern) and severity in severities)
    record = f" --factors {path / 'longrope.json'}" if (path / "longrope.json").is_file() else ""
    return next(found, "").replace("$artifact", str(path)).replace("$record", record)


# -- the RoPE in words


def rope_words(factors: RescaleFactors | None, base: BaseRope | None) -> list[str]:
    """What a model's rotary embedding is, a sentence a line, the model's own first.

    Args:
        factors: rescale factors in the artifact, products with the RoPE below them.
        base: that RoPE, or the artifact's own where it holds no factors; None where nothing says it.
    """
    said = [base_words(base)] if base is not None else []
    if factors is None:
        return said or ["not known: nothing in the artifact says it"]
    if base is None and (name := publishers_name(factors)):
        return [name]
    return [*said, *factor_words(factors)]


def base_words(base: BaseRope) -> str:
    """`YaRN, 4× of 8,192 tokens: 1 … 4 over 32 pairs, window 32,768 tokens, θ 10,000, attention factor 1.139`."""
    facts = f"window {base.window:,} tokens, {_theta(base.rope_theta)}"
    if base.is_plain:
        kind = " (dynamic NTK beyond the window)" if base.rope_type == "dynamic" else ""
        return f"plain RoPE{kind}, {facts}"
    rotated = [factor for factor in base.long_factor if factor < NOT_ROTATED]
    rest = len(base.long_factor) - len(rotated)
    before = "" if base.before == base.window else f" of {base.before:,} tokens"
    still = f", {rest} pairs are not rotated" if rest else ""
    scaled = f", attention factor {base.attention_factor:.6g}" if base.attention_factor != 1.0 else ""
    kind, scale = _PURPOSE.get(base.rope_type, base.rope_type), f", up to {max(rotated):.4g}×{before}"
    return f"{kind}{scale}: {_span(tuple(rotated))}{still}, {facts}{scaled}"


def factor_words(factors: RescaleFactors) -> list[str]:
    """The sets, their lengths, attention factor and start tokens."""
    original, target, scale = factors.original_max_position_embeddings, factors.target_length, factors.length_scale
    window = f"{_tokens(original)} → {_tokens(target)} tokens" + (f" ({scale:.4g}×)" if scale else "")
    theta = f", {_theta(factors.rope_theta)}" if factors.rope_theta else ""
    lines = [f"LongRoPE factors, {factors.factor_sets}: {window}{theta}{_attention(factors)}{_start(factors)}"]
    if factors.factor_sets == "single":
        return [*lines, f"one set for every length: {_span(factors.long_factor)}"]
    switch = _tokens(original, "L")
    return [
        *lines,
        f"short set, sequences up to {switch} tokens: {_span(factors.short_factor)}",
        f"long set, longer ones: {_span(factors.long_factor)}",
    ]


def _theta(value: float) -> str:
    """The base of the frequencies, `θ 1,000,000`."""
    return f"θ {value:,.10g}"


def _span(values: tuple[float, ...]) -> str:
    low, high = min(values), max(values)
    return f"{low:.4g} over {len(values)} pairs" if low == high else f"{low:.4g} … {high:.4g} over {len(values)} pairs"


def _tokens(count: int | None, unknown: str = "not said") -> str:
    return unknown if count is None else f"{count:,}"


def _attention(factors: RescaleFactors) -> str:
    if factors.attention_factor is not None:
        return f", attention factor {factors.attention_factor:.6g} (given)"
    formula = factors.formula_attention_factor
    return "" if formula is None else f", attention factor {formula:.6g} (by the formula)"


def _start(factors: RescaleFactors) -> str:
    return f", the first {factors.n_hat} tokens not rescaled" if factors.n_hat else ""


def publishers_name(factors: RescaleFactors) -> str:
    """The publisher's rescaling that nameless numbers of one set are, in words; empty where they are none that is known."""
    theta, dim = factors.rope_theta, 2 * factors.num_pairs
    if theta is None or factors.factor_sets == "dual":
        return ""
    for factor, before in _LLAMA3:
        parameters = {
            "rope_type": "llama3",
            "rope_theta": theta,
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": before,
        }
        known = base_rope({}, parameters, rotary_dim=dim, window=factors.target_length or int(factor) * before)
        if np.allclose(known.long_factor, factors.long_factor, rtol=1e-4, atol=0):
            return f"{base_words(known)}; in the file as numbers, used at every length"
    return ""
