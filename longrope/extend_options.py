"""The options of `longrope.extend`; importing them loads no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from longrope.finetune.options import TrainOptions
from longrope.finetune.presets import PRESETS, read_plan
from longrope.finetune.stages import SEARCH, STAGE_SCHEMA, StagePlan, read_stages
from longrope.options import Kind, Tokens, Words, check_declared, nested, option
from longrope.search.options import SearchOptions

if TYPE_CHECKING:
    from longrope.checkpoint import Checkpoint


def _stages(value: object, folder: Path) -> str | StagePlan:
    """The name of a preset, the path of a file, or a plan of tables."""
    if isinstance(value, StagePlan):
        return value
    if isinstance(value, list):
        return StagePlan("recipe", read_stages(value, "stages", folder))
    if not isinstance(value, str) or not value:
        raise ValueError(value)
    return value if value in PRESETS else str(folder / value)


def _load_plan(value: str | StagePlan) -> StagePlan:
    return value if isinstance(value, StagePlan) else read_plan(value)


STAGES = Kind(
    "PLAN",
    f"one of {', '.join(PRESETS)}, a TOML file, or a list of stages",
    _stages,
    {"anyOf": [{"type": "string"}, {"type": "array", "items": STAGE_SCHEMA}]},
    _load_plan,
)


@dataclass(frozen=True)
class ExtendOptions:
    """Every option of `longrope.extend` beyond the model and the texts.

    Args:
        target_length: L' in tokens.
        search: strategy, budget, n_hat, attention factor, seed, device.
        short_evals: budget of the short set's search.
        short_windows: windows of L tokens that a short set is measured on.
        test_windows: held-out windows of each length in the table of methods.
        methods: known methods in that table; None for all.
        stages: fine-tuning between searches; None for one search without training.
        training: optimizer, precision and machine of all stages.
    """

    target_length: Tokens = option(section="Input", help="Window after the extension, in tokens, such as 128k.")
    search: SearchOptions = nested(SearchOptions())
    short_evals: int = option(64, minimum=1, help="Budget of the short set's search, in evaluations.")
    short_windows: int = option(40, minimum=1, help="Windows of the original length that a short set is measured on.")
    test_windows: int = option(8, minimum=1, help="Held-out windows of each length in the table of methods.")
    methods: Words | None = option(
        None, unset="all", help="Known methods in the table of methods, such as none,PI,NTK,YaRN 32/1."
    )
    stages: Annotated[StagePlan, STAGES] | None = option(
        None,
        section="Training",
        unset="no training",
        help=f"Fine-tune in stages: {', '.join(PRESETS)}, or a TOML file.",
    )
    training: TrainOptions = nested(TrainOptions(), rename={"dtype": "train-dtype"}, expert=("dtype",))

    def __post_init__(self) -> None:
        """Raises InputError where a field holds what its option could not be."""
        check_declared(self)

    def on(self, checkpoint: Checkpoint) -> Self:
        """The same with `auto` made plain and stages in tokens, for a checkpoint on this machine."""
        return dataclasses.replace(
            self,
            search=self.search.on(checkpoint),
            training=self.training.on(checkpoint),
            stages=self.stages and self.stages.for_model(checkpoint.window, self.target_length),
        )

    @property
    def searched_lengths(self) -> tuple[int, ...]:
        """Every L' that factors are searched for."""
        if self.stages is None:
            return (self.target_length,)
        return tuple(stage.length for stage in self.stages.stages if stage.factors == SEARCH)

    @property
    def mixed(self) -> bool:
        """Whether a short set is trained, too."""
        return self.stages is not None and any(stage.steps and stage.short_share for stage in self.stages.stages)

    @property
    def short_search(self) -> SearchOptions:
        """How a short set is searched, but for n_hat, which is the long set's."""
        return dataclasses.replace(self.search, max_evals=self.short_evals, start_from=())

    def settings(self) -> dict[str, Any]:
        """What decides the result, as JSON. The machine does not: a run may go on with another."""
        own = {"search": self.search.settings(), "training": self.training.settings()}
        return {**dataclasses.asdict(self), **own}

    @property
    def planned_n_hat(self) -> int:
        """Start tokens that formats must be able to hold: any number, when it is searched."""
        return 1 if self.search.n_hat == "search" else int(self.search.n_hat)
