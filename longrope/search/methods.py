"""The table that a search must justify itself by: held-out perplexity of no scaling, PI, NTK, YaRN and what was found."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from longrope import rope
from longrope.base_rope import BaseRope
from longrope.checkpoint import Checkpoint, unscaled_factors
from longrope.errors import InputError, choices
from longrope.machine import Machine
from longrope.metrics import perplexity
from longrope.progress import Progress, Silent
from longrope.search.measure import WindowModel
from longrope.search.objective import Window
from longrope.search.space import YARN_BETAS
from longrope.search.trial import Candidate
from longrope.text import TokenIds


@dataclass(frozen=True)
class MethodScore:
    """One row of the table.

    Args:
        name: `none`, `PI`, `NTK`, `YaRN 32/1`, or the name a searched set was given.
        attention_factor: what cos and sin were multiplied by.
        losses: mean NLL of each window, nats per token.
        weights: tokens each window predicts.
    """

    name: str
    attention_factor: float
    losses: tuple[float, ...]
    weights: tuple[int, ...]

    @property
    def loss(self) -> float:
        """Mean NLL weighted by tokens."""
        return float(np.average(self.losses, weights=self.weights))

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss)


def known_candidates(checkpoint: Checkpoint, target: int, base: BaseRope | None = None) -> dict[str, Candidate]:
    """The known methods as their authors define them: only YaRN has a temperature (0.1 ln s + 1).

    Args:
        checkpoint: the model.
        target: L' in tokens.
        base: the RoPE that they are put on; None for the one that an extension of the model starts from.
    """
    base = base or checkpoint.base_for(target)
    scale, dim = target / base.window, checkpoint.rotary_dim

    def on_base(factors: rope.Float64, temperature: float = 1.0) -> Candidate:
        return Candidate(
            tuple((factors * base.long_factor).tolist()), attention_factor=temperature * base.attention_factor
        )

    yarn = rope.yarn_factors(
        dim,
        scale,
        rope_theta=checkpoint.rope_theta,
        original=base.window,
        beta_fast=YARN_BETAS[0],
        beta_slow=YARN_BETAS[1],
    )
    return {
        "none": on_base(rope.unscaled_factors(dim)),
        "PI": on_base(rope.pi_factors(dim, scale)),
        "NTK": on_base(rope.ntk_factors(dim, scale)),
        "YaRN 32/1": on_base(yarn, rope.yarn_attention_factor(scale)),
    }


def evaluate_methods(
    checkpoint: Checkpoint,
    windows: Sequence[TokenIds],
    target_length: int,
    searched: Mapping[str, Candidate] | None = None,
    *,
    methods: Collection[str] | None = None,
    machine: Machine | None = None,
    progress: Progress | None = None,
) -> list[MethodScore]:
    """Perplexity of the known methods and of searched sets on held-out windows.

    Known methods appear as their authors define them, and, where that differs, again with the attention factor that
    every longrope runtime computes (`NTK, longrope attention`): both are what a search has to beat.

    Args:
        checkpoint: the model before extension.
        windows: held-out token ids, [T] each.
        target_length: L' that the known methods are computed for.
        searched: name → a set to measure, with an attention factor of its own (`Candidate.of(factors, "long")`).
        methods: names of the known methods to measure; None for all.
        machine: device, dtype and threads.
        progress: where the bar goes.
    """
    machine, progress = machine or Machine(), progress or Silent()
    rows = {**known_rows(checkpoint, target_length, methods), **(searched or {})}
    return score_candidates(WindowModel(checkpoint, machine), rows, windows, progress)


def score_candidates(
    model: WindowModel, rows: Mapping[str, Candidate], windows: Sequence[TokenIds], progress: Progress
) -> list[MethodScore]:
    """Perplexity of candidates on windows, all on one loaded model; a score a row."""
    counted = [Window(np.asarray(ids)) for ids in windows]
    scores = []
    with progress.task("held-out perplexity of each method", len(rows) * len(counted)) as task:
        for name, candidate in rows.items():
            losses = []
            for window in counted:
                losses.append(model.nll(candidate, window))
                task.advance(1, name)
            weights = tuple(window.counted for window in counted)
            scores.append(MethodScore(name, candidate.attention_factor or 1.0, tuple(losses), weights))
    return scores


def known_rows(checkpoint: Checkpoint, target: int, methods: Collection[str] | None = None) -> dict[str, Candidate]:
    """The known methods, and again with longrope's attention factor; those that are asked for, None for all.

    Raises:
        InputError: a name that is none of them.
    """
    known = known_candidates(checkpoint, target)
    formula = unscaled_factors(checkpoint, target).formula_attention_factor
    rows = dict(known)
    for name in ("PI", "NTK", "YaRN 32/1"):
        rows[f"{name}, longrope attention"] = Candidate(known[name].factors, attention_factor=formula)
    for name in methods or ():
        if name not in rows:
            raise InputError(f"unknown method {name!r}; {choices(name, known)}", option="methods")
    return {name: row for name, row in rows.items() if methods is None or name in methods}
