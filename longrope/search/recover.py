"""A short set for a model that has a long one: what windows of the original length are scored best with.

The attention factor of the long set applies to both, in every runtime; so plain ones are not always best, and the short
set is searched like the long one, from ones, powers of the long set and known methods at small scales. The long set
itself is among the candidates, so a dual set is never worse than the single one on these windows.

    windows of L ──search──► short set ─┐
    original RoPE (ones) ───────────────┼─ held-out windows of L ──► who wins
    factors of earlier stages ──────────┤
    long set (`single`) ────────────────┘

Source: LongRoPE (arXiv 2402.13753), section 4.3, "recovering performance within the original short context window".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longrope import rope
from longrope.checkpoint import Checkpoint, unscaled_factors
from longrope.errors import InputError
from longrope.estimates.search import SearchEstimate, search_estimate
from longrope.factors import BoundFactors, RescaleFactors
from longrope.metrics import perplexity
from longrope.progress import Progress, Silent
from longrope.search.methods import MethodScore, evaluate_methods
from longrope.search.objective import Objective
from longrope.search.options import SearchOptions
from longrope.search.run import SearchResult, solve
from longrope.search.space import SearchSpace, StartingPoint
from longrope.search.strategies.problem import Problem
from longrope.search.trial import Candidate
from longrope.search.windows import whole_windows
from longrope.text import Corpus, TokenIds

# Short windows are cheap: as many as one long evaluation of 8× costs.
SHORT_WINDOWS = 40
HELD_OUT_WINDOWS = 64
POWERS = (0.1, 0.2, 0.35, 0.5, 0.75)
SMALL_SCALES = (1.25, 1.5, 2.0)
DEFAULT_EVALS = 64
SEARCHED, ORIGINAL, SINGLE = "searched", "original RoPE", "long set (single)"


@dataclass(frozen=True)
class Recovery:
    """What `recover_short` found.

    Args:
        factors: both sets.
        single_loss: mean NLL of the windows under the long set, nats per token.
        loss: the same under the short set; never above `single_loss`.
        search: everything measured; its candidate is the short set.
        comparison: the searched set, the original RoPE, earlier stages' factors and the long set on held-out windows,
            all with this model's attention factor; empty without held-out text.
    """

    factors: BoundFactors
    single_loss: float
    loss: float
    search: SearchResult
    comparison: tuple[MethodScore, ...] = ()

    @property
    def winner(self) -> MethodScore | None:
        """The best of the comparison; of equals the first."""
        return min(self.comparison, key=lambda score: score.loss, default=None)

    def to_json(self) -> dict[str, Any]:
        """Both results, `dual` (the short set) and `single` (the long one), and the comparison."""
        winner = self.winner
        return {
            "dual": {"perplexity": perplexity(self.loss), "short_factor": list(self.factors.short_factor)},
            "single": {"perplexity": perplexity(self.single_loss), "long_factor": list(self.factors.long_factor)},
            "comparison": [{"name": score.name, "perplexity": score.perplexity} for score in self.comparison],
            "winner": winner.name if winner is not None else None,
        }


def recover_short(
    checkpoint: Checkpoint,
    corpus: Corpus,
    factors: RescaleFactors,
    *,
    window: int | None = None,
    num_windows: int = SHORT_WINDOWS,
    options: SearchOptions | None = None,
    journal_dir: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    stages: Mapping[str, RescaleFactors] | None = None,
    held_out: Corpus | None = None,
) -> Recovery:
    """Search a short set for windows of the original length and put it beside the long one.

    Args:
        checkpoint: the model; if it has been fine-tuned for the long set, the fine-tuned one.
        corpus: documents of at least the window's length.
        factors: the long set, its attention factor and n_hat are kept.
        window: tokens; None for the original window L.
        num_windows: windows measured per candidate.
        options: budget, seed and machine; strategy, attention factor, n_hat and starting points are set here.
        journal_dir, resume, overwrite, progress: as in `longrope.search.search`.
        stages: name → factors that the model was fine-tuned with; where the search starts, too, and compared.
        held_out: texts to compare on, which the search never sees; None for no comparison.

    Raises:
        InputError: the factors belong to another model or do not say their target, no document is long enough, or no
            runtime would use a short set at the window.
    """
    bound = checkpoint.bind(factors)
    if window is not None and window > bound.original:
        raise InputError(
            f"window {window}: expected at most the original window of {bound.original} tokens; runtimes use the long set "
            "beyond"
        )
    if held_out is not None:
        _held_out_windows(held_out, window or bound.original)  # refused before the search, not after it
    long_set = Candidate.of(bound, "long")
    trained = {name: Candidate.of(checkpoint.bind(earlier), "long") for name, earlier in (stages or {}).items()}
    options = _short_options(options).on(checkpoint)
    space = _space(checkpoint, bound)
    objective = Objective(tuple(whole_windows(corpus, window or bound.original, num_windows)))
    starting_points = tuple(_starting_points(space, long_set, trained))
    problem = Problem(space, objective, starting_points, options.max_evals, options.seed)
    about = {"long_set": long_set.to_json(), "stages": [earlier.to_json() for earlier in trained.values()]}
    result = solve(
        checkpoint,
        problem,
        options,
        journal_dir=journal_dir,
        resume=resume,
        overwrite=overwrite,
        progress=progress or Silent(),
        about=about,
    )
    single = next(start.loss for start in result.starting_points if start.name == "long set")
    both = replace(
        bound,
        short_factor=result.candidate.factors,
        provenance={**bound.provenance, "short_set": dict(result.factors.provenance), "short_set_origin": result.label},
    )
    comparison = (
        () if held_out is None else compare_short(checkpoint, both, trained, held_out, window, options, progress)
    )
    return Recovery(both, single, result.loss, result, tuple(comparison))


def recovery_estimate(
    checkpoint: Checkpoint, num_windows: int = SHORT_WINDOWS, options: SearchOptions | None = None
) -> SearchEstimate:
    """What `recover_short` takes at the original window."""
    short = replace(_short_options(options), num_documents=num_windows, window_shares=())
    return search_estimate(checkpoint, checkpoint.window, short)


def compare_short(
    checkpoint: Checkpoint,
    factors: BoundFactors,
    stages: Mapping[str, Candidate],
    held_out: Corpus,
    window: int | None = None,
    options: SearchOptions | None = None,
    progress: Progress | None = None,
) -> Sequence[MethodScore]:
    """What each set gives on held-out windows, with the n_hat and attention factor of these factors.

    Args:
        factors: with both sets.
        stages: name → long set of earlier factors.
        checkpoint, held_out, window, options, progress: as `recover_short`.
    """
    windows = _held_out_windows(held_out, window or factors.original)
    short, long = Candidate.of(factors, "short"), Candidate.of(factors, "long")
    named = {SEARCHED: short, ORIGINAL: replace(short, factors=factors.original_set)}
    named |= {name: replace(short, factors=earlier.factors) for name, earlier in stages.items()}
    named[SINGLE] = long
    machine = options.machine if options else None
    return evaluate_methods(checkpoint, windows, factors.target, named, methods=(), machine=machine, progress=progress)


def _held_out_windows(held_out: Corpus, window: int) -> list[TokenIds]:
    return held_out.windows(window, HELD_OUT_WINDOWS)


def _short_options(options: SearchOptions | None) -> SearchOptions:
    options = options or SearchOptions()
    return replace(
        options,
        strategy="evolution",  # short windows are many and cheap: nothing to save by racing
        from_factors=None,
        short_budget=None,
        max_evals=options.max_evals or DEFAULT_EVALS,
    )


def _space(checkpoint: Checkpoint, bound: BoundFactors) -> SearchSpace:
    """Sets for the original window, with the long set's n_hat and attention factor."""
    base = bound.original_set
    return SearchSpace(
        unscaled=unscaled_factors(checkpoint, checkpoint.window),
        upper=max(1.0, *(factor / own for factor, own in zip(bound.long_factor, base, strict=True))),
        base=None if set(base) == {1.0} else base,
        n_hats=(bound.n_hat,),
        attention_factor=bound.effective_attention_factor,
    )


def _starting_points(
    space: SearchSpace, long_set: Candidate, stages: Mapping[str, Candidate]
) -> Iterator[StartingPoint]:
    def start(name: str, multipliers: rope.Float64) -> StartingPoint:
        return StartingPoint(name, space.candidate(multipliers))

    yield StartingPoint("long set", long_set)
    yield start("none", rope.unscaled_factors(space.rotary_dim))
    for name, earlier in stages.items():
        yield StartingPoint(name, replace(long_set, factors=earlier.factors))
    for power in POWERS:
        yield start(f"long set ** {power:g}", space.multipliers(long_set) ** power)
    for scale in SMALL_SCALES:
        yield start(f"NTK ×{scale:g}", rope.ntk_factors(space.rotary_dim, scale))
        yarn = rope.yarn_factors(space.rotary_dim, scale, rope_theta=space.rope_theta, original=space.original)
        yield start(f"YaRN ×{scale:g}", yarn)
