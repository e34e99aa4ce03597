"""Writers and readers of extended models: Hugging Face, GGUF, ONNX. Each format's library is imported in its package only.

    convert(checkpoint, output, to="gguf", factors=…)    write one artifact and read it back
    validate(artifact, reference, corpus)                compare it with the model it was made from
    read_factors(file)                                   the factors in a factors.json, a CSV, a config.json or an artifact

`longrope.convert`, `longrope.validate` and `longrope.read_factors` are the same functions.
"""

from typing import TYPE_CHECKING

from longrope.lazy import exports

if TYPE_CHECKING:
    from converters.api import Conversion, convert, validate
    from converters.base import Check, Converter, Export, PlannedExport
    from converters.factor_files import read_factors
    from converters.parity import Validation
else:
    __getattr__, __dir__ = exports(
        __name__,
        {
            "converters.api": ("Conversion", "convert", "validate"),
            "converters.base": ("Check", "Converter", "Export", "PlannedExport"),
            "converters.factor_files": ("read_factors",),
            "converters.parity": ("Validation",),
        },
    )

__all__ = [
    "Check",
    "Conversion",
    "Converter",
    "Export",
    "PlannedExport",
    "Validation",
    "convert",
    "read_factors",
    "validate",
]
