"""What `validate --quality` measured of extensions, as the rows and sentences of reports; without torch.

suites ──extensions_of──► Extension: artifacts that share it, rows, passkeys ──sentences──► words
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from converters.base import Status
from converters.quality_checks import Rise
from longrope.measures import Quality
from longrope.metrics import mean_perplexity
from longrope_export.ci.suites import QUALITY, Suite
from longrope_export.words import listed, tokens, with_error

ORIGINAL = "original"


@dataclass(frozen=True)
class Row:
    """The extended model beside the same weights under another RoPE, on the same windows.

    Args:
        length: of the windows, in tokens.
        against: `original`, `PI`, `NTK` or `YaRN`.
        inside: whether they lie inside the original window.
        losses: the extended model's mean NLL of each window, in nats per token.
        other: the perplexity under the other RoPE.
        rise: how far the extended model's is above it.
        kl: KL(original || extended) in nats per token; None beyond the original window.
        status: of its check; None where a policy has none.
    """

    length: int
    against: str
    inside: bool
    losses: tuple[float, ...]
    other: float
    rise: Rise
    kl: float | None
    status: Status | None

    @property
    def ppl(self) -> float:
        """The extended model's."""
        return mean_perplexity(self.losses)

    @property
    def against_words(self) -> str:
        """What it is held against, as people call it."""
        return "original model" if self.against == ORIGINAL else self.against

    @property
    def words(self) -> str:
        """The change of perplexity, and whether it is noise: `+0.83 ± 0.11 %, worse beyond noise`."""
        said = self.rise.words or "one window"
        beyond = " beyond noise" if said in ("worse", "better") else ""
        return f"{with_error(self.rise.percent, self.rise.error)}, {said}{beyond}"


@dataclass(frozen=True)
class Passkeys:
    """Passkeys that a model finds at one length."""

    length: int
    found: int
    samples: int
    status: Status | None

    @property
    def words(self) -> str:
        return f"{self.found} of {self.samples}"


@dataclass(frozen=True)
class Extension:
    """One extension.

    Args:
        artifacts: names of those that carry it.
        rows: comparisons of perplexity, by length.
        passkeys: of the extended model, by length.
        original: of the original model inside its window; None where they were not measured.
        left_out: what was not measured, and why.
    """

    artifacts: tuple[str, ...]
    rows: tuple[Row, ...]
    passkeys: tuple[Passkeys, ...]
    original: Passkeys | None
    left_out: Mapping[str, str]

    @property
    def cost(self) -> Row | None:
        """The longest comparison inside the original window."""
        return max((row for row in self.rows if row.inside), key=lambda row: row.length, default=None)

    @property
    def rival(self) -> Row | None:
        """The published method with the lowest perplexity at the longest length beyond the original window."""
        published = [row for row in self.rows if not row.inside and row.against != ORIGINAL]
        longest = [row for row in published if row.length == max(each.length for each in published)]
        return min((row for row in longest if math.isfinite(row.other)), key=lambda row: row.other, default=None)

    def sentences(self) -> Iterator[str]:
        """The figures that decide, a sentence each."""
        if (cost := self.cost) is not None:
            yield f"Perplexity inside {tokens(cost.length)} tokens against the original model: {cost.words}."
        if (rival := self.rival) is not None:
            yield (
                f"Perplexity at {tokens(rival.length)} tokens against {rival.against}, the best published method there: "
                f"{rival.words}."
            )
        yield from self.recalled

    @property
    def recalled(self) -> Iterator[str]:
        """The passkeys in a sentence; none where they were not measured."""
        if self.passkeys:
            found = [f"{each.words} at {tokens(each.length)} tokens" for each in self.passkeys]
            before = self.original
            beside = (
                f"; the original model finds {before.words} at {tokens(before.length)}" if before is not None else ""
            )
            yield f"Passkeys found: {listed(found)}{beside}."


def extensions_of(suites: Sequence[Suite]) -> list[Extension]:
    """The extensions that were measured; artifacts that carry the same factors share one."""
    alike: list[list[Suite]] = []
    for suite in suites:
        if suite.quality is None:
            continue
        same = next((group for group in alike if group[0].quality == suite.quality), None)
        if same is None:
            alike.append([suite])
        else:
            same.append(suite)
    return [_extension(quality, group) for group in alike for quality in [group[0].quality] if quality is not None]


def _extension(quality: Quality, suites: Sequence[Suite]) -> Extension:
    statuses = {finding.name: finding.status for finding in suites[0].findings}
    return Extension(
        artifacts=tuple(suite.name for suite in suites),
        rows=tuple(sorted(_rows(quality, statuses), key=lambda row: row.length)),
        passkeys=tuple(
            Passkeys(each.length, each.found, each.samples, statuses.get(f"{QUALITY}passkey.{each.length}"))
            for each in quality.passkey
            if each.rope == "extended"
        ),
        original=next(
            (Passkeys(e.length, e.found, e.samples, None) for e in quality.passkey if e.rope == ORIGINAL), None
        ),
        left_out=quality.left_out,
    )


def _rows(quality: Quality, statuses: Mapping[str, Status]) -> Iterator[Row]:
    for score in quality.inside:
        ours, before = (tuple(getattr(text, name) for text in score.texts) for name in ("nll", "nll_reference"))
        status = statuses.get(f"{QUALITY}inside.{score.length}")
        yield Row(score.length, ORIGINAL, True, ours, score.ppl_reference, Rise.of(ours, before), score.kl_mean, status)
    for beyond in quality.beyond:
        for method, losses in beyond.methods.items():
            status = statuses.get(f"{QUALITY}beyond.{method}.{beyond.length}")
            rise, other = Rise.of(beyond.extended, losses), mean_perplexity(losses)
            yield Row(beyond.length, method, False, beyond.extended, other, rise, None, status)
