"""Runtimes that are not Python in a process of their own, with limits: what an artifact does to it ends that process alone.

    Workplace ──starts──► converters.worker ──holds──► llama.cpp, onnxruntime
        ▲                       │ killed, out of memory, out of time
    RemoteRuntime ◄─────────────┘ RuntimeFailedError with the runtime's last words

Of an artifact that asks for more than its size explains, the limits are what bounds a command: see `Limits`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Self

import numpy as np

from converters.base import Converter
from converters.sources import TensorSource
from converters.worker import MEBIBYTE, Array, receive, send
from longrope.errors import (
    FactorError,
    InputError,
    LongRopeError,
    MissingRequirementError,
    RuntimeFailedError,
    UnsupportedError,
)
from longrope.factors import BoundFactors, FactorSet
from longrope.provenance import usable_cpus
from longrope.sources import Hidden, Rows, Rule, Stop, never
from longrope.text import TokenIds

if TYPE_CHECKING:
    from longrope.scoring import LogitSource

Isolate = Literal["auto", "on", "off"]
_KINDS = {each.__name__: each for each in (InputError, FactorError, MissingRequirementError, UnsupportedError)}
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from converters.worker import main; main()"
# Names of variables that hold somebody's secrets, which no runtime needs.
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.I)
_LAST_BYTES = 4096
_PATH = re.compile(r"(?<![^\s\"'(])/(?:[^\s/:]+/)+(?=[^\s/:])")  # of the machine where the runtime was built


@dataclass(frozen=True)
class Limits:
    """What an artifact may take, from its size alone: what it says about itself is not believed.

    Args:
        artifact_bytes: of all its files.
        max_length: of the longest window, in tokens.
        threads: that the runtime computes with.
    """

    artifact_bytes: int
    max_length: int
    threads: int

    @classmethod
    def of(cls, converter: Converter, path: Path, max_length: int, threads: int | None) -> Limits:
        """Limits of an artifact."""
        size = sum(file.stat().st_size for file in converter.files(path) if file.is_file())
        return cls(size, max_length, threads or usable_cpus())

    @property
    def memory(self) -> int:
        """Bytes of private memory beyond the libraries': weights unpacked to floats and copied twice, the cache and the
        scores of 512 queries over the longest window (16 bytes a key for each of 32 heads), and room; no more than the
        machine has.
        """
        import psutil  # which writing an artifact does not need

        window = self.max_length * ((64 << 10) + self.artifact_bytes // 2048)
        return min(1024 * MEBIBYTE + 12 * self.artifact_bytes + window, int(psutil.virtual_memory().total))

    @property
    def loading_seconds(self) -> float:
        """CPU time to open it: 20 MB a second, which a machine under emulation reaches."""
        return 8 + self.artifact_bytes / 20e6

    def seconds(self, tokens: int) -> float:
        """CPU time for a pass of so many tokens: 4 operations a byte of weights and attention over the longest window, at
        10^9 a second, of all threads together, which wait for one another by turning round.
        """
        operations = 4 * tokens * self.artifact_bytes * (1 + self.max_length / 1000)
        return self.threads * (5 + operations / 1e9)


class Workplace:
    """A process that waits for an artifact to open. Starting it takes 10 ms here; it is ready 0.3 s later.

    Args:
        converter: the artifact's format.
        path: the artifact, for messages.
        runtime: load the libraries of its runtime at once.

    Attributes:
        failed: whether what it holds ended it, or failed in the middle.
    """

    def __init__(self, converter: Converter, path: Path, *, runtime: bool = True) -> None:
        self.format, self.path = converter.name, path
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            pipesize=MEBIBYTE,
            env=_environment(),
        )
        self._expired, self._pending, self.failed = False, 0, False
        if runtime:
            self._send({"do": "import", "format": self.format})
            self._pending = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):
            self._stdin.close()
        self._process.kill()
        self._process.wait()
        self._stdout.close()
        self._words.close()

    def ask(
        self,
        head: Mapping[str, Any],
        array: Array | None = None,
        *,
        seconds: float,
        memory: int | None = None,
        stop: Stop = never,
    ) -> tuple[Any, Array | None]:
        """One request and its answer.

        Args:
            head: what to do, and with what.
            array: token ids, where it takes some.
            seconds: of CPU time that it may take; of time, four times as much and half a minute.
            memory: bytes that the process may ask for from now on; None leaves the limit as it is.
            stop: answers the request `greedy`, which asks back after each token.

        Raises:
            LongRopeError: what the worker raised, where it is one of ours.
            RuntimeFailedError: any other error, and the death of the process.
        """
        with self._deadline(30 + 4 * seconds):
            self._send({**head, "seconds": seconds, "memory": memory}, array)
            found, rows = self._answer()
            while "written" in found:
                self._send({"stop": stop(found["written"])})
                found, rows = self._answer()
        if "error" in found:
            raise self._error(found)
        return found.get("ok"), rows

    def _error(self, found: Mapping[str, Any]) -> LongRopeError:
        """What the worker raised, as it was where it is one of ours."""
        kind = _KINDS.get(found.get("kind", ""))
        message = str(found["error"])
        return self.failure(f"failed: {message}") if kind is None else kind(message)

    def failure(self, what: str) -> RuntimeFailedError:
        """That what it holds failed, from now on; `what` goes on after "its runtime"."""
        self.failed = True
        return RuntimeFailedError(f"{self.path}: check {self.format}.loads: its runtime {what}")

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None  # of a process with pipes
        return self._process.stdin

    @property
    def _stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def _send(self, head: Mapping[str, Any], array: Array | None = None) -> None:
        try:
            send(self._stdin, head, array)
        except OSError:
            raise self._death() from None

    def _answer(self) -> tuple[dict[str, Any], Array | None]:
        try:
            for _ in range(self._pending):
                self._pending -= 1
                receive(self._stdout)  # of the import, whose errors come back when the artifact is opened
            return receive(self._stdout)
        except EOFError:
            raise self._death() from None

    @contextmanager
    def _deadline(self, seconds: float) -> Iterator[None]:
        """Kill the process when the block takes longer."""

        def expire() -> None:
            self._expired = True
            self._process.kill()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _death(self) -> RuntimeFailedError:
        """What the process died of."""
        code = self._process.wait()
        words = self._last_words()
        return self.failure(f"{_how(code, expired=self._expired)}{f': {words}' if words else ''}")

    def _last_words(self) -> str:
        """The last lines that the process printed, on one."""
        end = self._words.seek(0, os.SEEK_END)
        self._words.seek(max(end - _LAST_BYTES, 0))
        lines = self._words.read().decode("utf-8", errors="replace").splitlines()
        return _PATH.sub("", " ".join(" ".join(lines[-3:]).split()))[-500:]


def _how(code: int, *, expired: bool) -> str:
    if expired or -code == getattr(signal, "SIGXCPU", None):
        return "took more time than an artifact of this size may, and was ended"
    if code < 0:
        return f"ended its process (signal {-code}, {signal.Signals(-code).name})"
    return f"ended its process (exit code {code})"


def _environment() -> dict[str, str]:
    """This process's variables without secrets; llama.cpp starts no debugger when it aborts."""
    kept = {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
    return {**kept, "GGML_NO_BACKTRACE": "1"}


class RemoteRuntime:
    """An artifact's runtime in another process (see `longrope.sources.Runtime`).

    Args:
        workplace: the process; closing the runtime ends it.
        path: the artifact.
        factors: those it must carry; None for an artifact without.
        limits: what it may take.
        options: further arguments of the format's `open_runtime`.

    Raises:
        InputError: its runtime does not open it.
        RuntimeFailedError: its runtime ended the process.
    """

    def __init__(
        self,
        workplace: Workplace,
        path: Path,
        factors: BoundFactors | None,
        limits: Limits,
        *,
        threads: int | None,
        options: Mapping[str, Any],
    ) -> None:
        self._workplace, self._limits, self._windows = workplace, limits, 0
        facts, _ = workplace.ask(
            {
                "do": "open",
                "format": workplace.format,
                "path": str(path.absolute()),
                "factors": None if factors is None else factors.to_json(),
                "max_length": limits.max_length,
                "threads": threads,
                "options": dict(options),
            },
            seconds=limits.loading_seconds,
            memory=limits.memory,
        )
        self.name, self.vocab_size = str(facts["name"]), int(facts["vocab_size"])
        self.rule: Rule = "per_context" if facts["rule"] == "per_context" else "per_forward"

    def set_for(self, length: int) -> FactorSet:
        found, _ = self._ask({"do": "set_for", "length": length}, None, tokens=0)
        return "long" if found == "long" else "short"

    def logits(self, ids: TokenIds, factor_set: FactorSet, chunk: int) -> Iterator[Rows]:
        self._ask({"do": "logits", "factor_set": factor_set, "chunk": chunk}, ids, tokens=chunk)
        self._windows += 1
        window = self._windows
        while window == self._windows:
            there, rows = self._ask({"do": "next"}, None, tokens=chunk)
            if not there:
                return
            yield self._checked(rows)

    def decode_logits(self, ids: TokenIds, prefill: int) -> Rows:
        return self._rows({"do": "decode_logits", "prefill": prefill}, ids)

    def tail_logits(self, ids: TokenIds, factor_set: FactorSet, first: int) -> Rows:
        return self._rows({"do": "tail_logits", "factor_set": factor_set, "first": first}, ids)

    def padded_batch(self, short: TokenIds, long: TokenIds) -> Rows | None:
        """As of the runtime there; None where it takes one text at a time."""
        head = {"do": "padded_batch", "short": len(short)}
        _, rows = self._ask(head, np.concatenate([short, long]), tokens=2 * len(long))
        return None if rows is None else self._checked(rows)

    def hidden_states(self, ids: TokenIds, factor_set: FactorSet, keep: int) -> Hidden | None:
        """As of the runtime there; None where it does not give them."""
        head = {"do": "hidden_states", "factor_set": factor_set, "keep": keep}
        _, found = self._ask(head, ids, tokens=len(ids))
        if found is not None and (found.ndim != 3 or found.dtype != "<f4" or found.shape[1] != min(keep, len(ids))):
            raise self._workplace.failure("gave no hidden states")
        return found  # type: ignore[no-any-return]

    def greedy(self, prompt: TokenIds, count: int, factor_set: FactorSet, stop: Stop) -> TokenIds:
        head = {"do": "greedy", "count": count, "factor_set": factor_set}
        seconds = self._limits.seconds(len(prompt) + count)
        _, ids = self._workplace.ask(head, _ids(prompt), seconds=seconds, stop=stop)
        if ids is None:
            raise self._workplace.failure("gave no tokens")
        return ids

    def close(self) -> None:
        """End the process."""
        self._workplace.close()

    def _ask(self, head: Mapping[str, Any], ids: Sequence[int] | Array | None, *, tokens: int) -> tuple[Any, Any]:
        array = None if ids is None else _ids(ids)
        return self._workplace.ask(head, array, seconds=self._limits.seconds(tokens))

    def _rows(self, head: Mapping[str, Any], ids: TokenIds) -> Rows:
        return self._checked(self._ask(head, ids, tokens=len(ids))[1])

    def _checked(self, rows: Array | None) -> Rows:
        """Rows of logits. Raises RuntimeFailedError for anything else that came back."""
        if rows is None or rows.ndim != 2 or rows.dtype != "<f4" or rows.shape[1] != self.vocab_size:
            raise self._workplace.failure(f"gave no rows of {self.vocab_size} logits")
        return rows


def _ids(tokens: Sequence[int] | Array) -> Array:
    return np.asarray(tokens, dtype=np.int64)


def workplace_for(converter: Converter, path: Path, isolate: Isolate, *, runtime: bool = True) -> Workplace | None:
    """A process for an artifact from elsewhere, started; None where it is to run here.

    Args:
        converter: the artifact's format.
        path: the artifact.
        isolate: `on`, `off`, or `auto`: where the runtime is not Python, so that it can take this process with it.
        runtime: the artifact will be run, not only read.
    """
    wanted = converter.foreign_runtime if isolate == "auto" else isolate == "on"
    return Workplace(converter, path, runtime=runtime) if wanted else None


def open_source(
    converter: Converter,
    path: Path,
    factors: BoundFactors | None,
    *,
    max_length: int,
    threads: int | None,
    workplace: Workplace | None,
    options: Mapping[str, Any] | None = None,
) -> LogitSource:
    """`Converter.open_source`, in a process of its own where there is one.

    Args:
        workplace: the process; closing the source ends it. None for this process.
        options: further arguments of the format's.

    Raises:
        InputError: its runtime does not open it.
        RuntimeFailedError: its runtime ended the process.
    """
    options = options or {}
    if workplace is None:
        return converter.open_source(path, factors, max_length=max_length, threads=threads, **options)
    limits = Limits.of(converter, path, max_length, threads)
    try:
        return TensorSource(RemoteRuntime(workplace, path, factors, limits, threads=threads, options=options))
    except BaseException:
        workplace.close()
        raise
