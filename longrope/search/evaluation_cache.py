"""What has been measured: the cache that evaluates nothing twice, its journal, and the history of trials.

trials ──► jobs ──known?──► cache ─────────────┐
              └──unknown──► evaluator ──► journal (fsync) ──► cache ──► outcomes, history
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from longrope.journal import Journal
from longrope.reading import BOOLEAN, COUNT_OR_ZERO, OBJECT, POSITIVE, REAL, check, list_of, record
from longrope.search.evaluators import Evaluator
from longrope.search.objective import Objective
from longrope.search.trial import Candidate, Job, Measurement, Outcome, Trial

# A line of the journal, as `_to_record` writes it.
_RECORD = record(
    {
        "factors": list_of(POSITIVE),
        "n_hat": COUNT_OR_ZERO,
        "attention_factor": POSITIVE.or_null(),
        "window": COUNT_OR_ZERO,
        "nll": REAL,
        "tokens": COUNT_OR_ZERO,
        "with_gradient": BOOLEAN,
        "gradient": list_of(REAL).or_null(),
        "seconds": REAL,
    },
    {"family": OBJECT.or_null()},
)


@dataclass(frozen=True)
class HistoryPoint:
    """One trial as the convergence curve shows it.

    Args:
        label: where the candidate came from.
        candidate: the genome.
        loss: objective over the trial's windows, nats per token.
        windows: indices of the windows it was measured on.
        tokens: tokens forwarded up to and with this trial; a gradient counts three forwards.
        best: loss of the best full trial so far, which may rise where one is the first to keep a cap; None before the first.
        best_target: its mean NLL at the target: without the penalty for what it is above a cap.
        losses: mean NLL of each window.
        known: a seed, not searched.
        gradient: measured with its derivative.
    """

    label: str
    candidate: Candidate
    loss: float
    windows: tuple[int, ...]
    tokens: int
    best: float | None
    best_target: float | None
    losses: tuple[float, ...]
    known: bool
    gradient: bool = False


@dataclass
class EvaluationCache:
    """Evaluates trials through the cache.

    Args:
        objective: how NLLs become a loss.
        evaluator: who measures what is not known yet.
        journal: where measurements are kept; None keeps them in memory only.
        on_measured: called after each measurement with its tokens, and whether it came out of the journal.
        history: every trial, in order.
        tokens: tokens forwarded for the trials in the history.
        measured_tokens: tokens up to the last measurement, for whoever watches a batch.
        seconds: time spent measuring.
        lost_gradients: measurements whose derivative did not fit into memory.
    """

    objective: Objective
    evaluator: Evaluator
    journal: Journal | None = None
    on_measured: Callable[[int, bool], None] = lambda tokens, replayed: None
    history: list[HistoryPoint] = field(default_factory=list)
    tokens: int = 0
    measured_tokens: int = 0
    seconds: float = 0.0
    lost_gradients: int = 0
    _counted: set[Job] = field(default_factory=set)
    _known: dict[Job, Measurement] = field(default_factory=dict)
    _candidates: set[Candidate] = field(default_factory=set)
    _replayed: dict[Job, Measurement] = field(default_factory=dict)
    _best: Outcome | None = None
    _lowest: tuple[bool, float, float] = (True, math.inf, math.inf)

    def __post_init__(self) -> None:
        if self.journal is None:
            return
        for number, line in enumerate(self.journal.records, start=2):
            job, measurement = _from_record(check(line, _RECORD, f"{self.journal.path}, line {number}"))
            self._replayed[job] = measurement

    def evaluate(self, trials: Sequence[Trial]) -> list[Outcome]:
        """Outcomes of trials, in their order; only what was never measured is."""
        self._measure(job for trial in trials for job in trial.jobs)
        return [self._outcome(trial) for trial in trials]

    @property
    def best(self) -> Outcome | None:
        """The lowest loss over all ranking windows so far; where there is a cap, of those that keep it, if any does."""
        return self._best

    @property
    def lowest(self) -> float:
        """Its mean NLL at the target, up to the last measurement, for whoever watches a batch."""
        return self._lowest[-1]

    @property
    def evaluations(self) -> int:
        """Distinct candidates measured on at least one window."""
        return len(self._candidates)

    def _measure(self, jobs: Iterable[Job]) -> None:
        missing = [job for job in dict.fromkeys(jobs) if self._lookup(job) is None]
        for job in [job for job in missing if job in self._replayed]:
            self._learn(job, self._replayed[job], replayed=True)
        missing = [job for job in missing if job not in self._replayed]
        for job, measurement in self.evaluator.measure(missing) if missing else ():
            if self.journal:
                self.journal.append(_to_record(job, measurement))
            self._learn(job, measurement)

    def _learn(self, job: Job, measurement: Measurement, *, replayed: bool = False) -> None:
        self._known[job] = measurement
        self._candidates.add(job.candidate)
        self.measured_tokens += measurement.tokens
        self.seconds += measurement.seconds
        self._note_best(job.candidate)
        self.lost_gradients += job.gradient and measurement.gradient is None and math.isfinite(measurement.nll)
        self.on_measured(measurement.tokens, replayed)

    def _note_best(self, candidate: Candidate) -> None:
        """Keep the best value for whoever watches, without waiting for the rest of a batch."""
        windows = self.objective.ranking_windows
        measured = [self._lookup(Job(candidate, window)) for window in windows]
        losses = [m.nll for m in measured if m is not None]
        if len(losses) == len(windows):
            rank = self.objective.rank(windows, losses)
            self._lowest = min(self._lowest, (*rank, self.objective.mean("target", windows, losses)))

    def _lookup(self, job: Job) -> Measurement | None:
        return self._known.get(job) or (None if job.gradient else self._known.get(Job(job.candidate, job.window, True)))

    def _count(self, jobs: Sequence[Job], measured: Sequence[Measurement]) -> None:
        """Add the tokens of jobs not counted before, trial by trial, whatever order workers finished in."""
        for job, measurement in zip(jobs, measured, strict=True):
            plain = Job(job.candidate, job.window)
            if plain not in self._counted or (job.gradient and job not in self._counted):
                self.tokens += measurement.tokens
            self._counted |= {job, plain}

    def _outcome(self, trial: Trial) -> Outcome:
        measured = [measurement for job in trial.jobs if (measurement := self._lookup(job)) is not None]
        self._count(trial.jobs, measured)
        outcome = self.objective.outcome(trial, measured)
        if set(self.objective.ranking_windows) <= set(trial.windows) and (
            self._best is None or outcome.rank < self._best.rank
        ):
            self._best = outcome
        best = self._best
        best_target = self.objective.mean("target", best.trial.windows, best.losses) if best else None
        self.history.append(
            HistoryPoint(
                trial.label,
                trial.candidate,
                outcome.loss,
                trial.windows,
                self.tokens,
                best.loss if best else None,
                best_target,
                outcome.losses,
                trial.known,
                trial.gradient,
            )
        )
        return outcome


def _to_record(job: Job, measurement: Measurement) -> dict[str, Any]:
    return {
        **job.candidate.to_json(),
        "window": job.window,
        "nll": measurement.nll,
        "tokens": measurement.tokens,
        "with_gradient": job.gradient,
        "gradient": list(measurement.gradient) if measurement.gradient else None,
        "seconds": round(measurement.seconds, 4),
    }


def _from_record(record: Mapping[str, Any]) -> tuple[Job, Measurement]:
    gradient = tuple(record["gradient"]) if record["gradient"] else None
    job = Job(Candidate.from_json(dict(record)), record["window"], record["with_gradient"])
    return job, Measurement(record["nll"], record["tokens"], gradient, record["seconds"])
