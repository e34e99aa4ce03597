"""How fast a graph or a torch model is: each in a process of its own, asked for one pass at a time, turn by turn.

    race ──"forward 512"──► worker 1 ──► seconds
         ──"forward 512"──► worker 2 ──► seconds …  then the same for every decoded token

Passes alternate, so that what else the machine does slows all of them alike; processes are separate and started anew in
every round, because which memory a session gets first is worth up to a tenth of its speed. A process's first pass is not
timed: it is the one that memory is asked for in.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

READY = "ready"


@dataclass(frozen=True)
class Contender:
    """Something to be timed: a folder with model.onnx, or of a torch model, with its factors.json and its attention."""

    name: str
    path: Path
    factors: Path | None = None
    attention: str = "sdpa"
    last_only: bool = False


@dataclass
class Times:
    """Seconds of every prefill and of every decoded token, in the order of the race."""

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)

    def ratio_to(self, other: Times, kind: str) -> float:
        """How many times as fast as `other`: the median over passes that stood side by side."""
        mine, theirs = np.array(getattr(self, kind)), np.array(getattr(other, kind))
        return float(np.median(theirs / mine))


@dataclass(frozen=True)
class Course:
    """What is timed: a prompt, fed in chunks, and tokens decoded after it; `rounds` times with fresh processes."""

    prompt: int = 512
    chunk: int = 512
    decode: int = 48
    laps: int = 2
    rounds: int = 4
    threads: int = 1


def race(contenders: Sequence[Contender], course: Course) -> Mapping[str, Times]:
    """Time all of them over one course."""
    times = {contender.name: Times() for contender in contenders}
    for number in range(course.rounds):
        order = contenders if number % 2 == 0 else contenders[::-1]
        with ExitStack() as stack:
            workers = {item.name: stack.enter_context(_worker(item, course.threads)) for item in order}
            for worker in workers.values():
                worker.ask(0)
                worker.ask(course.chunk)
            for _ in range(course.laps):
                _lap(workers, times, course)
    return times


def _lap(workers: Mapping[str, _Worker], times: Mapping[str, Times], course: Course) -> None:
    sizes = [min(course.chunk, course.prompt - start) for start in range(0, course.prompt, course.chunk)]
    for name, worker in workers.items():
        worker.ask(0)
        times[name].prefill.append(sum(worker.ask(size) for size in sizes))
    for _ in range(course.decode):
        for name, worker in workers.items():
            times[name].decode.append(worker.ask(1))


class _Worker:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._read()

    def ask(self, tokens: int) -> float:
        """Seconds of a pass over so many new tokens; 0 forgets the sequence."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{tokens}\n")
        self._process.stdin.flush()
        return float(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args}: ended")
        return "0" if line.strip() == READY else line


@contextmanager
def _worker(contender: Contender, threads: int) -> Iterator[_Worker]:
    request = {
        "path": str(contender.path),
        "factors": str(contender.factors) if contender.factors else None,
        "attention": contender.attention,
        "last_only": contender.last_only,
        "threads": threads,
    }
    command = [sys.executable, "-m", "benchmarks.onnx_speed", json.dumps(request)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield _Worker(process)
    finally:
        process.kill()
        process.communicate()


# -- in the worker


def onnx_forward(path: Path, threads: int, last_only: bool) -> Callable[[int], None]:
    """Any graph with these names of inputs and caches, ours or the builder's."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path / "model.onnx"), options)
    inputs = [item.name for item in session.get_inputs()]
    outputs = [item.name for item in session.get_outputs()]
    past = [name for name in inputs if name.startswith("past_key_values")]
    value_of = ort.OrtValue.ortvalue_from_numpy
    sizes = json.loads((path / "genai_config.json").read_text())["model"]["decoder"]
    nothing = np.zeros((1, sizes["num_key_value_heads"], 0, sizes["head_size"]), dtype=np.float32)
    state: dict[str, Any] = {"cache": {}, "length": 0}

    def forward(tokens: int) -> None:
        if tokens == 0:
            state.update(cache={name: value_of(nothing) for name in past}, length=0)
            return
        start, end = state["length"], state["length"] + tokens
        feeds = {
            "input_ids": np.arange(start, end)[None] * 37 % 40_000,
            "attention_mask": np.ones((1, end), dtype=np.int64),
            "position_ids": np.arange(start, end)[None],
        }
        values = {name: value_of(array) for name, array in feeds.items() if name in inputs}
        if last_only:
            values["num_logits_to_keep"] = value_of(np.array(1))
        found = dict(zip(outputs, session.run_with_ort_values(outputs, {**values, **state["cache"]}), strict=True))
        cache = {name: found[name.replace("past_key_values", "present")] for name in past}
        state.update(cache=cache, length=end)

    return forward


def torch_forward(path: Path, factors: Path, attention: str, threads: int) -> Callable[[int], None]:
    """transformers, not compiled, in float32."""
    import torch

    from longrope.checkpoint import open_checkpoint
    from longrope.factors import RescaleFactors
    from longrope.modeling import build_model

    torch.set_num_threads(threads)
    checkpoint = open_checkpoint(path)
    model = build_model(checkpoint, checkpoint.bind(RescaleFactors.load(factors)))
    model.set_attn_implementation(attention)
    state: dict[str, Any] = {"cache": None, "length": 0}

    @torch.inference_mode()
    def forward(tokens: int) -> None:
        if tokens == 0:
            state.update(cache=None, length=0)
            return
        ids = torch.arange(state["length"], state["length"] + tokens)[None] * 37 % 40_000
        output = model(input_ids=ids, past_key_values=state["cache"], use_cache=True)
        state.update(cache=output.past_key_values, length=state["length"] + tokens)

    return forward


def main() -> None:
    request = json.loads(sys.argv[1])
    path, threads = Path(request["path"]), request["threads"]
    forward = (
        torch_forward(path, Path(request["factors"]), request["attention"], threads)
        if request["factors"]
        else onnx_forward(path, threads, request["last_only"])
    )
    # CPU seconds of the one thread, which other processes cannot lengthen by holding the core.
    clock = time.process_time if threads == 1 else time.perf_counter
    _say(READY)
    for line in sys.stdin:
        start = clock()
        forward(int(line))
        _say(f"{clock() - start:.9f}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
