"""What is refused before a run, in the order in which a user would meet it; nothing is written here.

    request ──prepare──► Prepared: model, texts, planned exports        what the run goes on with
                            │
                            └──► --plan prints what it takes            it refuses what the run would refuse

Errors name the option that mends them; the engine's own, which a notebook would see, do not.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters import registry
from converters.base import Converter, Export, PlannedExport
from converters.parity import ValidateOptions, windows_by_length
from converters.policy import Policy, read_policy
from longrope.checkpoint import Checkpoint, placeholder_factors
from longrope.errors import InputError, MissingRequirementError
from longrope.estimates.search import search_estimate
from longrope.estimates.training import checkpoint_bytes
from longrope.extend_options import ExtendOptions
from longrope.factors import BoundFactors, RescaleFactors
from longrope.files import is_stillborn, json_text, refuse_existing
from longrope.finetune.options import TrainOptions
from longrope.journal import differences
from longrope.loading import require_loadable
from longrope.locks import refuse_occupied
from longrope.modeling import require_device
from longrope.pass_cache import cache_folder
from longrope.progress import Progress
from longrope.provenance import cached_hub_id
from longrope.reading import OBJECT, check, read_object, record
from longrope.search import SearchOptions, check_search
from longrope.text import Corpus, load_corpus
from longrope_export import default_model
from longrope_export.journals import goes_on, refuse_output
from longrope_export.models import DEFAULT, load_texts, open_model
from longrope_export.plots import check_picture_folder
from longrope_export.run_files import RUN

if TYPE_CHECKING:
    from longrope_export.commands.extend import ExtendRequest
    from longrope_export.commands.search import SearchRequest

# Processes that torchrun started.
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", "1"))
# Room that a run needs on the disk, as a multiple of the weights it writes.
DISK_MARGIN = 1.2


@dataclass(frozen=True)
class Output:
    """One artifact of a run: who writes it, where, and its plan, made with placeholder factors."""

    label: str
    converter: Converter
    path: Path
    planned: PlannedExport

    def with_factors(self, checkpoint: Checkpoint, factors: BoundFactors) -> PlannedExport:
        """The plan with what was found; made anew where the model has been trained since."""
        if checkpoint is self.planned.export.checkpoint:
            return self.planned.with_factors(factors)
        return self.converter.plan(dataclasses.replace(self.planned.export, checkpoint=checkpoint, factors=factors))


@dataclass(frozen=True)
class Prepared:
    """What a run of `extend` goes on with.

    Args:
        request: what was asked, for this model on this machine.
        checkpoint: the model before extension.
        corpus: texts to search and to train on.
        held_out: texts that neither sees.
        outputs: every artifact, planned.
        policy: what judges their validation.
        configuration: what decides the run's result, as JSON, for run.json and to compare with on resuming.
    """

    request: ExtendRequest
    checkpoint: Checkpoint
    corpus: Corpus
    held_out: Corpus
    outputs: tuple[Output, ...]
    policy: Policy
    configuration: Mapping[str, Any]


def prepare(request: ExtendRequest, progress: Progress, *, planning: bool = False) -> Prepared:
    """Open, load and check everything that a run of `extend` needs.

    Args:
        request: what was asked.
        progress: where a line says which texts are used.
        planning: for `--plan`, which prints what does not fit into memory instead of refusing it.

    Raises:
        LongRopeError: the first thing in this list that cannot be.
    """
    check_processes(request.options)
    policy = read_policy(request.policy)
    checkpoint = open_model(request.model, request.original)
    check_weights(checkpoint, progress)
    check_target(checkpoint, request.target_length)
    request = on_checkpoint(request, checkpoint)
    options = request.options
    check_effects(options)
    if request.sets == "dual" and options.search.family != "free":
        raise InputError(f"--factor-sets dual with --family {options.search.family}, which is one set for every length")
    check_base(checkpoint, request.target_length, options.search.from_factors)
    for length in options.searched_lengths:
        check_search(checkpoint, length, options.search)
    check_machine(checkpoint, options.searched_lengths, options.search, planning=planning)
    corpus, held_out = load_corpora(request, checkpoint, progress)
    placeholder = placeholder_factors(checkpoint, request.target_length, options.planned_n_hat, options.search.family)
    check_texts(request, checkpoint, corpus, held_out, placeholder)
    outputs = plan_outputs(request, checkpoint, placeholder)
    check_training(options, checkpoint, corpus, placeholder)
    check_disk(request.output, checkpoint, len(outputs), options)
    configuration = configuration_of(request, checkpoint, corpus, held_out, policy)
    check_run_folder(request, configuration)
    return Prepared(request, checkpoint, corpus, held_out, outputs, policy, configuration)


# -- what several commands check


def check_weights(checkpoint: Checkpoint, progress: Progress) -> None:
    """Refuse weights that transformers would not load as they are; say what was mended in reading them."""
    checkpoint.require_float_weights()
    left_out = require_loadable(checkpoint)
    for oddity in (*checkpoint.oddities(), *left_out):
        progress.warn(oddity)


def check_target(checkpoint: Checkpoint, target: int) -> None:
    """Refuse a target that the model reaches already."""
    if target <= checkpoint.base.window:
        again = (
            f"; --original {checkpoint.window} begins where it was extended from" if checkpoint.base.is_longrope else ""
        )
        raise InputError(
            f"--target-length {target}: expected more than the model's window of {checkpoint.base.window} tokens{again}"
        )


def check_base(checkpoint: Checkpoint, target: int, base: RescaleFactors | None) -> None:
    """Refuse a target that the factors to search on top of reach already, and factors of another model."""
    if base is not None and target <= (reached := checkpoint.bind(base).target):
        raise InputError(f"--target-length {target}: expected more than the {reached} tokens that --from reaches")


def check_machine(
    checkpoint: Checkpoint, lengths: Sequence[int], options: SearchOptions, *, planning: bool = False
) -> None:
    """Refuse a device that is not there, and searches whose smallest passes do not fit into its memory."""
    if options.executor == "ray":  # its actors run elsewhere
        return
    require_device(options.device)
    if planning:
        return
    needed = [memory for length in lengths for memory in search_estimate(checkpoint, length, options).needed]
    if unfit := next((memory for memory in needed if not memory.fits), None):
        raise MissingRequirementError(
            f"not enough memory for {unfit}; use a smaller --dtype, a shorter --target-length, or another machine"
        )


# -- a search


def prepare_search(
    request: SearchRequest, progress: Progress, *, planning: bool = False
) -> tuple[Checkpoint, Corpus | None, SearchOptions]:
    """The model, the texts and the options for them, checked; a plan may go without texts and output.

    Raises:
        LongRopeError: the first thing in this list that cannot be.
    """
    checkpoint, target, output = open_model(request.model, request.original), request.target_length, request.output
    check_weights(checkpoint, progress)
    options = request.search.on(checkpoint)
    check_target(checkpoint, target)
    check_base(checkpoint, target, options.from_factors)
    check_search(checkpoint, target, options)
    check_machine(checkpoint, [target], options, planning=planning)
    corpus = load_corpus(request.texts, checkpoint.encode) if request.texts else None
    if corpus is not None:
        corpus.first_windows(target, 1)
    if output is not None:
        refuse_output(output, resume=request.resume, overwrite=request.overwrite)
    if request.plots is not None:
        again = output is not None and goes_on(output, resume=request.resume)
        check_picture_folder(request.plots, overwrite=request.overwrite or again)
    return checkpoint, corpus, options


# -- the whole job


def check_processes(options: ExtendOptions) -> None:
    """Refuse what this many processes could not share."""
    if WORLD_SIZE > 1 and options.stages is None:
        raise InputError("several processes share the training of --stages; a search is shared by --workers")
    sizes = {"sequence-parallel": options.training.sequence_parallel, "fsdp": options.training.fsdp or 1}
    for name, size in sizes.items():
        if WORLD_SIZE % size:
            raise InputError(
                f"--{name} {size}: expected a divisor of the number of processes ({WORLD_SIZE}); torchrun starts them"
            )


def check_effects(options: ExtendOptions) -> None:
    """Refuse options that would be without effect."""
    training = options.training
    usual = TrainOptions(dtype=training.dtype, device=training.device, threads=training.threads, seed=training.seed)
    if options.stages is None and training != usual:
        changed = differences(asdict(usual), asdict(training))
        raise InputError(f"options of training need --stages PLAN: {'; '.join(changed)}")
    if options.stages is not None and options.search.family != "free":
        raise InputError(f"--family {options.search.family} with --stages: every stage is trained with free factors")
    if options.stages is not None and options.search.from_factors is not None:
        raise InputError(
            "--from with --stages: every stage searches on top of the one before; name the file in the plan"
        )


def on_checkpoint(request: ExtendRequest, checkpoint: Checkpoint) -> ExtendRequest:
    """The request with `auto` made plain and stages in tokens for a checkpoint on this machine."""
    return dataclasses.replace(request, options=request.options.on(checkpoint))


def load_corpora(request: ExtendRequest, checkpoint: Checkpoint, progress: Progress) -> tuple[Corpus, Corpus]:
    """Texts to search on, and held-out ones to measure on."""
    corpus = load_texts(checkpoint, request.texts, default_model.SEARCH_TEXTS, progress)
    if request.test_texts or not request.texts:
        return corpus, load_texts(checkpoint, request.test_texts, default_model.TEST_TEXTS, progress)
    return corpus.split()


def check_texts(
    request: ExtendRequest, checkpoint: Checkpoint, corpus: Corpus, held_out: Corpus, factors: BoundFactors
) -> None:
    """Refuse texts without a document as long as the target, for the search or for the table of methods, or a window."""
    corpus.first_windows(request.target_length, 1)
    held_out.first_windows(request.target_length, 1)
    windows_by_length(held_out, factors, validate_options(request, checkpoint))


def validate_options(request: ExtendRequest, checkpoint: Checkpoint) -> ValidateOptions:
    """How the artifacts are validated."""
    return ValidateOptions(
        windows=request.windows or (checkpoint.window, request.target_length),
        windows_per_length=request.windows_per_length,
        crossing=request.crossing,
        threads=request.options.search.threads,
        device=request.options.search.device,
        cache=cache_folder(),
    )


def plan_outputs(request: ExtendRequest, checkpoint: Checkpoint, factors: BoundFactors) -> tuple[Output, ...]:
    """What `--formats` names, each planned, with its path in the run's folder.

    Raises:
        LongRopeError: a format is unknown or named twice, lacks its libraries, or cannot express the model.
    """
    name = (cached_hub_id(checkpoint.path) or checkpoint.name) if request.model != DEFAULT else "longrope-default"
    stem = Path(name.partition("@")[0]).name.removesuffix(".gguf")
    outputs: list[Output] = []
    for label in request.formats:
        name, _, outtype = label.partition(":")
        converter, folder = registry.converter(name), request.output / name
        weights = outtype or converter.outtypes[0]
        path = folder / f"{stem}-{weights}{converter.suffix}" if converter.suffix else folder
        if any(path == other.path for other in outputs):
            raise InputError(f"--formats {','.join(request.formats)}: {label} is there twice")
        converter.check_requirements()
        chosen = converter.choose_sets(factors, request.sets, checkpoint)
        planned = converter.plan(Export(checkpoint, chosen, outtype or None))
        outputs.append(Output(label, converter, path, planned))
    return tuple(outputs)


def check_training(options: ExtendOptions, checkpoint: Checkpoint, corpus: Corpus, factors: BoundFactors) -> None:
    """Refuse a plan of stages that could not be run to its end."""
    if options.stages is None:
        return
    from longrope.finetune.model import require_extras, require_trainable
    from longrope.finetune.progressive import check_stages

    size = options.training.sequence_parallel
    for stage in options.stages.stages:
        if stage.steps and (stage.batch % (WORLD_SIZE // size) or stage.row_length % size):
            raise InputError(
                f"stage at {stage.length}: expected a batch that {WORLD_SIZE // size} processes share, and rows that {size} "
                f"share, got {stage.batch} rows of {stage.row_length}"
            )
    require_extras(options.training)
    require_trainable(checkpoint, options.training)
    check_stages(checkpoint, options.stages, factors, corpus, lambda paths: load_corpus(paths, checkpoint.encode))


def check_disk(folder: Path, checkpoint: Checkpoint, num_outputs: int, options: ExtendOptions) -> None:
    """Refuse a run whose artifacts would not fit. Weights of 16 bits may be written with 32.

    A trained stage leaves its weights and two checkpoints; a third is written before the first goes.
    """
    weights = sum(file.stat().st_size for file in checkpoint.weight_files)
    needed = DISK_MARGIN * weights * 2 * num_outputs
    trained = sum(stage.steps > 0 for stage in options.stages.stages) if options.stages else 0
    if trained:
        needed += DISK_MARGIN * (trained * weights + (2 * trained + 1) * checkpoint_bytes(checkpoint, options.training))
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise MissingRequirementError(
            f"{folder}: {num_outputs} artifacts may need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "free some room or ask for fewer --formats"
        )


def configuration_of(
    request: ExtendRequest, checkpoint: Checkpoint, corpus: Corpus, held_out: Corpus, policy: Policy
) -> Mapping[str, Any]:
    """What decides a run's result, as JSON."""
    return {
        "model": request.model,
        "original": request.original,
        "model_fingerprint": checkpoint.fingerprint,
        "text_fingerprint": corpus.fingerprint,
        "test_fingerprint": held_out.fingerprint,
        "formats": list(request.formats),
        "factor_sets": request.factor_sets,
        "policy": policy.to_json(),
        "options": request.options.settings(),
    }


def check_run_folder(request: ExtendRequest, configuration: Mapping[str, Any]) -> None:
    """Refuse a folder that is not ours to write: only a former run is replaced, and only one like this is resumed.

    Raises:
        InputError: it is not, or another run is at work there.
    """
    file = request.output / RUN
    refuse_occupied(request.output)
    again = request.resume or request.overwrite
    if again and is_stillborn(request.output):  # killed before it could write run.json
        return
    if request.resume:
        _check_resumable(file, configuration)
        return
    refuse_existing(request.output, overwrite=request.overwrite)
    if request.output.exists() and not file.is_file():
        raise InputError(
            f"{request.output}: expected a run of extend to overwrite, found no {RUN}; choose another output"
        )


def _check_resumable(file: Path, configuration: Mapping[str, Any]) -> None:
    """Raise InputError unless a run with the same model, texts and options is there."""
    if not file.is_file():
        raise InputError(f"{file}: no such run to resume; leave --resume out to start one")
    stored = check(read_object(file), record({"configuration": OBJECT}), str(file))["configuration"]
    now = json.loads(json_text(configuration))
    decisive = ("model_fingerprint", "text_fingerprint", "options")
    before, after = ({name: run.get(name) for name in decisive} for run in (stored, now))
    if changed := differences(before, after):
        raise InputError(f"{file}: {'; '.join(changed)}; repeat the same options or start anew")
