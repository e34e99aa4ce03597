"""A real model beyond its window, on a CPU, without training: SmolLM2-135M (8,192 tokens) at 16,384 and 32,768 tokens.

    python -m benchmarks.bench_smollm2 [--threads N]    some five core-hours; results in benchmarks/results/smollm2.json

Searches are journalled and every measured window is a line in runs/smollm2-headline, so that a stopped bench goes on. Passes
are in bfloat16. `best ramp` is the best of the YaRN ramps that `auto` measured on its search windows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.bench_search import paired, with_attention
from benchmarks.figures import RESULTS, ROOT, say, smollm2
from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.files import write_json
from longrope.machine import Machine
from longrope.metrics import perplexity
from longrope.provenance import provenance
from longrope.search import Candidate, SearchOptions, SearchResult, WindowModel, search
from longrope.search.methods import known_candidates
from longrope.search.objective import Window
from longrope.search.run import JOURNAL_NAME
from longrope.text import load_corpus
from longrope_export import default_model

FOLDER = ROOT / "runs" / "smollm2-headline"


@dataclass(frozen=True)
class Setting:
    """One target length.

    Args:
        target: L'.
        evaluations, documents: of the search.
        windows: held-out windows of L' tokens, from as many documents as there are.
        known: methods measured on them beside the best ramp and `auto`.
    """

    target: int
    evaluations: int
    documents: int
    windows: int
    known: tuple[str, ...]


# A pass takes a core 65 s at 16,384 tokens and four minutes at 32,768.
SETTINGS = (
    Setting(16_384, evaluations=22, documents=2, windows=5, known=("none", "PI", "NTK", "YaRN 32/1")),
    Setting(32_768, evaluations=14, documents=1, windows=2, known=("NTK", "YaRN 32/1")),
)


@dataclass(frozen=True)
class Loss:
    """One measured window."""

    target: int
    method: str
    window: int
    nll: float


@dataclass
class Headline:
    """The model, what was measured so far, and where that is kept."""

    checkpoint: Checkpoint
    threads: int
    folder: Path

    @cached_property
    def losses(self) -> dict[tuple[int, str, int], Loss]:
        lines = self._log.read_text().splitlines() if self._log.is_file() else []
        return {(loss.target, loss.method, loss.window): loss for loss in (Loss(**json.loads(line)) for line in lines)}

    @property
    def _log(self) -> Path:
        return self.folder / "losses.jsonl"

    def search(self, setting: Setting) -> SearchResult:
        """`auto` on the search texts, which no held-out window comes from."""
        folder = self.folder / f"search-{setting.target}"
        options = SearchOptions(
            max_evals=setting.evaluations,
            num_documents=setting.documents,
            dtype="bfloat16",
            device="cpu",
            threads=self.threads,
        )
        corpus = load_corpus([default_model.SEARCH_TEXTS], self.checkpoint.encode)
        resume = (folder / JOURNAL_NAME).is_file()
        return search(self.checkpoint, corpus, setting.target, options=options, journal_dir=folder, resume=resume)

    def methods(self, setting: Setting, found: SearchResult) -> dict[str, Candidate]:
        """The table's rows, each a candidate that holds its attention factor."""
        ramps = [point for point in found.starting_points if point.name.startswith("YaRN")]
        best = min(ramps, key=lambda point: point.loss)
        known = known_candidates(self.checkpoint, setting.target)
        rows = {name: known[name] for name in setting.known}
        rows[f"best ramp, {best.name}"] = with_attention(best.candidate, found.factors)
        rows["auto"] = Candidate.of(found.factors, "long")
        return rows

    def measure(self, setting: Setting, rows: Mapping[str, Candidate]) -> None:
        """Every row on every window, window by window, so that a stopped bench holds whole comparisons."""
        corpus = load_corpus([default_model.TEST_TEXTS], self.checkpoint.encode)
        model = WindowModel(self.checkpoint, Machine("cpu", "bfloat16", threads=self.threads))
        for number, ids in enumerate(corpus.windows(setting.target, setting.windows)):
            measured: dict[Candidate, float] = {}
            for name, candidate in rows.items():
                kept = self.losses.get((setting.target, name, number))
                if kept is None:  # a row may be another one's candidate: where no step beat the best ramp
                    nll = measured[candidate] if candidate in measured else model.nll(candidate, Window(ids))
                    self._keep(kept := Loss(setting.target, name, number, nll))
                measured[candidate] = kept.nll

    def _keep(self, loss: Loss) -> None:
        self.losses[loss.target, loss.method, loss.window] = loss
        with self._log.open("a") as log:
            log.write(json.dumps(asdict(loss)) + "\n")
        say(f"  {loss.target} {loss.method}, window {loss.window}: {perplexity(loss.nll):.3f}")

    def table(self, setting: Setting, rows: Mapping[str, Candidate]) -> Iterator[dict[str, Any]]:
        """Perplexity with its standard error over windows, and each row against `auto` on the same windows."""
        losses = {
            name: np.array([self.losses[setting.target, name, i].nll for i in range(setting.windows)]) for name in rows
        }
        for name, values in losses.items():
            (mean, error), (apart, apart_error) = paired(values, 0), paired(values, losses["auto"])
            yield {
                "target": setting.target,
                "method": name,
                "windows": len(values),
                "perplexity": perplexity(mean),
                "standard_error": perplexity(mean) * error,
                "above_auto": float(np.expm1(apart)),
                "above_auto_standard_error": apart_error,
            }


@click.command()
@click.option("--threads", default=2, show_default=True, help="Threads of torch.")
@click.option("--folder", type=click.Path(path_type=Path), default=FOLDER, help="Of journals and measured windows.")
def main(threads: int, folder: Path) -> None:
    """Search and measure every setting; what is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    headline, table = Headline(open_checkpoint(str(smollm2())), threads, folder), []
    for setting in SETTINGS:
        found = headline.search(setting)
        say(f"{setting.target}: {found.evaluations} candidates, {found.tokens} tokens, best: {found.label}")
        rows = headline.methods(setting, found)
        headline.measure(setting, rows)
        searched = {"minutes": found.measuring_seconds / 60, "tokens": found.tokens, "best": found.label}
        table += [
            {**row, "search": searched} if row["method"] == "auto" else row for row in headline.table(setting, rows)
        ]
        write_json(RESULTS / "smollm2.json", {"rows": table, "provenance": provenance()})
        for row in table:
            say(f"{row['target']:6} {row['method']:20} {row['perplexity']:8.3f} ± {row['standard_error']:.3f}")


if __name__ == "__main__":
    main()
