"""The process that holds an artifact's runtime: it answers requests on its standard input until that ends.

    parent ──{"do": …} + arrays──► stdin  ┐
    parent ◄─{"ok": …} + arrays─── stdout ┴─ a message is two lengths, JSON, and one array's bytes

What a runtime prints goes to standard error, which the parent keeps in a file: its last lines say what it died of. Only
JSON and plain numbers come back, so that nothing which a damaged runtime could send is code to the parent.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import signal
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from converters import registry
from longrope.errors import LongRopeError
from longrope.factors import BoundFactors, RescaleFactors
from longrope.sources import Runtime

if sys.platform != "win32":
    import resource

Array = NDArray[Any]
Answer = tuple[Any, Array | None]
_LENGTHS = struct.Struct("<IQ")
_DTYPES = ("<f4", "<i8")
# What a runtime may write: its words on standard error.
_WRITTEN_BYTES = 16 << 20
MEBIBYTE = 1 << 20


def send(pipe: IO[bytes], head: Mapping[str, Any], array: Array | None = None) -> None:
    """Write one message; of an array its type and shape go into the head."""
    body = b"" if array is None or not array.size else np.ascontiguousarray(array).data.cast("B")
    facts = {} if array is None else {"dtype": array.dtype.str, "shape": array.shape}
    text = json.dumps({**head, **facts}).encode()
    pipe.write(_LENGTHS.pack(len(text), len(body)) + text)
    pipe.write(body)
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[dict[str, Any], Array | None]:
    """Read one message. Raises EOFError when the other side is gone."""
    text_bytes, body_bytes = _LENGTHS.unpack(_exactly(pipe, _LENGTHS.size))
    head: dict[str, Any] = json.loads(_exactly(pipe, text_bytes))
    if "dtype" not in head:
        return head, None
    if head["dtype"] not in _DTYPES or math.prod(head["shape"]) * int(head["dtype"][2]) != body_bytes:
        raise EOFError
    array = np.empty(head["shape"], dtype=head["dtype"])
    if body_bytes:
        _fill(pipe, array.data.cast("B"))
    return head, array


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = bytearray(size)
    _fill(pipe, memoryview(data))
    return bytes(data)


def _fill(pipe: IO[bytes], view: memoryview) -> None:
    """Fill `view`, which takes as many reads as the pipe gives it in."""
    at = 0
    while at < len(view):
        count = pipe.readinto(view[at:])  # type: ignore[attr-defined]  # of every binary file that `os.fdopen` makes
        if not count:
            raise EOFError
        at += count


class Worker:
    """What the requests are about: one artifact's runtime, and the window whose rows are being asked for."""

    def __init__(self, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self.stdin, self.stdout = stdin, stdout
        self.runtime: Runtime | None = None
        self.blocks: Iterator[Array] = iter(())
        self.answers: Mapping[str, Callable[[dict[str, Any], Array | None], Answer]] = {
            "import": self._import,
            "call": self._call,
            "open": self._open,
            "set_for": lambda head, _: (self._opened.set_for(head["length"]), None),
            "logits": self._logits,
            "next": self._next,
            "decode_logits": lambda head, ids: (None, self._opened.decode_logits(_given(ids), head["prefill"])),
            "tail_logits": lambda head, ids: (
                None,
                self._opened.tail_logits(_given(ids), head["factor_set"], head["first"]),
            ),
            "greedy": self._greedy,
            "padded_batch": self._padded_batch,
            "hidden_states": self._hidden_states,
        }

    def serve(self) -> None:
        """Answer until the parent closes the pipe."""
        while True:
            try:
                head, array = receive(self.stdin)
            except EOFError:
                return
            _limit(head.get("memory"), head.get("seconds"))
            try:
                value, found = self.answers[head["do"]](head, array)
                send(self.stdout, {"ok": value}, found)
            except LongRopeError as error:
                send(self.stdout, {"error": str(error), "kind": type(error).__name__})
            except Exception as error:  # noqa: BLE001  whatever a runtime raises is for the parent to say
                send(self.stdout, {"error": f"{error}" or type(error).__name__, "kind": ""})

    @property
    def _opened(self) -> Runtime:
        if self.runtime is None:
            raise RuntimeError("no artifact was opened")
        return self.runtime

    def _import(self, head: dict[str, Any], _: Array | None) -> Answer:
        """Load a format's libraries while the parent does other things."""
        registry.converter(head["format"]).load_runtime()
        return None, None

    def _call(self, head: dict[str, Any], _: Array | None) -> Answer:
        module, name = head["function"].split(":")
        return getattr(importlib.import_module(module), name)(*head["arguments"]), None

    def _open(self, head: dict[str, Any], _: Array | None) -> Answer:
        factors = None if head["factors"] is None else _bound(RescaleFactors.from_json(head["factors"]))
        converter = registry.converter(head["format"])
        self.runtime = converter.open_runtime(
            Path(head["path"]),
            factors,
            max_length=head["max_length"],
            threads=head["threads"],
            **head["options"],
        )
        return {"name": self.runtime.name, "vocab_size": self.runtime.vocab_size, "rule": self.runtime.rule}, None

    def _logits(self, head: dict[str, Any], ids: Array | None) -> Answer:
        self.blocks = self._opened.logits(_given(ids), head["factor_set"], head["chunk"])
        return None, None

    def _next(self, head: dict[str, Any], _: Array | None) -> Answer:
        block = next(self.blocks, None)
        return block is not None, block

    def _greedy(self, head: dict[str, Any], ids: Array | None) -> Answer:
        return None, self._opened.greedy(_given(ids), head["count"], head["factor_set"], self._ask)

    def _padded_batch(self, head: dict[str, Any], ids: Array | None) -> Answer:
        batch = getattr(self._opened, "padded_batch", None)
        texts = np.split(_given(ids), [head["short"]])
        return None, None if batch is None else batch(*texts)

    def _hidden_states(self, head: dict[str, Any], ids: Array | None) -> Answer:
        states = getattr(self._opened, "hidden_states", None)
        return None, None if states is None else states(_given(ids), head["factor_set"], head["keep"])

    def _ask(self, written: Sequence[int]) -> bool:
        """Whether the parent has read enough."""
        send(self.stdout, {"written": list(map(int, written))})
        head, _ = receive(self.stdin)
        return bool(head["stop"])


def _given(ids: Array | None) -> Array:
    if ids is None:
        raise RuntimeError("no token ids were sent")
    return ids


def _bound(factors: RescaleFactors) -> BoundFactors:
    """Factors that were bound when they were sent."""
    return factors.bound_to(
        original=factors.original_max_position_embeddings or 0,
        rope_theta=factors.rope_theta or 0.0,
        rotary_dim=2 * factors.num_pairs,
        model_type=factors.model_type or "",
    )


def _limit(memory: int | None, seconds: float | None) -> None:
    """Limits of what comes now, beyond what has been used: bytes of private memory, seconds of all CPUs together."""
    if sys.platform == "win32":
        return
    if memory is not None:
        with contextlib.suppress(ValueError):  # a limit of the system's own is lower
            resource.setrlimit(resource.RLIMIT_DATA, (_private_bytes() + memory, resource.RLIM_INFINITY))
    if seconds is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        with contextlib.suppress(ValueError):
            limit = int(used.ru_utime + used.ru_stime + seconds) + 1
            resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def _private_bytes() -> int:
    """Bytes of private memory that this process has asked for; what it has taken, where the system does not say."""
    with contextlib.suppress(OSError), Path("/proc/self/status").open(encoding="ascii") as status:
        for line in status:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def main() -> None:
    """Serve on standard input and output; what libraries print goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes the pipe
    stdout = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    if sys.platform != "win32":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (_WRITTEN_BYTES, _WRITTEN_BYTES))
    Worker(os.fdopen(0, "rb", closefd=False), stdout).serve()
