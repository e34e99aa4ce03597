"""`longrope-export doctor`: what is installed, what works, what to do. A finding is made by trying, not from a version.

With `--gpu` it checks the device itself, see `longrope_export.gpu_check`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal

from longrope.errors import InputError, LongRopeError
from longrope.machine import AUTO, device_option, resolve_device
from longrope.options import ModelName, Words, option
from longrope.provenance import usable_cpus, versions
from longrope_export import options
from longrope_export.words import count

State = Literal["ok", "untested", "missing", "broken"]
GIB = 2**30
# Of the block for a bug report.
LINE = 80
INSTALL = "pip install longrope-export"
# Modules of each extra, and what needs it.
EXTRAS = {
    "sentencepiece": (("sentencepiece",), "tokenizers without tokenizer.json"),
    "gguf": (("gguf", "llama_cpp"), "GGUF files; `inspect` needs gguf alone"),
    "onnx": (("onnx", "onnx_ir", "onnxruntime"), "ONNX models"),
    "report": (("matplotlib",), "pictures as files"),
    "train": (("peft",), "adapters (LoRA)"),
    "ray": (("ray",), "a search on several machines"),
}


@dataclass(frozen=True)
class Finding:
    """One line of `doctor`.

    Args:
        what: was tried.
        state: what came of it; `untested` is a version that nobody has run this program with.
        detail: versions, or what is wrong.
        required: whether nothing works without it.
        command: that mends it; empty where nothing has to be mended.
    """

    what: str
    state: State
    detail: str
    required: bool = False
    command: str = ""


@dataclass(frozen=True, kw_only=True)
class DoctorRequest:
    """The options of `doctor`."""

    gpu: bool = option(
        False,
        section="Machine",
        help="Check the device: correct numbers, memory, speed and the method itself; about 8 minutes on an H100.",
    )
    tiny: bool = option(False, section="Machine", help="With --gpu: the same code with a budget for a CPU.")
    device: str = device_option()
    model: ModelName = option(
        "default", section="Input", help="Model that --gpu checks: a folder, a Hub id or a GGUF file."
    )
    train_text: Path | None = option(
        None, section="Input", unset="the built-in texts", help="Text that --gpu trains on: a file or a folder."
    )
    sections: Words = option(
        (), unset="all", help="Sections that --gpu runs, by comma: right, memory, speed, headline."
    )
    output: Path | None = options.output("Folder of --gpu's runs and gpu_check.json.", required=False)
    resume: bool = options.resume("Keep the sections of --gpu that the run in --output finished.")
    clean: Path | None = option(
        None,
        metavar="FOLDER",
        alone=".",
        help="Remove what dead processes left under FOLDER (the current folder without a name) and among temporary files.",
    )
    json_path: str | None = options.json_file()

    def __post_init__(self) -> None:
        given = (self.tiny, self.model != "default", self.train_text, self.sections, self.output, self.resume)
        if not self.gpu and (any(given) or self.device != AUTO):
            raise InputError(
                "--device, --model, --output and the like say how --gpu checks: expected --gpu beside them"
            )
        if self.clean is not None and self.gpu:
            raise InputError("--clean: expected without --gpu")
        if self.gpu and self.output is None:
            raise InputError("--gpu: expected --output FOLDER for its runs and its result")


@options.command(DoctorRequest)
def command(request: DoctorRequest) -> int:
    """Say what is installed, what works and what to do.

    Exit code 3 when something required is missing; with --gpu, 1 when a check of the device fails.
    """
    from longrope_export.console import write_json

    if request.gpu:
        return _check_device(request)
    if request.clean is not None:
        return _clean(request.clean, request.json_path)
    findings = examine()
    if request.json_path is None:
        _print_findings(findings)
    write_json([asdict(finding) for finding in findings], request.json_path)
    return 3 if any(finding.required and finding.state != "ok" for finding in findings) else 0


def _print_findings(findings: list[Finding]) -> None:
    """The table, the commands that mend what is wrong in it, and a block for a bug report."""
    from longrope_export.console import print_table, say

    rows = [[finding.what, finding.state, finding.detail] for finding in findings]
    print_table("longrope-export doctor", ("what", "state", "detail"), rows)
    mends: dict[str, list[str]] = {}
    for finding in findings:
        if finding.command:
            mends.setdefault(finding.command, []).append(finding.what)
    if mends:
        say("\nTo mend:")
    for command, names in mends.items():
        say(f"  {command}   # {', '.join(names)}")
    say("\nFor a bug report (no names, no paths):\n")
    for line in ("```", *bug_report(findings), "```"):
        say(line)


def bug_report(findings: list[Finding]) -> list[str]:
    """Versions, platform, devices and what is not in order, without a host's or a user's name, a path or a token."""
    from longrope.provenance import machine

    here = machine()
    packages = wrap(", ".join(f"{name} {number}" for name, number in versions().items()), LINE, break_on_hyphens=False)
    odd = [f"{finding.what}: {finding.state}" for finding in findings if finding.state != "ok"]
    shown = {finding.what: finding.detail for finding in findings}
    return [
        *packages,
        f"{here['system']} {here['machine']}, {here['cpus']} processors, {shown.get('devices', 'devices unknown')}",
        f"not in order: {', '.join(odd) or 'nothing'}",
    ]


def _clean(folder: Path, json_path: str | None) -> int:
    """Clear away what is left, and say so, a line each; what may belong to another machine's process is only named."""
    from longrope.cleaning import clear, leftovers
    from longrope_export.console import ConsoleProgress, write_json

    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder to clean")
    progress, found = ConsoleProgress(), list(leftovers(folder))
    for left in found:
        clear(left)
        if left.elsewhere:
            progress.line(f"{left.path}: left, of a process on another machine; remove it if that has ended.")
        else:
            progress.line(f"{left.path}: {'put back' if left.kind == 'replaced' else 'removed'}.")
    if json_path is None and not found:
        progress.line("Nothing is left over.")
    write_json([{**asdict(left), "path": str(left.path)} for left in found], json_path)
    return 0


def _check_device(request: DoctorRequest) -> int:
    """The sections of `--gpu`, their table, and 1 when a row failed."""
    from longrope.files import refuse_existing
    from longrope.modeling import require_device
    from longrope_export.console import ConsoleProgress, write_json
    from longrope_export.default_model import SEARCH_TEXTS, TEST_TEXTS
    from longrope_export.gpu_check.base import FULL, TINY, Setting
    from longrope_export.gpu_check.run import SECTIONS, failures, run_sections
    from longrope_export.models import open_model

    assert request.output is not None
    device = resolve_device(request.device)
    require_device(device)
    if device == "cpu" and not request.tiny:
        raise InputError("--gpu found no GPU here: expected one, or --tiny for a budget for a CPU")
    if not request.resume:
        refuse_existing(request.output, overwrite=False)
    setting = Setting(
        open_model(request.model),
        device,
        TINY if request.tiny else FULL,
        request.output,
        SEARCH_TEXTS,
        TEST_TEXTS,
        request.train_text or SEARCH_TEXTS,
    )
    result = run_sections(setting, request.sections or SECTIONS, ConsoleProgress(), resume=request.resume)
    if request.json_path is None:
        _print_checks(result)
    write_json(result, request.json_path)
    return 1 if failures(result) else 0


def _print_checks(result: dict[str, Any]) -> None:
    from longrope_export.console import print_table

    for name, section in result["sections"].items():
        rows = [[row["what"], row["value"], row["expected"], row["state"]] for row in section["rows"]]
        print_table(f"{name}, {section['seconds']:.0f} s", ("what", "found", "expected", "state"), rows)


def examine() -> list[Finding]:
    """All findings, the required ones first."""
    extras = [_extra(name, *extra) for name, extra in EXTRAS.items()]
    return [*_core(), *extras, *version_findings(versions()), _devices(), *_device_path(), *_machine()]


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
        return Finding(what, "missing", f"{error}", required, INSTALL)
    except (LongRopeError, OSError, RuntimeError) as error:
        again = f"pip install --force-reinstall {what}" if what in ("torch", "transformers") else ""
        return Finding(what, "broken", f"{type(error).__name__}: {error}", required, again)


def _try_torch() -> str:
    torch = import_module("torch")
    product = torch.ones(2, 2) @ torch.ones(2, 2)
    if float(product.sum()) != 8.0:
        raise RuntimeError("a matrix product came out wrong")
    return f"{torch.__version__}, {count(torch.get_num_threads(), 'thread')}"


def _try_default_model() -> str:
    from longrope_export.models import DEFAULT, open_model

    checkpoint = open_model(DEFAULT)
    return f"{checkpoint.model_type}, window {checkpoint.window}"


def _extra(name: str, modules: tuple[str, ...], purpose: str) -> Finding:
    """Import every module of an extra; native libraries fail only then."""
    command = f"pip install 'longrope-export[{name}]'"
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            is_there = error.name != module
            said = f"{error}" if is_there else f"{_package(module)} is not installed"
            return Finding(f"extra {name}", "missing", f"{said}; for {purpose}", command=command)
        except (OSError, RuntimeError) as error:
            again = f"pip install --force-reinstall {_package(module)}"
            return Finding(f"extra {name}", "broken", f"{module} does not load ({error})", command=again)
    named = [f"{_package(module)} {version(_package(module))}" for module in modules]
    return Finding(f"extra {name}", "ok", ", ".join(named))


def _package(module: str) -> str:
    return {"llama_cpp": "llama-cpp-python", "onnx_ir": "onnx-ir"}.get(module, module)


# -- versions


def version_findings(installed: Mapping[str, str]) -> list[Finding]:
    """Versions below what pyproject.toml asks for, then those above all that this program has run with; one line if none.

    Args:
        installed: versions by package.
    """
    from longrope_export.tested_versions import TESTED, minimum, newer_than_tested

    old = [
        Finding(
            f"version of {name}",
            "broken",
            f"{found}, below {least}",
            required=name in ("torch", "transformers"),
            command=f"pip install --upgrade '{name}>={least}'",
        )
        for name, found in installed.items()
        if (least := minimum(name, found))
    ]
    new = [
        Finding(f"version of {name}", "untested", f"{found}; run with {', '.join(TESTED[name])}")
        for name, found in installed.items()
        if newer_than_tested(name, found)
    ]
    return [*old, *new] or [Finding("versions", "ok", "within what this program has run with")]


# -- devices


def _devices() -> Finding:
    torch = import_module("torch")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding("devices", "ok", f"cpu, {', '.join(names)} (--device cuda)")
    if torch.backends.mps.is_available():
        return Finding("devices", "ok", "cpu, Apple GPU (--device mps)")
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        again = "pip install --force-reinstall torch"
        return Finding("devices", "broken", "an NVIDIA GPU is here, torch was built without CUDA", command=again)
    return Finding("devices", "ok", "cpu only: searches of large models want a GPU")


def _device_path() -> list[Finding]:
    """The GPU with a tiny model, or what would be checked of one."""
    from longrope_export.device_path import CHECKED, device_path

    device = resolve_device(AUTO)
    if device == "cpu":
        return [
            Finding(
                "GPU path", "untested", f"no GPU; with one, on the built-in model against the CPU's float32: {CHECKED}"
            )
        ]
    return [Finding(each.what, "ok" if each.right else "broken", each.detail) for each in device_path(device)]


def _free_memory() -> str:
    from longrope.estimates.memory import free_memory

    torch = import_module("torch")
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    free = [f"{amount / GIB:.1f} GiB free on {device}" for device in devices if (amount := free_memory(device))]
    return "; ".join([*free, "`search MODEL --plan` and `extend MODEL --plan` say what a run needs"])


def _machine() -> list[Finding]:
    free = shutil.disk_usage(Path.cwd()).free / GIB
    clean = "" if free > 1 else "longrope-export doctor --clean"
    return [
        Finding("processors", "ok", f"{usable_cpus()} usable"),
        _tried("memory", _free_memory, required=False),
        Finding("disk", "ok" if free > 1 else "broken", f"{free:.1f} GiB free here", command=clean),
    ]
