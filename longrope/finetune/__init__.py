"""Fine-tuning: stages, trainer, mixed context windows, many devices, checkpoints.

finetune(checkpoint, factors, stage, corpus, folder)   one stage of training
"""

from typing import TYPE_CHECKING

from longrope.lazy import exports, make_callable

if TYPE_CHECKING:
    from longrope.finetune.trainer import finetune
else:
    __getattr__, __dir__ = exports(__name__, {"longrope.finetune.trainer": ("finetune",)})

__all__ = ["finetune"]

make_callable(__name__)
