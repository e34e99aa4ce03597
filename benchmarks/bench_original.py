"""Is a rescaled model better extended from its released window, or from the one before (`--original`)?

    python -m benchmarks.bench_original            10 minutes on one idle core; benchmarks/results/original.json

The built-in model (256 tokens) is trained a little with Llama 3.1's rescaling to 1,024 tokens, which stands for a published
model. Two searches extend that to 4,096 tokens with the same texts, budget and seed: on top of the rescaling, and on the
plain RoPE from 256 tokens. Each row is the perplexity of whole held-out windows, all of them rotated by the searched set.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import click

from benchmarks.figures import RESULTS, Figures, say
from longrope.checkpoint import Checkpoint, open_checkpoint, unscaled_factors
from longrope.factors import RescaleFactors
from longrope.files import write_json
from longrope.finetune.options import TrainOptions
from longrope.finetune.stages import Stage
from longrope.finetune.trainer import finetune
from longrope.metrics import perplexity
from longrope.progress import Silent
from longrope.search import Candidate, SearchOptions, evaluate_methods, search
from longrope.text import Corpus, load_corpus
from longrope_export import default_model

BEFORE, RELEASED, TARGET = 256, 1024, 4096
ROPE = {
    "rope_theta": 10_000.0,
    "rope_type": "llama3",
    "factor": RELEASED / BEFORE,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": BEFORE,
}
# A length is measured on so many held-out tokens, never on fewer windows than this.
HELD_OUT_TOKENS, MIN_WINDOWS = 49_152, 6


def released_model(folder: Path, corpus: Corpus, steps: int) -> Checkpoint:
    """The built-in model after training at `RELEASED` tokens with `ROPE`, in a folder whose config.json says so."""
    shutil.copytree(default_model.CHECKPOINT, folder / "announced")
    base = _rescaled(folder / "announced").base
    given = RescaleFactors(base.long_factor, base.long_factor, target_length=RELEASED, attention_factor=1.0)
    plain = open_checkpoint(default_model.CHECKPOINT)
    stage = Stage(length=RELEASED, steps=steps, batch=4, learning_rate=2e-4, warmup=min(10, steps))
    trained = finetune(
        plain, plain.bind(given), stage, corpus, folder / "run", options=TrainOptions(threads=1), progress=Silent()
    )
    losses = [record.loss for record in trained.records]
    say(f"  trained on {trained.tokens / 1e6:.2f}M tokens, loss {losses[0]:.3f} → {losses[-1]:.3f}")
    shutil.copytree(trained.checkpoint.path, folder / "released")
    return _rescaled(folder / "released")


def _rescaled(folder: Path) -> Checkpoint:
    """The model of a folder, with `ROPE` written into its config.json."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config.pop("rope_scaling", None)
    changed = {"rope_parameters": ROPE, "max_position_embeddings": RELEASED, "original_max_position_embeddings": BEFORE}
    write_json(file, {**config, **changed})
    return open_checkpoint(folder)


def searched(model: Checkpoint, texts: Corpus, max_evals: int, room: Path) -> Candidate:
    """The long set that a search for `TARGET` tokens finds."""
    options = SearchOptions(max_evals=max_evals, threads=1)
    found = search(model, texts, TARGET, options=options, journal_dir=room / str(model.window), progress=Silent())
    say(f"  from {model.window} tokens: {found.evaluations} evaluations, {found.tokens / 1e6:.2f}M tokens")
    return Candidate.of(found.factors, "long")


def compare(figures: Figures, texts: Corpus, held_out: Corpus, steps: int, max_evals: int) -> None:
    """Perplexity of both extensions, and of the released model itself, at the three windows."""
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        released = released_model(room, texts, steps)
        before = released.from_original(BEFORE)
        rows = {
            "as released": (released, Candidate.of(unscaled_factors(released, RELEASED + 1), "long")),
            f"from the released {RELEASED}": (released, searched(released, texts, max_evals, room)),
            f"--original {BEFORE}": (before, searched(before, texts, max_evals, room)),
        }
        for length in (BEFORE, RELEASED, TARGET):
            windows = held_out.first_windows(length, max(HELD_OUT_TOKENS // length, MIN_WINDOWS))
            for name, (model, candidate) in rows.items():
                [score] = evaluate_methods(model, windows, TARGET, {name: candidate}, methods=())
                figures.add("windows", f"{name}, perplexity at {length}", "measured", f"{perplexity(score.loss):.3f}")


@click.command(help="Extend a rescaled model from its released window and from the one before.")
@click.option("--steps", default=200, show_default=True, help="Of the training that makes the released model.")
@click.option("--max-evals", default=48, show_default=True, help="Of each search.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, help="Folder of the results; for trials.")
def main(steps: int, max_evals: int, results: Path) -> None:
    plain = open_checkpoint(default_model.CHECKPOINT)
    texts, held_out = (
        load_corpus([each], plain.encode) for each in (default_model.SEARCH_TEXTS, default_model.TEST_TEXTS)
    )
    figures = Figures("original", {"steps": steps, "max_evals": max_evals}, folder=results)
    raise SystemExit(figures.run({"windows": lambda: compare(figures, texts, held_out, steps, max_evals)}))


if __name__ == "__main__":
    main()
