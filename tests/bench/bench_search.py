"""Measure the search: what the default strategy costs against the paper's, and what every strategy finds.

    python -m tests.bench.bench_search --part baseline    the paper's full budget; hours, resumable; docs/results/
    python -m tests.bench.bench_search                    everything else; runs/bench/search.json

Each figure is printed beside what was asked for. All runs are journalled under runs/bench/journals, so that a bench that
was stopped goes on where it was.
"""

from __future__ import annotations

import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np

from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.factors import RescaleFactors
from longrope.files import write_atomically
from longrope.search import Candidate, Machine, SearchOptions, SearchResult, WindowModel, evaluate_methods, search
from longrope.search.evaluators import Recipe, make_evaluator
from longrope.search.memory import plan_memory
from longrope.search.objective import Objective, Window, perplexity
from longrope.search.strategies import STRATEGIES
from longrope.search.trial import Job
from longrope.text import Corpus, load_corpus

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_MODEL = ROOT / "longrope_export" / "default_model"
BASELINE = ROOT / "docs" / "results" / "search_baseline.json"
PAPER_EVALS = 1344
HELD_OUT_WINDOWS = 24


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
    """The model, its texts, and where results and journals go."""

    model: Path
    out: Path
    threads: int
    settings: tuple[Setting, ...] = COST_SETTINGS

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return open_checkpoint(self.model)

    @cached_property
    def texts(self) -> Corpus:
        return load_corpus([DEFAULT_MODEL / "texts" / "search"], self.checkpoint.encode)

    @cached_property
    def held_out(self) -> Corpus:
        return load_corpus([DEFAULT_MODEL / "texts" / "test"], self.checkpoint.encode)

    @cached_property
    def scorer(self) -> WindowModel:
        return WindowModel(self.checkpoint, Machine(threads=self.threads))

    def target(self, scale: int) -> int:
        return scale * self.checkpoint.window

    def run(self, setting: Setting, **changes: Any) -> SearchResult:
        """A journalled search; a stopped one goes on."""
        options = SearchOptions(attention_factor=setting.attention, threads=self.threads, **changes)  # type: ignore[arg-type]
        parts = [setting.name, options.strategy, str(options.max_evals), str(options.seed), str(options.short_budget)]
        name = "-".join([self.checkpoint.fingerprint[:8], *parts])
        say(f"  {' '.join(parts)}")
        return search(
            self.checkpoint,
            self.texts,
            self.target(setting.scale),
            options=options,
            journal_dir=self.out / "journals" / name,
            resume=True,
        )

    def losses(self, candidate: Candidate, length: int) -> list[float]:
        """Mean NLL of each held-out window."""
        return [self.scorer.nll(candidate, Window(ids)) for ids in self.held_out.windows(length, HELD_OUT_WINDOWS)]

    def held_out_losses(self, factors: RescaleFactors) -> list[float]:
        candidate = Candidate(factors.long_factor, factors.n_hat, factors.effective_attention_factor)
        return self.losses(candidate, factors.target)

    def provenance(self) -> dict[str, Any]:
        import torch

        return {
            "model_fingerprint": self.checkpoint.fingerprint,
            "texts_fingerprint": self.texts.fingerprint,
            "held_out_fingerprint": self.held_out.fingerprint,
            "held_out_windows": HELD_OUT_WINDOWS,
            "torch": torch.__version__,
            "threads": self.threads,
            "machine": platform.processor() or platform.machine(),
            "date": time.strftime("%Y-%m-%d"),
        }


# -- the parts


def baseline(bench: Bench) -> dict[str, Any]:
    """The paper's evolution with its full budget, at every setting of the cost part; several processes may share them."""
    for setting in bench.settings:
        result = bench.run(setting, strategy="evolution")
        losses = bench.held_out_losses(result.factors)
        found = read(BASELINE)
        found[setting.name] = {
            "evaluations": result.evaluations,
            "tokens": result.tokens,
            "measuring_seconds": result.measuring_seconds,
            "search_perplexity": result.perplexity,
            "held_out_perplexity": perplexity(mean(losses)),
            "held_out_losses": losses,
            "factors": result.factors.to_json(),
            "provenance": bench.provenance(),
        }
        write(BASELINE, found)
        say(f"baseline {setting.name}: {result.tokens / 1e6:.1f}M tokens, held out {perplexity(mean(losses)):.3f}")
    return {}


def cost(bench: Bench, seeds: int) -> dict[str, Any]:
    """Tokens until the default strategy is as good, on held-out documents, as the baseline ends."""
    found: dict[str, Any] = {}
    for setting in bench.settings:
        ended = read(BASELINE).get(setting.name)
        if ended is None or ended["provenance"]["model_fingerprint"] != bench.checkpoint.fingerprint:
            say(f"{setting.name}: no baseline of this model; make it with --part baseline")
            continue
        runs = [reach(bench, setting, ended, seed) for seed in range(seeds)]
        ratios = sorted(run["token_ratio"] for run in runs)
        found[setting.name] = {"runs": runs, "median": statistics.median(ratios), "worst": ratios[0]}
        report(f"{setting.name}: baseline tokens over ours, median of {seeds}", ">= 50", statistics.median(ratios))
        report(f"{setting.name}: the same, worst seed", ">= 20", ratios[0])
        times = sorted(run["time_ratio"] for run in runs)
        say(f"{setting.name}: wall time ratio, median {statistics.median(times):.1f}")
    return found


def reach(bench: Bench, setting: Setting, ended: dict[str, Any], seed: int) -> dict[str, Any]:
    """One run of the default strategy with 1/20 of the paper's budget: when its best is first good enough."""
    result = bench.run(setting, strategy="auto", max_evals=PAPER_EVALS // 20, seed=seed)
    curve, first = [], math.inf
    for tokens, candidate in incumbents(result):
        attention = candidate.attention_factor or result.factors.effective_attention_factor
        losses = bench.losses(replace(candidate, attention_factor=attention), result.factors.target)
        curve.append({"tokens": tokens, "held_out_perplexity": perplexity(mean(losses))})
        if mean(losses) <= mean(ended["held_out_losses"]):
            first = min(first, tokens)
    seconds = result.measuring_seconds * first / result.tokens
    return {
        "seed": seed,
        "tokens": first if math.isfinite(first) else None,
        "token_ratio": ended["tokens"] / first,
        "time_ratio": ended["measuring_seconds"] / seconds,
        "curve": curve,
    }


def incumbents(result: SearchResult) -> list[tuple[int, Candidate]]:
    """(tokens, candidate) each time the best over all windows changed."""
    found, lowest = [], math.inf
    for point in result.history:
        if point.best is not None and point.best < lowest:
            lowest = point.best
            found.append((point.tokens, point.candidate))
    return found


def equal(bench: Bench, seeds: int) -> dict[str, Any]:
    """Every strategy with a tenth of the paper's budget at 8x: held-out perplexity and paired differences."""
    setting, found = Setting(8, "formula"), {}
    losses = {
        name: np.array(
            [
                bench.held_out_losses(bench.run(setting, strategy=name, max_evals=PAPER_EVALS // 10, seed=seed).factors)
                for seed in range(seeds)
            ]
        )
        for name in sorted(STRATEGIES)
    }
    ours = losses["auto"].mean(0)
    for name, rows in losses.items():
        difference, error = paired(rows.mean(0), ours)
        found[name] = {
            "held_out_perplexities": [perplexity(mean(row)) for row in rows],
            "median": statistics.median(perplexity(mean(row)) for row in rows),
            "worse_than_auto": difference,
            "standard_error": error,
        }
        asked = ">= 0" if name != "auto" else "-"
        report(f"{name} {found[name]['median']:.3f}: nats above auto ± {error:.4f}", asked, difference)
    return found


def scales(bench: Bench, seeds: int, evals: int, names: Sequence[str]) -> dict[str, Any]:
    """Held-out perplexity from 2x to 32x without fine-tuning."""
    found: dict[str, Any] = {}
    for scale in (2, 4, 8, 16, 32):
        setting, target = Setting(scale, "formula"), bench.target(scale)
        grid = bench.run(setting, strategy="seeds")
        searched = {"best of the seeds' grid": grid.factors}
        for name in names:
            for seed in range(seeds):
                searched[f"{name} {seed}"] = bench.run(setting, strategy=name, max_evals=evals, seed=seed).factors
        windows = bench.held_out.windows(target, HELD_OUT_WINDOWS)
        rows = evaluate_methods(bench.checkpoint, windows, target, searched, machine=Machine(threads=bench.threads))
        best_known = min(rows[: len(rows) - len(searched) + 1], key=lambda row: row.loss)
        found[f"{scale}x"] = {"best_known": best_known.name, **{row.name: row.perplexity for row in rows}}
        for name in names:
            runs = [row for row in rows if row.name.rsplit(" ", 1)[0] == name]
            losses = np.mean([row.losses for row in runs], axis=0)
            gain, error = paired(np.array(best_known.losses), losses)
            found[f"{scale}x"][f"{name} gain over {best_known.name}"] = {"nats": gain, "standard_error": error}
            report(f"{scale}x {name}: gain over {best_known.name}, nats ± {error:.4f}", f">= {-error:.4f}", gain)
    return found


def two_sided(bench: Bench, evals: int) -> dict[str, Any]:
    """What a single set with a 1 % short budget costs at the target against one without, which a dual set can afford."""
    setting = Setting(8, "formula")
    free = bench.run(setting, strategy="auto", max_evals=evals)
    capped = bench.run(setting, strategy="auto", max_evals=evals, short_budget=0.01)
    free_loss, capped_loss = (mean(bench.held_out_losses(result.factors)) for result in (free, capped))
    length = bench.checkpoint.window
    short = {
        "original": mean(bench.losses(Candidate((1.0,) * free.factors.num_pairs, 0, 1.0), length)),
        **{
            name: mean(bench.losses(Candidate(f.long_factor, 0, f.effective_attention_factor), length))
            for name, f in (("single", free.factors), ("capped", capped.factors))
        },
    }
    rise = {name: 100 * math.expm1(short[name] - short["original"]) for name in ("single", "capped")}
    say(f"perplexity at {length} rises by {rise['single']:.2f} % without a cap, {rise['capped']:.2f} % with 1 %")
    cost_percent = 100 * math.expm1(capped_loss - free_loss)
    report("what the cap costs at the target, % of perplexity", "-", cost_percent)
    front = [{"short": p.short_loss, "target": p.target_loss, "chosen": p.chosen} for p in capped.front]
    return {"cost_percent": cost_percent, "rise_percent": rise, "short_cap": capped.short_cap, "front": front}


def workers(bench: Bench) -> dict[str, Any]:
    """Throughput and equality of one, two and four worker processes."""
    target = bench.target(8)
    objective = Objective(tuple(Window(ids) for ids in bench.texts.windows(target, 4)))
    recipe = Recipe(bench.checkpoint.path, bench.checkpoint.name, objective, Machine(threads=1), 1.0)
    dim = bench.checkpoint.rotary_dim // 2
    jobs = [Job(Candidate((1.0 + k / 10,) * dim), window) for k in range(4) for window in range(4)]
    found, first = {}, None
    for count in (1, 2, 4):
        pool = make_evaluator(recipe, executor="processes", workers=count)
        try:
            dict(pool.measure([Job(Candidate((9.0 + w,) * dim), 0) for w in range(count)]))  # load the models
            start = time.perf_counter()
            measured = {job: m.nll for job, m in pool.measure(jobs)}
            seconds = time.perf_counter() - start
        finally:
            pool.close()
        first = first or measured
        found[str(count)] = {"tokens_per_second": len(jobs) * target / seconds, "identical": measured == first}
        report(f"{count} workers: identical results", "True", measured == first)
        report(f"{count} workers: tokens per second", "-", found[str(count)]["tokens_per_second"])
    return found


def longest(bench: Bench) -> dict[str, Any]:
    """Time and peak memory of one evaluation at 131,072 tokens, in a process of its own, against the estimate."""
    command = [sys.executable, "-m", "tests.bench.bench_search", "--part", "one-long", "--model", str(bench.model)]
    output = subprocess.run(
        [*command, "--threads", str(bench.threads)], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    measured: dict[str, Any] = json.loads(output.splitlines()[-1])
    report("131,072 tokens: seconds", "-", measured["seconds"])
    report("131,072 tokens: peak GiB", f"estimate {measured['estimate_gib']:.2f}", measured["peak_gib"])
    return measured


def one_long(bench: Bench) -> dict[str, Any]:
    """The evaluation itself; peak memory is the process's."""
    length = 131_072
    ids = np.concatenate([document.ids for document in bench.texts.documents])[:length]
    plan = plan_memory(bench.checkpoint, length)
    candidate = Candidate((length / bench.checkpoint.window,) * (bench.checkpoint.rotary_dim // 2))
    start = time.perf_counter()
    bench.scorer.nll(candidate, Window(ids))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found = {"seconds": seconds, "peak_gib": peak, "estimate_gib": plan.total / 2**30, "plan": str(plan)}
    say(json.dumps(found))
    return found


# -- helpers


def paired(losses: Any, ours: Any) -> tuple[float, float]:
    """Mean of losses − ours over windows, and its standard error."""
    differences = np.asarray(losses) - np.asarray(ours)
    return float(differences.mean()), float(differences.std(ddof=1) / math.sqrt(len(differences)))


def mean(losses: Sequence[float]) -> float:
    return float(np.mean(losses))


def say(text: str) -> None:
    click.echo(text)


def report(what: str, asked: str, got: float | bool) -> None:
    """One line: the figure, what was asked for, what was measured."""
    value = str(got) if isinstance(got, bool) else f"{got:.4g}"
    say(f"{what:<64} asked {asked:<16} got {value}")


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def write(path: Path, data: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(data, indent=2) + "\n")


@click.command()
@click.option("--part", "parts", multiple=True, help="baseline, cost, equal, scales, two-sided, workers, longest.")
@click.option("--model", type=click.Path(path_type=Path), default=DEFAULT_MODEL / "checkpoint")
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "runs" / "bench")
@click.option("--seeds", default=3, show_default=True, help="Seeds of equal and scales; cost takes at least 5.")
@click.option("--evals", default=40, show_default=True, help="Budget of scales and two-sided.")
@click.option("--strategies", default="evolution,longrope2,gradient,cma,auto", help="Strategies of scales.")
@click.option("--threads", default=1, show_default=True)
@click.option("--setting", "names", multiple=True, help="Of baseline and cost: 8x-formula …  [default: all four]")
def main(
    parts: Sequence[str],
    model: Path,
    out: Path,
    seeds: int,
    evals: int,
    strategies: str,
    threads: int,
    names: Sequence[str],
) -> None:
    """Run parts of the bench and merge their figures into OUT/search.json."""
    settings = tuple(setting for setting in COST_SETTINGS if not names or setting.name in names)
    bench = Bench(model, out, threads, settings)
    runners: dict[str, Callable[[], dict[str, Any]]] = {
        "cost": lambda: cost(bench, max(seeds, 5)),
        "equal": lambda: equal(bench, seeds),
        "scales": lambda: scales(bench, seeds, evals, strategies.split(",")),
        "two-sided": lambda: two_sided(bench, evals),
        "workers": lambda: workers(bench),
        "longest": lambda: longest(bench),
    }
    hidden = {"baseline": lambda: baseline(bench), "one-long": lambda: one_long(bench)}
    for part in parts or tuple(runners):
        if part in hidden:
            hidden[part]()
            continue
        say(f"== {part}")
        found = runners[part]()
        write(out / "search.json", {**read(out / "search.json"), part: found, "provenance": bench.provenance()})


if __name__ == "__main__":
    main()
