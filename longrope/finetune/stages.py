"""Stages of progressive extension as data; `presets` has the published ones.

    preset or TOML file ──► StagePlan ──for_model(L, L')──► stages with lengths in tokens, the last one at L'

A preset's lengths are those of the model it was published for; another model's are as many times its own window. Where a
plan's last stage is shorter than the target, a second interpolation is added: searched factors, no training.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

from longrope.errors import InputError

Schedule = Literal["linear", "constant", "cosine"]
SEARCH, RESCALE = "search", "rescale"
# More would leave little of the text.
MAX_DISTRACTORS = 64


@dataclass(frozen=True)
class Stage:
    """One window: how its factors are found and how long it is trained.

    Args:
        length: window after the stage, in tokens.
        steps: optimizer steps; 0 for factors without training.
        learning_rate: peak.
        schedule: after the warm-up: `linear` or `cosine` to 0, or `constant`.
        warmup: steps from 0 to the peak.
        batch: rows of `sequence_length` tokens an optimizer step.
        sequence_length: tokens of a training row; None for `length`.
        factors: `search` (at the start of the stage, on the model so far), `rescale` (the last stage's, on the curve they
            describe, to this length), or the path of a factors.json.
        short_share: part of the rows that hold short sequences, up to the original window, which train the short set
            (LongRoPE2's mixed context windows); 0 trains every sequence with the long set.
        retrieval_share: part of the rows that hold passkeys in real text.
        retrieval_distractors: other numbers in such a text, per 1,024 tokens: as many as in a text hundreds of times longer.
        distil_short: short sequences learn the distribution of the model before extension instead of the text's next token,
            in turn under the short and the long set (`teacher`); needs a short_share.
        answer_share: part of a passkey sequence's loss that its answer makes; by count it would be nearly nothing.
        max_evals: budget of the search; None for the run's own.
        texts: what is trained on; empty for the run's own texts.

    Raises:
        InputError: a value is out of range.
    """

    length: int
    steps: int = 0
    learning_rate: float = 2e-5
    schedule: Schedule = "linear"
    warmup: int = 0
    batch: int = 32
    sequence_length: int | None = None
    factors: str = SEARCH
    short_share: float = 0.0
    retrieval_share: float = 0.0
    retrieval_distractors: float = 0.0
    answer_share: float = 0.1
    distil_short: bool = False
    max_evals: int | None = None
    texts: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("length", 2), ("steps", 0), ("warmup", 0), ("batch", 1)):
            _require(_is_whole(getattr(self, name)) and getattr(self, name) >= least, name, f"{least} or more", self)
        for name in ("sequence_length", "max_evals"):
            value = getattr(self, name)
            _require(value is None or (_is_whole(value) and value >= 1), name, "1 or more", self)
        _require(_is_number(self.learning_rate) and self.learning_rate > 0, "learning_rate", "a number above 0", self)
        _require(self.schedule in get_args(Schedule), "schedule", ", ".join(get_args(Schedule)), self)
        for name in ("short_share", "retrieval_share", "answer_share"):
            _require(_is_number(getattr(self, name)) and 0 <= getattr(self, name) < 1, name, "a share below 1", self)
        distractors = self.retrieval_distractors
        _require(
            _is_number(distractors) and 0 <= distractors <= MAX_DISTRACTORS,
            "retrieval_distractors",
            f"0 to {MAX_DISTRACTORS}",
            self,
        )
        _require(isinstance(self.distil_short, bool), "distil_short", "true or false", self)
        _require(self.short_share > 0 or not self.distil_short, "distil_short", "a short_share beside it", self)
        _require(self.short_share + self.retrieval_share < 1, "short_share", "room for text beside retrieval", self)
        _require(self.warmup <= self.steps, "warmup", f"at most the {self.steps} steps", self)
        _require(self.row_length <= self.length, "sequence_length", f"at most the length {self.length}", self)

    @property
    def row_length(self) -> int:
        """Tokens of a training row."""
        return self.sequence_length or self.length

    @property
    def tokens(self) -> int:
        """Tokens that training reads."""
        return self.steps * self.batch * self.row_length

    def to_json(self) -> dict[str, Any]:
        data = dataclasses.asdict(self)
        data["texts"] = [str(path) for path in self.texts]
        return data


@dataclass(frozen=True)
class StagePlan:
    """Stages in their order.

    Args:
        name: of the preset or the file.
        stages: by length.
        original: window of the model the lengths are for; None when they fit any.
        source: where the figures come from.
    """

    name: str
    stages: tuple[Stage, ...]
    original: int | None = None
    source: str = ""

    def for_model(self, window: int, target: int) -> StagePlan:
        """The plan with lengths for a model of this window, up to the target.

        Raises:
            InputError: a stage is not longer than the one before or than the window, or goes beyond the target.
        """
        stages = tuple(_scaled(stage, window, self.original or window) for stage in self.stages)
        if not stages or stages[-1].length < target:
            stages = (*stages, Stage(target))
        lengths = [window, *(stage.length for stage in stages)]
        if any(after <= before for before, after in pairwise(lengths)):
            raise InputError(f"plan {self.name}: expected lengths that grow from the window on, got {_arrows(lengths)}")
        if stages[-1].length > target:
            raise InputError(
                f"plan {self.name} goes to {stages[-1].length} tokens ({_arrows(lengths)}), beyond --target-length "
                f"{target}; expected a plan of at most the target, such as default"
            )
        if stages[0].factors == RESCALE:
            raise InputError(f"plan {self.name}: the first stage has no factors before it to rescale")
        return dataclasses.replace(self, stages=stages, original=window)


def read_toml(path: Path) -> StagePlan:
    """A plan file: optional `name`, `original`, `source`, and a [[stage]] table for each stage.

    Raises:
        InputError: not a readable TOML file, unknown keys, or values out of range.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not a readable TOML file ({error})") from None
    tables = data.pop("stage", None)
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise InputError(f"{path}: expected a [[stage]] table for each stage, found none")
    _refuse_unknown(f"{path}", data, {"name", "original", "source"})
    original = data.get("original")
    if original is not None and not (_is_whole(original) and original >= 1):
        raise InputError(f"{path}: original: expected a window in tokens, got {original!r}")
    stages = tuple(_stage(path, number, table) for number, table in enumerate(tables, start=1))
    return StagePlan(str(data.get("name", path.stem)), stages, original, str(data.get("source", "")))


def _scaled(stage: Stage, window: int, original: int) -> Stage:
    """Lengths of a stage as many times another window."""
    if window == original:
        return stage

    def scaled(length: int) -> int:
        return length * window // original

    row = stage.sequence_length
    return dataclasses.replace(stage, length=scaled(stage.length), sequence_length=None if row is None else scaled(row))


def _stage(path: Path, number: int, table: Mapping[str, Any]) -> Stage:
    where = f"{path}, stage {number}"
    names = {field.name for field in dataclasses.fields(Stage)}
    _refuse_unknown(where, table, names)
    if "length" not in table:
        raise InputError(f"{where}: expected a length in tokens")
    values = dict(table)
    texts = values.pop("texts", [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{where}: texts: expected a list of paths, got {texts!r}")
    if not isinstance(values.get("factors", ""), str):
        raise InputError(f"{where}: factors: expected search, rescale or a path, got {values['factors']!r}")
    if values.get("factors", SEARCH) not in (SEARCH, RESCALE):
        values["factors"] = str(path.parent / values["factors"])
    try:
        return Stage(texts=tuple(path.parent / text for text in texts), **values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _refuse_unknown(where: str, table: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise InputError(f"{where}: unknown keys {', '.join(unknown)}; expected {', '.join(sorted(known))}")


def _require(holds: bool, name: str, expected: str, stage: Stage) -> None:
    if not holds:
        raise InputError(f"{name}: expected {expected}, got {getattr(stage, name)!r}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _arrows(lengths: list[int]) -> str:
    return " → ".join(map(str, lengths))
