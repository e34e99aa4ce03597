"""`longrope-export doctor`: what is installed, what works, what to do. A finding is made by trying, not from a version."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

from longrope.errors import LongRopeError
from longrope.provenance import usable_cpus, versions
from longrope_export import options

State = Literal["ok", "missing", "broken"]
GIB = 2**30
EXTRAS = {
    "sentencepiece": ("sentencepiece",),
    "gguf": ("gguf", "llama_cpp"),
    "onnx": ("onnx", "onnx_ir", "onnxruntime"),
    "report": ("matplotlib",),
    "train": ("peft",),
    "ray": ("ray",),
}


@dataclass(frozen=True)
class Finding:
    """One line of `doctor`."""

    what: str
    state: State
    detail: str
    required: bool = False


@dataclass(frozen=True, kw_only=True)
class DoctorRequest:
    """The options of `doctor`."""

    json_path: str | None = options.json_file()


@options.command(DoctorRequest)
def command(request: DoctorRequest) -> int:
    """Say what is installed, what works and what to do. Exit code 3 when something required is missing."""
    from longrope_export.console import print_table, write_json

    findings = examine()
    if request.json_path is None:
        rows = [[finding.what, finding.state, finding.detail] for finding in findings]
        print_table("longrope-export doctor", ("what", "state", "detail"), rows)
    write_json([asdict(finding) for finding in findings], request.json_path)
    return 3 if any(finding.required and finding.state != "ok" for finding in findings) else 0


def examine() -> list[Finding]:
    """All findings, the required ones first."""
    return [*_core(), *(_extra(name, modules) for name, modules in EXTRAS.items()), _devices(), *_machine()]


def _core() -> list[Finding]:
    return [
        _tried("torch", _try_torch, required=True),
        _tried("transformers", lambda: f"{import_module('transformers').__version__}", required=True),
        _tried("built-in model", _try_default_model, required=True),
    ]


def _tried(what: str, attempt: Callable[[], str], *, required: bool) -> Finding:
    try:
        return Finding(what, "ok", attempt(), required)
    except ImportError as error:
        return Finding(what, "missing", f"{error}; pip install longrope-export", required)
    except (LongRopeError, OSError, RuntimeError) as error:
        return Finding(what, "broken", f"{type(error).__name__}: {error}", required)


def _try_torch() -> str:
    torch = import_module("torch")
    product = torch.ones(2, 2) @ torch.ones(2, 2)
    if float(product.sum()) != 8.0:
        raise RuntimeError("a matrix product came out wrong")
    return f"{torch.__version__}, {torch.get_num_threads()} threads"


def _try_default_model() -> str:
    from longrope_export.models import DEFAULT, open_model

    checkpoint = open_model(DEFAULT)
    return f"{checkpoint.model_type}, window {checkpoint.window}"


def _extra(name: str, modules: tuple[str, ...]) -> Finding:
    """Import every module of an extra; native libraries fail only then."""
    command = f"pip install 'longrope-export[{name}]'"
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            return Finding(f"extra {name}", "missing", f"{error}: {command}")
        except (OSError, RuntimeError) as error:
            return Finding(f"extra {name}", "broken", f"{module} does not load ({error}); reinstall: {command}")
    installed = versions()
    named = [f"{package} {installed[package]}" for module in modules if (package := _package(module)) in installed]
    return Finding(f"extra {name}", "ok", ", ".join(named) or "importable")


def _package(module: str) -> str:
    return {"llama_cpp": "llama-cpp-python", "onnx_ir": "onnx-ir"}.get(module, module)


def _devices() -> Finding:
    torch = import_module("torch")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding("devices", "ok", f"cpu, {', '.join(names)} (--device cuda)")
    if torch.backends.mps.is_available():
        return Finding("devices", "ok", "cpu, Apple GPU (--device mps)")
    return Finding("devices", "ok", "cpu only: searches of large models want a GPU")


def _free_memory() -> str:
    from longrope.estimates.memory import free_memory

    torch = import_module("torch")
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    free = [f"{amount / GIB:.1f} GiB free on {device}" for device in devices if (amount := free_memory(device))]
    return "; ".join([*free, "`search MODEL --plan` and `extend MODEL --plan` say what a run needs"])


def _machine() -> list[Finding]:
    free = shutil.disk_usage(Path.cwd()).free / GIB
    return [
        Finding("processors", "ok", f"{usable_cpus()} usable"),
        _tried("memory", _free_memory, required=False),
        Finding("disk", "ok" if free > 1 else "broken", f"{free:.1f} GiB free here"),
    ]
