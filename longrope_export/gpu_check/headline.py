"""The headline: perplexity and passkeys by length, of known methods and of a search, before and after training."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np

from longrope import retrieval
from longrope.checkpoint import Checkpoint
from longrope.finetune.options import TrainOptions
from longrope.finetune.stages import Stage
from longrope.finetune.trainer import finetune
from longrope.machine import Machine
from longrope.metrics import mean_perplexity
from longrope.modeling import TorchSource, build_model
from longrope.search.measure import WindowModel
from longrope.search.methods import known_candidates
from longrope.search.objective import Window
from longrope.search.options import SearchOptions
from longrope.search.run import JOURNAL_NAME, SearchResult, search
from longrope.search.trial import Candidate
from longrope_export.gpu_check.base import Row, Setting, Step

# Of the table, those that answer passkeys, too.
ASKED = ("none", "YaRN 32/1", "auto")


def methods(setting: Setting) -> Iterator[Row]:
    """Held-out perplexity at every length: no scaling, PI, NTK, YaRN, the best of YaRN's grid, and `auto`."""
    for strategy in ("seeds", "auto"):
        start = time.perf_counter()
        found = searched(setting, strategy)
        minutes = (time.perf_counter() - start) / 60
        yield Row(
            f"{strategy}: {found.evaluations} candidates measured, best: {found.label}", f"{minutes:.1f} min", minutes
        )
    yield from _table(setting, setting.checkpoint, candidates(setting))


def passkeys(setting: Setting) -> Iterator[Row]:
    """Passkeys found at every length, the answer given token by token."""
    rows = candidates(setting)
    for name in ASKED:
        yield from _retrieval(setting, setting.checkpoint, rows[name], name)


def training(setting: Setting) -> Iterator[Row]:
    """Fine-tuning with the searched factors, and the same table."""
    budget, start = setting.budget, time.perf_counter()
    best = candidates(setting)["auto"]
    stage = Stage(
        budget.target,
        steps=budget.train_steps,
        batch=1,
        sequence_length=budget.train_row,
        warmup=min(20, budget.train_steps - 1),
    )
    options = TrainOptions(device=setting.device, save_every=budget.train_steps)
    folder = setting.folder / "training"
    resumable = (folder / "training.json").is_file()
    trained = finetune(
        setting.checkpoint, setting.bound(best), stage, setting.train_corpus, folder, options=options, resume=resumable
    )
    what = f"{stage.steps} training steps of {stage.row_length} tokens"
    minutes = (time.perf_counter() - start) / 60
    yield Row(what, f"{minutes:.1f} min", minutes)
    yield Row(
        f"{what}: loss", f"{trained.records[0].loss:.3f} → {trained.records[-1].loss:.3f}", trained.records[-1].loss
    )
    yield from _table(setting, trained.checkpoint, {"auto, trained": best})
    yield from _retrieval(setting, trained.checkpoint, best, "auto, trained")


@cache
def searched(setting: Setting, strategy: str) -> SearchResult:
    """A search on the search texts, with a journal in the setting's folder."""
    budget, folder = setting.budget, setting.folder / strategy
    options = SearchOptions(
        strategy=strategy,
        max_evals=budget.evaluations,
        num_documents=budget.search_windows,
        device=setting.device,
        dtype=setting.dtype,
    )
    resumable = (folder / JOURNAL_NAME).is_file()
    return search(
        setting.checkpoint, setting.search_corpus, budget.target, options=options, journal_dir=folder, resume=resumable
    )


def candidates(setting: Setting) -> Mapping[str, Candidate]:
    """The table's rows."""
    rows = known_candidates(setting.checkpoint, setting.budget.target)
    for name, strategy in (("best known ramp", "seeds"), ("auto", "auto")):
        rows[name] = Candidate.of(searched(setting, strategy).factors, "long")
    return rows


def _table(setting: Setting, checkpoint: Checkpoint, rows: Mapping[str, Candidate]) -> Iterator[Row]:
    model = WindowModel(checkpoint, Machine(setting.device, setting.dtype))
    for length in setting.budget.tested:
        windows = [Window(ids) for ids in setting.test_corpus.windows(length, setting.budget.windows)]
        for name, candidate in rows.items():
            losses = [model.nll(candidate, window) for window in windows]
            ppl = mean_perplexity(losses)
            error = f" ± {ppl * np.std(losses, ddof=1) / len(losses) ** 0.5:.2f}" if len(losses) > 1 else ""
            yield Row(f"{name}: perplexity at {length}, {len(losses)} windows", f"{ppl:.2f}{error}", ppl)


def _retrieval(setting: Setting, checkpoint: Checkpoint, candidate: Candidate, name: str) -> Iterator[Row]:
    factors = setting.bound(candidate)
    model = build_model(checkpoint, factors, dtype=setting.dtype, device=setting.device)
    source, start = TorchSource(model, factors, name=name), checkpoint.added_around[0]
    filler = np.concatenate([document.ids[len(start) :] for document in setting.test_corpus.documents])
    for length in setting.budget.tested:
        found = [
            retrieval.measure(
                source,
                list(retrieval.samples_of("passkey", checkpoint.encode_plain, filler, length, depth, 1, 0, start)),
            )
            for depth in sorted(setting.budget.depths, reverse=True)
        ]
        share = sum(row.accuracy for row in found) / len(found)
        yield Row(f"{name}: passkeys found at {length}", f"{share:.0%} of {len(found)}", share)
    source.close()


STEPS: tuple[Step, ...] = (methods, passkeys, training)
