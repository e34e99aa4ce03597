"""The training loop: rows by number, token-weighted losses, checkpoints, logs.

    row numbers of a step ──► rows of this process ──► passes ──► Σ weight · NLL / weight of the whole step ──► backward
                                                                                                                  │
    checkpoint every few steps ◄── log ◄── scheduler ◄── optimizer ◄── clipped norm over all processes ◄──────────┘

A step is the same step in one process or many: rows are counted over the whole run, the loss is divided by the weights of
all processes, gradients are summed. A row is made from its number, so that data position is the number of steps.
The loop is this short because everything around it is somebody's: transformers' schedules and activation checkpointing,
PEFT, torch's AdamW, FSDP2 and distributed checkpoints. Why not transformers' Trainer: see DESIGN.md.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from longrope.checkpoint import Checkpoint, open_folder
from longrope.errors import InputError, LongRopeError
from longrope.estimates.compute import model_flops, peak_flops
from longrope.estimates.shape import DecoderShape
from longrope.estimates.training import rows_per_pass, training_memory
from longrope.factors import BoundFactors, RescaleFactors
from longrope.files import alone_in, is_stillborn, refuse_existing, remove_all, remove_partial, write_atomically
from longrope.finetune.batch import PackedBatch, join
from longrope.finetune.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint, step_folder
from longrope.finetune.data import Mixture, TrainingRows, training_rows
from longrope.finetune.log import LOG_NAME, StepRecord, TrainingLog, read_log
from longrope.finetune.model import TrainedModel, require_extras
from longrope.finetune.options import TrainOptions
from longrope.finetune.parallel import Parallel
from longrope.finetune.stages import Stage
from longrope.finetune.teacher import Lesson, Teacher
from longrope.journal import differences
from longrope.modeling import set_threads
from longrope.progress import Progress, Silent, Task
from longrope.reading import COUNT, COUNT_OR_ZERO, OBJECT, check, read_object, record, said_by
from longrope.text import Corpus

RUN_NAME, CHECKPOINTS, MODEL = "training.json", "checkpoints", "model"
# Where a stage's factors and texts came from; what they say is compared when a run is resumed, not where they lie.
ORIGINS = ("factors", "texts")
_STATE = record({"step": COUNT_OR_ZERO, "tokens": COUNT_OR_ZERO, "scheduler": OBJECT})
_RUN = record({"stage": record({"length": COUNT}), "options": OBJECT})


@dataclass(frozen=True)
class Training:
    """A finished stage.

    Args:
        checkpoint: the trained model: the source's configuration and tokenizer, new weights, no factors embedded.
        factors: what it was trained with: in mixed training both sets.
        records: every step.
    """

    checkpoint: Checkpoint
    factors: BoundFactors
    records: tuple[StepRecord, ...]

    @property
    def tokens(self) -> int:
        return self.records[-1].tokens if self.records else 0

    def to_json(self) -> dict[str, Any]:
        """Curves for a report."""
        return {
            "steps": [record.step for record in self.records],
            "loss": [record.loss for record in self.records],
            "learning_rate": [record.learning_rate for record in self.records],
            "tokens": self.tokens,
            "seconds": sum(record.seconds for record in self.records),
        }


def finetune(
    checkpoint: Checkpoint,
    factors: RescaleFactors,
    stage: Stage,
    corpus: Corpus,
    folder: Path,
    *,
    options: TrainOptions | None = None,
    resume: bool = False,
    overwrite: bool = False,
    teacher: Checkpoint | None = None,
    parallel: Parallel | None = None,
    progress: Progress | None = None,
) -> Training:
    """Train a model with these factors for one stage.

    In mixed training (`stage.short_share` above 0) sequences up to the original window train the short set.

    Args:
        checkpoint: the model before the stage.
        factors: for `stage.length`.
        stage: steps, rate, batch, rows.
        corpus: what is trained on; documents of at least a row.
        folder: gets checkpoints/, log.jsonl and, at the end, model/.
        options: optimizer, precision, machine.
        resume: go on with the run in `folder`; a finished one is returned as it is.
        overwrite: replace the run in `folder`.
        teacher: the model before extension, for a stage with `distil_short`; None takes `checkpoint`, which is that in a
            first stage.
        parallel: this process among all; None for one process.
        progress: where a bar and warnings go.

    Raises:
        InputError: a run of something else is in `folder`, documents are too short, the batch does not divide.
        MissingRequirementError: memory, disk, or an extra.
    """
    options, progress = (options or TrainOptions()).on(checkpoint), progress or Silent()
    parallel = parallel or Parallel.single(options.device)
    set_threads(options.threads)
    require_extras(options)
    bound = training_factors(checkpoint.bind(factors), stage)
    if stage.batch % parallel.data_parallel:
        raise InputError(f"batch: expected a multiple of the {parallel.data_parallel} processes, got {stage.batch}")
    rows = training_rows(checkpoint, corpus, mixture_of(stage, bound, options))
    source = (teacher or checkpoint) if stage.distil_short else None
    _check_teacher(source, checkpoint)
    with alone_in(folder, again=True) if parallel.is_main else nullcontext():
        if parallel.is_main:
            _open_run(
                folder, _header(checkpoint, source, bound, stage, corpus, options), resume=resume, overwrite=overwrite
            )
        parallel.barrier()
        if not (folder / MODEL).is_dir():
            _Run(checkpoint, source, bound, stage, rows, folder, options, parallel, progress).train()
    trained = open_folder(folder / MODEL, f"{checkpoint.name}, trained")
    return Training(trained, bound, _records(folder / LOG_NAME, stage.steps))


def _records(file: Path, steps: int) -> tuple[StepRecord, ...]:
    """Every step of a finished stage. Raises InputError."""
    records = tuple(read_log(file))
    if [record.step for record in records] != list(range(1, steps + 1)):
        raise InputError(f"{file}: damaged: expected the steps 1 to {steps}, one per line; start the training anew")
    return records


def training_factors(factors: BoundFactors, stage: Stage) -> BoundFactors:
    """The factors that a stage trains: in mixed training the short set of single factors is the original RoPE.

    Its cos and sin keep the long set's attention factor, as every runtime applies it; training makes up for that. Where a
    teacher has the short sequences, single factors stay single: the one set learns them.
    """
    if stage.short_share and factors.factor_sets == "single" and not stage.distil_short:
        return replace(factors, short_factor=factors.original_set)
    return factors


def _check_teacher(teacher: Checkpoint | None, checkpoint: Checkpoint) -> None:
    """Raise InputError unless the teacher reads the same tokens with the same heads."""
    for name in ("vocab_size", "num_attention_heads"):
        if teacher is not None and (got := teacher.config.get(name)) != (expected := checkpoint.config.get(name)):
            raise InputError(
                f"{teacher.name} cannot teach {checkpoint.name}: expected the same model before extension, with {name} "
                f"{expected}, got {got}"
            )


def mixture_of(stage: Stage, factors: BoundFactors, options: TrainOptions) -> Mixture:
    """What a stage's rows are made of."""
    return Mixture(
        row_length=stage.row_length,
        short_length=factors.original,
        short_share=stage.short_share,
        retrieval_share=stage.retrieval_share,
        retrieval_distractors=stage.retrieval_distractors,
        answer_share=stage.answer_share,
        distil_short=stage.distil_short,
        seed=options.seed,
    )


class _Run:
    """One stage in training."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        teacher: Checkpoint | None,
        factors: BoundFactors,
        stage: Stage,
        rows: TrainingRows,
        folder: Path,
        options: TrainOptions,
        parallel: Parallel,
        progress: Progress,
    ) -> None:
        from transformers import get_scheduler

        self.stage, self.rows, self.folder, self.options = stage, rows, folder, options
        self.parallel, self.progress = parallel, progress
        memory = training_memory(checkpoint, stage, options, world_size=parallel.world_size)
        if not memory.fits:
            progress.warn(f"training may run out of memory: {memory}")
        recompute = parallel.anywhere(memory.checkpointing)  # free memory differs, what processes do together may not
        self.trained = TrainedModel(checkpoint, factors, options, parallel, checkpointing=recompute)
        self.teacher = None
        if teacher is not None:
            self.teacher = Teacher(teacher, parallel, self.trained.compute)
        self.optimizer = make_optimizer(self.trained, stage, options)
        name = "constant_with_warmup" if stage.schedule == "constant" else stage.schedule
        self.scheduler = get_scheduler(name, self.optimizer, stage.warmup, stage.steps)
        self.shape = DecoderShape.of(checkpoint.config)
        self.peak = options.peak_flops or peak_flops(options.device)
        self.step, self.tokens = 0, 0

    def train(self) -> None:
        """All steps that are left, then the weights."""
        self._resume()
        title = f"train {self.stage.length} tokens"
        remaining = self.stage.steps - self.step
        with self._log() as log, self.progress.task(title, max(remaining, 1)) as task:
            while self.step < self.stage.steps:
                record = self._step()
                self._tell(record, log, task)
                if self.step % self.options.save_every == 0 or self.step == self.stage.steps:
                    self._save()
        self.trained.save(self.folder / MODEL)

    def _log(self) -> AbstractContextManager[TrainingLog | None]:
        """The first process writes the log."""
        return TrainingLog(self.folder, self.step) if self.parallel.is_main else nullcontext()

    def _step(self) -> StepRecord:
        start = time.perf_counter()
        batches = [batch.map(self._mine) for batch in self._batches()]
        totals = torch.tensor([sum(batch.weight for batch in batches), 0.0], dtype=torch.float64)
        weight = float(self.parallel.sum_(totals.to(self.parallel.device, torch.float32))[0])
        summed = torch.zeros((), dtype=torch.float32, device=self.parallel.device)
        for batch in batches:
            with self._precision():
                loss = self.trained.loss(batch, self._lesson(batch)) / weight
            loss.backward()
            summed += loss.detach()
        norm = self.parallel.clip_grad_norm(self.trained.loss, self.options.max_grad_norm)
        self._require_finite(float(norm))
        rate = float(self.scheduler.get_last_lr()[0])
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        tokens = self.stage.batch * self.stage.row_length
        self.tokens += tokens
        mean, seconds = float(self.parallel.sum_(summed)), time.perf_counter() - start
        return StepRecord(
            step=self.step,
            loss=mean,
            learning_rate=rate,
            grad_norm=float(norm),
            tokens=self.tokens,
            seconds=round(seconds, 4),
            tokens_per_second=round(tokens / seconds, 1),
            mfu=self._mfu(batches, seconds),
        )

    def _require_finite(self, norm: float) -> None:
        """Stop before a non-finite gradient gets into the weights, and from there into every later checkpoint."""
        if not math.isfinite(norm):
            raise LongRopeError(
                f"step {self.step + 1}: the gradient's norm is {norm}; the weights were left as they were and the last "
                "checkpoint is good. Try a lower learning rate, a longer warm-up or float32"
            )

    def _lesson(self, batch: PackedBatch) -> Lesson | None:
        """The teacher's part in a pass. Where one process has taught tokens, all ask, for they share its weights."""
        if self.teacher is None or not self.parallel.anywhere(bool(batch.taught.any())):
            return None
        lesson: Lesson = self.teacher(batch)
        return lesson

    def _batches(self) -> Iterator[PackedBatch]:
        """The passes of this process in the coming step; processes that share sequences get the same ones."""
        first = self.step * self.stage.batch
        numbers = range(first + self.parallel.data_rank, first + self.stage.batch, self.parallel.data_parallel)
        together = rows_per_pass(self.stage, self.options, len(numbers))
        for start in range(0, len(numbers), together):
            yield join([self.rows.row(number) for number in numbers[start : start + together]])

    def _mine(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.parallel.split_sequence(tensor).to(self.parallel.device)

    def _precision(self) -> AbstractContextManager[Any]:
        """Autocast in one process; sharded weights are cast as they are gathered."""
        return torch.autocast(self.parallel.device.type, self.trained.compute, enabled=self.trained.autocast)

    def _mfu(self, batches: list[PackedBatch], seconds: float) -> float | None:
        """Model FLOPs of this process's sequences per second, over its device's peak."""
        if self.peak is None:
            return None
        lengths = [length for batch in batches for length in batch.lengths]
        return (
            model_flops(self.shape, lengths, self.options.lora_layers)
            / self.parallel.sequence_parallel
            / seconds
            / self.peak
        )

    def _tell(self, record: StepRecord, log: TrainingLog | None, task: Task) -> None:
        if log is not None:
            log.add(record)
        task.advance(1, f"loss {record.loss:.4f}, {record.tokens_per_second:.0f} tokens/s")

    # -- checkpoints

    def _save(self) -> None:
        state = {"step": self.step, "tokens": self.tokens, "scheduler": _plain(self.scheduler.state_dict())}
        save_checkpoint(step_folder(self.folder / CHECKPOINTS, self.step), self.trained.loss, self.optimizer, state)

    def _resume(self) -> None:
        found = latest_checkpoint(self.folder / CHECKPOINTS)
        if found is None:
            torch.manual_seed(self.options.seed)
            return
        state = load_checkpoint(found, self.trained.loss, self.optimizer, _STATE)
        self.step, self.tokens = state["step"], state["tokens"]
        with said_by("torch's scheduler", f"{found / 'state.json'}: scheduler"):
            self.scheduler.load_state_dict(state["scheduler"])
        self.progress.line(f"Going on after step {self.step}.")


def make_optimizer(trained: TrainedModel, stage: Stage, options: TrainOptions) -> torch.optim.Optimizer:
    """AdamW in float32, or with 8-bit moments; weight decay on matrices only."""
    parameters = trained.parameters()
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if options.optimizer == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        found: torch.optim.Optimizer = AdamW8bit(groups, lr=stage.learning_rate, betas=options.betas)
        return found
    return torch.optim.AdamW(groups, lr=stage.learning_rate, betas=options.betas, fused=True)


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's numbers; its functions are made again."""
    return {name: value for name, value in state.items() if name != "lr_lambdas"} | {
        "lr_lambdas": [None] * len(state.get("lr_lambdas", []))
    }


# -- the run's folder


def _header(
    checkpoint: Checkpoint,
    teacher: Checkpoint | None,
    factors: BoundFactors,
    stage: Stage,
    corpus: Corpus,
    options: TrainOptions,
) -> dict[str, Any]:
    """What decides the result; a resumed run must have the same."""
    plain = replace(factors, provenance={})
    return {
        "version": 1,
        "model": checkpoint.fingerprint,
        **({"teacher": teacher.fingerprint} if teacher else {}),
        "text": corpus.fingerprint,
        "factors": plain.to_json(),
        "stage": {name: value for name, value in stage.to_json().items() if name not in ORIGINS},
        "options": options.settings(),
    }


def _open_run(folder: Path, header: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Make the folder, or check that the run in it is this one."""
    file = folder / RUN_NAME
    if is_stillborn(folder):  # killed before it could write training.json
        remove_all(folder)
    if resume and file.is_file():
        changed = differences(_with_defaults(_read(file)), json.loads(json.dumps(header)))
        if changed:
            raise InputError(f"{folder}: cannot resume, the run has changed: {'; '.join(changed)}; start a new one")
        remove_partial(folder)
        return
    if folder.exists() and any(folder.iterdir()):
        refuse_existing(folder, overwrite=overwrite)
        if not file.is_file():
            raise InputError(f"{folder}: expected a training run to overwrite, found no {RUN_NAME}")
        remove_all(folder)
    write_atomically(file, json.dumps(header, indent=2) + "\n")


def _with_defaults(header: dict[str, Any]) -> dict[str, Any]:
    """A header as one of this version: choices that there were not yet are those that were made then."""
    stage = {**Stage(header["stage"]["length"]).to_json(), **header["stage"]}
    stage = {name: value for name, value in stage.items() if name not in ORIGINS}
    return header | {"stage": stage, "options": {**TrainOptions().settings(), **header["options"]}}


def _read(file: Path) -> Any:
    return check(read_object(file, non_finite=True), _RUN, f"{file}: damaged")
