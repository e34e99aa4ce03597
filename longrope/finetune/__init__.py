"""Fine-tuning: stages, trainer, mixed context windows, many devices, checkpoints.

finetune(checkpoint, factors, stage, corpus, folder)   one stage of training
"""

import lazy_loader

from longrope.callable_module import make_callable

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
make_callable(__name__)
