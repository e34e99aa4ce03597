"""`Validation`: what was found and measured of one artifact, and what a policy made of it; to JSON and back, without torch.

runs ──► findings, scores ──judge(validation, policy)──► checks ──► validation.json ──measured_of──► judge again
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from converters.base import Check
from converters.explain.causes import Explanation, Part, Shape, Trial
from converters.own_weights import WeightKind
from longrope.errors import InputError
from longrope.factors import FactorSets
from longrope.measures import BeyondScore, PasskeyScore, Quality, TextScore, WindowScore
from longrope.provenance import published_name
from longrope.reading import LIST, OBJECT, TEXT, check, kind_of, list_of, record

SCHEMA_VERSION = 1
# Lists of scores in validation.json beside `windows`, which compares the artifact with the original.
SCORES = ("windows", "runtime", "rounding", "stale")
# Begins the message of a check that did not run and which the policy wants to.
NOT_RUN = "the policy asks for this check, and it did not run: "


@dataclass
class Validation:
    """The contract's validation.json of one artifact (schema_version 1).

    Args:
        artifact, format, reference: names.
        policy: the name of the one that judged.
        checks: what it says.
        findings: checks before any policy, without those that limits decide.
        windows: the artifact in its runtime against the reference.
        runtime: the artifact in its runtime against the reference that holds its own weights; empty where its weights are
            the reference's, or where they cannot be had.
        rounding: the reference that holds the artifact's weights against the reference.
        stale: a crossing against the one whose cache keeps keys of the short set.
        batch: two texts in one pass against each alone; empty where the runtime takes one at a time.
        weights: what its weight type does; None where that cannot be read.
        factor_sets: which it must have.
        reference_dtype: what the reference computes in.
        quality: what the extension costs and brings; None where that was not asked for.
        provenance: versions, machine, hashes.
        explanation: why it fails, where that was asked for.
    """

    artifact: str
    format: str
    reference: str
    policy: str = ""
    checks: list[Check] = field(default_factory=list)
    findings: list[Check] = field(default_factory=list)
    windows: list[WindowScore] = field(default_factory=list)
    runtime: list[WindowScore] = field(default_factory=list)
    rounding: list[WindowScore] = field(default_factory=list)
    stale: list[WindowScore] = field(default_factory=list)
    batch: list[WindowScore] = field(default_factory=list)
    weights: WeightKind | None = None
    factor_sets: FactorSets = "single"
    reference_dtype: str = "float32"
    quality: Quality | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    explanation: Explanation | None = None

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> list[Check]:
        return [check for check in self.checks if check.status == "fail"]

    def verdict(self, score: WindowScore) -> str:
        """`pass`, `warn` or `fail` of one window."""
        wanted = {window_id(self.format, about, score) for about in ("parity", "rounding")}
        statuses = {check.status for check in self.checks if check.id in wanted}
        return next((status for status in ("fail", "warn") if status in statuses), "pass")

    def to_json(self) -> dict[str, Any]:
        """An entry of validation.json; folders of this machine are left out of names and messages."""
        artifact, reference = published_name(self.artifact), published_name(self.reference)

        def without_folders(text: str) -> str:
            return text.replace(self.artifact, artifact).replace(self.reference, reference)

        return {
            "schema_version": SCHEMA_VERSION,
            "artifact": artifact,
            "format": self.format,
            "reference": reference,
            "policy": self.policy,
            "passed": self.passed,
            "checks": [
                {**dataclasses.asdict(check), "message": without_folders(check.message)} for check in self.checks
            ],
            **{name: [score_json(score) for score in getattr(self, name)] for name in (*SCORES, "batch")},
            "weights": None if self.weights is None else dataclasses.asdict(self.weights),
            "factor_sets": self.factor_sets,
            "reference_dtype": self.reference_dtype,
            "quality": None if self.quality is None else _quality_json(self.quality),
            "provenance": dict(self.provenance),
            "explanation": None
            if self.explanation is None
            else {
                **dataclasses.asdict(self.explanation),
                "evidence": [without_folders(sentence) for sentence in self.explanation.evidence],
            },
        }


def together(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Entries of several artifacts as the validation.json that a run's folder has."""
    passed = all(entry["passed"] for entry in entries)
    return {"schema_version": SCHEMA_VERSION, "passed": passed, "artifacts": list(entries)}


def window_id(format_name: str, about: str, score: WindowScore) -> str:
    """The id of a window's check."""
    return f"{format_name}.{about}.{score.regime}.{score.length}"


def score_json(score: WindowScore) -> dict[str, Any]:
    """A score as validation.json holds it."""
    return {**dataclasses.asdict(score), "ppl_delta_percent": score.ppl_delta_percent}


def measured_of(entry: Mapping[str, Any], name: str) -> Validation:
    """What an entry of validation.json says was found and measured, unjudged.

    Args:
        entry: the entry.
        name: of the file, for messages.

    Raises:
        InputError: the entry is broken, or older than the measurements that are kept now.
    """
    if "rounding" not in entry:
        raise InputError(
            f"{name}: written by an earlier version, which kept too little to be judged again; validate anew"
        )
    if entry.get("schema_version") != SCHEMA_VERSION:
        raise InputError(f"{name}: expected schema_version {SCHEMA_VERSION}, got {entry.get('schema_version')}")
    lists = dict.fromkeys((*SCORES, "batch"), LIST)
    names = dict.fromkeys(("artifact", "format", "reference"), TEXT)
    check(
        entry,
        record({**names, **lists, "checks": list_of(kind_of(Check))}, {"provenance": OBJECT, "reference_dtype": TEXT}),
        name,
    )
    weights, sets = entry.get("weights"), entry.get("factor_sets")
    found = Validation(
        artifact=entry["artifact"],
        format=entry["format"],
        reference=entry["reference"],
        findings=[
            dataclasses.replace(found, status=found.found, message=found.message.removeprefix(NOT_RUN))
            for found in (_of_json(Check, each) for each in entry["checks"])
            if found.found is not None
        ],
        weights=None
        if weights is None
        else _of_json(WeightKind, check(weights, kind_of(WeightKind), f"{name}: weights")),
        factor_sets="dual" if sets == "dual" else "single",
        reference_dtype=entry.get("reference_dtype", "float32"),
        quality=quality_of(entry, name),
        provenance=entry.get("provenance") or {},
        explanation=explanation_of(entry, name),
    )
    for each in (*SCORES, "batch"):
        setattr(found, each, [_score(item, f"{name}: {each}") for item in entry[each]])
    if not found.findings and found.quality is None and not any(getattr(found, each) for each in (*SCORES, "batch")):
        raise InputError(f"{name}: expected what was found and measured, got an entry without any")
    return found


def text_fingerprint(validations: Iterable[Validation]) -> set[str]:
    """The texts that were measured on."""
    found = (validation.provenance.get("text_fingerprint") for validation in validations)
    return {fingerprint for fingerprint in found if isinstance(fingerprint, str)}


def _score(data: Any, name: str) -> WindowScore:
    """A score read back; null stands for what is not finite."""
    if isinstance(data, dict):
        texts = data.get("texts")
        data = _with_nan(data)
        if isinstance(texts, list):
            data["texts"] = [_with_nan(text) if isinstance(text, dict) else text for text in texts]
    score: WindowScore = _of_json(WindowScore, check(data, kind_of(WindowScore), name))
    if not 0 <= score.decided_agreements <= score.tokens - score.tied <= score.tokens:
        raise InputError(f"{name}: expected no more agreements and ties than tokens, got another number of one of them")
    if score.ppl <= 0 or score.ppl_reference <= 0:
        raise InputError(f"{name}: expected perplexities above 0, got {min(score.ppl, score.ppl_reference)}")
    return dataclasses.replace(score, texts=tuple(_of_json(TextScore, each) for each in data["texts"]))


def _quality_json(quality: Quality) -> dict[str, Any]:
    return {
        **dataclasses.asdict(quality),
        "inside": [score_json(score) for score in quality.inside],
        "controls": {name: score_json(score) for name, score in quality.controls.items()},
    }


def quality_of(entry: Mapping[str, Any], name: str) -> Quality | None:
    """The quality of an entry of validation.json; None where it was not measured. Raises InputError, which says the name."""
    data, name = entry.get("quality"), f"{name}: quality"
    if data is None:
        return None
    data = {**_quality_json(Quality()), **check(_deep_nan(data), kind_of(Quality), name)}
    found = Quality(
        inside=tuple(_score(each, name) for each in data["inside"]),
        beyond=tuple(_beyond(each) for each in data["beyond"]),
        passkey=tuple(_of_json(PasskeyScore, each) for each in data["passkey"]),
        controls={id: _score(each, name) for id, each in data["controls"].items()},
        left_out=data["left_out"],
    )
    if not all(score.texts for score in found.inside):
        raise InputError(f"{name}: inside: expected the texts of each window, got none")
    for score in found.beyond:
        if not score.extended or {len(losses) for losses in score.methods.values()} - {len(score.extended)}:
            raise InputError(
                f"{name}: beyond: expected as many windows of each method, got another number of one of them"
            )
    if not all(0 <= each.found <= each.samples and each.samples for each in found.passkey):
        raise InputError(f"{name}: passkey: expected at most as many found as prompts, got more")
    if found.controls and set(found.controls) != {"differs", "same"}:
        raise InputError(f"{name}: controls: expected differs and same, got {', '.join(found.controls)}")
    return found


def explanation_of(entry: Mapping[str, Any], name: str) -> Explanation | None:
    """Why an entry of validation.json fails; None where that was not asked. Raises InputError, which says the name."""
    data = entry.get("explanation")
    if data is None:
        return None
    data = check(_deep_nan(data), kind_of(Explanation), f"{name}: explanation")
    parts = {
        each: tuple(_of_json(kind, _tuples(item)) for item in data.get(each, ()))
        for each, kind in (("shapes", Shape), ("trials", Trial), ("parts", Part))
    }
    return _of_json(Explanation, {**_tuples(data), **parts})  # type: ignore[no-any-return]


def _beyond(data: Mapping[str, Any]) -> BeyondScore:
    methods = {name: tuple(losses) for name, losses in data["methods"].items()}
    return BeyondScore(data["length"], tuple(data["extended"]), methods)


def _deep_nan(data: Any) -> Any:
    """Nothing in a quality is null but what is not finite."""
    if isinstance(data, dict):
        return {key: _deep_nan(value) for key, value in data.items()}
    return [_deep_nan(value) for value in data] if isinstance(data, list) else math.nan if data is None else data


def _with_nan(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in data.items()}


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that are lists as tuples, which frozen dataclasses hold."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def _of_json(kind: Any, data: Mapping[str, Any]) -> Any:
    """A dataclass of the fields that it has; others are of a later version."""
    names = {each.name for each in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in data.items() if name in names})
