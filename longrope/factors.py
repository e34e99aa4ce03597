"""Rescale factors as a file says them (`RescaleFactors`), and bound to a model (`BoundFactors`).

    factors.json ─┐                      bind: the model's L, theta, d filled in, contradictions refused
    config.json  ─┼─► RescaleFactors ──Checkpoint.bind──► BoundFactors ──► search, training, exports, checks
    artifacts    ─┘    fields may be open                 none is open       │
         ▲                                                                   │
         └───────────────────────── written, read back ──────────────────────┘

Sources: LongRoPE (arXiv 2402.13753), equation 2 for the factors and n_hat; transformers' `_compute_longrope_parameters`
for the attention factor's formula.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from ctypes import c_float
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

from longrope.base_rope import BaseRope
from longrope.errors import FactorError, InputError, UnsupportedError, choices
from longrope.family import RopeFamily
from longrope.files import write_json
from longrope.reading import (
    COUNT,
    COUNT_OR_ZERO,
    LIST,
    NUMBER,
    OBJECT,
    TEXT,
    check_fields,
    one_line,
    printable,
    read_json,
    read_utf8,
    shown,
)
from longrope.rope import attention_factor_formula

SCHEMA_VERSION = 1

FactorSet = Literal["short", "long"]
FactorSets = Literal["single", "dual"]

# Start-token counts the paper searches over (LongRoPE, section 4.2).
N_HAT_CHOICES = (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)
# What float32, the type of factors in a GGUF file, holds with all its digits: from its smallest normal number on.
SMALLEST, LARGEST = 2.0**-126, (2.0 - 2.0**-23) * 2.0**127
# What a model says about its factors, and a file may leave open.
MODEL_FACTS = ("original_max_position_embeddings", "rope_theta", "rotary_dim", "model_type")
# Fields of factors.json; the numbers of the lists are held against float32's bounds, one by one, by `RescaleFactors`.
_KINDS = {
    "n_hat": COUNT_OR_ZERO,
    "original_max_position_embeddings": COUNT.or_null(),
    "target_length": COUNT.or_null(),
    "attention_factor": NUMBER.or_null(),
    "rope_theta": NUMBER.or_null(),
    "rotary_dim": COUNT.or_null(),
    "model_type": TEXT.or_null(),
    "short_factor": LIST,
    "long_factor": LIST,
    "method": TEXT,
    "provenance": OBJECT,
}
# What engines do with an attention factor that is not the formula's (vLLM by its source and a run).
WHO_READS_ATTENTION = "vLLM ignores the key and uses the formula; transformers, llama.cpp and onnxruntime honour it"


@dataclass(frozen=True)
class RescaleFactors:
    """Rescale factors of one model for one target length, as a file says them; `BoundFactors` leave nothing open.

    Rotary pair `i` is rotated by `n * theta**(-2 i / rotary_dim) / factor[i]` at position `n`; the first `n_hat` positions
    are left unscaled. `short_factor` serves sequences up to `original_max_position_embeddings`, `long_factor` longer
    ones; where both are equal the set is called `single`, else `dual`.

    Factors, attention factor and theta are finite numbers from 2**-126 (1.2e-38) to 3.4e38, which float32 holds with all
    its digits: formats store float32, and a smaller factor would be 0 there.

    Args:
        short_factor: rotary_dim / 2 numbers within these bounds.
        long_factor: rotary_dim / 2 numbers within these bounds.
        n_hat: number of start tokens whose positions are not rescaled.
        original_max_position_embeddings: L, the window before extension, in tokens; None when the source is silent.
        target_length: L', the window after extension, in tokens; None when the source is silent.
        attention_factor: what cos and sin are multiplied by; None for the formula sqrt(1 + ln(L'/L) / ln L).
        rope_theta: base of the rotary frequencies; None when the source is silent.
        rotary_dim: head_dim * partial_rotary_factor; None when the source is silent.
        model_type: transformers' name of the architecture; None when the source is silent.
        base: the rescaled RoPE of the model that these numbers hold already, as products with its own; None for factors
            on whatever RoPE the model has, and where that is plain. Plain RoPE is said where the model was extended from
            another window than the released one.
        method: how the factors came to be, e.g. `evolution`, `ntk`, `imported`.
        family: parameters that the factors follow from, which formats then hold in their place; None for free factors.
        provenance: free-form record of versions, seed, texts, budget.

    Raises:
        FactorError: a value is out of range or two values contradict each other.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    n_hat: int = 0
    original_max_position_embeddings: int | None = None
    target_length: int | None = None
    attention_factor: float | None = None
    rope_theta: float | None = None
    rotary_dim: int | None = None
    model_type: str | None = None
    base: BaseRope | None = None
    method: str = "given"
    family: RopeFamily | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("short_factor", "long_factor"):
            object.__setattr__(self, name, _checked_set(name, getattr(self, name)))
        if len(self.short_factor) != len(self.long_factor):
            raise FactorError(
                f"short_factor has {len(self.short_factor)} numbers and long_factor {len(self.long_factor)}; "
                "expected one for every rotary pair in both"
            )
        self._check_lengths()
        self._check_scalars()
        if self.family is not None:
            self._check_family(self.family)

    def _check_lengths(self) -> None:
        original, target = self.original_max_position_embeddings, self.target_length
        for name, value in (("original_max_position_embeddings", original), ("target_length", target)):
            if value is not None and not COUNT.fits(value):
                raise FactorError(f"{name}: expected a whole number of tokens above 0, got {shown(value)}")
        if original is not None and target is not None and target < original:
            raise FactorError(f"target_length {target} is below the original window {original}; expected at least that")
        if not COUNT_OR_ZERO.fits(self.n_hat):
            raise FactorError(f"n_hat: expected a whole number of start tokens, 0 or more, got {shown(self.n_hat)}")
        if target is not None and self.n_hat > target:
            raise FactorError(f"n_hat {self.n_hat} is above the target length {target}")

    def _check_scalars(self) -> None:
        if self.rotary_dim is not None and self.rotary_dim != 2 * len(self.long_factor):
            raise FactorError(
                f"expected rotary_dim / 2 = {self.rotary_dim / 2:g} factors for rotary_dim {self.rotary_dim}, "
                f"got {len(self.long_factor)}"
            )
        for name, value in (("attention_factor", self.attention_factor), ("rope_theta", self.rope_theta)):
            if value is not None and (expected := _fault(value)):
                raise FactorError(f"{name}: expected {expected} or null, got {shown(value)}")

    def _check_family(self, family: RopeFamily) -> None:
        """One set without start tokens, with the parameters' own attention factor, and equal to the closed form."""
        if self.factor_sets == "dual" or self.n_hat:
            raise FactorError(f"factors of the {family.type} family: expected one set and no start tokens (n_hat)")
        if self.attention_factor is None or not math.isclose(
            self.attention_factor, family.attention_factor, rel_tol=1e-6
        ):
            raise FactorError(
                f"attention_factor is {self.attention_factor}, that of the {family.type} parameters "
                f"{family.attention_factor:g}; expected both alike"
            )
        original, theta = self.original_max_position_embeddings, self.rope_theta
        if original is not None and theta is not None:
            family.check(self.long_factor, 2 * self.num_pairs, original=original, rope_theta=theta)

    # -- what follows from the fields

    @property
    def num_pairs(self) -> int:
        """Number of rotary pairs, rotary_dim / 2."""
        return len(self.long_factor)

    @property
    def factor_sets(self) -> FactorSets:
        return "single" if self.short_factor == self.long_factor else "dual"

    @property
    def length_scale(self) -> float | None:
        """s = L' / L; None when one of them is open."""
        if self.original_max_position_embeddings is None or self.target_length is None:
            return None
        return self.target_length / self.original_max_position_embeddings

    @property
    def formula_attention_factor(self) -> float | None:
        """The attention factor by the formula, whatever `attention_factor` is; None when a length is open.

        On a base RoPE it is the base's own times the formula from the window that the base reaches.
        """
        if self.family is not None:
            return self.family.formula_attention_factor
        original, target = self.original_max_position_embeddings, self.target_length
        if original is None or target is None:
            return None
        if self.base is None:
            return attention_factor_formula(target / original, original)
        return self.base.attention_factor * attention_factor_formula(target / self.base.window, self.base.window)

    @property
    def runtime_formula(self) -> float | None:
        """What runtimes compute where no attention factor is written: the formula of L' / L, which knows no base."""
        original, scale = self.original_max_position_embeddings, self.length_scale
        return None if original is None or scale is None else attention_factor_formula(scale, original)

    @property
    def base_factors(self) -> tuple[float, ...]:
        """[rotary_dim / 2] factors of the RoPE that these were put on: ones where it is plain."""
        return (1.0,) * self.num_pairs if self.base is None else self.base.long_factor

    @property
    def original_set(self) -> tuple[float, ...]:
        """[rotary_dim / 2] factors that sequences of the original window had before these were put on: ones on plain RoPE."""
        return (1.0,) * self.num_pairs if self.base is None else self.base.short_factor

    def set(self, name: FactorSet) -> tuple[float, ...]:
        return self.short_factor if name == "short" else self.long_factor

    def oddities(self) -> list[str]:
        """What a reader of these factors should know; none of it makes them unusable."""
        found, scale = list[str](), self.length_scale
        for name, values in (("short", self.short_factor), ("long", self.long_factor)):
            own = [value / base for value, base in zip(values, self.base_factors, strict=True)]
            falls = sum(after < before for before, after in itertools.pairwise(own))
            if falls:
                found.append(f"{name}_factor is not monotone: it falls at {falls} of {len(own) - 1} steps")
            if scale is not None and max(own) > scale * (1 + 1e-9):
                found.append(f"{name}_factor reaches {max(own):g}, above the length scale {scale:g}")
            if min(own) < 1 - 1e-9:
                found.append(f"{name}_factor goes down to {min(own):g}, below 1: it extrapolates those pairs")
        given, formula = self.attention_factor or self.formula_attention_factor, self.runtime_formula
        if given is not None and formula is not None and not math.isclose(given, formula, rel_tol=1e-6):
            found.append(f"attention_factor {given:g} is not the formula's {formula:g}: {WHO_READS_ATTENTION}")
        return found

    # -- new values from old ones

    def as_single(self) -> Self:
        """The long set for every length."""
        return dataclasses.replace(self, short_factor=self.long_factor)

    def with_sets(self, factor_sets: str) -> Self:
        """These factors as `single`, or as `dual` if they are; refuses to invent a short set.

        Raises:
            UnsupportedError: `dual` was asked of factors whose two sets are equal.
        """
        if factor_sets not in get_args(FactorSets):
            raise InputError(f"factor_sets {factor_sets!r}: {choices(factor_sets, ('auto', *get_args(FactorSets)))}")
        if factor_sets == "single":
            return self.as_single()
        if self.factor_sets == "single":
            raise UnsupportedError(
                "dual factor sets were asked for, but short_factor equals long_factor; "
                "recover a short set, or use the long set at every length",
                option="factor-sets single",
            )
        return self

    def bound_to(
        self, *, original: int, rope_theta: float, rotary_dim: int, model_type: str, target: int | None = None
    ) -> BoundFactors:
        """Fill what the source left open from a model, and refuse what contradicts it; `Checkpoint.bind` is the way here.

        Bound factors come back equal from the same model.

        Args:
            original: L of the model, in tokens.
            rope_theta: base of its rotary frequencies.
            rotary_dim: rotated dimensions of a head.
            model_type: transformers' name of the architecture.
            target: L' in tokens; None when the factors say it.

        Raises:
            FactorError: a stored value differs from the model's (theta: as float32, which GGUF holds), the number of
                factors does not fit rotary_dim, or neither the factors nor `target` say L'.
        """
        if self.num_pairs * 2 != rotary_dim:
            raise FactorError(
                f"expected {rotary_dim // 2} factors (rotary_dim {rotary_dim} of this {model_type} model), "
                f"got {self.num_pairs}; these factors belong to another model"
            )
        facts: dict[str, Any] = {
            "original_max_position_embeddings": original,
            "rope_theta": float(rope_theta),
            "rotary_dim": rotary_dim,
            "model_type": model_type,
        }
        for name, expected in facts.items():
            got = getattr(self, name)
            if got is not None and got != expected and not (name == "rope_theta" and _same_as_float32(got, expected)):
                raise FactorError(f"the factors say {name} = {got!r}, the model says {expected!r}; they do not fit")
        if target is not None and self.target_length is not None and target != self.target_length:
            raise FactorError(f"the factors are for target length {self.target_length}, {target} was asked for")
        length = self.target_length or target
        if length is None:
            raise FactorError(
                "the factors do not say target_length, the window after extension, and the model cannot; "
                "import the file with a target (factors import)",
                option="target N",
            )
        return BoundFactors(**{**self._values(), **facts, "target_length": length})

    def unbound(self) -> RescaleFactors:
        """The sets, start tokens, attention factor and target alone: what the model says is left open again."""
        return RescaleFactors(**{**self._values(), **dict.fromkeys(MODEL_FACTS)})

    def _values(self) -> dict[str, Any]:
        """What a file can say, by field."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(RescaleFactors)}

    # -- JSON

    def to_json(self) -> dict[str, Any]:
        """The contract's factors.json object (schema_version 1)."""
        values = self._values()
        values["short_factor"] = list(self.short_factor)
        values["long_factor"] = list(self.long_factor)
        values["provenance"] = dict(self.provenance)
        values.pop("base")
        if self.base is not None:
            values["base"] = dataclasses.asdict(self.base)
        values.pop("family")
        if self.family is not None:
            values["family"] = self.family.to_json()
        return {"schema_version": SCHEMA_VERSION, **values}

    @staticmethod
    def from_json(data: Any, source: str = "factors") -> RescaleFactors:
        """Build from a parsed factors.json.

        Raises:
            InputError: not an object, another schema version, unknown or missing fields, or invalid values.
        """
        if not isinstance(data, dict) or "long_factor" not in data or "short_factor" not in data:
            raise InputError(f"{source}: expected a JSON object with short_factor and long_factor")
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise InputError(f"{source}: expected schema_version {SCHEMA_VERSION}, got {shown(version)}")
        check_fields(data, _KINDS, source)
        names = {field.name for field in dataclasses.fields(RescaleFactors)}
        unknown = sorted(set(data) - names - {"schema_version"})
        if unknown:
            raise InputError(
                f"{source}: unknown fields {', '.join(map(printable, unknown))}; expected only {', '.join(sorted(names))}"
            )
        given = {name: data[name] for name in names if name in data}
        if given.get("base") is not None:
            given["base"] = BaseRope.from_json(given["base"], source)
        try:
            if given.get("family") is not None:
                given["family"] = RopeFamily.from_json(given["family"])
            return RescaleFactors(**given)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None

    def save(self, path: Path) -> None:
        """Write factors.json by temporary file and rename."""
        write_json(path, self.to_json())

    @staticmethod
    def load(path: Path) -> RescaleFactors:
        """Read factors.json. Raises InputError when the file is missing, not JSON or invalid."""
        return RescaleFactors.from_json(read_json(path, non_finite=True), source=str(path))


@dataclass(frozen=True, kw_only=True)
class BoundFactors(RescaleFactors):
    """Rescale factors that know their model and their target: what search, training, exports and checks compute with.

    Made by `Checkpoint.bind`; `dataclasses.replace` keeps them bound.

    Args:
        original_max_position_embeddings: L, the window before extension, in tokens.
        target_length: L', the window after extension, in tokens.
        rope_theta: base of the rotary frequencies.
        rotary_dim: rotated dimensions of a head, two for each factor.
        model_type: transformers' name of the architecture.

    Raises:
        FactorError: as `RescaleFactors`, or one of these is None.
    """

    original_max_position_embeddings: int
    target_length: int
    rope_theta: float
    rotary_dim: int
    model_type: str

    def __post_init__(self) -> None:
        for name in (*MODEL_FACTS, "target_length"):
            if getattr(self, name) is None:
                raise FactorError(f"{name}: bound factors cannot leave it open")
        super().__post_init__()

    @property
    def original(self) -> int:
        """L in tokens."""
        return self.original_max_position_embeddings

    @property
    def target(self) -> int:
        """L' in tokens."""
        return self.target_length

    @property
    def length_scale(self) -> float:
        """s = L' / L."""
        return self.target / self.original

    @property
    def formula_attention_factor(self) -> float:
        """The attention factor by the formula, whatever `attention_factor` is."""
        formula = super().formula_attention_factor
        assert formula is not None
        return formula

    @property
    def effective_attention_factor(self) -> float:
        """The number cos and sin are multiplied by: the given one, or the formula's."""
        return self.formula_attention_factor if self.attention_factor is None else self.attention_factor

    @property
    def written_theta(self) -> float:
        """The base that formats are given: the model's θ, or the one that the factors of a family are put on."""
        return self.rope_theta if self.family is None else self.family.rope_theta

    def set_for_length(self, length: int) -> FactorSet:
        """The set that a sequence of `length` tokens is meant to use."""
        return "long" if length > self.original else "short"


def read_authors_csv(path: Path) -> tuple[float, ...]:
    """One factor set from the LongRoPE authors' file: a matrix of layers × rotary pairs whose rows are all equal.

    Numbers are separated by commas, white space or line breaks. A file of one row, or of one number per line, is one set.

    Raises:
        InputError: not numbers, rows of unequal length, or rows that differ (factors per layer fit no runtime).
    """
    rows = [line.replace(",", " ").split() for line in read_utf8(path).splitlines() if line.strip()]
    try:
        matrix = [tuple(float(cell) for cell in row) for row in rows]
    except ValueError as error:
        raise InputError(f"{path}: expected numbers separated by commas or line breaks; {one_line(error)}") from None
    if not matrix:
        raise InputError(f"{path}: expected a row of factors, got an empty file")
    if all(len(row) == 1 for row in matrix):
        return _checked_set(str(path), [row[0] for row in matrix])
    if any(row != matrix[0] for row in matrix):
        raise InputError(f"{path}: expected {len(matrix)} equal rows (one set for all layers), got rows that differ")
    return _checked_set(str(path), matrix[0])


# -- helpers


def _same_as_float32(one: float, other: float) -> bool:
    """Whether two numbers round to the same float32; one too large for it is infinite."""
    return c_float(one).value == c_float(other).value


def _checked_set(name: str, values: Iterable[float]) -> tuple[float, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, (Sequence, Iterable)):
        raise FactorError(f"{name}: expected a list of numbers, got {shown(values)}")
    checked = tuple(values)
    for index, value in enumerate(checked):
        if expected := _fault(value):
            raise FactorError(f"{name}[{index}]: expected {expected}, got {shown(value)}")
    if not checked:
        raise FactorError(f"{name}: expected rotary_dim / 2 numbers, got none")
    return tuple(float(value) for value in checked)


def _fault(value: object) -> str | None:
    """What was expected in place of a value that is no usable number; None for one that is."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        return "a finite number above 0"
    return None if SMALLEST <= value <= LARGEST else f"a number from {SMALLEST:.2g} to {LARGEST:.2g}, float32's range"
