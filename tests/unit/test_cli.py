"""The command line itself: its names, its help and its exit codes. What commands do is tested elsewhere."""

from __future__ import annotations

import errno
import io
import json
import math
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import MISSING
from pathlib import Path

import click
import pytest
import rich.progress
from rich.console import Console

from converters import registry
from longrope.errors import InputError, LongRopeError, MissingRequirementError, UnsupportedError
from longrope.options import Option, declared
from longrope_export import __main__, cli, console
from longrope_export.commands import (
    convert,
    doctor,
    eval,
    extend,
    factors,
    finetune,
    inspect,
    patch,
    recover,
    report,
    search,
    validate,
)
from tests.common import REPOSITORY, run_cli

# The contract's options of each command.
CONTRACT = {
    "extend": "target-length output text formats factor-sets strategy max-evals stages resume print-recipe "
    "seed device dtype threads",
    "search": "target-length text output resume seed device dtype threads",
    "finetune": "factors text output seed device dtype threads",
    "recover": "window text output seed device dtype threads",
    "convert": "to output factors factor-sets outtype overwrite",
    "patch": "factors output overwrite",
    "validate": "reference text windows static json junit markdown github device threads",
    "eval": "text windows passkey json seed device dtype threads",
    "inspect": "json",
    "report": "output",
    "doctor": "json",
    "factors import": "output short original target",
    "factors show": "json",
    "factors plot": "output",
    "factors diff": "",
}
# The request of each command: what its options are made of.
REQUESTS: dict[str, type] = {
    "extend": extend.ExtendRequest,
    "search": search.SearchRequest,
    "finetune": finetune.FinetuneRequest,
    "recover": recover.RecoverRequest,
    "convert": convert.ConvertRequest,
    "patch": patch.PatchRequest,
    "validate": validate.ValidateRequest,
    "eval": eval.EvalRequest,
    "inspect": inspect.InspectRequest,
    "report": report.ReportRequest,
    "doctor": doctor.DoctorRequest,
    "factors import": factors.ImportRequest,
    "factors show": factors.ShowRequest,
    "factors diff": factors.DiffRequest,
    "factors plot": factors.PlotRequest,
}
SECTIONS = ["Input", "Search", "Factors", "Training", "Output", "Machine", "Expert"]
# CPU seconds for `--help`: the contract says half a second; the measured value is a fifth of that on an idle machine.
HELP_SECONDS = 0.5


def command_of(name: str) -> click.Command:
    """The click command of a name, its group's included."""
    context = click.Context(cli.cli)
    first, *rest = name.split()
    found = cli.cli.get_command(context, first)
    for word in rest:
        assert isinstance(found, click.Group)
        found = found.get_command(context, word)
    assert found is not None
    return found


def help_of(name: str) -> dict[str, list[tuple[str, str, str]]]:
    """Names, sentence and remark of every line of the help, by section, however wide the terminal."""
    context = click.Context(command_of(name), info_name=name, max_content_width=1000, terminal_width=1000)
    sections: dict[str, list[tuple[str, str, str]]] = {}
    for block in command_of(name).get_help(context).split("\n\n"):
        title, *lines = block.splitlines()
        if title.rstrip(":") in SECTIONS:
            entries = re.findall(r"^  (\S.*(?:\n {3,}.*)*)", "\n".join(lines), re.MULTILINE)
            sections[title.rstrip(":")] = [parts_of(entry) for entry in entries]
    return sections


def parts_of(entry: str) -> tuple[str, str, str]:
    names, text = re.split(r"\s{2,}", entry, maxsplit=1)
    sentence, _, remark = text.partition("  [")
    return names, sentence, remark.removesuffix("]")


def is_line_of(names: str, each: Option) -> bool:
    if each.about.argument:
        return names == each.name.upper()
    return bool(re.search(rf"(^|, )--{each.key}( |$)", names))


@pytest.mark.parametrize("name", CONTRACT)
def test_the_contracts_options_are_there(name: str) -> None:
    flags = {flag for parameter in command_of(name).params for flag in parameter.opts}
    assert {f"--{option}" for option in CONTRACT[name].split()} - flags == set()


@pytest.mark.parametrize("name", REQUESTS)
def test_every_declared_option_is_shown_exactly_once(name: str) -> None:
    shown = [names for lines in help_of(name).values() for names, _, _ in lines]
    for each in declared(REQUESTS[name]):
        assert sum(is_line_of(names, each) for names in shown) == 1, each.key
    assert len(shown) == len(declared(REQUESTS[name])) + 1, "and --help"


@pytest.mark.parametrize("name", REQUESTS)
def test_every_line_of_help_is_a_sentence(name: str) -> None:
    for lines in help_of(name).values():
        for names, sentence, _ in lines:
            assert len(sentence.split()) >= 3, names
            assert sentence[0].isupper(), names
            assert sentence.endswith("."), names


@pytest.mark.parametrize("name", REQUESTS)
def test_defaults_that_are_shown_are_the_dataclasses(name: str) -> None:
    lines = [line for lines in help_of(name).values() for line in lines]
    for each in declared(REQUESTS[name]):
        (remark,) = (remark for names, _, remark in lines if is_line_of(names, each))
        if each.about.argument:
            assert remark == ""
        elif each.default is MISSING:
            assert remark == "required"
        elif each.default is None or each.default == ():
            assert remark == (f"default: {each.about.unset}" if each.about.unset else "")
        elif isinstance(each.default, bool):
            assert remark == (f"default: {each.key}" if each.default else "")
        else:
            shown = remark.removeprefix("default: ")
            assert each.read(shown.split(",") if each.many else shown) == each.default, each.key


@pytest.mark.parametrize("name", REQUESTS)
def test_sections_come_in_one_order_and_what_is_for_experts_last(name: str) -> None:
    found = list(help_of(name))
    assert found == [section for section in SECTIONS if section in found]


def test_extend_shows_few_options_to_those_who_are_no_experts() -> None:
    shown = [names for section, lines in help_of("extend").items() if section != "Expert" for names, _, _ in lines]
    assert len([names for names in shown if names.startswith("-")]) <= 25


def test_the_weight_types_in_the_help_are_the_converters() -> None:
    text = " ".join(run_cli("convert", "--help").out.split())
    for name in registry.OURS:
        assert f"{name} {', '.join(registry.converter(name).outtypes)}" in text
    assert "onnx f32" in text


def test_every_listed_command_can_be_run() -> None:
    """A command in the help that fails to import would be a promise broken."""
    broken = [name for name in cli.COMMANDS if run_cli(name, "--help").code != 0]
    assert broken == []


def run_help(*arguments: str) -> tuple[float, set[str]]:
    """CPU seconds of a fresh `longrope-export … --help`, and the top-level modules it loaded."""
    script = (
        "import json, sys\n"
        "from longrope_export.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})), file=sys.stderr)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("command", ["", *cli.COMMANDS, "factors import", "factors show"])
def test_help_is_quick_and_loads_no_torch(command: str) -> None:
    """The best of three, for the machine may be busy."""
    runs = []
    for _ in range(3):
        seconds, modules = run_help(*command.split(), "--help")
        assert not {"torch", "transformers", "onnx", "gguf", "onnxruntime", "matplotlib"} & modules
        runs.append(seconds)
        if seconds < HELP_SECONDS:
            break
    assert min(runs) < HELP_SECONDS


def test_the_version_is_the_packages() -> None:
    from longrope import __version__

    assert run_cli("--version").out.strip() == f"longrope-export, version {__version__}"


def test_the_module_runs_the_same_program() -> None:
    assert __main__.main is cli.main


# -- exit codes

RAISED: dict[str, tuple[BaseException, int, str]] = {
    "bad input": (InputError("expected A, got B"), 2, "Error: expected A, got B\n"),
    "the base": (LongRopeError("odd"), 2, "Error: odd\n"),
    "machine": (MissingRequirementError("pip install x"), 3, "Error: pip install x\n"),
    "format": (UnsupportedError("cannot"), 4, "Error: cannot\n"),
    "memory": (MemoryError(), 3, "Error: out of memory; use"),
    "torch memory": (
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried …"),
        3,
        "Error: out of memory; use",
    ),
    "no room for a thread": (RuntimeError("can't start new thread"), 3, "Error: out of memory; use"),
    "no room for a library": (
        ImportError("libtorch.so: failed to map segment from shared object"),
        3,
        "Error: out of m",
    ),
    "a runtime's memory": (
        Exception("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc"),
        3,
        "Error: out of",
    ),
    "disk": (
        OSError(errno.ENOSPC, "No space left on device", "a.gguf"),
        3,
        "Error: a.gguf: no room left on the disk (No space left on device)\n",
    ),
    "disk fault": (OSError(errno.EIO, "Input/output error"), 3, "Error: the disk fails (Input/output error)\n"),
    "system memory": (OSError(errno.ENOMEM, "Cannot allocate memory", "a"), 3, "Error: a: out of memory (Cannot"),
    "gone": (FileNotFoundError(errno.ENOENT, "No such file or directory", "a"), 2, "Error: a: No such file or"),
    "interrupt": (KeyboardInterrupt(), 130, "Interrupted."),
    "click abort": (click.Abort(), 130, "Interrupted."),
    "our fault": (ZeroDivisionError("division by zero"), 70, "Error: ZeroDivisionError: division by zero (a fault of"),
}


@pytest.mark.parametrize("name", RAISED)
def test_an_error_is_one_line_and_its_exit_code(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    error, code, line = RAISED[name]
    monkeypatch.setattr("longrope_export.commands.doctor.examine", raising(error))
    done = run_cli("doctor")
    assert (done.code, done.out) == (code, "")
    assert line in done.err
    assert "Traceback" not in done.err
    assert len([line for line in done.lines if line]) == 1


@pytest.mark.parametrize("name", ["bad input", "our fault"])
def test_debug_shows_the_traceback_wherever_it_stands(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    error, code, _ = RAISED[name]
    monkeypatch.setattr("longrope_export.commands.doctor.examine", raising(error))
    for arguments in (("doctor", "--debug"), ("--debug", "doctor")):
        done = run_cli(*arguments)
        assert done.code == code
        assert "Traceback" in done.err
        assert type(error).__name__ in done.err


def raising(error: BaseException) -> Callable[[], None]:
    def examine() -> None:
        raise error

    return examine


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("no-such-command",), "No such command 'no-such-command'"),
        (("convert",), "Missing argument 'MODEL'"),
        (("convert", "x", "--nonsense"), "No such option"),
        (
            ("extend", "x", "-o", "y", "--target-length", "0"),
            "expected a number of tokens above 0, like 8192 or 8k, got '0'",
        ),
        (("extend", "x", "-o", "y", "--target-length", "-8"), "expected a number of tokens above 0"),
        (("extend", "x", "-o", "y", "--target-length", "long"), "expected a number of tokens above 0"),
        (("search", "x", "-o", "y", "--target-length", "8k"), "Missing option '--text'"),
        (
            ("validate", "x", "--reference", "y", "--text", "z", "--windows", "8,"),
            "expected a number of tokens above 0",
        ),
        (("factors",), "Usage:"),
        (("validate", "x", "--reference", "y", "--text", "z", "--seed", "1"), "No such option"),
        (("eval", "x", "--depths", "0,2"), "expected numbers from 0 to 1 like 0,0.5,1, got '0,2'"),
        (("eval", "x", "--shots", "-1"), "expected whole numbers like 0,1,4, got '-1'"),
        (
            ("search", "x", "-o", "y", "--short-budget", "x%"),
            "expected a fraction of 0 or more, like 1% or 0.01, got 'x%'",
        ),
        (("search", "x", "-o", "y", "--window-share", "512", "200%"), "expected a number of tokens"),
        (("search", "x", "-o", "y", "--n-hat", "-1"), "expected search or a whole number of 0 or more, got '-1'"),
        (("search", "x", "-o", "y", "--attention-factor", "nan"), "expected formula, search or a number above 0"),
        (("search", "x", "-o", "y", "--dtype", "int8"), "expected auto, float32, bfloat16 or float16, got 'int8'"),
        (("finetune", "x", "-o", "y", "--text", "z", "--dtype", "float16"), "expected auto, float32 or bfloat16"),
    ],
)
def test_wrong_usage_is_2(arguments: tuple[str, ...], line: str) -> None:
    done = run_cli(*arguments)
    assert (done.code, done.out) == (2, "")
    assert line in done.err
    assert "Traceback" not in done.err


def test_no_command_shows_the_commands() -> None:
    done = run_cli()
    assert "doctor" in done.out + done.err


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("missing", 3), ("broken", 3)])
def test_doctor_fails_only_for_what_is_required(monkeypatch: pytest.MonkeyPatch, state: str, code: int) -> None:
    from longrope_export.commands.doctor import Finding

    findings = [Finding("torch", state, "", True), Finding("extra ray", "missing", "")]  # type: ignore[arg-type]
    monkeypatch.setattr("longrope_export.commands.doctor.examine", lambda: findings)
    done = run_cli("doctor", "--json", "-")
    assert done.code == code
    assert [found["state"] for found in json.loads(done.out)] == [state, "missing"]


def test_json_to_a_file_leaves_stdout_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longrope_export.commands.doctor.examine", list)
    assert run_cli("doctor", "--json", tmp_path / "found.json").code == 0
    assert json.loads((tmp_path / "found.json").read_text()) == []


@pytest.mark.parametrize(("replayed", "steps", "left"), [(0, 10, "60:00"), (50, 7, "28:40"), (50, 0, "-:--")])
def test_the_time_left_is_by_the_speed_of_this_run(replayed: int, steps: int, left: str) -> None:
    """However long a step takes, and whatever an earlier run did before: 100 steps of 40 seconds each."""
    now = 0.0
    bars = rich.progress.Progress(get_time=lambda: now, disable=True)
    bar = console._Bar(bars, bars.add_task("search", total=100))
    bar.advance(replayed, before=True)
    for _ in range(steps):
        now += 40.0
        bar.advance(1)
    assert str(console._TimeLeft().render(bars.tasks[0])) == left


def test_plain_lines_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One every 10 seconds or 5 %, whichever is later."""
    now, out = 0.0, io.StringIO()
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def lines(step: float, seconds: float, steps: int) -> list[str]:
        nonlocal now
        out.seek(0)
        out.truncate()
        progress = console.ConsoleProgress()
        progress.console = Console(file=out)
        with progress.task("search", total=100) as task:
            for _ in range(steps):
                now += seconds
                task.advance(step)
        return out.getvalue().splitlines()

    slow = lines(step=1, seconds=60, steps=100)
    assert len(slow) == 100 / 5
    assert slow[-1] == "search: done in 100:00"
    assert slow[0] == "search: 5 %, 95:00 left"
    assert len(lines(step=10, seconds=3, steps=10)) == 2 + 1
    assert lines(step=50, seconds=1, steps=2) == ["search: done in 0:02"]


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_is_missing_or_non_finite_is_a_dash(value: float | None) -> None:
    assert console.number(value, ".3f") == "–"
    assert console.number(1.25, ".3f") == "1.250"
