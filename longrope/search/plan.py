"""What a search will take, before it starts: memory for each kind of measurement, tokens, evaluations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from longrope.checkpoint import Checkpoint
from longrope.modeling import require_device
from longrope.search.memory import MemoryPlan, free_for_each, plan_memory, require_memory, spread
from longrope.search.options import SearchOptions
from longrope.search.strategies import own_budget

# FLOP/s of the slowest machine that is waited for: a tenth of one old core.
SLOW = 1e9
# Strategies that take gradients, which need more memory than forwards; `auto` goes without where they do not fit.
WITH_GRADIENTS, NEED_GRADIENTS = ("auto", "gradient"), ("gradient",)


@dataclass(frozen=True)
class SearchPlan:
    """The cost of a search.

    Args:
        forward: memory of one measurement, and in how many passes.
        gradient: the same with a derivative; None for strategies without.
        evaluations: budget, in full evaluations.
        tokens: budget, in tokens forwarded.
        needs_gradient: whether the strategy cannot do without.
    """

    forward: MemoryPlan
    gradient: MemoryPlan | None
    evaluations: int
    tokens: int
    needs_gradient: bool = False

    @property
    def skips_gradient(self) -> bool:
        """Whether gradients do not fit and are left out."""
        return self.gradient is not None and not self.gradient.fits and not self.needs_gradient

    def lines(self) -> list[str]:
        """What a person reads."""
        found = [f"budget: {self.evaluations} evaluations, {self.tokens / 1e6:.2f}M tokens", f"forward: {self.forward}"]
        if self.gradient:
            found.append(f"gradient: {self.gradient}")
        return [*found, *self.caveats()]

    def caveats(self) -> list[str]:
        """What of it does not fit into memory, for a person."""
        if not self.forward.fits or (self.gradient and self.needs_gradient and not self.gradient.fits):
            return ["does not fit: the search would be refused"]
        return ["gradients do not fit: the search would go without"] if self.skips_gradient else []


def available_memory(options: SearchOptions) -> int | None:
    """Bytes that each process of a search may take; None where that is not known here, as on a Ray cluster's machines.

    Raises:
        InputError, MissingRequirementError: the device is not there.
    """
    if options.executor == "ray":
        return None
    require_device(options.device)
    return free_for_each(spread(options.device, options.workers))


def plan_search(
    checkpoint: Checkpoint,
    target_length: int,
    options: SearchOptions | None = None,
    *,
    available: int | None = None,
) -> SearchPlan:
    """Estimate what `search` with these options takes; nothing is loaded.

    Args:
        checkpoint: gives the sizes.
        target_length: L' in tokens.
        options: strategy, budget, objective and machine.
        available: bytes for each process; None for `available_memory`.
    """
    options = (options or SearchOptions()).on(checkpoint)
    evaluations = options.max_evals or own_budget(options.strategy, target_length)
    per_evaluation = target_length * options.num_documents
    per_evaluation += options.num_documents * sum(length for length, _ in options.window_shares)
    if options.short_budget is not None:
        per_evaluation += options.num_short_windows * checkpoint.window

    if available is None:
        available = available_memory(options)
    memory = partial(
        plan_memory,
        checkpoint,
        target_length,
        dtype=options.dtype,
        device=options.device,
        available=math.inf if available is None else available,
    )
    return SearchPlan(
        forward=memory(),
        gradient=memory(gradient=True) if options.strategy in WITH_GRADIENTS else None,
        evaluations=evaluations,
        tokens=evaluations * per_evaluation,
        needs_gradient=options.strategy in NEED_GRADIENTS,
    )


def slow_seconds(checkpoint: Checkpoint, tokens: int) -> float:
    """What a forward of a window takes on a very slow machine: matrix products, causal attention."""
    config = checkpoint.config
    width = int(config["num_attention_heads"]) * checkpoint.head_dim * int(config["num_hidden_layers"])
    return 2.0 * (tokens * checkpoint.num_parameters + tokens**2 * width) / SLOW


def require_plan(plan: SearchPlan) -> None:
    """Raise MissingRequirementError when even the smallest passes would not fit."""
    require_memory(plan.forward)
    if plan.gradient and plan.needs_gradient:
        require_memory(plan.gradient)
