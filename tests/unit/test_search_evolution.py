"""The paper's algorithm on objectives that cost nothing."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from longrope.factors import N_HAT_CHOICES
from longrope.search.objective import Objective, Window
from longrope.search.space import SearchSpace
from longrope.search.strategies import make_strategy
from longrope.search.strategies.evolution import Schedule, merge, redraw_between
from longrope.search.strategies.problem import Problem
from longrope.search.trial import Outcome
from tests.common import unscaled

TARGET = 2048


def make_problem(**changes) -> Problem:
    space = SearchSpace(unscaled(256, TARGET), upper=10.0, n_hats=changes.pop("n_hats", (0,)))
    objective = Objective((Window(np.zeros(8, dtype=np.int64)),))
    return Problem(space, objective, space.known_methods(), **changes)


def distance(candidate) -> float:
    """A bowl around a point that no seed is near."""
    wanted = 1 + 7 * (np.arange(16) / 15) ** 2
    return float(np.square(np.log(candidate.factors) - np.log(wanted)).sum()) + 0.001 * abs(candidate.n_hat - 16)


def solve(problem: Problem, name: str = "evolution") -> list[list[Outcome]]:
    strategy, rounds = make_strategy(name, problem), []
    while trials := strategy.ask():
        outcomes = [Outcome(t, distance(t.candidate), (distance(t.candidate),)) for t in trials]
        strategy.tell(outcomes)
        rounds.append(outcomes)
    return rounds


def test_the_papers_numbers():
    rounds = solve(make_problem())
    assert [len(r) for r in rounds] == [64] + [32] * 40
    labels = Counter(o.trial.label for r in rounds[1:] for o in r)
    assert labels == {"mutation": 16 * 40, "crossover": 16 * 40}
    first = [o.trial.label for o in rounds[0]]
    assert first[:3] == ["PI", "NTK", "YaRN 32/1"]
    assert all(label.startswith("mutation of") for label in first[3:])


def test_every_genome_is_new_monotone_and_on_the_grid():
    trials = [o.trial for r in solve(make_problem(n_hats=N_HAT_CHOICES)) for o in r]
    assert len({t.candidate for t in trials}) == len(trials) == 1344
    for trial in trials[3:]:
        genes = np.array(trial.candidate.factors)
        assert (np.diff(genes) >= 0).all()
        assert genes[0] >= 1
        assert genes[-1] <= 10.0
        np.testing.assert_allclose(genes * 100, np.round(genes * 100), atol=1e-6)


def test_n_hat_moves():
    counts = {o.candidate.n_hat for r in solve(make_problem(n_hats=N_HAT_CHOICES)) for o in r}
    assert counts == set(N_HAT_CHOICES)
    assert {o.candidate.n_hat for r in solve(make_problem(n_hats=(4,))) for o in r[3:]} == {4}


def test_it_minimises():
    rounds = solve(make_problem())
    best = list(itertools.accumulate(min(o.loss for o in r) for r in rounds))
    seeds = min(o.loss for o in rounds[0][:3])
    assert min(o.loss for r in rounds for o in r) < 0.25 * seeds
    assert len(best) == 41


def test_a_seed_decides_everything():
    first, second, other = (solve(make_problem(seed=s, max_evals=60)) for s in (1, 1, 2))
    assert [[o.candidate for o in r] for r in first] == [[o.candidate for o in r] for r in second]
    assert [[o.candidate for o in r] for r in first] != [[o.candidate for o in r] for r in other]


@pytest.mark.parametrize("budget", [1, 2, 3, 6, 7, 12, 40, 100, 200, 500, 1343, 1344, 9999])
def test_a_budget_keeps_the_proportions(budget):
    schedule = Schedule.for_search(TARGET, budget)
    assert schedule.evaluations <= budget
    assert schedule.evaluations >= 0.8 * budget
    if budget >= 1344:
        assert replace(schedule, rounds=40) == Schedule()
    elif budget >= 40:
        assert schedule.population == 2 * schedule.parents == 4 * schedule.mutations == 4 * schedule.crossovers
        assert 0.3 < schedule.rounds / schedule.population < 1.2


def test_halved_beyond_512k():
    assert Schedule.for_search(512 * 1024, None) == Schedule()
    assert Schedule.for_search(512 * 1024 + 1, None) == Schedule(32, 40, 16, 8, 8)


def test_redrawn_genes_reach_every_monotone_choice():
    """Three of four genes redrawn, the third kept."""
    rng = np.random.default_rng(0)
    genes = np.array([1.0, 1.0, 1.02, 1.03])
    chosen = np.array([True, True, False, True])
    seen = Counter(tuple(redraw_between(genes, chosen, 1.04, rng).tolist()) for _ in range(4000))
    assert {g[:2] for g in seen} == {(a, b) for a in (1.0, 1.01, 1.02) for b in (1.0, 1.01, 1.02) if a <= b}
    assert {g[3] for g in seen} == {1.02, 1.03, 1.04}
    assert {g[2] for g in seen} == {1.02}


def test_merge_takes_every_gene_from_a_parent():
    rng = np.random.default_rng(0)
    left, right = np.array([1.0, 2.0, 3.0, 9.0]), np.array([1.5, 1.6, 4.0, 5.0])
    for _ in range(200):
        child = merge([left, right], rng)
        assert (np.diff(child) >= 0).all()
        assert all(value in (a, b) for value, a, b in zip(child, left, right, strict=True))
