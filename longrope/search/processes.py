"""How worker processes start: forked from a server that has imported what they need, or spawned.

    main process ── imports, reads texts, asks ──────────────► jobs
         └──► server ── imports torch, transformers ──fork──► worker 0, worker 1, …

Python's fork server imports once for all workers, beside the main process, and computes nothing, so that forking it is
safe. Workers on a GPU are spawned, for CUDA must not be touched before a fork, and so are all outside Linux.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, SpawnContext

from longrope.machine import AUTO
from longrope.search.options import SearchOptions

_PRELOADED = ["longrope.search.preload"]


def worker_context(devices: Sequence[str]) -> ForkServerContext | SpawnContext:
    """How workers on these torch devices start. A fork server that runs already keeps what it has imported."""
    if sys.platform != "linux" or any(device != "cpu" for device in devices):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def import_ahead(options: SearchOptions) -> None:
    """Start the server that a search with these options may fork workers from; returns at once, while it imports.

    Worth calling before this process imports torch or reads texts. `auto` may turn out to be a GPU, and the server unused.
    """
    devices = ["cpu" if options.device == AUTO else options.device]
    if options.executor == "processes" and isinstance(worker_context(devices), ForkServerContext):
        forkserver.ensure_running()


def leave_signals_to_parent() -> None:
    """Ctrl-C and a closed terminal reach the whole group; they are the parent's business."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
