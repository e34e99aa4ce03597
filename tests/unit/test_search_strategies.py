"""Every strategy on objectives that cost nothing: budgets, monotony, reproducibility, and that they minimise."""

from dataclasses import replace

import numpy as np
import pytest

from longrope.errors import InputError
from longrope.search.objective import Objective, Window
from longrope.search.space import SearchSpace, StartingPoint
from longrope.search.strategies import STRATEGIES, check_strategy, make_strategy
from longrope.search.strategies.auto import Mutants
from longrope.search.strategies.gradient import Descent, WindowOrder
from longrope.search.strategies.longrope2 import CriticalBreeder
from longrope.search.strategies.monotone import Monotone, rising
from longrope.search.strategies.natural import NaturalDescent
from longrope.search.strategies.problem import Problem, TokenBudget
from longrope.search.strategies.race import race
from longrope.search.trial import Candidate, Outcome, Planned, Trial
from tests.common import unscaled

TARGET = 2048
WANTED = np.concatenate([np.ones(3), np.geomspace(1.1, 9.0, 8), np.full(5, 9.0)])
SEARCHING = sorted(set(STRATEGIES) - {"seeds"})


def make_problem(*, search_attention: bool = False, **changes) -> Problem:
    space = SearchSpace(
        unscaled(256, TARGET),
        upper=10.0,
        attention_factor=1.17 if search_attention else None,
        search_attention=search_attention,
    )
    ids = np.zeros(TARGET, dtype=np.int64)
    windows = [Window(ids) for _ in range(5)] + [Window(ids, extra=True) for _ in range(7)]
    return Problem(space, Objective(tuple(windows)), space.known_methods(), **changes)


def losses(candidate: Candidate, windows, space: SearchSpace) -> list[float]:
    """A bowl in ln λ and ln attention, a little different on every window."""
    offsets = np.log(candidate.factors) - np.log(WANTED)
    tilt = (np.log(space.attention(candidate)) - np.log(1.07)) ** 2 if space.search_attention else 0.0
    return [float(4 + np.square(offsets + 0.02 * np.sin(w)).mean() + tilt) for w in windows]


def slope(candidate: Candidate, window: int, space: SearchSpace) -> np.ndarray:
    offsets = np.log(candidate.factors) - np.log(WANTED)
    by_attention = 2 * (np.log(space.attention(candidate)) - np.log(1.07)) if space.search_attention else 0.0
    return np.append(2 * (offsets + 0.02 * np.sin(window)) / len(offsets), by_attention)


def answer(problem: Problem, trial) -> Outcome:
    values = losses(trial.candidate, trial.windows, problem.space)
    gradient = np.mean([slope(trial.candidate, w, problem.space) for w in trial.windows], axis=0)
    return Outcome(trial, float(np.mean(values)), tuple(values), gradient if trial.gradient else None)


def batches(problem: Problem, name: str) -> list[list[Outcome]]:
    """Outcomes of what a strategy asked for at a time."""
    strategy, told = make_strategy(name, problem), []
    while trials := strategy.ask():
        told.append([answer(problem, trial) for trial in trials])
        strategy.tell(told[-1])
    return told


def solve(problem: Problem, name: str) -> list[Outcome]:
    return [outcome for batch in batches(problem, name) for outcome in batch]


def rounds(told: list[list[Outcome]], workers: int) -> int:
    """Forwards that one of so many workers makes in a row; a gradient is three, and nothing is measured twice."""
    known, total = set(), 0
    for batch in told:
        jobs = dict.fromkeys((o.candidate, w, o.trial.gradient) for o in batch for w in o.trial.windows)
        busy = [0] * workers
        for job in sorted(jobs.keys() - known, key=lambda job: -job[2]):
            busy[busy.index(min(busy))] += 3 if job[2] else 1
        known |= jobs.keys()
        total += max(busy)
    return total


def best(problem: Problem, told: list[Outcome]) -> Outcome:
    full = set(problem.objective.target_windows)
    return min((o for o in told if full <= set(o.trial.windows)), key=lambda o: o.loss)


def spent(told: list[Outcome]) -> float:
    """Full evaluations' worth of forwards; what was measured before costs nothing."""
    jobs = {(o.candidate, w, o.trial.gradient) for o in told for w in o.trial.windows}
    return sum(3 if gradient else 1 for _, _, gradient in jobs) / 5


@pytest.mark.parametrize("budget", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["auto", "gradient", "evolution"])
def test_the_smallest_budgets_are_kept(name, budget):
    problem = make_problem(max_evals=budget)
    told = solve(problem, name)
    assert spent(told) <= budget
    assert best(problem, told).trial.known or budget > 1


@pytest.mark.parametrize(("budget", "steps"), [(7, 0), (8, 4), (12, 9), (13, 10), (40, 30)])
def test_a_small_budget_takes_fewer_gradient_steps(budget, steps):
    told = solve(make_problem(max_evals=budget), "auto")
    assert sum(outcome.trial.gradient for outcome in told) == steps


def test_gradients_that_do_not_fit_are_asked_for_once():
    problem = make_problem(max_evals=40)
    strategy, told = make_strategy("auto", problem), []
    while trials := strategy.ask():
        outcomes = [replace(answer(problem, trial), gradient=None) for trial in trials]
        strategy.tell(outcomes)
        told += outcomes
    assert sum(outcome.lost_gradient for outcome in told) == 1
    assert spent(told) > 36, "the rest goes to mutants"


@pytest.mark.parametrize(("name", "options"), [("longrope2", {"attention": True}), ("cma", {"n_hat": True})])
def test_what_a_strategy_does_not_search_is_refused(name, options):
    check_strategy(name)
    check_strategy("evolution", n_hat=True, attention=True)
    with pytest.raises(InputError, match=f"strategy {name} does not search the"):
        check_strategy(name, **options)


@pytest.mark.parametrize("name", SEARCHING)
@pytest.mark.parametrize("budget", [5, 12, 30, 90])
def test_budgets_are_kept_and_used(name, budget):
    problem = make_problem(max_evals=budget)
    cost = spent(solve(problem, name))
    assert cost <= budget + 1e-9
    assert cost >= 0.6 * budget


@pytest.mark.parametrize("name", SEARCHING)
def test_all_candidates_rise_within_bounds(name):
    for outcome in solve(make_problem(max_evals=40), name):
        factors = np.array(outcome.candidate.factors)
        assert (np.diff(factors) >= 0).all()
        assert factors[0] >= 1
        assert factors[-1] <= 10.0 + 1e-6


@pytest.mark.parametrize("name", SEARCHING)
def test_the_seed_decides_everything(name):
    first, again, other = (solve(make_problem(max_evals=30, seed=s), name) for s in (1, 1, 2))
    assert [o.trial for o in first] == [o.trial for o in again]
    assert [o.trial for o in first] != [o.trial for o in other]


@pytest.mark.parametrize("name", sorted(set(SEARCHING) - {"dim_piece_mono", "longrope2"}))
def test_they_minimise(name):
    problem = make_problem(max_evals=120)
    seeds = min(np.mean(losses(s.candidate, range(5), problem.space)) for s in problem.starting_points)
    assert best(problem, solve(problem, name)).loss - 4 < 0.8 * (seeds - 4)


@pytest.mark.parametrize("name", ["auto", "gradient", "cma"])
def test_the_attention_factor_moves_when_asked(name):
    problem = make_problem(max_evals=120, search_attention=True)
    found = best(problem, solve(problem, name)).candidate.attention_factor
    assert found == pytest.approx(1.07, abs=0.05)
    fixed = {o.candidate.attention_factor for o in solve(make_problem(max_evals=20), name)}
    assert fixed == {None}


@pytest.mark.parametrize("name", ["auto", "gradient"])
def test_gradients_are_taken_on_extra_windows(name):
    told = solve(make_problem(max_evals=30), name)
    assert {w for o in told if o.trial.gradient for w in o.trial.windows} <= set(range(5, 12))


@pytest.mark.parametrize("budget", [1, 3, 9, 12, 32, 90])
@pytest.mark.parametrize("workers", [2, 3, 8])
def test_workers_share_the_same_budget(workers, budget):
    problem = make_problem(max_evals=budget, workers=workers)
    told = solve(problem, "auto")
    assert 0.6 * budget <= spent(told) <= budget
    assert [o.trial for o in told] == [o.trial for o in solve(problem, "auto")]
    if budget >= 32:
        known = min(np.mean(losses(s.candidate, range(5), problem.space)) for s in problem.starting_points)
        assert best(problem, told).loss - 4 < 0.8 * (known - 4)


@pytest.mark.parametrize("budget", [32, 90])
@pytest.mark.parametrize(("workers", "share"), [(2, 0.56), (4, 0.33)])
def test_workers_shorten_the_way(workers, share, budget):
    alone = rounds(batches(make_problem(max_evals=budget), "auto"), 1)
    assert rounds(batches(make_problem(max_evals=budget, workers=workers), "auto"), workers) <= share * alone


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_step_has_a_window_for_each_worker(workers):
    told = [batch for batch in batches(make_problem(max_evals=32, workers=workers), "auto") if batch[0].trial.gradient]
    assert {len(batch) for batch in told} == {workers}
    assert {len({outcome.candidate for outcome in batch}) for batch in told} == {1}


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_as_many_mutants_race_as_there_are_workers(workers):
    problem = replace(make_problem(max_evals=60, workers=workers), gradients=False)
    told = [batch for batch in batches(problem, "auto") if batch[0].trial.label == "mutant"]
    assert {len(batch) for batch in told[:-10]} == {workers}
    assert {len(batch) for batch in told} <= set(range(1, workers + 1))
    ended = [outcome for batch in told for outcome in batch if len(outcome.trial.windows) == 5]
    stopped = {o.candidate for batch in told for o in batch} - {o.candidate for o in ended}
    assert ended
    assert len(stopped) > len(ended), "most are behind before they have seen all windows"


def test_few_candidates_are_raced_on_several_windows_at_a_time():
    problem, asked, ended = make_problem(workers=4), [], []
    best = answer(problem, problem.full(problem.space.candidate(WANTED), "best"))
    starts = iter(StartingPoint("near", problem.space.candidate(WANTED * (1 + k / 1e4))) for k in (1, 2))

    def plan():
        ended.append((yield from race(problem, lambda _: next(starts, None), best, TokenBudget(10**9))))

    strategy = Planned(plan())
    while trials := strategy.ask():
        asked.append([len(trial.windows) for trial in trials])
        strategy.tell([replace(answer(problem, trial), loss=3.0 + i) for i, trial in enumerate(trials)])
    assert asked == [[2, 2], [4, 4], [5, 5]]
    assert [outcome.loss for outcome in ended] == [3.0]


def two_parts(shares, num_fresh) -> Problem:
    """Three whole windows and two of another kind, so many further ones of each, with these shares of the objective."""
    ids = np.zeros(TARGET, dtype=np.int64)
    whole = [Window(ids, weight=shares[0] / 3) for _ in range(3)]
    other = [Window(ids, weight=shares[1] / 2, part=1) for _ in range(2)]
    extra = [Window(ids, part=part, extra=True) for part, count in enumerate(num_fresh) for _ in range(count)]
    return replace(make_problem(max_evals=60), objective=Objective((*whole, *other, *extra)))


def test_a_race_sees_every_part_of_the_objective():
    problem = replace(two_parts((0.5, 0.5), (0, 0)), gradients=False)
    assert problem.stages == [(0, 3), (0, 1, 3, 4), (0, 1, 2, 3, 4)]
    strategy, found = make_strategy("auto", problem), []
    while trials := strategy.ask():  # whole windows rise a little with the factors, the others fall by much
        outcomes = []
        for trial in trials:
            height = float(np.log(trial.candidate.factors).mean())
            values = [3 + 0.05 * height if w < 3 else 4 - height for w in trial.windows]
            outcomes.append(Outcome(trial, problem.objective.loss(trial.windows, values), tuple(values)))
        strategy.tell(outcomes)
        found += [(o.loss, o.trial.known) for o in outcomes if len(o.trial.windows) == 5]
    assert min(found)[0] < min(loss for loss, known in found if known), "mutants that win on the whole are not stopped"


@pytest.mark.parametrize("num_fresh", [(30, 30), (6, 20), (0, 30), (30, 0)])
def test_gradient_steps_keep_to_the_shares(num_fresh):
    problem = two_parts((0.7, 0.3), num_fresh)
    order, parts = WindowOrder(problem), [set(part.fresh) for part in problem.objective.parts]
    taken = [window for _ in range(100) for window in order.next()]
    assert [sum(window in part for window in taken) for part in parts] == [70, 30]
    assert parts[0] | parts[1] == set(taken), "all of them are used"


@pytest.mark.parametrize("budget", [1, 2, 3, 6, 7])
def test_a_tiny_budget_is_a_tournament(budget):
    problem = make_problem(max_evals=budget)
    told = solve(problem, "auto")
    assert spent(told) <= budget
    assert not any(o.trial.gradient for o in told)
    known = min(np.mean(losses(s.candidate, range(5), problem.space)) for s in problem.starting_points)
    if budget >= 3:
        assert best(problem, told).loss <= known + 1e-9


def test_piecewise_genomes_are_piecewise():
    problem = make_problem(max_evals=80)
    for outcome in solve(problem, "dim_piece_mono")[3:]:
        factors = np.array(outcome.candidate.factors)
        assert set(factors) & {1.0, 8.0}
        assert factors[-1] <= 8.0


def test_longrope2s_form():
    problem = make_problem(max_evals=80)
    breeder = CriticalBreeder(problem.space, problem.rng(), 0.3)
    for outcome in solve(problem, "longrope2")[3:]:
        factors = np.array(outcome.candidate.factors)
        pair = int(np.argmax(factors >= 8.0))
        assert breeder.lowest <= pair <= breeder.highest
        np.testing.assert_allclose(factors[:pair], factors[pair] ** (np.arange(pair) / pair), rtol=1e-5)
        assert (factors[pair:] >= 8.0).all()


def test_failed_candidates_are_survived():
    for name in SEARCHING:
        problem, count = make_problem(max_evals=30), 0
        strategy = make_strategy(name, problem)
        while trials := strategy.ask():
            outcomes = []
            for trial in trials:
                count += 1
                failed = Outcome(trial, float("inf"), (float("inf"),) * len(trial.windows))
                outcomes.append(failed if count % 4 == 0 else answer(problem, trial))
            strategy.tell(outcomes)
        assert count > 20


def test_free_numbers_and_candidates():
    space = Monotone(make_problem(search_attention=True).space)
    start = Candidate(tuple(np.geomspace(1.05, 9.5, 16)), attention_factor=1.3)
    x = space.encode(start)
    assert len(x) == space.size == 17
    again = space.decode(x)
    np.testing.assert_allclose(again.factors, start.factors, rtol=1e-5)
    assert again.attention_factor == pytest.approx(1.3)
    rng = np.random.default_rng(0)
    gradient, nudge = rng.normal(size=17), 1e-4 * rng.normal(size=17)

    def logs(numbers):
        candidate = space.decode(numbers)
        return np.log([*candidate.factors, candidate.attention_factor])

    change = gradient @ (logs(x + nudge) - logs(x - nudge)) / 2
    assert space.pull_back(x, gradient) @ nudge == pytest.approx(change, rel=0.05)


def test_rising_is_isotonic_regression():
    """Against its min-max formula: value i is the largest, over starts, of the smallest weighted mean from there past i."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        values, weights = rng.normal(size=9), rng.uniform(0.1, 5, size=9)
        means = [
            [np.average(values[a : b + 1], weights=weights[a : b + 1]) if a <= b else 0.0 for b in range(9)]
            for a in range(9)
        ]
        expected = [max(min(means[a][b] for b in range(i, 9)) for a in range(i + 1)) for i in range(9)]
        np.testing.assert_allclose(rising(values, weights), expected)
    np.testing.assert_array_equal(rising(np.array([3.0, 1.0, 2.0])), [2.0, 2.0, 2.0])


def test_mutants_rise_near_their_parent_and_move_everything_searched():
    problem = make_problem(search_attention=True)
    problem = replace(problem, space=replace(problem.space, n_hats=(0, 4, 8)))
    mutants, parent = Mutants(problem), problem.starting_points[2].candidate
    drawn = [mutants.draw(parent) for _ in range(200)]
    distances = np.array([np.abs(np.log(m.factors) - np.log(parent.factors)).max() for m in drawn])
    assert all(0 < distance < 0.8 for distance in distances)
    assert {m.n_hat for m in drawn} == {0, 4, 8}
    assert np.std([m.attention_factor for m in drawn]) == pytest.approx(0.035, rel=0.3)
    single = [np.count_nonzero(np.abs(np.log(m.factors) - np.log(parent.factors)) > 0.02) for m in drawn]
    assert min(single) <= 1
    assert max(single) >= 5


def test_natural_steps_ignore_noisy_pairs_and_follow_steady_ones():
    problem, rng = make_problem(), np.random.default_rng(0)
    descent = NaturalDescent(problem.space, problem.space.candidate(np.geomspace(1.5, 6.0, 16)), TARGET)
    start = np.log(descent.candidate.factors)
    for _ in range(12):
        gradient = np.concatenate([rng.normal(size=8), np.full(8, 0.02) + 0.005 * rng.normal(size=8), [0.0]])
        descent.step([Outcome(Trial(descent.candidate, (5,), "gradient step", gradient=True), 4.0, (4.0,), gradient)])
    moved = np.abs(np.log(descent.candidate.factors) - start)
    assert moved[9:].min() > 0.15
    assert moved[:6].max() < 0.1
    descent.step([Outcome(Trial(descent.candidate, (5,), "gradient step", gradient=True), np.inf, (np.inf,), None)])


def test_more_windows_make_a_step_better_not_longer():
    problem, rng = make_problem(), np.random.default_rng(0)
    start = problem.space.candidate(np.geomspace(1.5, 6.0, 16))
    trial = Trial(start, (5,), "gradient step", gradient=True)
    wanted = np.append(np.geomspace(0.5, 0.05, 16), 0.0)

    def moved(slopes) -> np.ndarray:
        descent = NaturalDescent(problem.space, start, TARGET)
        descent.step([Outcome(trial, 4.0, (4.0,), slope) for slope in slopes])
        return np.log(descent.candidate.factors) - np.log(start.factors)

    np.testing.assert_allclose(moved([wanted] * 3), moved([wanted]), atol=2e-6)
    np.testing.assert_array_equal(moved([wanted, np.full(17, np.nan)]), moved([wanted]))
    noisy = [wanted * (1 + rng.normal(size=17)) for _ in range(400)]
    one = np.std([moved([slope])[0] for slope in noisy])
    four = np.std([moved(noisy[k : k + 4])[0] for k in range(0, 400, 4)])
    assert four < 0.7 * one


def test_a_gradient_that_is_small_by_chance_sends_no_pair_away():
    """A pair's curvature is at least that of the slower ones."""
    problem = make_problem()
    start = problem.space.candidate(np.geomspace(1.5, 6.0, 16))
    descent, slopes = NaturalDescent(problem.space, start, TARGET), np.full(16, 0.3)
    slopes[[2, 7]] = 1e-3
    gradient = np.append(slopes, 0.0)
    descent.step([Outcome(Trial(start, (5,), "gradient step", gradient=True), 4.0, (4.0,), gradient)])
    moved = np.abs(np.log(descent.candidate.factors) - np.log(start.factors))
    assert moved.max() < 0.01
    assert moved[[2, 7]].max() < 1e-4


def test_attention_moves_in_small_steps_whatever_the_first_window_says():
    """A gradient that is small by chance must not send what perplexity is most sensitive to far away."""
    problem = make_problem(search_attention=True)
    descent = NaturalDescent(problem.space, problem.starting_points[2].candidate, TARGET)
    for slope in (1e-4, 0.05, 0.05):
        before = descent.candidate.attention_factor
        gradient = np.append(np.zeros(16), slope)
        descent.step([Outcome(Trial(descent.candidate, (5,), "gradient step", gradient=True), 4.0, (4.0,), gradient)])
        assert 0 < abs(np.log(descent.candidate.attention_factor / before)) <= 0.0101
    adam = Descent.start(problem, problem.starting_points[2].candidate)
    trial = Trial(adam.candidate, (5,), "gradient step", gradient=True)
    adam.step(Outcome(trial, 4.0, (4.0,), np.append(np.zeros(16), 1e-4)), 1.0)
    assert 0 < np.log(adam.space.space.default_attention / adam.candidate.attention_factor) <= 0.0151


def test_names():
    with pytest.raises(InputError, match="did you mean gradient"):
        make_strategy("gradeint", make_problem())
