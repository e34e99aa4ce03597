"""The console script. Commands are imported when used, so that `--help` imports no torch.

Exit codes: 0 done, 1 a check failed, 2 wrong usage or bad input, 3 the machine lacks something, 4 not expressible;
129, 130 and 143 after SIGHUP, Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import errno
import importlib
import sys
import traceback
import warnings

import click

from longrope import __version__
from longrope.errors import LongRopeError, is_out_of_memory
from longrope.files import lack
from longrope.reading import visible
from longrope_export.signals import Received, ended_by_signals

COMMANDS = {
    "extend": "Search factors, export every format, prove each against the original.",
    "search": "Search rescale factors for a target length.",
    "finetune": "Train a model with its factors; write it as a Hugging Face folder.",
    "recover": "Search factors for the short window of an extended model.",
    "convert": "Write a model with its factors as hf, gguf or onnx.",
    "patch": "Put factors into an existing GGUF file; no weights are touched.",
    "validate": "Check an artifact against a reference model.",
    "eval": "Measure an artifact's perplexity or passkey retrieval by length.",
    "inspect": "Say what an artifact holds and which runtime uses which set when.",
    "factors": "Import, show, plot and compare factor files.",
    "report": "Write a run's report again.",
    "publish": "Publish a run, an artifact or factors on the Hub.",
    "card": "Print the model card of a run.",
    "doctor": "Say what is installed, what works and what to do.",
}
# What the system says of a path that cannot be what it was taken for, or that went away under us.
UNUSABLE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
FAULT = 70
REPORT_IT = (
    "a fault of this program; please report it in the issues of the repository that longrope-export came from, with what "
    "the same command prints with --debug"
)


class Commands(click.Group):
    """A group that knows its commands' names and one-line helps, and imports a command when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"longrope_export.commands.{name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="longrope-export")
def cli() -> None:
    """Extend a language model's context window with LongRoPE and export it with proof."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the code that the module's docstring lists."""
    for_good = arguments is None
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not debug:
        warnings.filterwarnings("ignore", module=r"torch|transformers|onnx")
    try:
        with ended_by_signals(for_good=for_good) as received:
            code = _run(arguments, received, debug=debug)
    except (MemoryError, RuntimeError) as error:  # no room for the thread that hears signals
        code = _explain(error, interrupted=FAULT, debug=debug)
    sys.exit(code if isinstance(code, int) else 0)


def _run(arguments: list[str], received: Received, *, debug: bool) -> object:
    """What a command returns; of an error its exit code."""
    try:
        return cli.main(arguments, prog_name="longrope-export", standalone_mode=False)
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001  the outermost frame: every error becomes a line, a panic in Rust, too
        received.over = True
        return _explain(error, interrupted=received.exit_code, debug=debug)


def _explain(error: BaseException, *, interrupted: int, debug: bool) -> int:
    """Print one line for an error and return its exit code; `interrupted` is that of a signal."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        click.echo(
            "Interrupted. A run of `extend`, `search`, `finetune` or `recover` goes on with --resume, `publish` by itself.",
            err=True,
        )
        return interrupted
    if isinstance(error, LongRopeError):
        option = f" (--{error.option})" if error.option else ""
        click.echo(f"Error: {visible(f'{error}{option}')}", err=True)
        return error.exit_code
    if is_out_of_memory(error):
        click.echo("Error: out of memory; use a smaller window, --dtype bfloat16 or a machine with more", err=True)
        return 3
    if isinstance(error, OSError) and (words := lack(error)):
        click.echo(f"Error: {f'{error.filename}: ' if error.filename else ''}{words}", err=True)
        return 3
    if isinstance(error, OSError):
        said = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        click.echo(f"Error: {visible(said)}", err=True)
        return 2 if error.errno in UNUSABLE else 3
    if not debug:
        click.echo(f"Error: {type(error).__name__}: {visible(str(error))} ({REPORT_IT})", err=True)
    return FAULT
