"""What a search will take, before it starts: memory for each kind of measurement, tokens, evaluations."""

from __future__ import annotations

from dataclasses import dataclass

from longrope.checkpoint import Checkpoint
from longrope.search.memory import MemoryPlan, plan_memory, require_memory
from longrope.search.options import SearchOptions
from longrope.search.strategies import own_budget

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
        return [*found, f"gradient: {self.gradient}"] if self.gradient else found


def plan_search(checkpoint: Checkpoint, target_length: int, options: SearchOptions | None = None) -> SearchPlan:
    """Estimate what `search` with these options takes; nothing is loaded.

    Args:
        checkpoint: gives the sizes.
        target_length: L' in tokens.
        options: strategy, budget, objective and machine.
    """
    options = options or SearchOptions()
    evaluations = options.max_evals or own_budget(options.strategy, target_length)
    per_evaluation = target_length * options.num_documents
    per_evaluation += options.num_documents * sum(length for length, _ in options.window_shares)
    if options.short_budget is not None:
        per_evaluation += options.num_short_windows * checkpoint.window

    def memory(gradient: bool) -> MemoryPlan:
        return plan_memory(
            checkpoint, target_length, dtype=options.dtype, device=options.device, gradient=gradient
        ).shared_by(options.workers if options.executor == "processes" else 1)

    return SearchPlan(
        forward=memory(False),
        gradient=memory(True) if options.strategy in WITH_GRADIENTS else None,
        evaluations=evaluations,
        tokens=evaluations * per_evaluation,
        needs_gradient=options.strategy in NEED_GRADIENTS,
    )


def require_plan(plan: SearchPlan) -> None:
    """Raise MissingRequirementError when even the smallest passes would not fit."""
    require_memory(plan.forward)
    if plan.gradient and plan.needs_gradient:
        require_memory(plan.gradient)
