"""What a search will take, before it starts: memory for each kind of measurement, tokens, evaluations."""

from __future__ import annotations

from dataclasses import dataclass

from longrope.checkpoint import Checkpoint
from longrope.search.memory import MemoryPlan, plan_memory, require_memory
from longrope.search.options import SearchOptions
from longrope.search.strategies import own_budget

# Strategies that take gradients, which need more memory than forwards.
WITH_GRADIENTS = ("auto", "gradient")


@dataclass(frozen=True)
class SearchPlan:
    """The cost of a search.

    Args:
        forward: memory of one measurement, and in how many passes.
        gradient: the same with a derivative; None for strategies without.
        evaluations: budget, in full evaluations.
        tokens: budget, in tokens forwarded.
    """

    forward: MemoryPlan
    gradient: MemoryPlan | None
    evaluations: int
    tokens: int

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
    )


def require_plan(plan: SearchPlan) -> None:
    """Raise MissingRequirementError when even the smallest passes would not fit."""
    require_memory(plan.forward)
    if plan.gradient:
        require_memory(plan.gradient)
