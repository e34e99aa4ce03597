"""Command-line arguments to the library's option objects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrope.errors import InputError
from longrope.extend import ExtendOptions
from longrope.factors import RescaleFactors
from longrope.finetune.options import TrainOptions
from longrope.finetune.presets import read_plan
from longrope.search import SearchOptions
from longrope_export.models import open_model
from longrope_export.pipeline import ExtendRequest

if TYPE_CHECKING:
    from longrope_export.finetuning import FinetuneRequest

SEARCH_ARGUMENTS = (
    "strategy",
    "max_evals",
    "seed",
    "num_documents",
    "objective",
    "window_shares",
    "short_budget",
    "dtype",
    "device",
    "threads",
    "executor",
    "workers",
)

STAGE_ARGUMENTS = (
    "steps",
    "learning_rate",
    "schedule",
    "warmup",
    "batch",
    "short_share",
    "distil_short",
    "retrieval_share",
    "retrieval_distractors",
    "answer_share",
)
TRAIN_ARGUMENTS = (
    "lora_rank",
    "lora_layers",
    "lora_alpha",
    "optimizer",
    "weight_decay",
    "sequence_size",
    "pass_tokens",
    "checkpointing",
    "liger",
    "peak_flops",
    "save_every",
)
COMPUTE_ARGUMENTS = ("device", "threads", "seed")


def search_request(
    *, n_hat: str, attention_factor: str, from_factors: Path | None, start_from: tuple[Path, ...], **arguments: Any
) -> SearchOptions:
    """The options of a search. Raises InputError for a value that is neither a word nor a number it can be."""
    return SearchOptions(
        n_hat=_number_or_word("--n-hat", n_hat, int, ("search",)),
        attention_factor=_number_or_word("--attention-factor", attention_factor, float, ("formula", "search")),
        from_factors=RescaleFactors.load(from_factors) if from_factors else None,
        start_from=tuple(RescaleFactors.load(path) for path in start_from),
        **{name: arguments[name] for name in SEARCH_ARGUMENTS},
    )


def extend_request(
    *,
    model: str,
    output: Path,
    target_length: int,
    formats: str,
    methods: str | None,
    short_evals: int,
    short_windows: int,
    test_windows: int,
    stages_name: str | None,
    **arguments: Any,
) -> ExtendRequest:
    """The request of `extend`."""
    training = train_options(arguments, {name: arguments[name] for name in COMPUTE_ARGUMENTS})
    stages = read_plan(stages_name, open_model(model).window, target_length) if stages_name else None
    search_names = (*SEARCH_ARGUMENTS, "n_hat", "attention_factor", "from_factors", "start_from")
    search = search_request(**{name: arguments.pop(name) for name in search_names})
    options = ExtendOptions(
        target_length=target_length,
        search=search,
        short_evals=short_evals,
        short_windows=short_windows,
        test_windows=test_windows,
        methods=tuple(name.strip() for name in methods.split(",")) if methods else None,
        stages=stages,
        training=training,
    )
    names = tuple(name.strip() for name in formats.split(",") if name.strip())
    if not names:
        raise InputError("--formats: expected at least one of hf, gguf, onnx")
    return ExtendRequest(model=model, output=output, options=options, formats=names, **arguments)


def finetune_request(
    *, model: str, texts: tuple[Path, ...], output: Path, factors: Path | None, length: int | None, **arguments: Any
) -> FinetuneRequest:
    """The request of `finetune`."""
    from longrope_export.finetuning import FinetuneRequest

    return FinetuneRequest(
        model,
        texts,
        output,
        stage={name: arguments.pop(name) for name in STAGE_ARGUMENTS},
        options=train_options(arguments, {name: arguments.pop(name) for name in COMPUTE_ARGUMENTS}),
        factors=factors,
        length=length,
        **arguments,
    )


def train_options(arguments: dict[str, Any], compute: dict[str, Any]) -> TrainOptions:
    """The options of training, taken out of a command's arguments, with device, threads and seed."""
    own = {name: arguments.pop(name) for name in TRAIN_ARGUMENTS}
    return TrainOptions(dtype=arguments.pop("train_dtype"), **own, **compute)


def _number_or_word(option: str, text: str, number: type[int] | type[float], words: tuple[str, ...]) -> Any:
    if text in words:
        return text
    try:
        return number(text)
    except ValueError:
        raise InputError(f"{option} {text}: expected {', '.join(words)} or a number") from None
