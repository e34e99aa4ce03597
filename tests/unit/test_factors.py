"""`RescaleFactors`: validation, JSON, binding to a model, and the authors' published files."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longrope.errors import InputError, UnsupportedError
from longrope.factors import (
    LARGEST,
    MODEL_FACTS,
    SMALLEST,
    BoundFactors,
    RescaleFactors,
    read_authors_csv,
)
from longrope.rope import attention_factor_formula
from tests.common import PUBLISHED_FACTORS, needs_published_factors, pico_factors

MODEL: dict[str, Any] = {"original": 64, "rope_theta": 10_000.0, "rotary_dim": 16, "model_type": "llama"}

# -- validation: what was expected and what was got


BAD_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "no numbers": ({"short_factor": (), "long_factor": ()}, r"expected rotary_dim / 2 numbers, got none"),
    "unequal sets": ({"short_factor": (1.0,)}, r"short_factor has 1 numbers and long_factor 2; expected one for"),
    "zero": ({"long_factor": (1.0, 0.0)}, r"long_factor\[1\]: expected a finite number above 0, got 0.0"),
    "negative": ({"short_factor": (-1.0, 1.0)}, r"short_factor\[0\]: expected a finite number above 0, got -1.0"),
    "nan": ({"long_factor": (1.0, math.nan)}, r"long_factor\[1\]: expected a finite number above 0, got nan"),
    "infinite": ({"long_factor": (math.inf, 1.0)}, r"long_factor\[0\]: expected a finite number above 0, got inf"),
    "text": ({"long_factor": (1.0, "2")}, r"long_factor\[1\]: expected a finite number above 0, got '2'"),
    "a string of digits": ({"long_factor": "12"}, r"long_factor: expected a list of numbers, got '12'"),
    "a boolean": ({"long_factor": (1.0, True)}, r"long_factor\[1\]: expected a finite number above 0, got True"),
    "a number": ({"long_factor": 2.0}, r"long_factor: expected a list of numbers, got 2.0"),
    "null": ({"long_factor": None}, r"long_factor: expected a list of numbers, got None"),
    "no window": ({"original_max_position_embeddings": 0}, r"expected a whole number of tokens above 0, got 0"),
    "half a token": ({"target_length": 128.5}, r"target_length: expected a whole number of tokens above 0, got 128.5"),
    "target below original": (
        {"original_max_position_embeddings": 64, "target_length": 32},
        r"target_length 32 is below the original window 64",
    ),
    "negative n_hat": ({"n_hat": -1}, r"n_hat: expected a whole number of start tokens, 0 or more, got -1"),
    "n_hat as text": ({"n_hat": "8"}, r"n_hat: expected a whole number of start tokens, 0 or more, got '8'"),
    "n_hat beyond the target": ({"n_hat": 65, "target_length": 64}, r"n_hat 65 is above the target length 64"),
    "too few for rotary_dim": ({"rotary_dim": 8}, r"expected rotary_dim / 2 = 4 factors for rotary_dim 8, got 2"),
    "attention factor 0": (
        {"attention_factor": 0},
        r"attention_factor: expected a finite number above 0 or null, got 0",
    ),
    "zero in float32": (
        {"long_factor": (1.0, 1e-46)},
        r"long_factor\[1\]: expected a number from 1.2e-38 to 3.4e\+38, float32's range, got 1e-46",
    ),
    "subnormal in float32": ({"short_factor": (1e-40, 1.0)}, r"short_factor\[0\]: expected a number from 1.2e-38"),
    "infinite in float32": ({"long_factor": (1.0, 1e39)}, r"long_factor\[1\]: .* to 3.4e\+38, .* got 1e\+39"),
    "more than any float": ({"long_factor": (1.0, 10**400)}, r"long_factor\[1\]: expected a number from 1.2e-38"),
    "attention factor near 0": ({"attention_factor": 1e-46}, r"attention_factor: expected a number from .* or null"),
    "infinite theta": ({"rope_theta": math.inf}, r"rope_theta: expected a finite number above 0 or null, got inf"),
    "theta not a number": ({"rope_theta": "1e4"}, r"rope_theta: expected a finite number above 0 or null, got '1e4'"),
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_bad_value_is_refused_with_what_was_expected(name: str) -> None:
    changes, message = BAD_VALUES[name]
    values: dict[str, Any] = {"short_factor": (1.0, 2.0), "long_factor": (1.0, 2.0), **changes}
    with pytest.raises(InputError, match=message):
        RescaleFactors(**values)


def test_sequences_and_numpy_numbers_become_floats() -> None:
    factors = RescaleFactors([1, 2], np.array([1.5, 2.5]))  # type: ignore[arg-type]
    assert factors.short_factor == (1.0, 2.0)
    assert all(type(value) is float for value in factors.short_factor + factors.long_factor)


# -- what follows from the fields


def test_the_bounds_are_what_float32_holds_with_all_its_digits() -> None:
    assert (np.finfo(np.float32).tiny, np.finfo(np.float32).max) == (SMALLEST, LARGEST)
    assert RescaleFactors((SMALLEST,), (LARGEST,)).long_factor == (LARGEST,)


def test_the_lengths_give_scale_set_and_attention_factor() -> None:
    factors = pico_factors().bound_to(**MODEL)
    assert factors.length_scale == 4.0
    assert [factors.set_for_length(n) for n in (1, 64, 65, 256)] == ["short", "short", "long", "long"]
    assert factors.effective_attention_factor == math.sqrt(1 + math.log(4) / math.log(64))
    given = dataclasses.replace(factors, attention_factor=1.25)
    assert given.effective_attention_factor == 1.25
    assert given.formula_attention_factor == factors.effective_attention_factor


@pytest.mark.parametrize(
    ("scale", "original", "expected"), [(32, 4096, 1.1902380714238083), (1, 4096, 1), (0.5, 64, 1)]
)
def test_the_attention_factor_formula(scale: float, original: int, expected: float) -> None:
    """32 × 4096 is Phi-3-mini-128k: 1.190238…, the value its model code prints."""
    assert attention_factor_formula(scale, original) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("open_field", ["original_max_position_embeddings", "target_length"])
def test_what_follows_from_an_open_length_is_open(open_field: str) -> None:
    factors = pico_factors(**{open_field: None})
    assert (factors.length_scale, factors.formula_attention_factor) == (None, None)
    known = pico_factors()
    assert (known.length_scale, known.formula_attention_factor) == (4.0, attention_factor_formula(4.0, 64))


def test_single_and_dual() -> None:
    dual = pico_factors()
    single = dual.as_single()
    assert (dual.factor_sets, single.factor_sets) == ("dual", "single")
    assert single.short_factor == single.long_factor == dual.long_factor
    assert dual.with_sets("dual") is dual
    assert dual.with_sets("single") == single
    with pytest.raises(UnsupportedError, match=r"short_factor equals long_factor.*recover a short set"):
        single.with_sets("dual")


@pytest.mark.parametrize(
    ("long_factor", "expected"),
    [
        ((1.0, 2.0, 4.0), []),
        ((1.0, 3.0, 2.0), ["long_factor is not monotone: it falls at 1 of 2 steps"]),
        ((1.0, 2.0, 4.5), ["long_factor reaches 4.5, above the length scale 4"]),
        ((0.5, 2.0, 4.0), ["long_factor goes down to 0.5, below 1: it extrapolates those pairs"]),
    ],
)
def test_oddities_are_told_and_not_refused(long_factor: tuple[float, ...], expected: list[str]) -> None:
    factors = RescaleFactors(
        (1.0, 1.0, 1.0), long_factor, original_max_position_embeddings=64, target_length=256, rotary_dim=6
    )
    assert factors.oddities() == expected


# -- binding


def test_binding_fills_what_was_open() -> None:
    bound = RescaleFactors((1.0,) * 8, (2.0,) * 8).bound_to(
        original=64, rope_theta=10_000, rotary_dim=16, model_type="llama", target=256
    )
    assert (bound.original, bound.target, bound.rope_theta, bound.rotary_dim) == (64, 256, 10_000.0, 16)
    assert bound.model_type == "llama"


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"original_max_position_embeddings": 128}, "original_max_position_embeddings = 128, the model says 64"),
        ({"rope_theta": 5e5}, "rope_theta = 500000.0, the model says 10000.0"),
        ({"model_type": "phi3"}, "model_type = 'phi3', the model says 'llama'"),
        ({"target_length": 512}, "the factors are for target length 512, 256 was asked for"),
        ({"short_factor": (1.0,) * 4, "long_factor": (1.0,) * 4}, r"expected 8 factors \(rotary_dim 16.*got 4"),
    ],
)
def test_binding_refuses_a_contradiction(stored: dict[str, Any], message: str) -> None:
    factors = RescaleFactors(**{"short_factor": (1.0,) * 8, "long_factor": (2.0,) * 8, **stored})
    with pytest.raises(InputError, match=message):
        factors.bound_to(original=64, rope_theta=10_000, rotary_dim=16, model_type="llama", target=256)


def test_a_target_that_nobody_says_is_refused_with_the_way_out() -> None:
    with pytest.raises(InputError, match=r"do not say target_length.*factors import"):
        pico_factors(target_length=None).bound_to(**MODEL)


FILES: dict[str, dict[str, Any]] = {
    "nothing but the sets": {"original_max_position_embeddings": None, "target_length": None},
    "lengths": {},
    "all": {"rope_theta": 10_000.0, "rotary_dim": 16, "model_type": "llama", "attention_factor": 1.25, "n_hat": 4},
}


@pytest.mark.parametrize("said", FILES)
def test_binding_twice_is_binding_once(said: str) -> None:
    factors = pico_factors(**FILES[said])
    bound = factors.bound_to(**MODEL, target=256)
    assert bound.bound_to(**MODEL) == bound.bound_to(**MODEL, target=256) == bound
    assert RescaleFactors.from_json(bound.to_json()).bound_to(**MODEL) == bound
    assert bound.unbound().bound_to(**MODEL) == bound
    for name in ("short_factor", "long_factor", "n_hat", "attention_factor", "method"):
        assert getattr(bound, name) == getattr(factors, name)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"original": 128}, "original_max_position_embeddings = 64, the model says 128"),
        ({"rope_theta": 5e5}, "rope_theta = 10000.0, the model says 500000.0"),
        ({"rotary_dim": 32}, r"expected 16 factors \(rotary_dim 32"),
        ({"model_type": "phi3"}, "model_type = 'llama', the model says 'phi3'"),
        ({"target": 512}, "are for target length 256, 512 was asked for"),
    ],
)
def test_bound_factors_are_refused_by_another_model_and_unbound_ones_are_not(
    other: dict[str, Any], message: str
) -> None:
    bound = pico_factors().bound_to(**MODEL)
    with pytest.raises(InputError, match=message):
        bound.bound_to(**{**MODEL, **other})
    if not {"target", "rotary_dim"} & set(other):
        assert bound.unbound().bound_to(**{**MODEL, **other}).long_factor == bound.long_factor


def test_what_is_made_of_bound_factors_is_bound() -> None:
    bound = pico_factors().bound_to(**MODEL)
    for made in (
        dataclasses.replace(bound, attention_factor=1.5),
        bound.as_single(),
        bound.with_sets("single"),
        bound.with_sets("dual"),
    ):
        assert type(made) is BoundFactors
        assert (made.original, made.target, made.rope_theta) == (64, 256, 10_000.0)
    assert type(bound.unbound()) is type(RescaleFactors.from_json(bound.to_json())) is RescaleFactors


@pytest.mark.parametrize("name", [*MODEL_FACTS, "target_length"])
def test_bound_factors_leave_nothing_open(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: bound factors cannot leave it open"):
        dataclasses.replace(pico_factors().bound_to(**MODEL), **{name: None})


# -- JSON

ODD_NUMBERS = (1 / 3, 1.1118, math.pi, 1e-12, 123456789.123456789, float(np.nextafter(2.0, 3.0)))


def test_json_brings_back_the_same_bits(tmp_path: Path) -> None:
    factors = RescaleFactors(
        ODD_NUMBERS,
        ODD_NUMBERS[::-1],
        n_hat=28,
        original_max_position_embeddings=4096,
        target_length=2**21,
        attention_factor=1 / 7,
        rope_theta=500000.0,
        rotary_dim=12,
        model_type="llama",
        method="evolution",
        provenance={"seed": 1, "texts": ["a"]},
    )
    factors.save(tmp_path / "factors.json")
    assert RescaleFactors.load(tmp_path / "factors.json") == factors


def test_json_has_the_contracts_fields() -> None:
    assert set(pico_factors().to_json()) == {
        "schema_version",
        "short_factor",
        "long_factor",
        "n_hat",
        "original_max_position_embeddings",
        "target_length",
        "attention_factor",
        "rope_theta",
        "rotary_dim",
        "model_type",
        "method",
        "provenance",
    }


GOOD = {"schema_version": 1, "short_factor": [1.0, 2.0], "long_factor": [1.0, 3.0]}
BAD_JSON: dict[str, tuple[Any, str]] = {
    "a list": ([1.0, 2.0], "expected a JSON object with short_factor and long_factor"),
    "one set": (
        {"schema_version": 1, "long_factor": [1.0]},
        "expected a JSON object with short_factor and long_factor",
    ),
    "no version": ({k: v for k, v in GOOD.items() if k != "schema_version"}, "expected schema_version 1, got None"),
    "a later version": ({**GOOD, "schema_version": 2}, "expected schema_version 1, got 2"),
    "a misspelt field": ({**GOOD, "n_hatt": 4}, "unknown fields n_hatt"),
    "a bad value": ({**GOOD, "n_hat": -4}, "n_hat: expected a whole number"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_bad_json_is_refused_with_the_files_name(tmp_path: Path, name: str) -> None:
    data, message = BAD_JSON[name]
    file = tmp_path / "given.json"
    file.write_text(json.dumps(data))
    with pytest.raises(InputError, match=rf"given\.json: .*{message}"):
        RescaleFactors.load(file)


@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "not valid JSON"), (b"\xff\xfe", "not valid JSON|UTF-8"), (None, "no such file")]
)
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "given.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=rf"given\.json.*({message})"):
        RescaleFactors.load(file)


# -- the authors' CSV


@pytest.mark.parametrize(
    "text",
    ["1.0,1.5,2\n1.0,1.5,2\n", "1.0,1.5,2", "1.0\n1.5\n2\n", " 1.0 , 1.5 , 2 \r\n\r\n", "1.0 1.5 2\n1 1.50 2.0\n"],
    ids=["matrix", "one row", "one a line", "spaces and CRLF", "blanks"],
)
def test_csv_of_any_layout_is_one_set(tmp_path: Path, text: str) -> None:
    file = tmp_path / "factors.csv"
    file.write_text(text)
    assert read_authors_csv(file) == (1.0, 1.5, 2.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a row of factors, got an empty file"),
        ("\n \n", "expected a row of factors, got an empty file"),
        ("1,2\n1,3\n", "expected 2 equal rows .* got rows that differ"),
        ("1,2\n1,2,3\n", "expected 2 equal rows .* got rows that differ"),
        ("lambda\n1\n", "expected numbers separated by commas or line breaks; .*lambda"),
        ("1,-2\n", r"\[1\]: expected a finite number above 0, got -2"),
    ],
)
def test_csv_that_holds_no_single_set_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "factors.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_authors_csv(file)


# Of each published file: its target length over LLaMA2's 4096 tokens, and the largest factor where it exceeds that.
PUBLISHED = {
    "ft_la2_128k.csv": (32, None),
    "ft_la2_256k.csv": (64, "64.77"),
    "512k_la2_256k.csv": (128, "171.317"),
    "2048k_la2_128k.csv": (512, "543.68"),
    "2048k_la2_256k.csv": (512, "575.805"),
    "4k_la2_256k.csv": (1, "62.04"),
    "8k_la2_256k.csv": (2, "4.96"),
}


@needs_published_factors
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_factors_are_taken_as_they_are(name: str) -> None:
    scale, beyond = PUBLISHED[name]
    values = read_authors_csv(PUBLISHED_FACTORS / name)
    cells = (PUBLISHED_FACTORS / name).read_text().replace(",", " ").split()
    assert list(values) == [float(cell) for cell in cells[:64]]
    factors = RescaleFactors(values, values, original_max_position_embeddings=4096, target_length=4096 * scale)
    assert (factors.num_pairs, factors.factor_sets) == (64, "single")
    said = [f"long_factor reaches {beyond}, above the length scale {scale}"] if beyond else []
    assert [oddity for oddity in factors.oddities() if oddity.startswith("long")] == said
