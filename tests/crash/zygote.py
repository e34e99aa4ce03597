"""A process that has imported everything, and forks a child for each command that is to be disturbed.

It reads jobs from standard input, a line of JSON each, and answers with a line of JSON. `shim.c` is loaded before it.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import sys
import tempfile
import traceback
from typing import Any

PRELOADED = (
    "longrope_export.cli",
    "torch",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llama.configuration_llama",
    "torch.distributed.checkpoint",
    "converters.hf",
    "converters.onnx.export",
    "converters.onnx.readback",
    "converters.onnx.runtime",
    "converters.gguf.converter",
    "converters.gguf.runtime",
    "converters.parity",
    "longrope_export.pipeline",
    "longrope_export.report",
    "longrope_export.commands.extend",
    "longrope_export.commands.search",
    "longrope_export.commands.finetune",
    "longrope_export.commands.convert",
    "longrope_export.commands.patch",
    "longrope_export.commands.publish",
    "longrope_export.publish.execute",
    "longrope.finetune.trainer",
    "huggingface_hub",
    "matplotlib.figure",
    "llama_cpp",
)


def serve() -> None:
    """Run jobs until standard input ends."""
    from importlib import import_module

    for name in PRELOADED:
        import_module(name)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_run(json.loads(line))) + "\n")
        sys.stdout.flush()


def _run(job: dict[str, Any]) -> dict[str, Any]:
    """One job: `arguments` of the command line, `at`, `action` and `code` of the shim, `said` for what it prints."""
    child = os.fork()
    if child == 0:
        _be_child(job)
    _, status = os.waitpid(child, 0)
    return {"code": os.waitstatus_to_exitcode(status)}


def _be_child(job: dict[str, Any]) -> None:
    """Run a command as its own process would, and never return."""
    code = 99
    try:
        said = os.open(job["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.environ.update(job["environment"])
        tempfile.tempdir = None
        tempfile.gettempdir()  # writes a file to see whether it can
        if "HF_ENDPOINT" in job["environment"]:
            _use_hub(job["environment"]["HF_ENDPOINT"])
        code = _main(job)
    except BaseException:  # noqa: BLE001  a child that has failed must not run on as the parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _main(job: dict[str, Any]) -> int:
    from longrope_export.cli import main

    shim = ctypes.CDLL(None)
    sys.argv = ["longrope-export", *job["arguments"]]
    shim.shim_arm(ctypes.c_long(job["at"]), job["action"], job["code"])
    try:
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    atexit._run_exitfuncs()
    shim.shim_count.restype = ctypes.c_long
    count = shim.shim_count()
    shim.shim_disarm()
    with open(job["count"], "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(str(count))
    return code


def _use_hub(endpoint: str) -> None:
    from huggingface_hub import constants

    constants.ENDPOINT = endpoint
    constants.HUGGINGFACE_CO_URL_TEMPLATE = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HUB_OFFLINE = False
    constants.HF_HUB_DISABLE_XET = True


if __name__ == "__main__":
    serve()
