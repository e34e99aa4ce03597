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

from importlib import import_module
from typing import Any

import lazy_loader

# Modules that are called like the function in them that has their name.
_CALLABLE = ("search", "extend", "finetune")
# Given by packages above this one, which must not be imported here: entry points `longrope.api`.
_FROM_ABOVE = ("convert", "read_factors", "validate")

_attached, _, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = sorted([*_names, *_FROM_ABOVE])
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _CALLABLE:
        return import_module(f"{__name__}.{name}")
    if name not in _FROM_ABOVE:
        return _attached(name)
    from importlib.metadata import entry_points  # as slow to import as everything else here together

    return next(iter(entry_points(group="longrope.api", name=name))).load()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
