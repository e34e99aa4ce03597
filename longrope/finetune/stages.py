"""Stages of progressive extension as data; `presets` has the published ones.

    preset or TOML file ──► StagePlan ──for_model(L, L')──► stages with lengths in tokens, the last one at L'

A preset's lengths are those of the model it was published for; another model's are as many times its own window. Where a
plan's last stage is shorter than the target, a second interpolation is added: searched factors, no training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from longrope.errors import InputError
from longrope.options import (
    Kind,
    Share,
    Tokens,
    build,
    check_declared,
    declared,
    option,
    plain,
    read_table,
    schema_of,
)
from longrope.reading import read_toml, shown

Schedule = Literal["linear", "constant", "cosine"]
SEARCH, RESCALE, GIVEN = "search", "rescale", "given"
# More would leave little of the text.
MAX_DISTRACTORS = 64
# A second interpolation without training reaches so many times the trained window (LongRoPE: 256k → 2048k).
SECOND_INTERPOLATION = 8


def _factors_of_stage(value: object, folder: Path) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(value)
    return value if value in (SEARCH, RESCALE, GIVEN) else str(folder / value)


StageFactors = Annotated[str, Kind("FACTORS", "search, rescale or a path", _factors_of_stage, {"type": "string"})]


@dataclass(frozen=True, kw_only=True)
class StageTraining:
    """How long and on what a stage is trained.

    Args:
        steps: optimizer steps; 0 for factors without training.
        learning_rate: peak.
        schedule: after the warm-up: `linear` or `cosine` to 0, or `constant`.
        warmup: steps from 0 to the peak.
        batch: rows of `sequence_length` tokens an optimizer step.
        sequence_length: tokens of a training row; None for the stage's window.
        short_share: part of the rows that hold short sequences, up to the original window, which train the short set
            (LongRoPE2's mixed context windows); 0 trains every sequence with the long set.
        distil_short: short sequences learn the distribution of the model before extension instead of the text's next token,
            in turn under the short and the long set (`teacher`); needs a short_share.
        retrieval_share: part of the rows that hold passkeys in real text.
        retrieval_distractors: other numbers in such a text, per 1,024 tokens: as many as in a text hundreds of times longer.
        answer_share: part of a passkey sequence's loss that its answer makes up; by count it would be nearly nothing.

    Raises:
        InputError: a value is out of range.
    """

    steps: int = option(0, section="Training", minimum=0, help="Optimizer steps of the training.")
    learning_rate: float = option(2e-5, section="Training", above=0, help="Peak learning rate.")
    schedule: Schedule = option(
        "linear", section="Training", help="Course of the learning rate after the warm-up: to 0, or constant."
    )
    warmup: int = option(0, section="Training", minimum=0, help="Steps in which the learning rate rises to its peak.")
    batch: int = option(32, section="Training", minimum=1, help="Rows of an optimizer step, over all processes.")
    sequence_length: Tokens | None = option(
        None, section="Training", unset="the window", help="Tokens of a training row."
    )
    short_share: Share = option(
        0.0, section="Training", help="Share of the rows that hold short sequences, which train the short set."
    )
    distil_short: bool = option(
        False, help="Let short sequences learn from the model before extension, instead of from the text."
    )
    retrieval_share: Share = option(
        0.0, section="Training", help="Share of the rows that hold passkeys hidden in the texts."
    )
    retrieval_distractors: float = option(
        0.0, minimum=0, maximum=MAX_DISTRACTORS, help="Other numbers in texts with passkeys, per 1,024 tokens."
    )
    answer_share: Share = option(0.1, help="Share of a passkey row's loss that its answer makes up.")

    def __post_init__(self) -> None:
        check_declared(self)
        _require(self.answer_share < 1, "answer_share", "a share below 1", self)
        _require(self.short_share > 0 or not self.distil_short, "distil_short", "a short_share beside it", self)
        _require(self.short_share + self.retrieval_share < 1, "short_share", "room for text beside retrieval", self)
        _require(self.warmup <= self.steps, "warmup", f"at most the {self.steps} steps", self)


@dataclass(frozen=True)
class Stage(StageTraining):
    """One window: how its factors are found and how it is trained.

    Args:
        length: window after the stage, in tokens.
        factors: `search` (at the start of the stage, on the model so far), `rescale` (the last stage's, on the curve they
            describe, to this length), or the path of a factors.json; `given` where a caller has them.
        max_evals: budget of the search; None for the run's own.
        texts: what is trained on; empty for the run's own texts.

    Raises:
        InputError: a value is out of range.
    """

    length: Tokens = option(help="Window after the stage, in tokens.")
    factors: StageFactors = option(
        SEARCH, help="Factors of the stage: search, rescale (the last stage's), or the path of a factors.json."
    )
    max_evals: int | None = option(None, minimum=1, help="Budget of the stage's search, in evaluations.")
    texts: tuple[Path, ...] = option((), help="Texts to train on, where they are not the run's own.")

    def __post_init__(self) -> None:
        super().__post_init__()
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


# JSON Schema of a stage's table, for recipes.
STAGE_SCHEMA = schema_of(declared(Stage), required=("length",), underscores=True)


@dataclass(frozen=True)
class StagePlan:
    """Stages in their order.

    Args:
        name: of the preset or the file.
        stages: by length; none for the default ones, which follow from a model's window and target.
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
        planned = self.stages or default_stages(window, target)
        stages = tuple(_scaled(stage, window, self.original or window) for stage in planned)
        if stages[-1].length < target:
            stages = (*stages, Stage(target))
        lengths = [window, *(stage.length for stage in stages)]
        if any(after <= before for before, after in pairwise(lengths)):
            raise InputError(f"plan {self.name}: expected lengths that grow from the window on, got {_arrows(lengths)}")
        if stages[-1].length > target:
            raise InputError(
                f"plan {self.name} goes to {stages[-1].length} tokens ({_arrows(lengths)}), beyond the target length of "
                f"{target}; expected a plan of at most the target, such as default",
                option="target-length",
            )
        if stages[0].factors == RESCALE:
            raise InputError(f"plan {self.name}: the first stage has no factors before it to rescale")
        return dataclasses.replace(self, stages=stages, original=window)


def read_plan_file(path: Path) -> StagePlan:
    """A plan file: optional `name`, `original`, `source`, and a [[stage]] table for each stage.

    Raises:
        InputError: not a readable TOML file, unknown keys, or values out of range.
    """
    data = read_toml(path)
    tables = data.pop("stage", None)
    if not isinstance(tables, list) or not tables:
        raise InputError(f"{path}: expected a [[stage]] table for each stage, found none")
    about = read_table(declared(_About), data, str(path), path.parent)
    return StagePlan(**{"name": path.stem, **about}, stages=read_stages(tables, str(path), path.parent))


def read_stages(tables: Sequence[Any], where: str, folder: Path) -> tuple[Stage, ...]:
    """Stages out of the tables of a file.

    Args:
        tables: one per stage, with the names of `Stage`.
        where: the file, for messages.
        folder: what paths in it are relative to.

    Raises:
        InputError: unknown keys, or values out of range.
    """
    stages = []
    for number, table in enumerate(tables, start=1):
        here = f"{where}, stage {number}"
        if not isinstance(table, Mapping):
            raise InputError(f"{here}: expected a table of settings, got {shown(table)}")
        values = read_table(declared(Stage), table, here, folder)
        if "length" not in values:
            raise InputError(f"{here}: expected a length in tokens")
        try:
            stages.append(build(Stage, values))
        except InputError as error:
            raise InputError(f"{here}: {error}") from None
    return tuple(stages)


def stage_table(stage: Stage) -> dict[str, Any]:
    """What `read_stages` takes for this stage: all that differs from the defaults."""
    held = ((each, getattr(stage, each.paths[0][0])) for each in declared(Stage))
    changed = {each.name: plain(value) for each, value in held if value != each.default}
    return {"length": stage.length, **changed}


@dataclass(frozen=True)
class _About:
    """What a plan file says beside its stages."""

    name: str = option("", help="Name of the plan.")
    original: Tokens | None = option(None, help="Window of the model that the lengths are for.")
    source: str = option("", help="Where the figures come from.")


def default_stages(window: int, target: int) -> tuple[Stage, ...]:
    """Train to an eighth of the target (to the target itself up to 8×), in two stages from 16× on; then interpolate.

    With 256 → 131,072: 2,048, 16,384, and 131,072 without training. Mixed windows keep the short window, retrieval the long
    one's use. Steps, rates and batch are the paper's for LLaMA2.
    """
    trained = target if target <= SECOND_INTERPOLATION * window else target // SECOND_INTERPOLATION
    lengths = [_halfway(window, trained), trained] if trained >= 16 * window else [trained]
    steps = (400, 600) if len(lengths) == 2 else (600,)
    return tuple(
        Stage(length, steps=count, short_share=0.25, retrieval_share=0.1, warmup=20)
        for length, count in zip(lengths, steps, strict=True)
    )


def _halfway(window: int, trained: int) -> int:
    """The window times the power of two nearest to the root of the whole scale, below it."""
    scale = 1
    while (2 * scale) ** 2 <= trained // window:
        scale *= 2
    return window * scale


def _scaled(stage: Stage, window: int, original: int) -> Stage:
    """Lengths of a stage as many times another window."""
    if window == original:
        return stage

    def scaled(length: int) -> int:
        return length * window // original

    row = stage.sequence_length
    return dataclasses.replace(stage, length=scaled(stage.length), sequence_length=None if row is None else scaled(row))


def _require(holds: bool, name: str, expected: str, stage: StageTraining) -> None:
    if not holds:
        raise InputError(f"{name}: expected {expected}, got {getattr(stage, name)!r}")


def _arrows(lengths: list[int]) -> str:
    return " → ".join(map(str, lengths))
