"""Fine-tuning: stages, trainer, mixed context windows, many devices, checkpoints."""
