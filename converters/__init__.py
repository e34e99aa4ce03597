"""Writers and readers of extended models: Hugging Face, GGUF, ONNX. Each format's library is imported in its package only.

    convert(checkpoint, output, to="gguf", factors=…)    write one artifact and read it back
    validate(artifact, reference, corpus)                compare it with the model it was made from
    read_factors(file)                                   the factors in a factors.json, a CSV, a config.json or an artifact

`longrope.convert`, `longrope.validate` and `longrope.read_factors` are the same functions.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
