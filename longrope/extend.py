"""The paper's recipe as one resumable plan: search the long set, recover a short one, measure both on held-out text.

corpus ──search──► long set ──recover_short──► both sets ──evaluate_methods on held-out text──► Extension
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrope.checkpoint import Checkpoint
from longrope.factors import RescaleFactors
from longrope.progress import Progress
from longrope.search import (
    MethodScore,
    SearchOptions,
    SearchResult,
    evaluate_methods,
    recover_short,
    search,
)
from longrope.search.objective import perplexity
from longrope.text import Corpus

SEARCHED = "searched"
SEARCHED_SHORT = "searched, short set"


@dataclass(frozen=True)
class ExtendOptions:
    """What `extend` can be told beyond the model and the texts.

    Args:
        target_length: L' in tokens.
        search: strategy, budget, n_hat, attention factor, seed, device.
        short_evals: budget of the short set's search.
        short_windows: windows of L tokens that a short set is measured on.
        test_windows: held-out windows of each length in the table of methods.
        methods: known methods in that table; None for all.
    """

    target_length: int
    search: SearchOptions = dataclasses.field(default_factory=SearchOptions)
    short_evals: int = 64
    short_windows: int = 40
    test_windows: int = 8
    methods: tuple[str, ...] | None = None

    @property
    def planned_n_hat(self) -> int:
        """Start tokens that formats must be able to hold: any number, when it is searched."""
        return 1 if self.search.n_hat == "search" else int(self.search.n_hat)


@dataclass(frozen=True)
class MethodTable:
    """Held-out perplexity by method and window.

    Args:
        scores: window length → scores, the known methods first.
    """

    scores: Mapping[int, tuple[MethodScore, ...]]

    @property
    def lengths(self) -> list[int]:
        return sorted(self.scores)

    def perplexity(self, name: str, length: int) -> float:
        """NaN where a method was not measured at a length."""
        return next((score.perplexity for score in self.scores[length] if score.name == name), math.nan)

    @property
    def names(self) -> list[str]:
        """All methods, in the order of the longest window."""
        found = dict.fromkeys(score.name for length in reversed(self.lengths) for score in self.scores[length])
        return list(found)

    def to_json(self) -> dict[str, Any]:
        rows = [
            {"name": n, "perplexities": [self.perplexity(n, length) for length in self.lengths]} for n in self.names
        ]
        return {"lengths": self.lengths, "rows": rows}


@dataclass(frozen=True)
class Extension:
    """What the recipe gave: factors (dual when a short set was recovered), the search, the table of methods."""

    factors: RescaleFactors
    search: SearchResult
    methods: MethodTable

    def to_json(self) -> dict[str, Any]:
        history = [
            {"tokens": point.tokens, "perplexity": perplexity(point.best)}
            for point in self.search.history
            if point.best is not None
        ]
        return {
            "search": {
                "perplexity": self.search.perplexity,
                "origin": self.search.label,
                "tokens": self.search.tokens,
                "evaluations": self.search.evaluations,
                "seconds": self.search.seconds,
                "seeds": {seed.name: seed.perplexity for seed in self.search.seeds},
                "history": history,
                "short_cap": self.search.short_cap and perplexity(self.search.short_cap),
                "front": [
                    {
                        "short": perplexity(point.short_loss),
                        "target": perplexity(point.target_loss),
                        "chosen": point.chosen,
                    }
                    for point in self.search.front
                ],
            },
            "methods": self.methods.to_json(),
        }


def extend(
    checkpoint: Checkpoint,
    corpus: Corpus,
    held_out: Corpus,
    options: ExtendOptions,
    *,
    journal_dir: Path,
    resume: bool,
    dual: bool,
    progress: Progress,
) -> Extension:
    """Run the recipe on one model.

    Args:
        checkpoint: the model before extension.
        corpus: texts to search on.
        held_out: texts that the search never sees.
        journal_dir: holds a journal for each search; `resume` goes on with them.
        dual: recover a short set, too.
    """
    found = search(
        checkpoint,
        corpus,
        options.target_length,
        options=options.search,
        journal_dir=journal_dir / "long",
        resume=resume and (journal_dir / "long").exists(),
        progress=progress,
    )
    factors = found.factors
    if dual:
        short_options = dataclasses.replace(
            options.search, max_evals=options.short_evals, n_hat=factors.n_hat, start_from=(), strategy="evolution"
        )
        factors = recover_short(
            checkpoint,
            corpus,
            factors,
            num_windows=options.short_windows,
            options=short_options,
            journal_dir=journal_dir / "short",
            resume=resume and (journal_dir / "short").exists(),
            progress=progress,
        ).factors
    return Extension(factors, found, measure_methods(checkpoint, held_out, factors, options, progress))


def measure_methods(
    checkpoint: Checkpoint, held_out: Corpus, factors: RescaleFactors, options: ExtendOptions, progress: Progress
) -> MethodTable:
    """Known methods and the found factors on held-out windows of the original and of the target length."""
    searched = {SEARCHED: factors}
    swapped = dataclasses.replace(factors, long_factor=factors.short_factor)
    at_original = searched if factors.factor_sets == "single" else {**searched, SEARCHED_SHORT: swapped}
    scores = {
        length: tuple(
            evaluate_methods(
                checkpoint,
                held_out.windows(length, options.test_windows),
                options.target_length,
                named,
                methods=options.methods,
                machine=options.search.machine,
                progress=progress,
            )
        )
        for length, named in ((checkpoint.window, at_original), (options.target_length, searched))
    }
    return MethodTable(scores)
