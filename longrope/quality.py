"""What an extension costs inside the original window and brings beyond it, whatever runtime an artifact is for.

    one loaded model ─┬─ original RoPE ─────┐                 ┌─ inside:  change of perplexity, KL
                      ├─ extended ──────────┼─ same windows ──┼─ beyond:  NLL of each window by method
                      └─ PI, NTK, YaRN ─────┘                 ├─ passkeys
                                                              └─ controls: must differ, must not differ

All of them have the weights of the checkpoint: of a fine-tuned model, `original` is that model without its extension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeVar

import numpy as np

from longrope.base_rope import BaseRope
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError, MissingRequirementError, UnsupportedError
from longrope.factors import BoundFactors, FactorSet
from longrope.machine import Machine
from longrope.measures import BeyondScore, PasskeyScore, Quality, WindowScore
from longrope.progress import Progress
from longrope.retrieval import measure, samples_of
from longrope.scoring import Run, compare_runs
from longrope.search.measure import WindowModel
from longrope.search.methods import known_candidates, score_candidates
from longrope.search.trial import Candidate
from longrope.text import Corpus, TokenIds

Result = TypeVar("Result")
# Methods that an extension stands beside, by their names in `known_candidates`.
METHODS: Final[Mapping[str, str]] = {"PI": "PI", "NTK": "NTK", "YaRN": "YaRN 32/1"}
# Of the statements of the passkeys of one length, one prompt each.
DEPTHS: Final = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class QualityOptions:
    """How much to measure.

    Args:
        windows: lengths in tokens, beside the original window and the target, which are always measured.
        windows_per_length: at most so many windows of each length.
    """

    windows: tuple[int, ...] = ()
    windows_per_length: int = 4


def measure_quality(
    checkpoint: Checkpoint,
    extensions: Sequence[BoundFactors],
    corpus: Corpus,
    options: QualityOptions,
    machine: Machine,
    progress: Progress,
) -> list[Quality]:
    """The quality of extensions of one model to one target that differ in their sets; each is measured once.

    What cannot be measured (texts too short, no room for the model, a rotary embedding that cannot be exchanged) is left
    out with its reason.

    Args:
        checkpoint: the model, extended or not.
        extensions: factors for it.
        corpus: texts that the windows, and the filler of passkeys, are cut from.
        options: lengths and numbers.
        machine: device, dtype and threads.
        progress: where bars go.
    """
    if not extensions:
        return []
    try:
        model = WindowModel(checkpoint, machine)
    except (UnsupportedError, MissingRequirementError) as error:
        return [Quality(left_out=dict.fromkeys(("inside", "beyond", "passkey", "control"), str(error)))] * len(
            extensions
        )
    measuring = _Measuring(checkpoint, model, extensions[0], corpus, options, progress)
    return [measuring.quality(factors) for factors in extensions]


class _Measuring:
    """One loaded model under several RoPEs; what two extensions share is measured once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: WindowModel,
        factors: BoundFactors,
        corpus: Corpus,
        options: QualityOptions,
        progress: Progress,
    ) -> None:
        self.checkpoint, self.model, self.corpus = checkpoint, model, corpus
        self.options, self.progress = options, progress
        self.original, self.target = factors.original, factors.target
        self.base: BaseRope = factors.base or checkpoint.base_for(factors.target)
        self._found: dict[tuple[str, Candidate, int], Any] = {}
        self._losses: dict[tuple[Candidate, int], tuple[float, ...]] = {}

    def quality(self, factors: BoundFactors) -> Quality:
        """What is measured of one extension."""
        left_out: dict[str, str] = {}
        lengths = sorted({*self.options.windows, self.original, self.target})
        inside = [
            self._once(self._inside, self._extended(factors, length), length)
            for length in self._measurable([each for each in lengths if each <= self.original], "inside", left_out)
        ]
        above = self._measurable([each for each in lengths if each > self.original], "beyond", left_out)
        beyond = [self._once(self._beyond, self._extended(factors, length), length) for length in above]
        return Quality(
            tuple(inside),
            tuple(beyond),
            tuple(self._passkeys(factors, lengths, left_out)),
            self._once(self._controls, self._extended(factors, above[0]), above[0]) if above else {},
            left_out if above else {**left_out, "control": "no text is longer than the original window"},
        )

    def _once(self, measured: Callable[[Candidate, int], Result], rope: Candidate, length: int) -> Result:
        """What is measured of a RoPE at a length, the first time that it is asked for."""
        key = (measured.__name__, rope, length)
        if key not in self._found:
            self._found[key] = measured(rope, length)
        found: Result = self._found[key]
        return found

    def _measurable(self, lengths: Sequence[int], side: str, left_out: dict[str, str]) -> list[int]:
        """Those that the texts are long enough for."""
        found = []
        for length in lengths:
            try:
                self._windows(length)
            except InputError as error:
                left_out[f"{side}.{length}"] = str(error)
            else:
                found.append(length)
        return found

    def _windows(self, length: int) -> list[TokenIds]:
        return self.corpus.windows(length, self.options.windows_per_length)

    def _extended(self, factors: BoundFactors, length: int) -> Candidate:
        return Candidate.of(factors, factors.set_for_length(length))

    def _unextended(self, length: int) -> Candidate:
        """The RoPE that was extended."""
        base = self.base
        factors = base.short_factor if length <= base.switch else base.long_factor
        return Candidate(factors, attention_factor=base.attention_factor)

    def _inside(self, extended: Candidate, length: int) -> WindowScore:
        return self._compared(extended, length, self._windows(length), {"inside": (0, 1)})["inside"]

    def _controls(self, extended: Candidate, length: int) -> dict[str, WindowScore]:
        """The extended model against the original, and against itself in another pass, on one window."""
        return self._compared(extended, length, self._windows(length)[:1], {"differs": (0, 1), "same": (1, 2)})

    def _compared(
        self, extended: Candidate, length: int, windows: Sequence[TokenIds], pairs: Mapping[str, tuple[int, int]]
    ) -> dict[str, WindowScore]:
        """Pairs of the original (0) and the extended model (1, 2) in step."""
        ropes = [self._unextended(length), *[extended] * max(actual for _, actual in pairs.values())]
        runs = [Run(self.model.source(rope, self.checkpoint.name), "long") for rope in ropes]
        regime: FactorSet = "long" if length > self.original else "short"
        with self.progress.task(f"quality at {length} tokens", len(runs) * len(windows) * length) as task:
            return compare_runs(
                runs, pairs, windows, regime=regime, on_tokens=lambda tokens: task.advance(len(runs) * tokens)
            )

    def _beyond(self, extended: Candidate, length: int) -> BeyondScore:
        """What another extension has measured at this length is not measured again."""
        known = {name: self._known[own] for name, own in METHODS.items()}
        ropes = {"original": self._unextended(length), **known, "extended": extended}
        missing = {name: rope for name, rope in ropes.items() if (rope, length) not in self._losses}
        for score in score_candidates(self.model, missing, self._windows(length), self.progress):
            self._losses[ropes[score.name], length] = score.losses
        losses = {name: self._losses[rope, length] for name, rope in ropes.items()}
        return BeyondScore(length, losses.pop("extended"), losses)

    @cached_property
    def _known(self) -> dict[str, Candidate]:
        return known_candidates(self.checkpoint, self.target, self.base)

    def _passkeys(
        self, factors: BoundFactors, lengths: Sequence[int], left_out: dict[str, str]
    ) -> Iterator[PasskeyScore]:
        """The original's inside its window, then the extended model's, unless the original finds none."""
        try:
            found = self._once(self._recalled, self._unextended(self.original), self.original)
        except InputError as error:
            left_out["passkey"] = f"the original model cannot be asked for one: {error}"
            return
        yield PasskeyScore("original", self.original, len(DEPTHS), found)
        if not found:
            left_out["passkey"] = (
                f"the original model finds none of {len(DEPTHS)} passkeys inside its window of {self.original} tokens"
            )
            return
        for length in lengths:
            try:
                found = self._once(self._recalled, self._extended(factors, length), length)
            except InputError as error:
                left_out[f"passkey.{length}"] = str(error)
            else:
                yield PasskeyScore("extended", length, len(DEPTHS), found)

    def _recalled(self, rope: Candidate, length: int) -> int:
        """How many passkeys are found, each in another text, with another number."""
        source = self.model.source(rope, self.checkpoint.name)
        start = self.checkpoint.added_around[0]
        filler = np.concatenate([document.ids[len(start) :] for document in self.corpus.documents])
        encode, found = self.checkpoint.encode_plain, 0
        with self.progress.task(f"passkeys at {length} tokens", len(DEPTHS)) as task:
            for seed, depth in enumerate(DEPTHS):
                samples = list(samples_of("passkey", encode, filler, length, depth, 1, seed, start))
                found += round(measure(source, samples).accuracy)
                task.advance()
        return found
