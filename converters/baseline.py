"""An artifact against an earlier release: what got worse, by how much, and whether that is noise. Without torch.

now, before: texts of one length ──paired, one difference a text──► mean, interval ──► FORMAT.baseline.REGIME.LENGTH
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from converters.base import Check
from converters.measurements import Validation, text_fingerprint, window_id
from longrope.errors import InputError
from longrope.intervals import mean_interval
from longrope.measures import TextScore, WindowScore
from longrope.provenance import published_name


@dataclass(frozen=True)
class Subject:
    """What an earlier release is looked for by: the artifact's name and format, and the fingerprint of the texts."""

    artifact: str
    format: str
    texts: str | None

    @classmethod
    def of(cls, validation: Validation) -> Self:
        """What was validated."""
        texts = text_fingerprint([validation])
        return cls(validation.artifact, validation.format, next(iter(texts), None))


def baseline_of(subjects: Sequence[Subject], earlier: Sequence[Validation], name: str) -> list[Validation]:
    """The earlier release of each artifact: the one of its format, and of its name where there are several.

    Args:
        subjects: the artifacts now.
        earlier: those of an earlier result.
        name: of the file of that result, for messages.

    Raises:
        InputError: it has no such artifact, or was measured on other texts.
    """
    texts = {subject.texts for subject in subjects} - {None}
    if texts and texts != text_fingerprint(earlier):
        raise InputError(
            f"{name}: measured on other texts (their fingerprints differ), so that windows cannot be paired; validate the "
            "earlier release on these texts"
        )
    return [_earlier(subject, earlier, name) for subject in subjects]


def _earlier(subject: Subject, earlier: Sequence[Validation], name: str) -> Validation:
    mine = [each for each in earlier if each.format == subject.format]
    named = [each for each in mine if published_name(each.artifact) == published_name(subject.artifact)]
    if len(found := named or mine) != 1:
        raise InputError(
            f"{name}: expected one {subject.format} artifact to compare {subject.artifact} with, found {len(found)}"
        )
    return found[0]


def baseline_findings(now: Validation, before: Validation) -> list[Check]:
    """Whether both can be compared, then one check for each window length: a warning where this release is worse."""
    known = {(score.regime, score.length): score for score in before.windows}
    left_out = [
        Check(window_id(now.format, "baseline", score), "skip", message="measured of the earlier release alone")
        for key, score in known.items()
        if key not in {(mine.regime, mine.length) for mine in now.windows}
    ]
    return [
        _same_reference(now, before),
        *(_compared(now.format, score, known.get((score.regime, score.length))) for score in now.windows),
        *left_out,
    ]


def _same_reference(now: Validation, before: Validation) -> Check:
    """KL is that to the reference; to another one it cannot be compared."""
    mine, theirs = (each.provenance.get("reference_fingerprint") for each in (now, before))
    same = mine == theirs
    message = (
        "" if same else "the earlier release was held to another model: the change of KL is no change of the artifact"
    )
    return Check(f"{now.format}.baseline.reference", "pass" if same else "warn", theirs, mine, message)


def _compared(format_name: str, now: WindowScore, before: WindowScore | None) -> Check:
    id = window_id(format_name, "baseline", now)
    if before is None or not now.texts or [text.tokens for text in before.texts] != [text.tokens for text in now.texts]:
        return Check(id, "skip", message="the earlier release was not measured on these windows")
    ppl, kl = _differences(now, before, "nll"), _differences(now, before, "kl_mean")
    with np.errstate(over="ignore"):
        sums = (ppl.sum(), kl.sum())
    if not all(map(math.isfinite, (*ppl, *kl, *sums))):
        return Check(id, "fail", _facts(before), _facts(now), "a measure is non-finite")
    found = [_words("perplexity", 100.0 * np.expm1(ppl), " %"), _words("KL", kl, " nats")]
    worse = [words for words, values in zip(found, (ppl, kl), strict=True) if mean_interval(values)[0] > 0.0]
    message = (
        "; ".join(found) if len(now.texts) > 1 else f"{'; '.join(found)}: one window does not tell change from noise"
    )
    return Check(id, "warn" if worse else "pass", _facts(before), _facts(now), message)


def _differences(now: WindowScore, before: WindowScore, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Now less before, one number a text."""
    pairs: list[tuple[TextScore, TextScore]] = list(zip(now.texts, before.texts, strict=True))
    return np.array([getattr(mine, name) - getattr(old, name) for mine, old in pairs])


def _words(what: str, differences: np.ndarray[Any, np.dtype[np.float64]], unit: str) -> str:
    """A change in words, with its interval."""
    low, high = mean_interval(differences)
    mean = float(differences.mean())
    if not math.isfinite(low):
        return f"{what} {mean:+.3g}{unit}"
    judged = "worse" if low > 0 else "better" if high < 0 else "within noise"
    return f"{what} {mean:+.3g}{unit} ({low:+.3g} to {high:+.3g}), {judged}"


def _facts(score: WindowScore) -> dict[str, float]:
    return {"ppl": score.ppl, "kl_mean": score.kl_mean, "top1_agreement": score.top1_agreement}
