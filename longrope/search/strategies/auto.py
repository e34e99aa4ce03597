"""`auto`: gradient steps from screened starts, confirmed on all windows, then mutations that race each other.

    starts ──1 window──► best 2 ──a few steps──► best 1 ──steps, confirmed now and then──► mutations, racing ──► best

Gradients find the region with few tokens and are noisy; a population is slow and robust. So the first part of the budget
goes to steps, and what is left to mutations of the confirmed best. A mutant is measured window by window and stopped as
soon as it is behind the best on the same windows by more than the margin.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from longrope.search.strategies.evolution import Breeder
from longrope.search.strategies.gradient import STEP_FORWARDS, Descent, WindowOrder, descend, screened
from longrope.search.strategies.problem import Problem
from longrope.search.trial import Candidate, Outcome, Plan, Trial

# Budget in full evaluations if none is given.
OWN_BUDGET = 48
# Runs that compete, and their steps before one is chosen.
RUNS, TRIAL_STEPS = 2, 6
# Share of the budget for gradient steps, and steps between confirmations.
STEP_SHARE, CONFIRM_EVERY = 0.75, 8
# A mutant is stopped when it is behind by more than this many nats per token on the windows so far.
MARGIN = 0.0

Outcomes = Generator[Sequence[Trial], Sequence[Outcome], Outcome]


@dataclass
class Purse:
    """What may still be spent, in forwards of one window."""

    left: int

    def pay(self, forwards: int) -> bool:
        """Take so many if they are there."""
        if forwards > self.left:
            return False
        self.left -= forwards
        return True


def auto(problem: Problem) -> Plan:
    """See the module's docstring."""
    purse = Purse(problem.budget(OWN_BUDGET) * problem.num_windows)
    starts = yield from screened(problem)
    purse.pay(len(starts))
    purse.pay(problem.num_windows)
    (best,) = yield [problem.known(starts[0])]
    for_steps = Purse(int(STEP_SHARE * purse.left))
    purse.left -= for_steps.left
    order = WindowOrder(problem)
    descents = []
    for start in starts[:RUNS]:
        if for_steps.pay(TRIAL_STEPS * STEP_FORWARDS):
            total = TRIAL_STEPS + for_steps.left // STEP_FORWARDS
            descent = yield from descend(
                Descent.start(problem, start.candidate), problem, order, TRIAL_STEPS, total=total
            )
            descents.append(descent)
    if descents:
        descent = yield from better(problem, descents, for_steps)
        best = yield from follow(problem, descent, order, for_steps, best)
    purse.left += for_steps.left
    yield from race_mutants(problem, best, purse)


def better(
    problem: Problem, descents: Sequence[Descent], purse: Purse
) -> Generator[Sequence[Trial], Sequence[Outcome], Descent]:
    """The run whose mean is best on two windows."""
    windows = problem.objective.target_windows[:2]
    if len(descents) == 1 or not purse.pay(len(windows) * len(descents)):
        return descents[0]
    outcomes = yield [Trial(descent.mean(), windows, "gradient mean") for descent in descents]
    return descents[min(range(len(descents)), key=lambda i: outcomes[i].loss)]


def follow(problem: Problem, descent: Descent, order: WindowOrder, purse: Purse, best: Outcome) -> Outcomes:
    """Take steps until the purse is empty, confirming the mean of the tail on all windows now and then."""
    done = TRIAL_STEPS
    cost = CONFIRM_EVERY * STEP_FORWARDS + problem.num_windows
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
    while purse.left > 0:
        mutant = breeder.mutation([best.candidate])
        outcome = yield from race(problem, mutant, best, purse)
        if outcome is not None and outcome.loss < best.loss:
            best = outcome


def race(
    problem: Problem, candidate: Candidate, best: Outcome, purse: Purse
) -> Generator[Sequence[Trial], Sequence[Outcome], Outcome | None]:
    """Measure a candidate window by window against the best's same windows; None when it was stopped."""
    windows = best.trial.windows
    outcome = None
    for count in range(1, len(windows) + 1):
        if not purse.pay(1):
            return None
        (outcome,) = yield [Trial(candidate, windows[:count], "mutation")]
        if outcome.loss > problem.objective.loss(windows[:count], best.losses[:count]) + MARGIN:
            return None
    return outcome
