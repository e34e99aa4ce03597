"""Validation: static checks of an artifact, then its runtime against the reference, window by window.

    artifact ───PlannedExport.check──► Check …     keys, tensors, factors, weights
    reference ─────────────────────► logits ─┐
    reference with its own weights ► logits ─┼─ compare_runs ──► WindowScore … ──judge(…, policy)──► Check …
    artifact ───open_source────────► logits ─┘

The reference is transformers in float32 with the expected factors in its configuration. Where an artifact's weights are
rounded, there is a second one that holds the artifact's own numbers: what it and the runtime differ in is a fault, what it
and the reference differ in is what rounding costs. Several artifacts of one model are scored in step, so that the
reference runs once for all.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from converters import isolation
from converters.base import Check, Converter, PlannedExport
from converters.effort import FIRST_TOKENS, Fit, fitted, left_out
from converters.isolation import Workplace
from converters.judging import REFERENCE_ARITHMETIC, judged
from converters.measurements import Validation
from converters.own_weights import WeightKind
from converters.policy import PRESETS, Policy
from converters.sources import BATCH_TOKENS, batch_and_alone
from converters.tokenizer_checks import text_ids
from converters.twins import TWIN, is_twin
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError, LongRopeError, MissingRequirementError, RuntimeFailedError
from longrope.estimates.compute import attention_flops, duration, linear_flops
from longrope.estimates.memory import free_memory
from longrope.estimates.shape import DecoderShape
from longrope.factors import BoundFactors, FactorSet
from longrope.measures import WindowScore
from longrope.modeling import DTYPES, TorchSource, build_model, set_threads
from longrope.pass_cache import PassCache
from longrope.progress import Progress
from longrope.provenance import provenance
from longrope.scoring import (
    CHUNK_TOKENS,
    Comparison,
    LogitSource,
    Run,
    check_vocabularies,
    compare_rows,
    compare_runs,
    crossing_rows,
)
from longrope.sources import Rule
from longrope.text import Corpus, TokenIds

# Tokens before and after the original window in the crossing test.
CROSSING_TOKENS = 8
# Of the texts that tokenizers are compared on.
SAMPLE_DOCUMENTS, SAMPLE_TOKENS = 8, 8192


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


@dataclass(frozen=True)
class ValidateOptions:
    """How much to measure.

    Args:
        windows: lengths in tokens; each is measured with the set the artifact's runtime uses there.
        windows_per_length: at most so many windows of each length, one a document first.
        crossing: decode across L through the cache, too.
        own_weights: compare with a second reference that holds the artifact's own weights, where those are rounded.
        seconds: measure what fits in this time, from the beginning of the static checks on; None for all.
        shorten: of what does not fit, take shorter windows; else leave it out.
        threads: of every runtime; None for their defaults.
        device: torch device of the reference.
        reference_dtype: what the reference computes in: a name of `modeling.DTYPES`.
        chunk: rows of logits held at a time.
        twins: run an artifact whose model is the reference's on a few tokens only.
        cache: where passes of the reference are kept between calls (`longrope.pass_cache`); None for nowhere.
    """

    windows: tuple[int, ...]
    windows_per_length: int = 4
    crossing: bool = True
    own_weights: bool = True
    seconds: float | None = None
    shorten: bool = False
    threads: int | None = None
    device: str = "cpu"
    reference_dtype: str = "float32"
    chunk: int = CHUNK_TOKENS
    twins: bool = True
    cache: Path | None = None


def validate_artifacts(
    artifacts: Sequence[Artifact],
    reference: Checkpoint,
    factors: BoundFactors,
    corpus: Corpus,
    options: ValidateOptions,
    progress: Progress,
    policy: Policy = PRESETS["default"],
) -> list[Validation]:
    """Validate artifacts of one model against it.

    An artifact that fails a static check is still run if its runtime opens it, so that a report shows what the fault does.

    Args:
        reference: the source checkpoint, extended or not.
        factors: what the reference is to have; its two sets must contain every set the artifacts are expected to have.
        policy: judges what is measured.

    Raises:
        InputError: a window is longer than the target or than every document, or vocabularies differ.
    """
    results = measured(artifacts, reference, factors, corpus, options, progress)
    return [judged(result, policy) for result in results]


def measured(
    artifacts: Sequence[Artifact],
    reference: Checkpoint,
    factors: BoundFactors,
    corpus: Corpus,
    options: ValidateOptions,
    progress: Progress,
) -> list[Validation]:
    """`validate_artifacts` without a judgement."""
    end = None if options.seconds is None else time.monotonic() + options.seconds
    texts = windows_by_length(corpus, factors, options)
    results = [static_findings(artifact, reference, corpus) for artifact in artifacts]
    for result in results:
        result.reference_dtype = options.reference_dtype
        result.findings.extend(_of_reference(result.format, options.reference_dtype))
    subjects = [Subject(artifact, result) for artifact, result in zip(artifacts, results, strict=True)]
    _Runs(reference, factors, options, progress).measure(subjects, texts, end)
    return results


def static_findings(artifact: Artifact, reference: Checkpoint, corpus: Corpus | None) -> Validation:
    """What is found in one artifact without running it; tokenizers are compared on the texts, too, where there are any."""
    result = Validation(
        artifact.label,
        artifact.converter.name,
        reference.name,
        findings=artifact.planned.check(artifact.path),
        weights=_weight_kind(artifact, reference),
        factor_sets=artifact.expected.factor_sets,
    )
    has_tokenizer = any(
        found.id == f"{result.format}.tokenizer" and found.status == "pass" for found in result.findings
    )
    if has_tokenizer and corpus is not None:
        folder = artifact.path if artifact.path.is_dir() else artifact.path.parent
        samples = sample_texts(reference, corpus)
        result.findings.append(text_ids(f"{result.format}.tokenizer.texts", folder, reference, samples))
    result.provenance = provenance(
        reference_fingerprint=reference.fingerprint,
        text_fingerprint=None if corpus is None else corpus.fingerprint,
        factors=dict(artifact.expected.to_json()),
        files=artifact.converter.hashes(artifact.path),
        seed=None,  # nothing here is random
    )
    return result


def _weight_kind(artifact: Artifact, reference: Checkpoint) -> WeightKind | None:
    try:
        return artifact.converter.weight_kind(artifact.path, reference)
    except InputError:
        return None  # which the static checks report


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


@dataclass(eq=False)
class Subject:
    """An artifact that is being measured.

    Args:
        artifact: it.
        result: where what is found goes.
        source: its runtime; None where it does not open.
        own: the reference with its weights; None where they are the reference's, or cannot be had.
        is_twin: its model is its reference's, which is run for both (`converters.twins`).
    """

    artifact: Artifact
    result: Validation
    source: LogitSource | None = None
    own: TorchSource | None = None
    is_twin: bool = False

    @property
    def runs(self) -> bool:
        """Whether it can be run (further)."""
        return self.source is not None and not self.artifact.failed

    @property
    def runtime(self) -> LogitSource:
        """Its runtime, of one that runs."""
        assert self.source is not None
        return self.source


class _Runs:
    """The dynamic half of `validate_artifacts`: one reference model, several artifacts, all windows."""

    def __init__(
        self, reference: Checkpoint, factors: BoundFactors, options: ValidateOptions, progress: Progress
    ) -> None:
        set_threads(options.threads)
        self.checkpoint, self.factors, self.options, self.progress = reference, factors, options, progress
        dtype, device, folder = options.reference_dtype, options.device, options.cache
        self.passes = None
        if folder is not None:
            self.passes = PassCache.of(reference, factors, dtype=dtype, device=device, folder=folder)
        model = build_model(reference, factors, dtype=dtype, device=device)
        self.reference = TorchSource(model, factors, name=reference.name, passes=self.passes)

    def measure(
        self, subjects: Sequence[Subject], texts: Mapping[int, Sequence[TokenIds]], end: float | None = None
    ) -> None:
        """Fill the validations' scores, and findings that come with them, by a time of the monotonic clock."""
        try:
            for subject in subjects:
                self._open(subject, max(texts))
            for subject in filter(_runs, subjects):
                self._open_own(subject)
            for subject in filter(_runs, subjects):
                self._score_batch(subject, texts[min(texts)][0])
            for subject in filter(_runs, subjects):
                if self.options.twins:
                    self._look_for_twin(subject, texts)
            texts, crossing = (texts, self.options.crossing) if end is None else self._fit(subjects, texts, end)
            for length, windows in texts.items():
                self._score_length(length, windows, [subject for subject in subjects if subject.runs])
            if crossing:
                self._score_crossing([subject for subject in subjects if subject.runs], texts)
            self._say_kept([subject.result for subject in subjects])
        finally:
            for source in (each for subject in subjects for each in (subject.source, subject.own)):
                if source is not None:
                    source.close()
            self.reference.close()

    def _say_kept(self, results: Sequence[Validation]) -> None:
        """How many passes of the reference were not run, for the cache had them."""
        if self.passes is None:
            return
        found, missing = self.passes.found, self.passes.missing
        if found:
            self.progress.line(f"{found} of {found + missing} passes of the reference were in the cache")
        for result in results:
            result.provenance = {**result.provenance, "reference_passes": {"kept": found, "run": missing}}

    def _open(self, subject: Subject, max_length: int) -> None:
        """The artifact in its runtime; an artifact that does not load is a failed check."""
        artifact = subject.artifact
        try:
            subject.source = isolation.open_source(
                artifact.converter,
                artifact.path,
                artifact.expected,
                max_length=max(max_length, self.factors.original + CROSSING_TOKENS),
                threads=self.options.threads,
                workplace=artifact.workplace,
            )
            check_vocabularies(self.reference, {artifact.label: subject.source})
        except InputError as error:
            subject.result.findings.append(_loads(artifact, error))
            if subject.source is not None:
                subject.source.close()
                subject.source = None
            return
        subject.result.findings.append(_loads(artifact))

    def _open_own(self, subject: Subject) -> None:
        """The reference with the artifact's own weights, where those are rounded."""
        kind, id = subject.result.weights, f"{subject.result.format}.own_weights"
        if kind is not None and kind.arithmetic == "same" and self.options.device != "cpu":
            # A device beside the artifact's CPU changes the order of sums.
            subject.result.weights = kind = dataclasses.replace(kind, arithmetic="f32")
        if kind is None or not kind.rounded:
            subject.result.findings.append(Check(id, "pass", "the reference's", "the reference's"))
            return
        if not self.options.own_weights:
            subject.result.findings.append(Check(id, "skip", kind.name, None, "left out, to be quick"))
            return
        try:
            require_room(self.checkpoint, self.options.device, self.options.reference_dtype)
            weights = subject.artifact.planned.own_weights(subject.artifact.path)
            model = build_model(
                self.checkpoint,
                self.factors,
                dtype=self.options.reference_dtype,
                device=self.options.device,
                weights=weights,
            )
        except LongRopeError as error:
            message = f"its runtime is compared with the original alone, by the limits of fault and rounding: {error}"
            subject.result.findings.append(Check(id, "skip", kind.name, None, message))
            return
        subject.own = TorchSource(model, self.factors, name="the reference with the artifact's weights")
        subject.result.findings.append(Check(id, "pass", kind.name, kind.name))

    def _fit(
        self, subjects: Sequence[Subject], texts: Mapping[int, Sequence[TokenIds]], end: float
    ) -> tuple[dict[int, list[TokenIds]], bool]:
        """What can be measured until `end`, by the rate of a first window, which counts where nothing longer fits."""
        first, shape = texts[min(texts)][0][:FIRST_TOKENS], DecoderShape.of(self.checkpoint.config)
        begin = time.monotonic()
        self.reference.passes = None  # a pass that is kept says nothing of those that are not
        self._score_length(len(first), [first], [subject for subject in subjects if subject.runs])
        self.reference.passes = self.passes
        now = time.monotonic()

        def work(length: int) -> float:
            return linear_flops(shape, length) + attention_flops(shape, length)

        def cost(length: int) -> float:
            return (now - begin) * work(length) / work(len(first))

        wanted = {length: len(windows) for length, windows in texts.items()}
        crossing = self.options.crossing and self._crossing_window(texts) is not None
        fit = fitted(wanted, self.factors.original, cost, end - now, crossing=crossing, shorten=self.options.shorten)
        chosen = {
            taken: [ids[:taken] for ids in texts[length][:count]] for length, (taken, count) in fit.windows.items()
        }
        if chosen:
            for subject in subjects:
                for scores in (subject.result.windows, subject.result.runtime, subject.result.rounding):
                    scores.clear()
        else:
            fit = Fit({min(texts): (len(first), 1)}, crossing=False)
        for subject in filter(_runs, subjects):
            self._say_left_out(subject, wanted, fit, crossing, cost)
        return chosen, fit.crossing

    def _say_left_out(
        self, subject: Subject, wanted: Mapping[int, int], fit: Fit, crossing: bool, cost: Callable[[int], float]
    ) -> None:
        """A skipped check for every length that does not fit in the time, and one that says all that was left out."""
        name, time_given = subject.result.format, duration(self.options.seconds or 0.0)
        findings = subject.result.findings
        for length in sorted(set(wanted) - set(fit.windows)):
            message = (
                f"left out: a window takes some {duration(cost(length))}, and the time of {time_given} ends before"
            )
            regime = subject.runtime.set_for(length)
            findings.append(Check(f"{name}.parity.{regime}.{length}", "skip", message=message))
        if crossing and not fit.crossing:
            id = f"{name}.parity.crossing.{self.factors.original + CROSSING_TOKENS}"
            findings.append(Check(id, "skip", message=f"left out: the time of {time_given} ends before"))
        missing = left_out(wanted, fit, crossing=crossing)
        message = f"left out, to be done in {time_given}: {', '.join(missing)}" if missing else ""
        findings.append(Check(f"{name}.budget", "skip" if missing else "pass", message=message))

    def _look_for_twin(self, subject: Subject, texts: Mapping[int, Sequence[TokenIds]]) -> None:
        """Whether an artifact in transformers is its reference, so that one pass serves both."""
        base, both = subject.own or self.reference, get_args(FactorSet)  # a budget's first window may use either
        sets = {name: self._reference_set(subject.artifact, name) for name in both}
        if is_twin(subject.runtime, base, sets, texts[max(texts)][0], self.factors.original):
            subject.is_twin = True
            message = f"{TWIN}; its windows are the reference's, which was run for both"
            subject.result.findings.append(Check(f"{subject.result.format}.same_model", "pass", message=message))

    def _score_length(self, length: int, windows: Sequence[TokenIds], subjects: Sequence[Subject]) -> None:
        """Score all artifacts that share a reference set in step, so that the reference runs once for them."""
        groups: dict[tuple[FactorSet, FactorSet], list[Subject]] = {}
        for subject in subjects:
            used = subject.runtime.set_for(length)
            groups.setdefault((used, self._reference_set(subject.artifact, used)), []).append(subject)
        total = len(groups) * len(windows) * length
        with self.progress.task(f"validate {length} tokens", total) as task:
            for (used, reference_set), members in groups.items():
                while members:
                    try:
                        self._compare(windows, members, used, reference_set, task.advance)
                    except RuntimeFailedError as error:
                        members = _without_failed(members, error)
                        continue
                    break

    def _compare(
        self,
        windows: Sequence[TokenIds],
        members: Sequence[Subject],
        used: FactorSet,
        reference_set: FactorSet,
        on_tokens: Callable[[int], None],
    ) -> None:
        """One pass of the reference, of every artifact but twins, and of every reference with an artifact's weights."""
        runs, pairs = [Run(self.reference, reference_set)], dict[str, tuple[int, int]]()
        for place, subject in enumerate(members):
            own = 0
            if subject.own is not None:
                own = len(runs)
                runs.append(Run(subject.own, reference_set))
            artifact = own
            if not subject.is_twin:
                artifact = len(runs)
                runs.append(Run(subject.runtime, used))
            pairs[f"{place} windows"] = (0, artifact)
            if subject.own is not None:
                pairs |= {f"{place} runtime": (own, artifact), f"{place} rounding": (0, own)}
        scores = compare_runs(runs, pairs, windows, regime=used, chunk=self.options.chunk, on_tokens=on_tokens)
        for name, score in scores.items():
            member, _, kind = name.partition(" ")
            getattr(members[int(member)].result, kind).append(score)

    def _reference_set(self, artifact: Artifact, regime: FactorSet) -> FactorSet:
        """The reference's set that holds the factors an artifact must use in this regime."""
        wanted = artifact.expected.set(regime)
        names: tuple[FactorSet, ...] = (regime, "long", "short")
        for name in names:
            if self.factors.set(name) == wanted:
                return name
        raise InputError(f"{artifact.label}: its {regime}_factor is neither set of the reference")

    def _score_crossing(self, subjects: Sequence[Subject], texts: Mapping[int, Sequence[TokenIds]]) -> None:
        ids, original = self._crossing_window(texts), self.factors.original
        if ids is None:
            return
        prefill = original - CROSSING_TOKENS
        known = dict[str, Tensor]()
        with self.progress.task(f"decode across {original} tokens", len(subjects)) as task:
            for subject in subjects:
                try:
                    decoded = subject.runtime.decode_logits(ids, prefill)
                except RuntimeFailedError as error:
                    _without_failed([subject], error)
                    continue
                self._record_crossing(subject, _Crossing(ids, original, prefill, self.options.chunk), decoded, known)
                task.advance()

    def _crossing_window(self, texts: Mapping[int, Sequence[TokenIds]]) -> TokenIds | None:
        """The beginning of a window that reaches across the original one; None where there is none."""
        original = self.factors.original
        length = min(original + CROSSING_TOKENS, self.factors.target)
        if original <= CROSSING_TOKENS or length <= original:
            return None
        return next((windows[0][:length] for size, windows in texts.items() if size >= length), None)

    def _record_crossing(
        self, subject: Subject, crossing: _Crossing, decoded: Tensor, known: dict[str, Tensor]
    ) -> None:
        """Score a decoding; `known` are the reference's rows by rule."""
        result, single = subject.result, subject.artifact.expected.factor_sets == "single"
        # A single set is the reference's long set at every position: the expectation of one set per context.
        rule: Rule = "per_context" if single else subject.runtime.rule
        if rule not in known:
            known[rule] = crossing.rows(self.reference, rule)
        result.windows.append(crossing.score(known[rule], decoded[:-1]))
        if subject.own is not None:
            own = crossing.rows(subject.own, rule)
            result.runtime.append(crossing.score(own, decoded[:-1]))
            result.rounding.append(crossing.score(known[rule], own))
        if rule == "per_forward":
            source = subject.own or self.reference
            stale = source.stale_logits(crossing.ids, crossing.prefill, crossing.original)[:-1]
            result.stale.append(crossing.score(stale, decoded[:-1]))

    def _score_batch(self, subject: Subject, ids: TokenIds) -> None:
        """Two texts in one pass, one of them padded, against each alone, where the runtime takes batches."""
        try:
            found = batch_and_alone(subject.runtime, ids)
        except RuntimeFailedError as error:
            _without_failed([subject], error)
            return
        if found is not None:
            (together, alone, tokens), total, length = found, Comparison(), min(BATCH_TOKENS, len(ids))
            total.add(alone, together, torch.as_tensor(tokens))
            subject.result.batch.append(total.score(length, subject.runtime.set_for(length)))


@dataclass(frozen=True)
class _Crossing:
    """Decoding from before the original window to behind it.

    Args:
        ids: [T] tokens.
        original: L.
        prefill: tokens that go in at once before.
        chunk: rows of logits held at a time.
    """

    ids: TokenIds
    original: int
    prefill: int
    chunk: int

    def rows(self, source: TorchSource, rule: Rule) -> Tensor:
        """What decoding must give."""
        return crossing_rows(source, self.ids, self.original, prefill=self.prefill, rule=rule, chunk=self.chunk)

    def score(self, expected: Tensor, actual: Tensor) -> WindowScore:
        """Rows [T - prefill, V] against what they must be."""
        return compare_rows(expected, actual, self.ids, prefill=self.prefill)


def _runs(subject: Subject) -> bool:
    return subject.runs


def _of_reference(format_name: str, dtype: str) -> Iterator[Check]:
    """A warning where the reference itself is rounded; `strict` fails it."""
    if dtype != "float32":
        message = (
            f"the reference computes in {dtype}: faults that are smaller than what this loses are not seen, and windows are "
            f"held to the limits of {REFERENCE_ARITHMETIC[dtype]} arithmetic or wider ones"
        )
        yield Check(f"{format_name}.reference_dtype", "warn", "float32", dtype, message)


def require_room(checkpoint: Checkpoint, device: str, dtype: str) -> None:
    """Raise MissingRequirementError where no second model fits beside the reference."""
    headers = checkpoint.weight_headers.values()
    needed = DTYPES[dtype].itemsize * sum(math.prod(entry["shape"]) for header in headers for entry in header.values())
    free = free_memory(device)
    # Weights are read into memory, and the model is made of them.
    if free is not None and free < 2 * needed:
        raise MissingRequirementError(
            f"a second model in {dtype} takes {2 * needed / 1e9:.1f} GB to make, and {free / 1e9:.1f} GB are free"
        )


def _loads(artifact: Artifact, error: InputError | None = None) -> Check:
    """Whether an artifact's runtime opens and runs it."""
    id = f"{artifact.converter.name}.loads"
    return Check(id, "fail", "a file its runtime opens", "an error", str(error)) if error else Check(id, "pass")


def _without_failed(members: Sequence[Subject], error: RuntimeFailedError) -> list[Subject]:
    """Those that can be run further; the others' check says what happened. Raises the error where it is nobody's."""
    failed = [each for each in members if each.artifact.failed]
    if not failed:
        raise error
    for subject in failed:
        check = _loads(subject.artifact, error)
        subject.result.findings = [check if each.id == check.id else each for each in subject.result.findings]
    return [each for each in members if not each.artifact.failed]
