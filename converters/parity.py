"""Validation: static checks of an artifact, then its runtime against the reference, window by window.

    artifact ──PlannedExport.check──► Check …    keys, tensors, factors, weights
    artifact ──open_source────► logits ─┐
    reference ─TorchSource────► logits ─┴─ compare_windows ──► WindowScore ──Tolerance──► Check …

The reference is transformers in float32 with the expected factors in its configuration. Several artifacts of one model
are scored in step, so that the reference runs once for all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from converters import isolation
from converters.base import Check, Converter, PlannedExport
from converters.isolation import Workplace
from converters.sources import TensorSource
from converters.tokenizer_checks import text_ids
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError, RuntimeFailedError
from longrope.factors import BoundFactors, FactorSet
from longrope.modeling import TorchSource, build_model, set_threads
from longrope.progress import Progress
from longrope.provenance import provenance, published_name
from longrope.scoring import (
    CHUNK_TOKENS,
    Comparison,
    LogitSource,
    WindowScore,
    check_vocabularies,
    compare_crossing,
    compare_windows,
    crossing_rows,
)
from longrope.text import Corpus, TokenIds

SCHEMA_VERSION = 1
# Tokens before and after the original window in the crossing test.
CROSSING_TOKENS = 8
# Of the longer one of two texts in a batch.
BATCH_TOKENS = 12
# Of the texts that tokenizers are compared on.
SAMPLE_DOCUMENTS, SAMPLE_TOKENS = 8, 8192


@dataclass(frozen=True)
class Tolerance:
    """What separates rounding from a fault, for one weight type.

    Args:
        ppl_percent: largest change of perplexity, in percent either way.
        kl: largest mean KL(reference || artifact), in nats per token.
        top1: smallest share of positions where both predict the same token.
        max_logit_diff: largest difference of any logit; None where quantization makes it meaningless.
    """

    ppl_percent: float
    kl: float
    top1: float
    max_logit_diff: float | None = None


# Measured on SmolLM2-135M and on the default model (docs/validation.md), with room for other models.
TOLERANCES: Mapping[str, Tolerance] = {
    "exact": Tolerance(ppl_percent=0.0, kl=0.0, top1=1.0, max_logit_diff=0.0),
    "f32": Tolerance(ppl_percent=0.01, kl=1e-6, top1=0.999),
    "f16": Tolerance(ppl_percent=0.1, kl=1e-4, top1=0.99),
    "bf16": Tolerance(ppl_percent=0.5, kl=1e-3, top1=0.97),
    "q8_0": Tolerance(ppl_percent=3.0, kl=2e-2, top1=0.90),
    "int8": Tolerance(ppl_percent=3.0, kl=2e-2, top1=0.90),
    "4bit": Tolerance(ppl_percent=40.0, kl=0.4, top1=0.60),
}


@dataclass(frozen=True)
class Artifact:
    """Something to validate.

    Args:
        path: where it is.
        converter: who reads it.
        planned: the plan it must follow (`Converter.plan_of`).
        name: in reports; empty for the path.
        workplace: the process that its runtime is to live in; None for this one.
    """

    path: Path
    converter: Converter
    planned: PlannedExport
    name: str = ""
    workplace: Workplace | None = None

    @property
    def expected(self) -> BoundFactors:
        """The factors it must carry."""
        return self.planned.export.factors

    @property
    def label(self) -> str:
        return self.name or str(self.path)

    @property
    def failed(self) -> bool:
        """Whether its runtime died of it, or failed in the middle."""
        return self.workplace is not None and self.workplace.failed


@dataclass
class Validation:
    """The contract's validation.json of one artifact (schema_version 1)."""

    artifact: str
    format: str
    reference: str
    checks: list[Check] = field(default_factory=list)
    windows: list[WindowScore] = field(default_factory=list)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> list[Check]:
        return [check for check in self.checks if check.status == "fail"]

    def verdict(self, score: WindowScore) -> str:
        """`pass`, `warn` or `fail` of one window."""
        wanted = _window_id(self.format, score)
        return next((check.status for check in self.checks if check.id == wanted), "pass")

    def to_json(self) -> dict[str, Any]:
        artifact, reference = published_name(self.artifact), published_name(self.reference)

        def without_folders(check: Check) -> dict[str, Any]:
            message = check.message.replace(self.artifact, artifact).replace(self.reference, reference)
            return {**dataclasses.asdict(check), "message": message}

        return {
            "schema_version": SCHEMA_VERSION,
            "artifact": artifact,
            "format": self.format,
            "reference": reference,
            "passed": self.passed,
            "checks": [without_folders(check) for check in self.checks],
            "windows": [
                {**dataclasses.asdict(score), "ppl_delta_percent": score.ppl_delta_percent} for score in self.windows
            ],
            "provenance": dict(self.provenance),
        }


Judged = tuple[Artifact, Validation]


@dataclass(frozen=True)
class ValidateOptions:
    """How much to measure.

    Args:
        windows: lengths in tokens; each is measured with the set the artifact's runtime uses there.
        windows_per_length: at most so many windows of each length, one a document first.
        crossing: decode across L through the cache, too.
        threads: of every runtime; None for their defaults.
        chunk: rows of logits held at a time.
    """

    windows: tuple[int, ...]
    windows_per_length: int = 4
    crossing: bool = True
    threads: int | None = None
    device: str = "cpu"
    chunk: int = CHUNK_TOKENS


def validate_artifacts(
    artifacts: Sequence[Artifact],
    reference: Checkpoint,
    factors: BoundFactors,
    corpus: Corpus,
    options: ValidateOptions,
    progress: Progress,
) -> list[Validation]:
    """Validate artifacts of one model against it.

    An artifact that fails a static check is still run if its runtime opens it, so that a report shows what the fault does.

    Args:
        reference: the source checkpoint, extended or not.
        factors: what the reference is to have; its two sets must contain every set the artifacts are expected to have.

    Raises:
        InputError: a window is longer than the target or than every document, or vocabularies differ.
    """
    texts = windows_by_length(corpus, factors, options)
    results = [static_validation(artifact, reference, corpus) for artifact in artifacts]
    _Runs(reference, factors, options, progress).measure(list(zip(artifacts, results, strict=True)), texts)
    return results


def static_validation(artifact: Artifact, reference: Checkpoint, corpus: Corpus | None) -> Validation:
    """The static checks of one artifact; tokenizers are compared on the texts, too, where there are any."""
    result = Validation(artifact.label, artifact.converter.name, reference.name, artifact.planned.check(artifact.path))
    has_tokenizer = any(check.id == f"{result.format}.tokenizer" and check.status == "pass" for check in result.checks)
    if has_tokenizer and corpus is not None:
        folder = artifact.path if artifact.path.is_dir() else artifact.path.parent
        samples = sample_texts(reference, corpus)
        result.checks.append(text_ids(f"{result.format}.tokenizer.texts", folder, reference, samples))
    result.provenance = provenance(
        reference_fingerprint=reference.fingerprint,
        text_fingerprint=None if corpus is None else corpus.fingerprint,
        factors=dict(artifact.expected.to_json()),
        files=artifact.converter.hashes(artifact.path),
        seed=None,  # nothing here is random
    )
    return result


def sample_texts(reference: Checkpoint, corpus: Corpus) -> list[str]:
    """The beginning of each document as text, for tokenizers to be compared on."""
    return [
        reference.decode(document.ids[:SAMPLE_TOKENS].tolist(), skip_special_tokens=False)
        for document in corpus.documents[:SAMPLE_DOCUMENTS]
    ]


def windows_by_length(corpus: Corpus, factors: BoundFactors, options: ValidateOptions) -> dict[int, list[TokenIds]]:
    """The token windows of every length. Raises InputError when one is too long for the factors or the texts."""
    for length in options.windows:
        if not 2 <= length <= factors.target:
            raise InputError(f"window {length}: expected 2 to the target length {factors.target} tokens")
    return {length: corpus.windows(length, options.windows_per_length) for length in sorted(set(options.windows))}


class _Runs:
    """The dynamic half of `validate_artifacts`: one reference model, several artifacts, all windows."""

    def __init__(
        self, reference: Checkpoint, factors: BoundFactors, options: ValidateOptions, progress: Progress
    ) -> None:
        set_threads(options.threads)
        self.checkpoint, self.factors, self.options, self.progress = reference, factors, options, progress
        model = build_model(reference, factors, device=options.device)
        self.reference = TorchSource(model, factors, name=reference.name)

    def measure(self, artifacts: Sequence[Judged], texts: Mapping[int, Sequence[TokenIds]]) -> None:
        """Fill the validations' windows and the checks that follow from them."""
        sources = {id(result): self._open(artifact, result, max(texts)) for artifact, result in artifacts}
        running = [(artifact, result) for artifact, result in artifacts if sources[id(result)] is not None]
        opened = {key: source for key, source in sources.items() if source is not None}
        try:
            for artifact, result in running:
                self._score_batch(artifact, result, opened[id(result)], texts[min(texts)][0])
            for length, windows in texts.items():
                self._score_length(length, windows, running, opened)
            if self.options.crossing:
                self._score_crossing(running, opened, texts)
        finally:
            for source in opened.values():
                source.close()
            self.reference.close()

    def _open(self, artifact: Artifact, result: Validation, max_length: int) -> LogitSource | None:
        """The artifact in its runtime; an artifact that does not load is a failed check."""
        room = max(max_length, self.factors.original + CROSSING_TOKENS)
        try:
            source = isolation.open_source(
                artifact.converter,
                artifact.path,
                artifact.expected,
                max_length=room,
                threads=self.options.threads,
                workplace=artifact.workplace,
            )
            check_vocabularies(self.reference, {artifact.label: source})
        except InputError as error:
            result.checks.append(_loads(artifact, error))
            return None
        result.checks.append(_loads(artifact))
        return source

    def _score_length(
        self,
        length: int,
        windows: Sequence[TokenIds],
        artifacts: Sequence[Judged],
        sources: Mapping[int, LogitSource],
    ) -> None:
        """Score all artifacts that share a reference set in step, so that the reference runs once for them."""
        groups: dict[tuple[FactorSet, FactorSet], list[Judged]] = {}
        for artifact, result in (each for each in artifacts if not each[0].failed):
            used = sources[id(result)].set_for(length)
            groups.setdefault((used, self._reference_set(artifact, used)), []).append((artifact, result))
        total = len(groups) * len(windows) * length
        with self.progress.task(f"validate {length} tokens", total) as task:
            for (used, reference_set), members in groups.items():
                while members:
                    try:
                        scores = compare_windows(
                            self.reference,
                            {str(i): sources[id(result)] for i, (_, result) in enumerate(members)},
                            windows,
                            factor_set=used,
                            reference_set=reference_set,
                            chunk=self.options.chunk,
                            on_tokens=task.advance,
                        )
                    except RuntimeFailedError as error:
                        members = _without_failed(members, error)
                        continue
                    for (artifact, result), score in zip(members, scores.values(), strict=True):
                        self._record(artifact, result, score)
                    break

    def _reference_set(self, artifact: Artifact, regime: FactorSet) -> FactorSet:
        """The reference's set that holds the factors an artifact must use in this regime."""
        wanted = artifact.expected.set(regime)
        names: tuple[FactorSet, ...] = (regime, "long", "short")
        for name in names:
            if self.factors.set(name) == wanted:
                return name
        raise InputError(f"{artifact.label}: its {regime}_factor is neither set of the reference")

    def _score_crossing(
        self,
        artifacts: Sequence[Judged],
        sources: Mapping[int, LogitSource],
        texts: Mapping[int, Sequence[TokenIds]],
    ) -> None:
        original = self.factors.original
        length = min(original + CROSSING_TOKENS, self.factors.target)
        ids = next((windows[0][:length] for size, windows in texts.items() if size >= length), None)
        prefill = original - CROSSING_TOKENS
        if ids is None or prefill < 1 or length <= original:
            return
        rows: dict[tuple[str, bool], Any] = {}
        with self.progress.task(f"decode across {original} tokens", len(artifacts)) as task:
            for artifact, result in (each for each in artifacts if not each[0].failed):
                source = sources[id(result)]
                single = artifact.expected.factor_sets == "single"
                # A single set is the reference's long set at every position: the expectation of one set per context.
                key = ("per_context" if single else source.rule, single)
                if key not in rows:
                    rows[key] = crossing_rows(
                        self.reference, ids, original, prefill=prefill, rule=key[0], chunk=self.options.chunk
                    )
                try:
                    decoded = source.decode_logits(ids, prefill)
                except RuntimeFailedError as error:
                    _without_failed([(artifact, result)], error)
                    continue
                stale = (
                    partial(self._is_stale, artifact, decoded, ids, prefill) if key == ("per_forward", False) else None
                )
                self._record(artifact, result, compare_crossing(rows[key], decoded, ids, prefill=prefill), stale)
                task.advance()

    def _is_stale(self, artifact: Artifact, decoded: Tensor, ids: TokenIds, prefill: int) -> bool:
        """Whether a decoding differs from full recomputes only because its cache keeps keys of the short set."""
        rows = self.reference.stale_logits(ids, prefill, self.factors.original)[:-1]
        score = compare_crossing(rows, decoded, ids, prefill=prefill)
        return not _broken(score, self._tolerance(artifact, score))

    def _score_batch(self, artifact: Artifact, result: Validation, source: LogitSource, ids: TokenIds) -> None:
        """Two texts in one pass, one of them padded, against each alone, where the runtime takes batches."""
        if artifact.failed or not isinstance(source, TensorSource):
            return
        short, long = ids[: BATCH_TOKENS // 2], ids[:BATCH_TOKENS]
        try:
            batched = source.padded_batch(short, long)
            if batched is None:
                return
            alone = [
                rows for text in (short, long) for rows in source.logits(text, source.set_for(len(text)), len(text))
            ]
        except RuntimeFailedError as error:
            _without_failed([(artifact, result)], error)
            return
        total = Comparison()
        total.add(torch.cat(alone), batched, torch.as_tensor(np.concatenate((short, long))))
        score = total.score(len(long), source.set_for(len(long)))
        limit = self._tolerance(artifact, score).kl
        ok = score.kl_mean <= limit
        message = "" if ok else "rows of a batch, or padding, reach into one another"
        id = f"{artifact.converter.name}.batch"
        result.checks.append(Check(id, "pass" if ok else "fail", f"kl_mean ≤ {limit:g}", score.kl_mean, message))

    def _record(
        self, artifact: Artifact, result: Validation, score: WindowScore, is_stale: Callable[[], bool] | None = None
    ) -> None:
        result.windows.append(score)
        result.checks.append(_window_check(artifact, score, self._tolerance(artifact, score), is_stale))

    def _tolerance(self, artifact: Artifact, score: WindowScore) -> Tolerance:
        try:
            name = artifact.converter.tolerance_name(artifact.path, self.checkpoint)
        except InputError:
            name = "f32"  # the weight type cannot be read, which the static checks report
        if name == "exact" and (score.regime == "crossing" or self.options.device != "cpu"):
            name = "f32"  # a cache, or a device beside the artifact's CPU, changes the order of sums
        return TOLERANCES[name]


def _loads(artifact: Artifact, error: InputError | None = None) -> Check:
    """Whether an artifact's runtime opens and runs it."""
    id = f"{artifact.converter.name}.loads"
    return Check(id, "fail", "a file its runtime opens", "an error", str(error)) if error else Check(id, "pass")


def _without_failed(members: Sequence[Judged], error: RuntimeFailedError) -> list[Judged]:
    """Those that can be run further; the others' check says what happened. Raises the error where it is nobody's."""
    failed = [each for each in members if each[0].failed]
    if not failed:
        raise error
    for artifact, result in failed:
        check = _loads(artifact, error)
        result.checks = [check if each.id == check.id else each for each in result.checks]
    return [each for each in members if not each[0].failed]


def _window_check(
    artifact: Artifact, score: WindowScore, tolerance: Tolerance, is_stale: Callable[[], bool] | None = None
) -> Check:
    """One check a window; NaN fails every comparison. A crossing may fail by its cache alone, where `is_stale` says so."""
    id = _window_id(artifact.converter.name, score)
    limits = _limits(score, tolerance)
    expected = {name: limit for name, (_, limit) in limits.items()}
    actual = {name: getattr(score, name) for name in limits}
    broken = _broken(score, tolerance)
    if score.non_finite or not all(map(math.isfinite, actual.values())):
        return Check(id, "fail", expected, actual, score.non_finite or "a measure is non-finite")
    if not broken:
        return Check(id, "pass", expected, actual)
    if score.regime == "crossing" and artifact.expected.factor_sets == "dual" and broken == ["ppl_delta_percent"]:
        message = f"perplexity of {score.tokens} tokens alone is out of bounds; KL and top-1 are those of rounding"
        return Check(id, "warn", expected, actual, message)
    if is_stale is not None and is_stale():
        message = (
            "the cache keeps keys of the short set past the original window: re-prefill there, or use a single set"
        )
        return Check(id, "warn", expected, actual, message)
    return Check(id, "fail", expected, actual, f"not the reference's model: {', '.join(broken)} out of bounds")


def _broken(score: WindowScore, tolerance: Tolerance) -> list[str]:
    """What is out of bounds."""
    return [name for name, (ok, _) in _limits(score, tolerance).items() if not ok]


def _limits(score: WindowScore, tolerance: Tolerance) -> dict[str, tuple[bool, str]]:
    """Whether each measure holds, and its limit in words."""
    limits = {
        "ppl_delta_percent": (abs(score.ppl_delta_percent) <= tolerance.ppl_percent, f"≤ {tolerance.ppl_percent}"),
        "kl_mean": (score.kl_mean <= tolerance.kl, f"≤ {tolerance.kl:g}"),
        "top1_agreement": (score.top1_agreement >= _top1_limit(score, tolerance), f"≥ {tolerance.top1}"),
    }
    if tolerance.max_logit_diff is not None:
        limits["max_logit_diff"] = (score.max_logit_diff <= tolerance.max_logit_diff, f"≤ {tolerance.max_logit_diff:g}")
    return limits


def _top1_limit(score: WindowScore, tolerance: Tolerance) -> float:
    """The limit, loosened by one token where a window is so short that one near-tie would break it."""
    return min(tolerance.top1, (score.tokens - 1) / score.tokens) if tolerance.top1 < 1.0 else 1.0


def _window_id(format_name: str, score: WindowScore) -> str:
    return f"{format_name}.parity.{score.regime}.{score.length}"
