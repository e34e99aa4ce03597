"""The command line itself: its names, its help and its exit codes. What commands do is tested elsewhere."""

from __future__ import annotations

import errno
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import rich.progress

from longrope.errors import InputError, LongRopeError, MissingRequirementError, UnsupportedError
from longrope_export import __main__, cli, console
from longrope_export.commands import doctor
from tests.common import REPOSITORY, run_cli

CONTRACT = {
    "extend": (
        "--target-length",
        "--output",
        "--text",
        "--formats",
        "--factor-sets",
        "--strategy",
        "--max-evals",
        "--resume",
    ),
    "search": ("--target-length", "--text", "--output", "--resume", "--seed", "--device", "--dtype", "--threads"),
    "recover": ("--window", "--text", "--output"),
    "convert": ("--to", "--output", "--factors", "--factor-sets", "--outtype", "--overwrite"),
    "validate": ("--reference", "--text", "--windows", "--json", "--device", "--threads"),
    "eval": ("--text", "--windows", "--passkey", "--json"),
    "inspect": ("--json",),
    "report": ("--output",),
    "doctor": (),
    "factors": ("import", "show", "plot", "diff"),
    "factors import": ("--output", "--short", "--original", "--target"),
}
# CPU seconds for `--help`: the contract says half a second; the measured value is a fifth of that on an idle machine.
HELP_SECONDS = 0.5


def importable(command: str) -> bool:
    return (REPOSITORY / "longrope_export" / "commands" / f"{command.split()[0]}.py").is_file()


@pytest.mark.parametrize("command", CONTRACT)
def test_the_contracts_options_are_there(command: str) -> None:
    done = run_cli(*command.split(), "--help")
    assert done.code == 0
    missing = [option for option in CONTRACT[command] if option not in done.out]
    assert missing == []


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
    "disk": (
        OSError(errno.ENOSPC, "No space left on device", "a.gguf"),
        3,
        "Error: no room left on the disk (a.gguf)\n",
    ),
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
    assert doctor.command.help


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
