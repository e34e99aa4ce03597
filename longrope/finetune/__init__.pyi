from .trainer import finetune as finetune
