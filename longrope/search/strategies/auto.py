"""`auto`: gradient steps from screened starts, confirmed on all windows, then mutations that race each other.

    starts ──1 window──► best 2 ──a few steps──► best 1 ──steps, confirmed now and then──► mutations, racing ──► best

Gradients find the region with few tokens and are noisy; a population is slow and robust. So the larger part of the budget
goes to steps, and what is left to mutations of the confirmed best. A mutant is measured window by window and stopped as
soon as it is behind the best on the same windows.

A budget too small for gradient steps to average out their noise is spent on a tournament instead: the starts and a grid of
YaRN ramps, the better half of which goes on to the next window.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

from longrope.search.space import Seed
from longrope.search.strategies.evolution import Breeder
from longrope.search.strategies.gradient import Descent, WindowOrder, descend, screened, starting_points
from longrope.search.strategies.problem import Problem, Purse
from longrope.search.strategies.seeds import yarn_grid
from longrope.search.trial import Candidate, Outcome, Plan, Trial

# Budget in full evaluations if none is given.
OWN_BUDGET = 48
# With fewer steps than this to take, a tournament.
ENOUGH_STEPS = 12
# Runs that compete, and their steps before one is chosen.
RUNS, TRIAL_STEPS = 2, 6
# Share of the budget for gradient steps, and steps between confirmations.
STEP_SHARE, CONFIRM_EVERY = 0.75, 8

Outcomes = Generator[Sequence[Trial], Sequence[Outcome], Outcome]


def auto(problem: Problem) -> Plan:
    """See the module's docstring."""
    purse = problem.purse(OWN_BUDGET)
    full = problem.tokens(problem.objective.ranking_windows)
    if STEP_SHARE * purse.left - full < ENOUGH_STEPS * problem.step_tokens:
        yield from tournament(problem, purse)
        return
    starts = yield from screened(problem, purse)
    purse.pay(full)
    (best,) = yield [problem.known(starts[0])]
    for_steps = Purse(int(STEP_SHARE * purse.left))
    purse.left -= for_steps.left
    order = WindowOrder(problem)
    descent = yield from best_run(problem, starts[:RUNS], order, for_steps)
    best = yield from follow(problem, descent, order, for_steps, best)
    purse.left += for_steps.left
    yield from race_mutants(problem, best, purse)


def tournament(problem: Problem, purse: Purse) -> Plan:
    """All starts on the first window, the better half of them on the next, and so on; the last one on all."""
    windows = problem.objective.ranking_windows
    full = problem.tokens(windows)
    first = problem.tokens(windows[:1])
    room = max(1, (purse.left - full) // (2 * first) if len(windows) > 1 else purse.left // full)
    players = list(entrants(problem))[:room]
    for count in range(1, len(windows)):
        price = len(players) * problem.tokens(windows[count - 1 : count])
        if len(players) == 1 or purse.left - price < problem.tokens(windows[count:]):
            break
        purse.pay(price)
        outcomes = yield [Trial(p.candidate, windows[:count], p.name) for p in players]
        ranked = sorted(range(len(players)), key=lambda i: outcomes[i].loss)
        players = [players[i] for i in ranked[: -(-len(players) // 2)]]
    yield [problem.known(player) for player in players[: max(1, purse.left // full)]]


def entrants(problem: Problem) -> Iterator[Seed]:
    """Starts first, so that a small field has the known methods in it, then YaRN's ramps."""
    seen: set[Candidate] = set()
    for seed in (*starting_points(problem), *yarn_grid(problem.space)):
        if seed.candidate not in seen:
            seen.add(seed.candidate)
            yield seed


def best_run(
    problem: Problem, starts: Sequence[Seed], order: WindowOrder, purse: Purse
) -> Generator[Sequence[Trial], Sequence[Outcome], Descent]:
    """A few steps from each start; the run whose mean is best on two windows."""
    windows = problem.objective.target_windows[:2]
    step = problem.step_tokens
    if purse.left < 2 * len(starts) * (TRIAL_STEPS * step + problem.tokens(windows)):
        starts = starts[:1]
    total = TRIAL_STEPS + (purse.left // step - len(starts) * TRIAL_STEPS)
    runs = []
    for start in starts:
        purse.pay(TRIAL_STEPS * step)
        begun = Descent.start(problem, start.candidate)
        runs.append((yield from descend(begun, problem, order, TRIAL_STEPS, total=total)))
    if len(runs) == 1:
        return runs[0]
    purse.pay(problem.tokens(windows) * len(runs))
    outcomes = yield [Trial(run.mean(), windows, "gradient mean") for run in runs]
    return runs[min(range(len(runs)), key=lambda i: outcomes[i].loss)]


def follow(problem: Problem, descent: Descent, order: WindowOrder, purse: Purse, best: Outcome) -> Outcomes:
    """Take steps until the purse is empty, confirming the mean of the tail on all windows now and then."""
    done = TRIAL_STEPS
    cost = CONFIRM_EVERY * problem.step_tokens + problem.tokens(problem.objective.ranking_windows)
    total = done + purse.left // cost * CONFIRM_EVERY
    while purse.pay(cost):
        descent = yield from descend(descent, problem, order, CONFIRM_EVERY, done=done, total=total)
        done += CONFIRM_EVERY
        (confirmed,) = yield [problem.full(descent.mean(), "gradient mean")]
        best = min(best, confirmed, key=lambda outcome: outcome.loss)
    return best


def race_mutants(problem: Problem, best: Outcome, purse: Purse) -> Plan:
    """Mutations of the best, one after the other, each stopped as soon as it is behind."""
    breeder = Breeder(problem.space, problem.rng(), probability=1.5 / problem.space.num_pairs)
    while purse.left >= problem.tokens(best.trial.windows):
        outcome = yield from race(problem, breeder.mutation([best.candidate]), best, purse)
        if outcome is not None and outcome.loss < best.loss:
            best = outcome


def race(
    problem: Problem, candidate: Candidate, best: Outcome, purse: Purse
) -> Generator[Sequence[Trial], Sequence[Outcome], Outcome | None]:
    """Measure a candidate window by window against the best's same windows; None when it was stopped."""
    windows = best.trial.windows
    outcome = None
    for count in range(1, len(windows) + 1):
        purse.pay(problem.tokens(windows[count - 1 : count]))
        (outcome,) = yield [Trial(candidate, windows[:count], "mutation")]
        if outcome.loss > problem.objective.loss(windows[:count], best.losses[:count]):
            return None
    return outcome
