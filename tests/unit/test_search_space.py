"""Candidates and factors: one way there, one way back, whoever says the attention factor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from longrope.checkpoint import Checkpoint, placeholder_factors, unscaled_factors
from longrope.factors import BoundFactors
from longrope.rope import attention_factor_formula
from longrope.search import Candidate
from longrope.search.methods import known_candidates
from longrope.search.space import SearchSpace, make_space
from tests.common import TARGET, WINDOW, pico_factors

FORMULA = attention_factor_formula(TARGET / WINDOW, WINDOW)
VALUES = tuple(1 + 0.25 * i for i in range(8))
# The attention factor of a space, that of a candidate in it, and what its factors must be multiplied by.
ATTENTION: dict[str, tuple[float | str, float | None, float]] = {
    "the formula's": ("formula", None, FORMULA),
    "the space's number": (1.3, None, 1.3),
    "the candidate's own": ("search", 1.07, 1.07),
    "where the search for it starts": ("search", None, FORMULA),
    "the candidate's, against the space's": (1.3, 1.0, 1.0),
}


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("n_hat", [0, 8])
def test_a_candidate_is_what_its_factors_are(pico: Checkpoint, name: str, n_hat: int) -> None:
    of_space, own, expected = ATTENTION[name]
    space = make_space(pico, TARGET, attention_factor=of_space, n_hat="search")
    candidate = Candidate(VALUES, n_hat, own)
    factors = space.to_factors(candidate)
    assert type(factors) is BoundFactors
    assert factors.effective_attention_factor == space.attention(candidate) == expected
    assert (factors.short_factor, factors.long_factor, factors.n_hat) == (VALUES, VALUES, n_hat)
    back = Candidate.of(factors, "long")
    assert back == replace(candidate, attention_factor=expected)
    assert space.to_factors(back).effective_attention_factor == expected


def test_the_formula_stays_open_where_nobody_gave_a_number(pico: Checkpoint) -> None:
    """`attention_factor: null` in factors.json: every engine computes it."""
    assert make_space(pico, TARGET).to_factors(Candidate(VALUES)).attention_factor is None


@pytest.mark.parametrize("given", [None, 1.25])
def test_each_set_is_a_candidate_of_its_own(pico: Checkpoint, given: float | None) -> None:
    factors = pico.bind(pico_factors(attention_factor=given, n_hat=4))
    short, long = Candidate.of(factors, "short"), Candidate.of(factors, "long")
    assert (short.factors, long.factors) == (factors.short_factor, factors.long_factor)
    assert short.attention_factor == long.attention_factor == (given or FORMULA)
    assert short.n_hat == long.n_hat == 4


@pytest.mark.parametrize(
    ("options", "n_hat", "attention_factor"),
    [
        ({}, 0, None),
        ({"attention_factor": 1.3}, 0, 1.3),
        ({"attention_factor": "search"}, 0, 1.1),
        ({"n_hat": "search"}, 4, None),
        ({"n_hat": 8}, 8, None),
    ],
)
def test_a_space_adopts_what_it_searches(
    pico: Checkpoint, options: dict[str, Any], n_hat: int, attention_factor: float | None
) -> None:
    factors = pico.bind(pico_factors(n_hat=4, attention_factor=1.1))
    adopted = make_space(pico, TARGET, **options).adopt(factors)
    assert adopted == Candidate(factors.long_factor, n_hat, attention_factor)


def test_a_space_leaves_to_its_own_formula_what_given_factors_leave_to_theirs(pico: Checkpoint) -> None:
    shorter = pico.bind(pico_factors(target=128))
    space = make_space(pico, TARGET, attention_factor="search")
    assert space.attention(space.adopt(shorter)) == FORMULA


def test_no_rescaling_is_the_known_method_none(pico: Checkpoint) -> None:
    unscaled = Candidate.of(unscaled_factors(pico, TARGET), "long")
    assert unscaled == known_candidates(pico, TARGET)["none"]


def test_placeholders_are_bound_and_dual(pico: Checkpoint) -> None:
    factors = placeholder_factors(pico, TARGET, n_hat=1)
    assert (type(factors), factors.factor_sets, factors.n_hat) == (BoundFactors, "dual", 1)
    assert (factors.original, factors.target) == (WINDOW, TARGET)


def test_binding_is_to_the_checkpoint(pico: Checkpoint) -> None:
    bound = pico.bind(pico_factors())
    assert pico.bind(bound) == pico.bind(bound, target=TARGET) == bound
    space = SearchSpace(unscaled_factors(pico, TARGET), upper=4.0)
    assert pico.bind(space.to_factors(Candidate(VALUES))) == space.to_factors(Candidate(VALUES))
