"""What the fork server imports for all workers; imported there and nowhere else."""

from importlib import import_module

from longrope.search.processes import leave_signals_to_parent

leave_signals_to_parent()
for name in ("longrope.search.measure", "transformers.modeling_utils", "transformers.models.auto.modeling_auto"):
    import_module(name)
