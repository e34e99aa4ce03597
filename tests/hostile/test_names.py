"""Names that mean something to a library behind the command line: markup, mathematics, escape sequences, too long."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from longrope.checkpoint import Checkpoint
from tests.common import Outcome

NAMES = ("[/x]", "[bold]a[/bold]", r"$\frac$", "a%s{b}", "\x1b[31mred")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_taken_as_it_is(
    name: str, factors_file: Path, pico: Checkpoint, texts: Path, tmp_path: Path, cli: Callable[..., Outcome]
) -> None:
    file = tmp_path / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(factors_file, file)
    assert cli("factors", "show", file).code == 0
    done = cli("factors", "plot", file, "-o", tmp_path / "p.svg")
    assert (done.code, (tmp_path / "p.svg").is_file()) == (0, True), done.err
    model = shutil.copytree(pico.path, tmp_path / "models" / name)
    done = cli("eval", model, "--text", texts, "--windows", 32, "--windows-per-length", 1, "--threads", 1)
    assert done.code == 0, done.err


def test_a_message_holds_no_escape_sequence(tmp_path: Path, cli: Callable[..., Outcome]) -> None:
    done = cli("factors", "show", tmp_path / "\x1b[31mred.json")
    assert done.code == 2
    assert "\x1b" not in done.err


def test_a_name_that_no_file_can_have_is_refused(cli: Callable[..., Outcome]) -> None:
    for command in (["inspect"], ["factors", "show"]):
        done = cli(*command, "a" * 5000)
        assert done.code == 2, done.err
