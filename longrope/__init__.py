"""LongRoPE: search a rescale factor for every rotary pair, extend a model's context window, write it in the format you run.

    import longrope

    checkpoint = longrope.open_checkpoint("model")                     # a folder, a Hub id or a .gguf file
    corpus = longrope.load_corpus(["books"], checkpoint.encode)        # texts as token ids
    result = longrope.search(checkpoint, corpus, 32_768)               # factors for a longer window
    both = longrope.recover_short(checkpoint, corpus, result.factors)  # and a short set for the original one
    done = longrope.convert(checkpoint, "out.gguf", to="gguf", factors=both.factors)
    longrope.validate(done.path, checkpoint, corpus).passed

Importing this package is cheap: names are imported when they are first used, and torch when a model is to run.

`search`, `extend` and `finetune` are modules that can be called: `longrope.search(…)` is `longrope.search.search(…)`.
`convert`, `validate` and `read_factors` are those of `converters`, found through the entry points `longrope.api`; type
checkers see their full signatures there.
"""

from typing import TYPE_CHECKING

from longrope.lazy import exports

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from longrope.checkpoint import Checkpoint, open_checkpoint
    from longrope.errors import FactorError, InputError, LongRopeError, MissingRequirementError, UnsupportedError
    from longrope.extend import Extension, extend
    from longrope.extend_options import ExtendOptions
    from longrope.factors import BoundFactors, RescaleFactors
    from longrope.finetune.options import TrainOptions
    from longrope.finetune.stages import Stage, StagePlan
    from longrope.finetune.trainer import finetune
    from longrope.modeling import TorchSource, build_model
    from longrope.search import (
        Candidate,
        MethodScore,
        Recovery,
        SearchOptions,
        SearchResult,
        evaluate_methods,
        recover_short,
        search,
    )
    from longrope.text import Corpus, load_corpus

    convert: Callable[..., Any]
    validate: Callable[..., Any]
    read_factors: Callable[..., Any]
else:
    __getattr__, __dir__ = exports(
        __name__,
        {
            "longrope.checkpoint": ("Checkpoint", "open_checkpoint"),
            "longrope.errors": (
                "FactorError",
                "InputError",
                "LongRopeError",
                "MissingRequirementError",
                "UnsupportedError",
            ),
            "longrope.extend": ("Extension", "extend"),
            "longrope.extend_options": ("ExtendOptions",),
            "longrope.factors": ("BoundFactors", "RescaleFactors"),
            "longrope.finetune": ("finetune",),
            "longrope.finetune.options": ("TrainOptions",),
            "longrope.finetune.stages": ("Stage", "StagePlan"),
            "longrope.modeling": ("TorchSource", "build_model"),
            "longrope.search": (
                "Candidate",
                "MethodScore",
                "Recovery",
                "SearchOptions",
                "SearchResult",
                "evaluate_methods",
                "recover_short",
                "search",
            ),
            "longrope.text": ("Corpus", "load_corpus"),
        },
        entry_points="longrope.api",
    )

__all__ = [
    "BoundFactors",
    "Candidate",
    "Checkpoint",
    "Corpus",
    "ExtendOptions",
    "Extension",
    "FactorError",
    "InputError",
    "LongRopeError",
    "MethodScore",
    "MissingRequirementError",
    "Recovery",
    "RescaleFactors",
    "SearchOptions",
    "SearchResult",
    "Stage",
    "StagePlan",
    "TorchSource",
    "TrainOptions",
    "UnsupportedError",
    "build_model",
    "convert",
    "evaluate_methods",
    "extend",
    "finetune",
    "load_corpus",
    "open_checkpoint",
    "read_factors",
    "recover_short",
    "search",
    "validate",
]

__version__ = "0.1.0"
