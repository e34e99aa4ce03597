"""The search of a family on objectives that cost nothing: budgets, candidates every format holds, and that it minimises."""

from __future__ import annotations

import math

import numpy as np
import pytest

from converters.gguf.factors import scaling_values
from longrope import rope
from longrope.family import FamilyName, RopeFamily
from longrope.search.objective import Objective, Window
from longrope.search.space import SearchSpace
from longrope.search.strategies import make_strategy
from longrope.search.strategies.parameters import ramp_betas
from longrope.search.strategies.problem import Problem
from longrope.search.trial import Candidate, Outcome
from tests.common import unscaled

ORIGINAL, TARGET, DIM, THETA = 256, 2048, 32, 10_000.0


def planted() -> RopeFamily:
    betas = ramp_betas(DIM, 1.5 * THETA, ORIGINAL, -2.0)
    assert betas is not None
    return RopeFamily.yarn(9.0, 1.5 * THETA, beta_fast=betas[0], beta_slow=betas[1], attention_factor=1.1)


WANTED = {"yarn": planted(), "linear": RopeFamily("linear", 1.5, 30 * THETA)}


def make_problem(family: FamilyName, max_evals: int, *, search_attention: bool = False, seed: int = 0) -> Problem:
    attention = 1.17 if search_attention else None
    space = SearchSpace(
        unscaled(ORIGINAL, TARGET),
        upper=10.0,
        base_length=ORIGINAL,
        attention_factor=attention,
        search_attention=search_attention,
        family=family,
    )
    objective = Objective(tuple(Window(np.zeros(TARGET, dtype=np.int64)) for _ in range(5)))
    return Problem(space, objective, space.known_methods(), max_evals, seed)


def loss(candidate: Candidate, wanted: RopeFamily) -> float:
    """A bowl in ln λ and ln attention around wanted parameters."""
    factors = wanted.factors(DIM, original=ORIGINAL, rope_theta=THETA)
    tilt = math.log((candidate.attention_factor or 1.0) / wanted.attention_factor) ** 2
    return 4 + float(np.square(np.log(candidate.factors) - np.log(factors)).mean()) + tilt


def solve(problem: Problem, wanted: RopeFamily) -> list[Outcome]:
    strategy, told = make_strategy("auto", problem), list[Outcome]()
    while trials := strategy.ask():
        values = [loss(trial.candidate, wanted) for trial in trials]
        outcomes = [Outcome(t, v, (v,) * len(t.windows)) for t, v in zip(trials, values, strict=True)]
        strategy.tell(outcomes)
        told += outcomes
    return told


@pytest.mark.parametrize("family", ["yarn", "linear"])
@pytest.mark.parametrize("budget", [4, 12, 60])
def test_budgets_are_kept_and_the_best_is_below_the_known_methods(family: FamilyName, budget: int) -> None:
    told = solve(make_problem(family, budget), WANTED[family])
    jobs = {(outcome.candidate, window) for outcome in told for window in outcome.trial.windows}
    assert len(jobs) / 5 <= budget
    known = min(outcome.loss for outcome in told if outcome.trial.known)
    assert min(outcome.loss for outcome in told if len(outcome.losses) == 5) < known or budget == 4


@pytest.mark.parametrize("family", ["yarn", "linear"])
def test_planted_parameters_are_nearly_found(family: FamilyName) -> None:
    problem = make_problem(family, 150, search_attention=family == "yarn")
    assert min(outcome.loss for outcome in solve(problem, WANTED[family])) < 4.004


def test_llama_cpp_computes_every_point_and_its_scale_reaches_the_target() -> None:
    problem = make_problem("yarn", 60)
    for outcome in solve(problem, WANTED["yarn"]):
        family = outcome.candidate.family
        assert family is not None
        assert scaling_values(problem.space.to_factors(outcome.candidate), "sets")
        assert family.type == "linear" or family.factor >= TARGET / ORIGINAL


def test_the_same_seed_asks_for_the_same_trials() -> None:
    first, again, other = (
        [outcome.candidate for outcome in solve(make_problem("yarn", 20, seed=seed), WANTED["yarn"])]
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_candidates_come_back_from_the_journal() -> None:
    problem = make_problem("yarn", 12)
    for outcome in solve(problem, WANTED["yarn"]):
        assert Candidate.from_json(outcome.candidate.to_json()) == outcome.candidate


@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize(("dim", "original"), [(32, 256), (64, 8192), (128, 4096)])
def test_betas_give_the_ramp_that_float32_gives_in_another_window(theta: float, dim: int, original: int) -> None:
    """llama.cpp knows betas of 32 and 1 only, and computes the ends of the ramp in float32."""
    found = 0
    for begin in np.arange(-6, dim // 2, 0.5):
        betas = ramp_betas(dim, theta, original, float(begin))
        if betas is None:
            continue
        found += 1
        assert betas[0] == pytest.approx(32 * betas[1])
        window = np.float32(round(original / betas[1]))
        low, high = (
            np.float32(dim)
            * np.log(window / (np.float32(beta) * np.float32(2 * np.pi)))
            / (2 * np.log(np.float32(theta)))
            for beta in (32, 1)
        )
        low, high = max(np.floor(low), 0), min(np.ceil(high), dim - 1)
        ramp = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
        ours = rope.yarn_factors(dim, 8, rope_theta=theta, original=original, beta_fast=betas[0], beta_slow=betas[1])
        np.testing.assert_allclose(1 / (1 - ramp + ramp / 8), ours, rtol=1e-6)
    assert found > dim // 4
