"""Measure the search: what the default strategy costs against the paper's, and what every strategy finds.

    python -m benchmarks.bench_search --part baseline    the paper's full budget; hours, resumable; benchmarks/results/
    python -m benchmarks.bench_search                    everything else
    python -m benchmarks.bench_search --quick            every line of it with next to no budget, results beside the journals

Each figure is printed beside what was asked for and kept in benchmarks/results/search.json. All runs are journalled, so that
a bench that was stopped goes on where it was. Times are CPU seconds of forwards and gradients measured in turn.
"""

from __future__ import annotations

import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from benchmarks.figures import RESULTS, ROOT, Figures, say
from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.estimates.search import search_memory
from longrope.factors import BoundFactors, RescaleFactors
from longrope.files import write_atomically
from longrope.machine import Machine
from longrope.metrics import perplexity
from longrope.progress import Silent
from longrope.provenance import provenance
from longrope.search import Candidate, SearchOptions, SearchResult, WindowModel, evaluate_methods, search
from longrope.search.evaluators import Recipe, make_evaluator
from longrope.search.objective import Objective, Window
from longrope.search.strategies import STRATEGIES
from longrope.search.trial import GRADIENT_FORWARDS, Job
from longrope.text import Corpus, load_corpus

# The rise at the original window that `two-sided` allows.
SHORT_BUDGET = 0.01
Losses = NDArray[np.float64]
DEFAULT_MODEL = ROOT / "longrope_export" / "default_model"


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        paper_evals: the paper's budget.
        held_out_tokens, min_held_out: a candidate is measured on so many held-out tokens, never on fewer windows.
        fine: times as many where tenths of a percent decide, in `baseline` and `cost`.
        baseline_seeds: runs of the paper's search at each setting; where the middle one ends is what `cost` asks for.
        long: tokens of the one long evaluation.
        cost_seeds: of the default strategy in `cost`.
        scales: of `scales`.
        candidates: that `workers` measures, on four windows each.
        parallel_seeds: of `parallel`.
        family_scales, family_tokens: of `families`, and of each of its searches.
    """

    paper_evals: int = 1344
    held_out_tokens: int = 24 * 2048
    min_held_out: int = 8
    fine: int = 4
    baseline_seeds: int = 3
    long: int = 131_072
    cost_seeds: int = 5
    scales: tuple[int, ...] = (2, 4, 8, 16, 32)
    candidates: int = 8
    parallel_seeds: int = 8
    family_scales: tuple[int, ...] = (8, 16)
    family_tokens: int = 48 * 5 * 2048

    @property
    def equal_tokens(self) -> int:
        """Tokens that every search of `scales` and `two-sided` may forward: 1/50 of the paper's at 8x."""
        return self.paper_evals * 5 * 2048 // 50


QUICK = Size(
    paper_evals=60,
    held_out_tokens=2 * 2048,
    min_held_out=2,
    fine=2,
    baseline_seeds=2,
    long=4096,
    cost_seeds=2,
    scales=(2, 4),
    candidates=1,
    parallel_seeds=1,
    family_scales=(2,),
    family_tokens=6 * 5 * 512,
)


@dataclass(frozen=True)
class Setting:
    """One search problem of the bench: how far, and whether the attention factor is searched."""

    scale: int
    attention: str

    @property
    def name(self) -> str:
        return f"{self.scale}x-{self.attention}"


COST_SETTINGS = tuple(Setting(scale, attention) for scale in (8, 16) for attention in ("formula", "search"))


@dataclass
class Bench:
    """The model, its texts, where results and journals go, and the rows measured so far.

    Args:
        model: a checkpoint.
        out: journals and raw numbers.
        threads: of torch.
        settings: of baseline and cost.
        seeds: of equal and scales.
        paper_seeds: of baseline; empty for all.
        strategies: of scales.
        size: how much is measured.
    """

    model: Path
    out: Path
    threads: int = 1
    settings: tuple[Setting, ...] = COST_SETTINGS
    seeds: int = 3
    paper_seeds: tuple[int, ...] = ()
    strategies: tuple[str, ...] = ()
    size: Size = Size()

    def __post_init__(self) -> None:
        torch.set_num_threads(self.threads)
        facts = {"model": self.checkpoint.fingerprint, "threads": self.threads, **asdict(self.size)}
        self.results = self.out if self.size == QUICK else RESULTS
        self.figures = Figures("search", facts, self.results)
        self.add = self.figures.add
        self._measured: dict[tuple[Candidate, int, int], Losses] = {}

    @property
    def baselines(self) -> Path:
        return self.results / "search_baseline.json"

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return replace(open_checkpoint(self.model), name=self.model.parent.name)  # results name no folder of a machine

    @cached_property
    def texts(self) -> Corpus:
        return load_corpus([DEFAULT_MODEL / "texts" / "search"], self.checkpoint.encode)

    @cached_property
    def held_out(self) -> Corpus:
        return load_corpus([DEFAULT_MODEL / "texts" / "test"], self.checkpoint.encode)

    @cached_property
    def made_of(self) -> dict[str, str]:
        """What a baseline must be of to be this bench's."""
        return {
            "model_fingerprint": self.checkpoint.fingerprint,
            "texts_fingerprint": self.texts.fingerprint,
            "held_out_fingerprint": self.held_out.fingerprint,
        }

    @cached_property
    def scorer(self) -> WindowModel:
        return WindowModel(self.checkpoint, Machine(threads=self.threads))

    def target(self, scale: int) -> int:
        return scale * self.checkpoint.window

    def run(self, setting: Setting, **changes: Any) -> SearchResult:
        """A journalled search; a stopped one goes on, a finished one is only replayed."""
        options = SearchOptions(attention_factor=setting.attention, threads=self.threads, **changes)  # type: ignore[arg-type]
        parts = [
            setting.name,
            options.family,
            options.strategy,
            str(options.max_evals),
            str(options.seed),
            str(options.short_budget),
        ]
        name = "-".join([self.checkpoint.fingerprint[:8], *parts])
        say(f"    search {' '.join(parts)}")
        return search(
            self.checkpoint,
            self.texts,
            self.target(setting.scale),
            options=options,
            journal_dir=self.out / "journals" / name,
            resume=True,
        )

    def held_out_windows(self, length: int, times: int = 1) -> list[Window]:
        count = max(self.size.min_held_out, times * self.size.held_out_tokens // length)
        return [Window(ids) for ids in self.held_out.windows(length, count)]

    def losses(self, candidate: Candidate, length: int, times: int = 1) -> Losses:
        """Mean NLL of each held-out window; measured once, for seeds begin with the same starts."""
        key = (candidate, length, times)
        if key not in self._measured:
            windows = self.held_out_windows(length, times)
            self._measured[key] = np.array([self.scorer.nll(candidate, window) for window in windows])
        return self._measured[key]

    def held_out_losses(self, factors: BoundFactors, times: int = 1) -> Losses:
        return self.losses(Candidate.of(factors, "long"), factors.target, times)

    def keep(self, part: str, data: Any) -> None:
        """Raw numbers behind a section's rows, beside the journals."""
        write_atomically(self.out / f"{part}.json", json.dumps(data, indent=2) + "\n")


# -- the paper's full budget


def baseline(bench: Bench) -> None:
    """The paper's evolution with its full budget, at every setting, a few times; several processes may share them.

    What is kept already, of this model and these texts, is only measured on held-out windows again.
    """
    for setting in bench.settings:
        for seed in bench.paper_seeds or range(bench.size.baseline_seeds):
            run = paper_runs(bench, setting).get(str(seed)) or paper_run(bench, setting, seed)
            losses = bench.held_out_losses(
                bench.checkpoint.bind(RescaleFactors.from_json(run["factors"])), bench.size.fine
            )
            run |= {"held_out_perplexity": perplexity(losses.mean()), "held_out_losses": losses.tolist()}
            runs = {**paper_runs(bench, setting), str(seed): run}
            found = {**read(bench.baselines), setting.name: dict(sorted(runs.items()))}
            write_atomically(bench.baselines, json.dumps(found, indent=2) + "\n")
            end = run["held_out_perplexity"]
            say(f"baseline {setting.name} {seed}: {run['tokens'] / 1e6:.1f}M tokens, held out {end:.3f}")


def paper_runs(bench: Bench, setting: Setting) -> dict[str, Any]:
    """What `baseline` kept at this setting, by seed, of this model and these texts."""
    made_of = bench.made_of
    runs: dict[str, Any] = read(bench.baselines).get(setting.name, {})
    return {seed: run for seed, run in runs.items() if made_of.items() <= run["provenance"].items()}


def paper_run(bench: Bench, setting: Setting, seed: int) -> dict[str, Any]:
    """One run of the paper's search."""
    result = bench.run(setting, strategy="evolution", max_evals=bench.size.paper_evals, seed=seed)
    return {
        "evaluations": result.evaluations,
        "tokens": result.tokens,
        "measuring_seconds": result.measuring_seconds,
        "search_perplexity": result.perplexity,
        "factors": result.factors.to_json(),
        "provenance": {**bench.made_of, **provenance(threads=bench.threads)},
    }


# -- cost


def cost(bench: Bench) -> None:
    """Tokens until the default strategy is as good, on held-out documents, as the paper's middle run ends, and its best."""
    found = {}
    for setting in bench.settings:
        windows = len(bench.held_out_windows(bench.target(setting.scale), bench.size.fine))
        paper = [run for run in paper_runs(bench, setting).values() if len(run["held_out_losses"]) == windows]
        if not paper:
            say(f"    {setting.name}: no baseline of this model on {windows} windows; make it with --part baseline")
            continue
        ends = sorted(run["held_out_perplexity"] for run in paper)
        middle = statistics.median(ends)
        speed = cpu_seconds_per_token(bench, bench.target(setting.scale))
        runs = [curve(bench, setting, seed, until=ends[0]) for seed in range(bench.size.cost_seeds)]
        found[setting.name] = {"seconds_per_token": speed, "paper": ends, "runs": runs}
        bench.keep("cost", {**read(bench.out / "cost.json"), **found})
        section, every = f"cost {setting.name}", ", ".join(f"{end:.3f}" for end in ends)
        bench.add(section, "the paper's budget ends at held-out perplexity", "-", f"{middle:.3f}, of {every}")
        tokens, times = savings(runs, middle, paper[0]["tokens"], speed)
        median = statistics.median(tokens)
        what = f"its tokens over auto's to get there, median of {len(runs)} seeds"
        bench.add(section, what, ">= 50", f"{median:.0f}", median >= 50)
        bench.add(section, "the same, worst seed", ">= 20", f"{tokens[0]:.0f}", tokens[0] >= 20)
        bench.add(section, "CPU time, the same ratio, median", "-", f"{statistics.median(times):.0f}")
        bench.add(section, "the same, worst seed", "-", f"{times[0]:.0f}")
        if len(ends) > 1:
            tokens, _ = savings(runs, ends[0], paper[0]["tokens"], speed)
            got = f"{statistics.median(tokens):.0f}, worst {tokens[0]:.0f}"
            bench.add(section, "tokens, to where the paper's best run ends, median", "-", got)


def curve(bench: Bench, setting: Setting, seed: int, *, until: float) -> list[dict[str, Any]]:
    """A run of the default strategy with 1/20 of the paper's tokens: its best so far on held-out text, until good enough."""
    result = bench.run(setting, strategy="auto", max_evals=bench.size.paper_evals // 20, seed=seed)
    points: list[dict[str, Any]] = []
    for tokens, candidate in incumbents(result):
        losses = bench.losses(with_attention(candidate, result.factors), result.factors.target, bench.size.fine)
        steps = sum(point.gradient and point.tokens <= tokens for point in result.history)
        in_steps = GRADIENT_FORWARDS * result.factors.target * steps
        points.append({"tokens": tokens, "in_steps": in_steps, "held_out_perplexity": perplexity(losses.mean())})
        say(f"      {tokens:,} tokens: held out {points[-1]['held_out_perplexity']:.3f}")
        if points[-1]["held_out_perplexity"] <= until:
            break
    return points


def savings(
    runs: Sequence[Sequence[Mapping[str, Any]]], level: float, paper_tokens: int, speed: tuple[float, float]
) -> tuple[list[float], list[float]]:
    """The paper's tokens, and CPU seconds, over those of each run until it was at `level`; sorted, 0 for never."""
    tokens, times = [], []
    for run in runs:
        first = next(
            (point for point in run if point["held_out_perplexity"] <= level), {"tokens": math.inf, "in_steps": 0}
        )
        seconds = speed[0] * (first["tokens"] - first["in_steps"]) + speed[1] * first["in_steps"]
        tokens.append(paper_tokens / first["tokens"])
        times.append(paper_tokens * speed[0] / seconds)
    return sorted(tokens), sorted(times)


def incumbents(result: SearchResult) -> list[tuple[int, Candidate]]:
    """(tokens, candidate) each time the best over all windows changed."""
    found, lowest = [], math.inf
    for point in result.history:
        if point.best is not None and point.best < lowest:
            lowest = point.best
            found.append((point.tokens, point.candidate))
    return found


def cpu_seconds_per_token(bench: Bench, length: int, repeats: int = 3) -> tuple[float, float]:
    """CPU seconds a token of a forward, and of a gradient counted as three forwards; measured in turn."""
    candidate = Candidate((2.0,) * (bench.checkpoint.rotary_dim // 2))
    window = Window(bench.texts.windows(length, 1)[0])
    kinds: dict[str, list[float]] = {"forward": [], "gradient": []}
    for _ in range(repeats):
        for kind, measure in (("forward", bench.scorer.nll), ("gradient", bench.scorer.nll_and_gradient)):
            start = time.process_time()
            measure(candidate, window)
            kinds[kind].append(time.process_time() - start)
    forward, gradient = (statistics.median(kinds[kind]) / length for kind in ("forward", "gradient"))
    return forward, gradient / GRADIENT_FORWARDS


# -- equal budgets


def equal(bench: Bench) -> None:
    """Every strategy with a tenth of the paper's budget at 8x: held-out perplexity and paired differences.

    `dim_mono` is `evolution` without n_hat, and n_hat is not searched here: the two are one run.
    """
    setting, losses = Setting(8, "formula"), dict[str, Losses]()
    for name in sorted(STRATEGIES, key=lambda name: name != "auto"):
        if name == "dim_mono":
            continue
        seeds = 1 if name == "seeds" else bench.seeds
        options = {"strategy": name, "max_evals": bench.size.paper_evals // 10}
        runs = [bench.run(setting, seed=seed, **options) for seed in range(seeds)]
        losses[name] = np.array([bench.held_out_losses(run.factors) for run in runs])
        bench.keep("equal", {name: rows.tolist() for name, rows in losses.items()})
        label = "evolution (= dim_mono)" if name == "evolution" else name
        median = statistics.median(perplexity(row.mean()) for row in losses[name])
        bench.add("equal budget 8x", f"{label}: held-out perplexity, median of {seeds}", "-", f"{median:.3f}")
        if name != "auto":
            ours = losses["auto"].mean(0)
            worse, error = paired(losses[name].mean(0), ours)
            bench.add("equal budget 8x", f"{label}: nats above auto", ">= 0", f"{worse:.5f} ± {error:.5f}", worse >= 0)


def scales(bench: Bench) -> None:
    """Held-out perplexity from 2x to 32x without fine-tuning, each search with the same tokens."""
    raw: dict[str, Any] = {}
    for scale in bench.size.scales:
        setting, target, section = Setting(scale, "formula"), bench.target(scale), f"{scale}x"
        evals = max(2, bench.size.equal_tokens // (5 * target))
        found = {"best YaRN grid": bench.run(setting, strategy="seeds").factors}
        for name in bench.strategies:
            for seed in range(bench.seeds if name == "auto" else 1):
                found[f"{name} {seed}"] = bench.run(setting, strategy=name, max_evals=evals, seed=seed).factors
        windows = [window.ids for window in bench.held_out_windows(target)]
        searched = {name: Candidate.of(factors, "long") for name, factors in found.items()}
        rows = evaluate_methods(bench.checkpoint, windows, target, searched, machine=Machine(threads=bench.threads))
        known = rows[: len(rows) - len(searched) + 1]
        best = min(known, key=lambda row: row.loss)
        raw[section] = {row.name: list(row.losses) for row in rows}
        bench.keep("scales", raw)
        for row in known:
            bench.add(section, f"{row.name}: held-out perplexity", "-", f"{row.perplexity:.3f}")
        for name in bench.strategies:
            losses = np.mean([row.losses for row in rows if row.name.rsplit(" ", 1)[0] == name], axis=0)
            gain, error = paired(best.losses, losses)
            verdict = "gains" if gain > error else "gains nothing" if gain >= -error else "loses"
            got = f"{perplexity(losses.mean()):.3f}: {verdict}, {gain:.5f} ± {error:.5f} nats below {best.name}"
            bench.add(section, f"{name}: held-out perplexity", ">= -error", got, gain >= -error)


def two_sided(bench: Bench) -> None:
    """What a single set with a 1 % short budget costs at the target against one without, which a dual set can afford.

    The formula's attention factor alone may cost more than that at the original window; then no factors keep the cap.
    """
    evals = bench.size.equal_tokens // (5 * bench.target(8))
    original = bench.losses(
        Candidate((1.0,) * (bench.checkpoint.rotary_dim // 2), 0, 1.0), bench.checkpoint.window
    ).mean()
    for setting in (Setting(8, "formula"), Setting(8, "search")):
        section = f"two-sided {setting.name}"
        free = bench.run(setting, strategy="auto", max_evals=evals)
        capped = bench.run(setting, strategy="auto", max_evals=evals, short_budget=SHORT_BUDGET)
        targets = []
        for name, found in (("single", free.factors), ("single, 1 % short budget", capped.factors)):
            rise = math.expm1(bench.losses(Candidate.of(found, "long"), bench.checkpoint.window).mean() - original)
            targets.append(bench.held_out_losses(found))
            got = f"{perplexity(targets[-1].mean()):.3f}, {100 * rise:+.2f} % at {bench.checkpoint.window}"
            bench.add(section, f"{name}: held-out perplexity at the target, and", "-", got)
        dearer, error = paired(targets[1], targets[0])
        got = f"{100 * math.expm1(dearer):.2f} ± {100 * error:.2f} %"
        bench.add(section, "the cap's cost at the target against dual, perplexity", "-", got)
        (chosen,) = [point for point in capped.front if point.chosen]
        assert capped.short_cap is not None
        rise = math.expm1(chosen.short_loss - capped.short_cap + math.log1p(SHORT_BUDGET))
        kept = rise <= SHORT_BUDGET + 1e-9
        must = setting.attention == "search"
        got = f"{100 * rise:+.2f} %" + ("" if kept else ", no candidate keeps it")
        bench.add(
            section, "the chosen point on the cap's own windows", "<= 1 %" if must else "-", got, kept or not must
        )
        bench.add(section, "points on the Pareto front, one of them marked", "-", f"{len(capped.front)}")


def families(bench: Bench) -> None:
    """What the parameters of YaRN and of linear interpolation cost against free factors, each search with the same tokens."""
    for scale in bench.size.family_scales:
        setting, target, section = Setting(scale, "formula"), bench.target(scale), f"family {scale}x"
        evals = max(6, bench.size.family_tokens // (5 * target))
        runs = {
            "auto": bench.run(setting, strategy="auto", max_evals=evals),
            "best YaRN grid": bench.run(setting, strategy="seeds"),
            "--family yarn": bench.run(setting, family="yarn", max_evals=evals),
            "--family yarn, attention searched": bench.run(Setting(scale, "search"), family="yarn", max_evals=evals),
            "--family linear": bench.run(setting, family="linear", max_evals=evals),
        }
        windows = [window.ids for window in bench.held_out_windows(target)]
        searched = {name: Candidate.of(run.factors, "long") for name, run in runs.items()}
        rows = evaluate_methods(bench.checkpoint, windows, target, searched, machine=Machine(threads=bench.threads))
        free = next(row for row in rows if row.name == "auto")
        for row in rows:
            got = f"{row.perplexity:.3f}"
            if row.name in runs:
                above, error = paired(row.losses, free.losses)
                got += f", {runs[row.name].tokens / 1e6:.2f}M tokens, {above:+.5f} ± {error:.5f} nats above auto"
            bench.add(section, f"{row.name}: held-out perplexity", "-", got)
        for name, run in runs.items():
            if run.factors.family is not None:
                bench.add(section, f"{name} found", "-", str(run.factors.family))


# -- machines


def workers(bench: Bench) -> None:
    """Throughput and equality of one, two and four worker processes."""
    target = bench.target(8)
    objective = Objective(tuple(Window(ids) for ids in bench.texts.windows(target, 4)))
    recipe = Recipe(bench.checkpoint.path, bench.checkpoint.name, objective, Machine(threads=1), 1.0)
    pairs = bench.checkpoint.rotary_dim // 2
    jobs = [
        Job(Candidate((1.0 + k / 10,) * pairs), window) for k in range(bench.size.candidates) for window in range(4)
    ]
    first: dict[Job, float] = {}
    for count in (1, 2, 4):
        pool = make_evaluator(recipe, executor="processes", workers=count)
        try:
            dict(pool.measure([Job(Candidate((9.0 + w,) * pairs), 0) for w in range(count)]))  # load the models
            start = time.perf_counter()
            measured = {job: m.nll for job, m in pool.measure(jobs)}
            seconds = time.perf_counter() - start
        finally:
            pool.close()
        first = first or measured
        same = measured == first
        bench.add("workers", f"{count} processes: tokens a second", "-", f"{len(jobs) * target / seconds:.0f}")
        bench.add(
            "workers", f"{count} processes: results equal to one's, bit for bit", "yes", "yes" if same else "no", same
        )


def parallel(bench: Bench) -> None:
    """Time of whole searches, each in a process of its own, to the best held-out perplexity that all of them reach."""
    seeds = range(bench.size.parallel_seeds)
    found = {workers: [timed_search(bench, workers, seed) for seed in seeds] for workers in (1, 2)}
    ends = {workers: [held_out_at(bench, run[-1]) for run in runs] for workers, runs in found.items()}
    section = "two processes, 8x"
    for workers, values in ends.items():
        what = f"{workers} process(es): held-out perplexity at the end of the budget, median of {len(seeds)} seeds"
        got = f"{statistics.median(values):.3f}, of {', '.join(f'{end:.3f}' for end in sorted(values))}"
        bench.add(section, what, "-", got)
    time_to(bench, section, found, max(*ends[1], *ends[2]))
    bench.keep("parallel", found)


def time_to(bench: Bench, section: str, found: Mapping[int, Sequence[Run]], level: float) -> None:
    """Rows of the times to a level that every search reaches, and of the ratio of two processes' median to one's."""
    reached = {
        workers: [next(point for point in run if held_out_at(bench, point) <= level) for run in runs]
        for workers, runs in found.items()
    }
    for clock, what in CLOCKS.items():
        times = {workers: [point[clock] for point in points] for workers, points in reached.items()}
        for workers, seconds in times.items():
            got = f"{statistics.median(seconds):.1f} s, of {', '.join(f'{value:.1f}' for value in seconds)}"
            bench.add(section, f"{workers} process(es): {what} to held-out {level:.3f}, median", "-", got)
        ratio = statistics.median(times[2]) / statistics.median(times[1])
        bench.add(section, f"{what}, two processes' over one's", "<= 0.6", f"{ratio:.2f}", ratio <= 0.6)


# Of the wall; and what the wall would show if every process had a core to itself.
CLOCKS = {"wall": "wall time", "cpu": "CPU time of the longest way through the processes"}
Run = list[dict[str, Any]]
"""The points of a search at which its best so far changed."""


def timed_search(bench: Bench, workers: int, seed: int) -> Run:
    """`benchmarks.one_search` in a process of its own: a point each time the best so far changed."""
    command = [sys.executable, "-m", "benchmarks.one_search", str(workers), str(seed), str(bench.threads)]
    command += [str(bench.model), "quick" if bench.size == QUICK else "whole"]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    points: Run = [json.loads(line) for line in output.splitlines()]
    last = points[-1]
    say(
        f"    {workers} process(es), seed {seed}: {last['tokens']:,} tokens, {last['wall']:.1f} s, CPU {last['cpu']:.1f} s"
    )
    return points


def held_out_at(bench: Bench, point: Mapping[str, Any]) -> float:
    """Held-out perplexity of a point of `timed_search`."""
    return perplexity(bench.losses(Candidate.from_json(point["candidate"]), bench.target(8)).mean())


class Stopwatch(Silent):
    """Notes how many tokens were forwarded when, since this process began."""

    def __init__(self) -> None:
        super().__init__()
        self._noted = list[tuple[float, dict[str, float]]]()
        self._tokens, self._process = 0.0, psutil.Process()
        self._before: float | None = None

    def advance(self, units: float = 1, note: str | None = None, *, before: bool = False) -> None:
        self._tokens += units
        self._noted.append((self._tokens, self._now()))

    def at(self, tokens: int) -> dict[str, float]:
        """The clocks when so many had been forwarded."""
        return next(clocks for forwarded, clocks in self._noted if forwarded >= tokens)

    def _now(self) -> dict[str, float]:
        """The CPU's clock: the server imports while this process makes ready; then the busiest worker, and this process."""
        main = sum(self._process.cpu_times()[:2])
        self._before = main if self._before is None else self._before
        children = self._process.children(recursive=True)
        seconds = {child.pid: sum(child.cpu_times()[:2]) for child in children}
        servers = {child.ppid() for child in children} & seconds.keys()
        server = max((seconds[pid] for pid in servers), default=0.0)
        worker = max((seconds[pid] for pid in seconds.keys() - servers), default=0.0)
        cpu = max(self._before, server) + main - self._before + worker
        return {"wall": time.time() - self._process.create_time(), "cpu": cpu}


def timed_points(options: SearchOptions, model: Path, *, quick: bool) -> None:
    """Run a search at 8x: one line each time the best so far changed."""
    bench = Bench(model, Path(), threads=options.threads or 1, size=QUICK if quick else Size())
    options = replace(options, max_evals=12) if quick else options
    watch = Stopwatch()
    result = search(bench.checkpoint, bench.texts, bench.target(8), options=options, progress=watch)
    for tokens, candidate in incumbents(result):
        found = with_attention(candidate, result.factors).to_json()
        say(json.dumps({"tokens": tokens, **watch.at(tokens), "candidate": found}))


def longest(bench: Bench) -> None:
    """Time and peak memory of one evaluation at 131,072 tokens, in a process of its own, against the estimate."""
    command = [sys.executable, "-m", "benchmarks.bench_search", "--part", "one-long", "--model", str(bench.model)]
    command += ["--threads", str(bench.threads), *(["--quick"] if bench.size == QUICK else [])]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    measured = json.loads(output.splitlines()[-1])
    ratio = measured["estimate_gib"] / measured["peak_gib"]
    section = f"one evaluation at {bench.size.long:,} tokens"
    bench.add(
        section, "CPU seconds, one thread" if bench.threads == 1 else "CPU seconds", "-", f"{measured['seconds']:.0f}"
    )
    bench.add(section, "peak memory, GiB", "-", f"{measured['peak_gib']:.2f}")
    got = f"{measured['estimate_gib']:.2f} GiB, {ratio:.2f}x the peak"
    bench.add(section, "the estimate's formula (see Machines above)", "0.8x … 1.6x", got, 0.8 <= ratio <= 1.6)


def one_long(bench: Bench) -> None:
    """The evaluation itself; peak memory is the process's."""
    ids = np.concatenate([document.ids for document in bench.texts.documents])[: bench.size.long]
    plan = search_memory(bench.checkpoint, bench.size.long)
    candidate = Candidate((bench.size.long / bench.checkpoint.window,) * (bench.checkpoint.rotary_dim // 2))
    start = time.process_time()
    bench.scorer.nll(candidate, Window(ids))
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    say(json.dumps({"seconds": seconds, "peak_gib": peak, "estimate_gib": plan.total / 2**30, "plan": str(plan)}))


# -- helpers


def with_attention(candidate: Candidate, factors: BoundFactors) -> Candidate:
    """The candidate with the attention factor it was measured with: its own, or the formula's."""
    if candidate.attention_factor is not None:
        return candidate
    return replace(candidate, attention_factor=factors.formula_attention_factor)


def paired(losses: Any, ours: Any) -> tuple[float, float]:
    """Mean of losses − ours over windows, and its standard error."""
    differences = np.asarray(losses) - np.asarray(ours)
    return float(differences.mean()), float(differences.std(ddof=1) / math.sqrt(len(differences)))


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


SECTIONS: Mapping[str, Callable[[Bench], None]] = {
    "cost": cost,
    "workers": workers,
    "parallel": parallel,
    "longest": longest,
    "two-sided": two_sided,
    "scales": scales,
    "families": families,
    "equal": equal,
}
HIDDEN: Mapping[str, Callable[[Bench], None]] = {"baseline": baseline, "one-long": one_long}


@click.command()
@click.option(
    "--part", "parts", multiple=True, type=click.Choice([*SECTIONS, *HIDDEN]), help="Default: all but baseline."
)
@click.option("--model", type=click.Path(path_type=Path), default=DEFAULT_MODEL / "checkpoint")
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "runs" / "bench", help="Journals, raw numbers.")
@click.option("--seeds", default=3, show_default=True, help="Of equal, and of auto in scales; cost takes 5.")
@click.option("--strategies", default="evolution,longrope2,gradient,cma,auto", show_default=True, help="Of scales.")
@click.option("--paper-seed", "paper_seeds", multiple=True, type=int, help="Of baseline.  [default: 0, 1 and 2]")
@click.option("--threads", default=1, show_default=True)
@click.option("--setting", "names", multiple=True, help="Of baseline and cost: 8x-formula …  [default: all four]")
@click.option("--quick", is_flag=True, help="Next to no budget: shows that everything runs, measures nothing.")
@click.option("--table", is_flag=True, help="Only print the committed results as Markdown.")
def main(
    parts: Sequence[str],
    model: Path,
    out: Path,
    seeds: int,
    strategies: str,
    paper_seeds: tuple[int, ...],
    threads: int,
    names: Sequence[str],
    quick: bool,
    table: bool,
) -> None:
    """Run parts of the bench: rows to the terminal and to benchmarks/results/search.json."""
    if table:
        say(markdown(read(RESULTS / "search.json")["rows"]))
        return
    settings = tuple(setting for setting in COST_SETTINGS if not names or setting.name in names)
    size = QUICK if quick else Size()
    bench = Bench(
        model,
        out / "quick" if quick else out,
        threads,
        settings,
        seeds,
        paper_seeds,
        tuple(strategies.split(",")),
        size,
    )
    if set(parts) & HIDDEN.keys():
        for part in parts:
            HIDDEN[part](bench)
        return
    sys.exit(bench.figures.run({name: partial(section, bench) for name, section in SECTIONS.items()}, parts))


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """The rows as one Markdown table."""
    lines = ["| | what | asked | measured |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {r['section']} | {r['what']} | {r['asked']} | {r['got']} |" for r in rows)])


if __name__ == "__main__":
    main()
