"""`explain`: run an artifact on a few windows, and find out why it is not the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from converters import isolation
from converters.base import Check, Converter, PlannedExport
from converters.explain.causes import Explanation, Part
from converters.explain.naming import Findings, explanation
from converters.explain.parts import KEPT, compare_parts, right_by_itself
from converters.explain.reference import TrialModel
from converters.explain.rotations import Rotation
from converters.explain.trials import Verdict, try_changes
from converters.explain.windows import Window, only_the_cache, run_window
from converters.isolation import Workplace
from converters.own_weights import WeightKind
from converters.sources import batch_and_alone
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError, LongRopeError, UnsupportedError
from longrope.factors import BoundFactors, RescaleFactors
from longrope.scoring import LogitSource, divergence
from longrope.text import TokenIds

# What a runtime's arithmetic explains, by `WeightKind.arithmetic`: KL in nats per token, and the relative error of a part.
ARITHMETIC: Mapping[str, tuple[float, float]] = {
    "same": (1e-6, 2e-3),
    "f32": (1e-6, 2e-3),
    "f16": (1e-4, 1e-2),
    "bf16": (1e-3, 5e-2),
    "int8": (1e-2, 8e-2),
}
# Runtimes and transformers round an angle to float32, by up to this times the position; KL grows with its square.
_ANGLE = 2.0**-24
# What rounded weights explain, where the reference cannot be given them.
_ROUNDED = (0.25, 0.5)
# Tokens that are decoded one by one, after so many in one pass.
_DECODED, _PREFILLED = 8, 32


@dataclass(frozen=True)
class Suspect:
    """An artifact that fails.

    Args:
        path: where it is.
        converter: who reads it.
        planned: the plan it must follow: the reference, with the factors that it must carry.
        checks: its failed checks.
        workplace: a process of its own for its runtime, not used before; None for this one.
    """

    path: Path
    converter: Converter
    planned: PlannedExport
    checks: Sequence[Check] = ()
    workplace: Workplace | None = None

    @property
    def factors(self) -> BoundFactors:
        return self.planned.export.factors

    @property
    def reference(self) -> Checkpoint:
        return self.planned.export.checkpoint


def explain(suspect: Suspect, ids: TokenIds, *, device: str = "cpu", threads: int | None = None) -> Explanation:
    """Find the likeliest cause of a failure.

    Args:
        suspect: the artifact.
        ids: [T] tokens of a text, beyond the original window where the artifact fails there.
        device: torch device of the reference.
        threads: of the artifact's runtime.
    """
    try:
        source = isolation.open_source(
            suspect.converter,
            suspect.path,
            suspect.factors,
            max_length=len(ids) + 1,
            threads=threads,
            workplace=suspect.workplace,
        )
    except InputError as error:
        return explanation(Findings(suspect.checks, notes=[f"its runtime does not open it: {error}"], opened=False))
    try:
        return explanation(_findings(suspect, source, ids, device))
    except LongRopeError as error:
        return explanation(Findings(suspect.checks, notes=[f"nothing was compared: {error}"]))
    finally:
        source.close()


def _findings(suspect: Suspect, source: LogitSource, ids: TokenIds, device: str) -> Findings:
    factors, stored = suspect.factors, _stored(suspect)
    yardstick = _yardstick(suspect, device)
    model, floor = yardstick.model, yardstick.kl + (_ANGLE * len(ids)) ** 2
    if source.vocab_size != model.vocab_size:
        raise InputError(f"its vocabulary has {source.vocab_size} tokens, the reference's {model.vocab_size}")
    windows = [run_window(source, model, ids[:length], factors) for length in _lengths(factors, len(ids))]
    differing = [window for window in windows if not window.kl_mean <= floor]
    parts, notes = _parts(source, yardstick, max(windows, key=_severity), factors) if differing else ((), [])
    rotating = [layer for layer in range(model.num_layers) if suspect.reference.rotates(layer) == "extended"]
    decoding = _decoding(source, ids)
    elsewhere = right_by_itself(parts, rotating) or only_the_cache(decoding, windows, floor)
    verdicts = [
        try_changes(model, window, factors, stored, floor)
        if window in differing and window.rotation_may_explain(floor) and not elsewhere
        else Verdict(window, window.kl_mean, (), floor)
        for window in windows
    ]
    return Findings(
        checks=suspect.checks,
        verdicts=verdicts,
        shapes=[window.shape(floor, factors.original) for window in windows],
        parts=parts,
        decoding=decoding,
        padding=_padding(source, ids),
        floor=floor,
        notes=[*yardstick.notes, *notes],
    )


@dataclass(frozen=True)
class _Yardstick:
    """The reference, and how far its arithmetic may be off.

    Args:
        model: with the artifact's own weights, where those are rounded.
        kl: in nats per token.
        part: relative error of a part.
        notes: what could not be done.
    """

    model: TrialModel
    kl: float
    part: float
    notes: tuple[str, ...] = ()


def _yardstick(suspect: Suspect, device: str) -> _Yardstick:
    try:
        kind = suspect.converter.weight_kind(suspect.path, suspect.reference)
    except InputError:
        kind = WeightKind("f32", rounded=False, arithmetic="f32")  # the failed checks report it
    if kind.rounded:
        try:
            weights = suspect.planned.own_weights(suspect.path)
        except LongRopeError as error:
            model, note = TrialModel(suspect.reference, suspect.factors, device), f"compared with the original: {error}"
            return _Yardstick(model, *_ROUNDED, (note,))
        model = TrialModel(suspect.reference, suspect.factors, device, weights)
        note = (
            f"compared with a reference of the artifact's own {kind.name} weights, which hides what is wrong with them"
        )
        return _Yardstick(model, *ARITHMETIC.get(kind.arithmetic, _ROUNDED), (note,))
    model = TrialModel(suspect.reference, suspect.factors, device)
    return _Yardstick(model, *ARITHMETIC.get(kind.arithmetic, _ROUNDED))


def _lengths(factors: BoundFactors, tokens: int) -> list[int]:
    """Windows within the original one, as long as it is, longer by a token, and whole."""
    original = factors.original
    wanted = {max(original // 2, 2), original, original + 1} if factors.factor_sets == "dual" else {original}
    return sorted({length for length in wanted if length < tokens} | {tokens})


def _severity(window: Window) -> float:
    return window.kl_mean if window.non_finite is None else float("inf")


def _stored(suspect: Suspect) -> RescaleFactors | None:
    """The factors as the artifact holds them; None where it has none, or none that can be read."""
    try:
        return suspect.converter.read_factors(suspect.path)
    except InputError:
        return None


def _parts(
    source: LogitSource, yardstick: _Yardstick, window: Window, factors: BoundFactors
) -> tuple[tuple[Part, ...], list[str]]:
    """Every part by itself, and what stood in the way."""
    states_of = getattr(source, "hidden_states", None)
    states: Tensor | None = None
    try:
        if states_of is not None:
            states = states_of(window.ids, window.regime, min(KEPT, len(window.ids)))
        if states is None:
            return (), ["layers were not compared: this runtime does not give its hidden states"]
        logits = next(iter(source.logits(window.ids, window.regime, states.shape[1])))
        rotation = Rotation.of(factors, window.regime)
        return compare_parts(states, logits, yardstick.model, window, rotation, yardstick.part), []
    except UnsupportedError as error:
        return (), [f"layers were not compared: {error}"]


def _decoding(source: LogitSource, ids: TokenIds) -> float | None:
    """KL of tokens that are decoded one by one against the same in one pass; None where the text is too short."""
    tokens = ids[: _PREFILLED + _DECODED]
    if len(tokens) < _PREFILLED + _DECODED:
        return None
    whole = torch.cat(list(source.logits(tokens, source.set_for(len(tokens)), len(tokens))))
    decoded = source.decode_logits(tokens, _PREFILLED)
    return float(divergence(whole[_PREFILLED - 1 :], decoded).mean())


def _padding(source: LogitSource, ids: TokenIds) -> float | None:
    """KL of two texts in one batch, one of them padded, against each alone; None where the runtime takes one text."""
    found = batch_and_alone(source, ids)
    if found is None:
        return None
    together, alone, _ = found
    return float(divergence(alone, together).mean())
