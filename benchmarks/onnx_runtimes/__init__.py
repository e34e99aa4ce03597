"""Other people's ONNX runtimes, each in an environment of its own, asked for a greedy continuation.

    request {prompt, max_new_tokens} ──► runner script in its environment ──► {ids, seconds}

Environments are made once, in the user's cache. Making one needs the package registries; nothing else here does.
"""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CACHE = Path.home() / ".cache" / "longrope-export" / "onnx-runtimes"


class UnavailableError(Exception):
    """An environment cannot be made here: no registry, no Node."""


@dataclass(frozen=True)
class Runtime:
    """One runtime.

    Args:
        script: runner beside this file.
        packages: what its environment holds; Python's also sees the packages of the running interpreter.
    """

    name: str
    script: str
    packages: tuple[str, ...]

    @property
    def is_node(self) -> bool:
        return self.script.endswith(".mjs")


RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime("optimum", "run_optimum.py", ("optimum-onnx==0.1.0", "transformers<4.58")),
        Runtime("onnxruntime-genai", "run_genai.py", ("onnxruntime-genai==0.18.0",)),
        Runtime("transformers.js", "run_transformers_js.mjs", ("@huggingface/transformers@4.3.1",)),
        Runtime("onnxruntime-web", "run_web.mjs", ("onnxruntime-web@1.30.0",)),
    )
}


def generate(name: str, folder: Path, prompt: Sequence[int], max_new_tokens: int) -> list[int]:
    """Prompt and greedy continuation, as `name` gives it for the ONNX folder.

    Raises:
        UnavailableError: its environment cannot be made.
        RuntimeError: the runtime failed; the message ends with what it printed.
    """
    runtime = RUNTIMES[name]
    command = [*interpreter(runtime), str(folder.resolve())]
    with tempfile.TemporaryDirectory() as room:
        request, answer = Path(room) / "request.json", Path(room) / "answer.json"
        request.write_text(json.dumps({"prompt": list(map(int, prompt)), "max_new_tokens": max_new_tokens}))
        _run([*command, str(request), str(answer)], RuntimeError)
        ids: list[int] = json.loads(answer.read_text())
        return ids


def interpreter(runtime: Runtime) -> list[str]:
    """The command that runs the runtime's script, its environment made if need be."""
    if runtime.is_node:
        room = _node_environment(runtime)
        script = room / runtime.script
        script.write_text((HERE / runtime.script).read_text())  # modules are looked up from where a script lies
        return ["node", str(script)]
    return [str(python_environment(runtime)), str(HERE / runtime.script)]


def python_environment(runtime: Runtime) -> Path:
    """The interpreter of a virtual environment with the runtime's packages before ours."""
    room = CACHE / runtime.name
    python = room / "bin" / "python"
    if not (room / ".complete").is_file():
        _run([sys.executable, "-m", "venv", str(room)], UnavailableError)
        _see_ours(room)
        _run([str(python), "-m", "pip", "install", "-q", *runtime.packages], UnavailableError)
        (room / ".complete").touch()
    _see_ours(room)
    return python


def _see_ours(room: Path) -> None:
    """Let an environment see the packages of the running interpreter, whichever it was made by."""
    own = next(room.glob("lib/python*/site-packages"))
    (own / "parent.pth").write_text("\n".join(site.getsitepackages()))


def _node_environment(runtime: Runtime) -> Path:
    room = CACHE / runtime.name
    if not (room / ".complete").is_file():
        room.mkdir(parents=True, exist_ok=True)
        (room / "package.json").write_text("{}")
        # The packages hold their CPU binaries; install scripts would only fetch GPU ones.
        _run(["npm", "install", "--ignore-scripts", "--no-audit", *runtime.packages], UnavailableError, room)
        (room / ".complete").touch()
    return room


def _run(command: Sequence[str], error: type[Exception], folder: Path | None = None) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UnavailableError(f"{command[0]} is not installed") from None
    if done.returncode:
        raise error(f"{' '.join(command[:3])} failed: {(done.stderr or done.stdout)[-800:]}")
