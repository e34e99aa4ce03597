"""What the sections share: what is checked and how much of it, rows of the table, clocks and memory of a device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from longrope.checkpoint import Checkpoint
from longrope.factors import BoundFactors, RescaleFactors
from longrope.machine import Machine, Precision, resolve
from longrope.search.measure import WindowModel
from longrope.search.methods import known_candidates
from longrope.search.trial import Candidate
from longrope.text import Corpus, TokenIds, load_corpus

State = Literal["ok", "failed", "measured", "left out"]
GIB = 2**30


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        what: was looked at.
        value: what was found, as text.
        number: the same as a number, in the unit that `value` names; None for what is none.
        expected: what it should be, where something is expected.
        state: `failed` where it is not that.
    """

    what: str
    value: str
    number: float | None = None
    expected: str = ""
    state: State = "measured"


Step = Callable[["Setting"], Iterator[Row]]


@dataclass(frozen=True)
class Budget:
    """How much is checked.

    Args:
        exact: tokens of the window that the CPU computes in float32, too.
        lengths: windows whose memory and speed are measured.
        target: L' of the headline.
        tested: lengths of its table.
        windows: held-out windows of each, at most.
        search_windows: that candidates are ranked on.
        evaluations: of the search.
        depths: of passkeys.
        train_steps, train_row: of the fine-tuning; steps of `train_row` tokens.
    """

    exact: int
    lengths: tuple[int, ...]
    target: int
    tested: tuple[int, ...]
    windows: int
    search_windows: int
    evaluations: int
    depths: tuple[float, ...]
    train_steps: int
    train_row: int


# For a model of 135M parameters and 8192 tokens on one H100-class GPU, and for the built-in one on a CPU.
FULL = Budget(
    exact=1024,
    lengths=(4096, 32_768, 131_072),
    target=65_536,
    tested=(8192, 16_384, 32_768, 65_536),
    windows=5,
    search_windows=1,
    evaluations=40,
    depths=(0.1, 0.3, 0.5, 0.7, 0.9),
    train_steps=300,
    train_row=32_768,
)
TINY = Budget(
    exact=128,
    lengths=(256, 512),
    target=512,
    tested=(256, 512),
    windows=2,
    search_windows=1,
    evaluations=2,
    depths=(0.5,),
    train_steps=2,
    train_row=512,
)


@dataclass(frozen=True, eq=False)
class Setting:
    """What is checked, on what, and where runs are kept.

    Args:
        checkpoint: the model before extension.
        device: a torch device.
        budget: how much.
        folder: of runs that are resumed.
        search_texts, test_texts, train_texts: files or folders.
    """

    checkpoint: Checkpoint
    device: str
    budget: Budget
    folder: Path
    search_texts: Path
    test_texts: Path
    train_texts: Path

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def dtype(self) -> Precision:
        """What models run in where speed is measured: 16 bits on a GPU, even for a checkpoint in float32."""
        found = resolve(self.device, "auto", self.checkpoint)[1]
        return "bfloat16" if self.on_gpu and found == "float32" else found

    @cached_property
    def search_corpus(self) -> Corpus:
        return load_corpus([self.search_texts], self.checkpoint.encode)

    @cached_property
    def test_corpus(self) -> Corpus:
        return load_corpus([self.test_texts], self.checkpoint.encode)

    @cached_property
    def train_corpus(self) -> Corpus:
        return load_corpus([self.train_texts], self.checkpoint.encode)

    @cached_property
    def ntk(self) -> Candidate:
        """The candidate that stands for any where only memory, speed or one step is looked at."""
        return known_candidates(self.checkpoint, self.budget.target)["NTK"]

    def window_model(self) -> WindowModel:
        """A new model that measures candidates."""
        return WindowModel(self.checkpoint, Machine(self.device, self.dtype))

    def ids(self, length: int) -> TokenIds:
        """So many tokens of real text, documents laid end to end where none is as long."""
        return np.resize(np.concatenate([document.ids for document in self.test_corpus.documents]), length)

    def bound(self, candidate: Candidate) -> BoundFactors:
        """A candidate as the one set of an extended model."""
        factors = RescaleFactors(
            candidate.factors, candidate.factors, attention_factor=candidate.attention_factor, method="checked"
        )
        return self.checkpoint.bind(factors, target=self.budget.target)


def judged(what: str, number: float, limit: float, unit: str = "", *, at_least: bool = False) -> Row:
    """A row whose number has a limit; a non-finite one fails."""
    good = math.isfinite(number) and (number >= limit if at_least else number <= limit)
    sign = "≥" if at_least else "≤"
    return Row(what, f"{number:.3g}{unit}", number, f"{sign} {limit:g}{unit}", "ok" if good else "failed")


def gibibytes(what: str, amount: float | None) -> Row:
    """A row of memory; a CPU's processes share theirs, so there it is left out."""
    if amount is None:
        return Row(what, "not measured on this device", state="left out")
    return Row(what, f"{amount / GIB:.2f} GiB", amount / GIB)


def synchronize(device: str) -> None:
    """Wait until a GPU has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: str) -> float:
    """Wall time of the faster of two runs, after one that warms up."""
    times = []
    for _ in range(3):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def peak_bytes(work: Callable[[], object], device: str) -> float | None:
    """Most bytes that torch had allocated on a GPU while this ran; None elsewhere."""
    if not device.startswith("cuda"):
        work()
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return float(torch.cuda.max_memory_allocated(device))


def cosine_gap(actual: Sequence[float], expected: Sequence[float]) -> float:
    """1 − cosine of the angle between two vectors."""
    left, right = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(1 - left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))
