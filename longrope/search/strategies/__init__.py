"""The strategies by name, behind one ask/tell interface (`longrope.search.trial.Strategy`).

Each module holds one strategy as a generator of trials, with its source. They are numpy only and know nothing of models:
what they are given is a `Problem`, what they yield are trials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from longrope.errors import InputError, choices
from longrope.search.strategies.evolution import Schedule
from longrope.search.strategies.problem import Problem
from longrope.search.trial import Plan, Planned, Strategy

STRATEGIES: Mapping[str, str] = {
    "auto": "longrope.search.strategies.auto:auto",
    "cma": "longrope.search.strategies.cma:cma",
    "dim_mono": "longrope.search.strategies.evolution:dim_mono",
    "dim_piece_mono": "longrope.search.strategies.dim_piece_mono:dim_piece_mono",
    "evolution": "longrope.search.strategies.evolution:evolution",
    "gradient": "longrope.search.strategies.gradient:gradient",
    "longrope2": "longrope.search.strategies.longrope2:longrope2",
    "seeds": "longrope.search.strategies.seeds:seeds",
}

# Strategies whose candidates differ in n_hat, and in the attention factor, when these are searched.
MOVE_N_HAT = ("auto", "evolution")
MOVE_ATTENTION = ("auto", "cma", "dim_mono", "evolution", "gradient")
# Strategies that take gradients, which need more memory than forwards; `auto` goes without where they do not fit.
TAKE_GRADIENTS, NEED_GRADIENTS = ("auto", "gradient"), ("gradient",)
# Strategies that ask for as much at a time as there are workers, so that other numbers of them find other factors.
ASK_AT_ONCE = ("auto",)


def make_strategy(name: str, problem: Problem) -> Strategy:
    """The strategy called `name`, ready to be asked. Raises InputError for an unknown name."""
    return Planned(_plan(name)(problem))


def own_budget(name: str, target: int) -> int:
    """Full evaluations that a strategy spends when it is given no budget. Raises InputError for an unknown name."""
    module = import_module(_plan(name).__module__)
    own: int = getattr(module, "OWN_BUDGET", 0) or Schedule.for_search(target, None).evaluations
    return own


def check_strategy(name: str, *, n_hat: bool = False, attention: bool = False) -> None:
    """Raise InputError for an unknown name, or one that does not search what is to be searched, before any work is done."""
    _plan(name)
    for wanted, option, strategies in ((n_hat, "n_hat", MOVE_N_HAT), (attention, "attention factor", MOVE_ATTENTION)):
        if wanted and name not in strategies:
            raise InputError(f"strategy {name} does not search the {option}; expected one of {', '.join(strategies)}")


def _plan(name: str) -> Callable[[Problem], Plan]:
    where = STRATEGIES.get(name)
    if where is None:
        raise InputError(f"unknown strategy {name!r}; {choices(name, STRATEGIES)}")
    module, _, attribute = where.partition(":")
    plan: Callable[[Problem], Plan] = getattr(import_module(module), attribute)
    return plan
