"""Measure progressive extension: the default model, 256 → fine-tuned to 16,384 → 131,072 tokens without further training.

    default model ──stages of progressive/plan.toml──► weights, factors (both sets) ─┐
    original model × none, PI, NTK, YaRN at 512× ────────────────────────────────────┼─► cells ─► benchmarks/results/
    held-out novel ─► windows of 256 … 131,072 tokens; filler for passkeys ─────────┘

    python -m benchmarks.bench_progressive                             everything
    python -m benchmarks.bench_progressive --part why --part peers     what needs no training

The default model's training texts come from the packages that carry them. Stages go on from their checkpoints; a window of
131,072 tokens takes minutes, so every measured cell is kept in `--out`/cells.json and never measured again for the same
weights, factors and text: a stopped bench goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.default_model import texts as default_texts
from benchmarks.figures import RESULTS, ROOT, Figures, say
from longrope import retrieval
from longrope.checkpoint import Checkpoint
from longrope.factors import BoundFactors, FactorSet
from longrope.files import staged, write_atomically
from longrope.finetune.options import TrainOptions
from longrope.finetune.parallel import Parallel
from longrope.finetune.presets import read_plan
from longrope.finetune.progressive import Progression, run_stages
from longrope.modeling import RescaledRotary, TorchSource, build_model, head_logits, hidden_states, replace_rotary
from longrope.progress import Silent
from longrope.retrieval import RetrievalRow
from longrope.search import SearchOptions
from longrope.search.methods import known_candidates
from longrope.search.recover import DEFAULT_EVALS, Recovery, recover_short
from longrope.search.trial import Candidate
from longrope.text import Corpus, TokenIds, load_corpus
from longrope_export import default_model, plots
from longrope_export.models import DEFAULT, open_model

WINDOW, TRAINED, TARGET = 256, 16_384, 131_072
# Tokens scored at each length; the two longest come from one pass, as the text's first half and the whole of it.
SCORED = {256: 32_768, 1024: 32_768, 4096: 65_536, 16_384: 131_072}
LENGTHS = (*SCORED, TARGET // 2, TARGET)
PLAN = Path(__file__).with_name("progressive") / "plan.toml"
HELD_OUT = default_model.TEST_TEXTS / "northangerabbey.txt"
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
FAR_DEPTHS = {65_536: (0.0, 0.5, 1.0), 131_072: (0.5,)}  # beyond the trained rows a prompt takes minutes
# Prompts per length and depth: a prompt of 131,072 tokens takes as long as a window.
SAMPLES = {256: 4, 1024: 4, 4096: 4, 16_384: 2, 65_536: 1, 131_072: 1}
PEER_SAMPLES = {256: 2, 1024: 2, 4096: 2, 16_384: 1, 65_536: 1, 131_072: 1}
PEER_FAR_DEPTHS = {65_536: (0.5,), 131_072: (0.5,)}  # nobody finds one at 1,024
ORIGINAL = "original"
ROWS = 2048


@dataclass
class Cells:
    """What has been measured, by key; saved after every one."""

    path: Path
    values: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.is_file():
            self.values = json.loads(self.path.read_text())

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        if key not in self.values:
            start = time.perf_counter()
            self.values[key] = measure()
            write_atomically(self.path, json.dumps(self.values, indent=1) + "\n")
            say(f"  {key}: {time.perf_counter() - start:.0f} s")
        return self.values[key]


class Model:
    """Weights whose rotary factors can be set; measures one window or prompt at a time, in whole passes."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.model: Any = build_model(checkpoint)
        self.rotary = RescaledRotary(checkpoint.rope_theta, checkpoint.rotary_dim)
        replace_rotary(self.model, self.rotary)

    def use(self, candidate: Candidate) -> None:
        self.rotary.set(candidate.factors, candidate.attention_factor or 1.0, candidate.n_hat)

    @torch.inference_mode()
    def losses(self, ids: TokenIds) -> Tensor:
        """[T - 1] NLL of every token but the first, in nats."""
        tokens = torch.as_tensor(ids)
        hidden_TD = hidden_states(self.model, tokens[None])[0, :-1]
        parts = zip(hidden_TD.split(ROWS), tokens[1:].split(ROWS), strict=True)
        nll = torch.nn.functional.cross_entropy
        return torch.cat([nll(head_logits(self.model, h), t, reduction="none").double() for h, t in parts])

    def source(self) -> TorchSource:
        return TorchSource(self.model, None, prefill_tokens=TARGET)


@dataclass
class Bench:
    """The held-out text, the models, and what was measured."""

    out: Path
    texts: Path
    max_length: int = TARGET
    note: str = ""

    @property
    def lengths(self) -> list[int]:
        return [length for length in LENGTHS if length <= self.max_length]

    def samples(self, wanted: Mapping[int, int]) -> dict[int, int]:
        """Prompts per length and depth, of the lengths that are measured."""
        return {length: count for length, count in wanted.items() if length <= self.max_length}

    @cached_property
    def cells(self) -> Cells:
        return Cells(self.out / "cells.json")

    @cached_property
    def original(self) -> Model:
        return Model(open_model(DEFAULT))

    @cached_property
    def progression(self) -> Progression:
        """The plan's stages, each trained once and then opened."""
        checkpoint, folder = self.original.checkpoint, self.out / "stages"

        def load_texts(paths: Sequence[Path]) -> Corpus:
            return load_corpus(paths, checkpoint.encode)

        return run_stages(
            checkpoint,
            read_plan(str(PLAN), WINDOW, TARGET),
            load_texts([training_texts(self.texts)]),
            folder,
            search_options=SearchOptions(),
            train_options=TrainOptions(threads=torch.get_num_threads()),
            load_texts=load_texts,
            resume=folder.exists(),
            parallel=Parallel.single("cpu"),
            progress=Said(),
        )

    @cached_property
    def ours(self) -> Model:
        return Model(self.progression.checkpoint)

    @cached_property
    def recovery(self) -> Recovery:
        """A short set beside the long one: searched on the texts of searches, compared on those of tests."""
        checkpoint, journal = self.progression.checkpoint, self.out / "recovery"
        return recover_short(
            checkpoint,
            load_corpus([default_model.SEARCH_TEXTS], checkpoint.encode),
            self.progression.factors.as_single(),
            options=SearchOptions(max_evals=DEFAULT_EVALS, threads=torch.get_num_threads()),
            journal_dir=journal,
            resume=journal.exists(),
            stages={done.name: done.factors for done in self.progression.stages if done.training is not None},
            held_out=load_corpus([default_model.TEST_TEXTS], checkpoint.encode),
        )

    @cached_property
    def factors(self) -> BoundFactors:
        """Both sets, at 131,072 tokens."""
        return self.recovery.factors

    @cached_property
    def text(self) -> TokenIds:
        """The first 131,072 tokens of the held-out novel."""
        return load_corpus([HELD_OUT], self.original.checkpoint.encode).documents[0].ids[:TARGET]

    @cached_property
    def filler(self) -> TokenIds:
        return load_corpus([HELD_OUT], self.original.checkpoint.encode).documents[0].ids

    @cached_property
    def peers(self) -> dict[str, Candidate]:
        """The known methods at 512×, as their authors define them, on the model as it was trained."""
        known = known_candidates(self.original.checkpoint, TARGET)
        return {ORIGINAL if name == "none" else name: candidate for name, candidate in known.items()}

    def candidate(self, name: FactorSet) -> Candidate:
        """Our long or short set."""
        return Candidate.of(self.factors, name)

    def key(self, what: str, model: Model, candidate: Candidate, *facts: object) -> str:
        """Names a cell by everything that decides it."""
        digest = hashlib.sha256(repr((candidate, HELD_OUT.name)).encode()).hexdigest()[:10]
        return " ".join(map(str, (what, model.checkpoint.fingerprint[:10], digest, *facts)))

    # -- perplexity

    def perplexity(self, model: Model, candidate: Candidate, length: int) -> float:
        """exp of the mean NLL over the windows of one length."""
        if length >= TARGET // 2:
            return float(self._whole(model, candidate)[str(length)])
        measured = self.cells.get(
            self.key("ppl", model, candidate, length), lambda: self._windows(model, candidate, length)
        )
        return float(measured)

    def _windows(self, model: Model, candidate: Candidate, length: int) -> float:
        """Windows spread evenly over the text."""
        model.use(candidate)
        count = SCORED[length] // length
        step = len(self.text) // count
        losses = [model.losses(self.text[k * step : k * step + length]) for k in range(count)]
        return math.exp(float(torch.cat(losses).mean()))

    def _whole(self, model: Model, candidate: Candidate) -> Mapping[str, float]:
        """Perplexity of the first half and of the whole text, of one pass."""

        def measure() -> dict[str, float]:
            model.use(candidate)
            losses = model.losses(self.text)
            return {str(n): math.exp(float(losses[: n - 1].mean())) for n in (TARGET // 2, TARGET)}

        found: Mapping[str, float] = self.cells.get(self.key("ppl", model, candidate, "whole"), measure)
        return found

    # -- passkeys

    def passkeys(
        self,
        model: Model,
        candidate: Candidate,
        samples: Mapping[int, int],
        far_depths: Mapping[int, Sequence[float]] = FAR_DEPTHS,
    ) -> list[RetrievalRow]:
        """One row a length and depth."""
        rows = []
        for length, count in samples.items():
            for depth in far_depths.get(length, DEPTHS):

                def measure(length: int = length, depth: float = depth, count: int = count) -> dict[str, Any]:
                    model.use(candidate)
                    prompts = retrieval.samples_of(
                        "passkey",
                        model.checkpoint.encode_plain,
                        self.filler,
                        length,
                        depth,
                        count,
                        0,
                    )
                    return asdict(retrieval.measure(model.source(), list(prompts)))

                key = self.key("passkey", model, candidate, length, depth, count)
                rows.append(RetrievalRow(**self.cells.get(key, measure)))
        return rows


class Said(Silent):
    """Stages and warnings as lines of the bench."""

    def line(self, text: str) -> None:
        say(f"  {text}")

    def warn(self, text: str) -> None:
        say(f"  warning: {text}")


def training_texts(cache: Path) -> Path:
    """A folder of the texts that the default model was trained on, out of the packages in `cache`."""
    folder = cache / "train"
    if not folder.is_dir():
        with staged(folder) as room:
            room.mkdir()
            for document in default_texts.load_corpus(cache).train:
                (room / f"{document.name}.txt").write_text(document.text, encoding="utf-8")
    return folder


def accuracy(rows: Sequence[RetrievalRow], length: int) -> tuple[float, int]:
    """Share of all prompts of a length that were answered, and how many there were."""
    mine = [row for row in rows if row.length == length]
    count = sum(row.samples for row in mine)
    return sum(row.accuracy * row.samples for row in mine) / count, count


# What the untrained model does with a passkey at 8×: factors and attention factors.
WHY_LENGTH, WHY_ATTENTION = 2048, (1.0, 1.15, 1.3, 1.458)


class Report:
    """The sections of the bench; each prints what was asked and got."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.figures = Figures(
            "progressive", {"held_out": HELD_OUT.name, "tokens": len(bench.text), "note": bench.note}
        )
        self.maps: dict[str, list[RetrievalRow]] = {}

    def table(self) -> dict[str, dict[int, float]]:
        """Perplexity of the peers, by name and length."""
        bench = self.bench
        return {
            name: {length: bench.perplexity(bench.original, candidate, length) for length in bench.lengths}
            for name, candidate in bench.peers.items()
        }

    def why(self) -> None:
        """What fails first without training: a larger attention factor alone brings passkeys back."""
        known = known_candidates(self.bench.original.checkpoint, WHY_LENGTH)
        for name in ("NTK", "YaRN 32/1"):
            for attention in WHY_ATTENTION:
                candidate = replace(known[name], attention_factor=attention)
                rows = self.bench.passkeys(self.bench.original, candidate, {WHY_LENGTH: 2})
                share, count = accuracy(rows, WHY_LENGTH)
                what = (
                    f"untrained, {name} ×8, attention factor {attention:g}: passkey at {WHY_LENGTH:,} ({count} prompts)"
                )
                self.figures.add("why", what, "measured", f"{share:.0%}")

    def peers(self) -> None:
        """Perplexity of the original model under no scaling and the known methods at 512×."""
        for name, row in self.table().items():
            for length, value in row.items():
                self.figures.add("peers", f"{name}, perplexity at {length:,}", "measured", f"{value:.2f}")

    def peer_passkeys(self) -> None:
        """Where the known methods find a passkey."""
        for name, candidate in self.bench.peers.items():
            samples = self.bench.samples(PEER_SAMPLES)
            rows = self.maps[name] = self.bench.passkeys(self.bench.original, candidate, samples, PEER_FAR_DEPTHS)
            for length in samples:
                share, count = accuracy(rows, length)
                what = f"{name}, passkey at {length:,} ({count} prompts)"
                self.figures.add("peer_passkeys", what, "measured", f"{share:.0%}")
        plots.plot_retrieval(self.maps, RESULTS / "progressive_peers.svg")

    def ours(self) -> None:
        """Perplexity of the extended model, against the peers and against itself."""
        bench, long, short = self.bench, self.bench.candidate("long"), self.bench.candidate("short")
        single = {length: bench.perplexity(bench.ours, long, length) for length in bench.lengths}
        table = self.table()
        before = table[ORIGINAL][WINDOW]
        dual = bench.perplexity(bench.ours, short, WINDOW)
        for label, value, percent in (("dual", dual, 1.0), ("single", single[WINDOW], 3.0)):
            change = 100 * (value / before - 1)
            what = f"ours ({label}), perplexity at {WINDOW} against the original's {before:.2f}"
            self.figures.add("ours", what, f"≤ +{percent:g} %", f"{value:.2f} ({change:+.2f} %)", change <= percent)
        for length in bench.lengths[1:]:
            name, best = min(((n, row[length]) for n, row in table.items()), key=lambda item: item[1])
            what = f"ours, perplexity at {length:,}"
            self.figures.add("ours", what, f"< {best:.2f} ({name})", f"{single[length]:.2f}", single[length] < best)
        if TARGET not in single:
            return
        what = f"ours, perplexity at {TARGET:,} against {TRAINED:,} on the same text"
        asked, got = f"≤ {single[TRAINED]:.2f}", f"{single[TARGET]:.2f}"
        self.figures.add("ours", what, asked, got, single[TARGET] <= single[TRAINED])

    def recovery(self) -> None:
        """Which short set is best on held-out text, under the trained weights."""
        found = self.bench.recovery
        for score in found.comparison:
            what = f"short set, held-out perplexity at {WINDOW}: {score.name}"
            self.figures.add("recovery", what, "measured", f"{score.perplexity:.2f}")

    def passkeys(self) -> None:
        """Where the extended model finds a passkey."""
        bench, samples = self.bench, self.bench.samples(SAMPLES)
        short = bench.passkeys(bench.ours, bench.candidate("short"), {WINDOW: SAMPLES[WINDOW]})
        longer = {length: count for length, count in samples.items() if length > WINDOW}
        rows = [*short, *bench.passkeys(bench.ours, bench.candidate("long"), longer)]
        for length in samples:
            share, count = accuracy(rows, length)
            what = f"ours, passkey at {length:,} ({count} prompts)"
            self.figures.add("passkeys", what, "≥ 90 %", f"{share:.0%}", share >= 0.9)
        plots.plot_retrieval({"ours": rows}, RESULTS / "progressive_ours.svg")

    @property
    def sections(self) -> dict[str, Callable[[], None]]:
        return {
            "why": self.why,
            "peers": self.peers,
            "peer_passkeys": self.peer_passkeys,
            "ours": self.ours,
            "recovery": self.recovery,
            "passkeys": self.passkeys,
        }


@click.command()
@click.option("--texts", type=click.Path(path_type=Path), default=ROOT / "runs" / "texts", help="Cache of packages.")
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "runs" / "bench" / "progressive")
@click.option("--part", "parts", multiple=True, help="Sections to measure.  [default: all]")
@click.option("--max-length", type=click.IntRange(WINDOW), default=TARGET, show_default=True, help="Longest length.")
@click.option("--note", default="", help="What the provenance is to say of the run.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: torch's choice]")
def main(texts: Path, out: Path, parts: tuple[str, ...], max_length: int, note: str, threads: int | None) -> None:
    """Measure, and write benchmarks/results/progressive.json."""
    if threads:
        torch.set_num_threads(threads)
    report = Report(Bench(out, texts, max_length, note))
    raise SystemExit(report.figures.run(report.sections, parts))


if __name__ == "__main__":
    main()
