"""Other people's ONNX runtimes, each in an environment of its own, asked for a greedy continuation.

request {prompt, max_new_tokens} ──► runner script in its environment ──► {ids, seconds}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.environments import Environment, ask

HERE = Path(__file__).parent
# Environment and runner of each runtime; Python's see our packages, too.
GENAI = Environment("onnxruntime-genai", ("onnxruntime-genai==0.18.0",), sees_ours=True)
TRANSFORMERS_JS = Environment("transformers.js", ("@huggingface/transformers@4.3.1",), node=True)
RUNTIMES = {
    "optimum": (Environment("optimum", ("optimum-onnx==0.1.0", "transformers<4.58"), sees_ours=True), "run_optimum.py"),
    "onnxruntime-genai": (GENAI, "run_genai.py"),
    "transformers.js": (TRANSFORMERS_JS, "run_transformers_js.mjs"),
    "onnxruntime-web": (Environment("onnxruntime-web", ("onnxruntime-web@1.30.0",), node=True), "run_web.mjs"),
}


def generate(name: str, folder: Path, prompt: Sequence[int], max_new_tokens: int) -> list[int]:
    """Prompt and greedy continuation, as `name` gives it for the ONNX folder.

    Raises:
        UnavailableError: its environment cannot be made.
        RuntimeError: the runtime failed; the message ends with what it printed.
    """
    environment, script = RUNTIMES[name]
    request = {"prompt": list(map(int, prompt)), "max_new_tokens": max_new_tokens}
    ids: list[int] = ask(environment.command(HERE / script), folder, request)
    return ids
