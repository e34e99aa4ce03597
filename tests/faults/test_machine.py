"""What a machine does while a command runs: too little memory, inputs that go away, a clock that steps backwards."""

from __future__ import annotations

import itertools
import json
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from longrope.checkpoint import Checkpoint
from tests.common import TARGET, cli_process, pico_folder, run_cli
from tests.folder_faults import in_two_files

MEASURE = ("--windows", 64, "--windows-per-length", 1, "--threads", 1)


@pytest.mark.parametrize("mebibytes", [60, 250, 600])
def test_a_limit_on_memory_is_one_line(pico: Checkpoint, texts: Path, mebibytes: int) -> None:
    """Python, the libraries that it loads and the threads that these start all run out of it in words of their own."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (mebibytes << 20, mebibytes << 20))

    process = cli_process("eval", pico.path, "--text", texts, *MEASURE, preexec_fn=limit)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3, err
    assert err.splitlines() == ["Error: out of memory; use a smaller window, --dtype bfloat16 or a machine with more"]


def gone_after(monkeypatch: pytest.MonkeyPatch, lost: Path) -> None:
    """Let a file go away when the first one has been copied."""
    plain = shutil.copyfile

    def copyfile(*arguments: object, **options: object) -> object:
        copied = plain(*arguments, **options)  # type: ignore[call-overload]
        lost.unlink(missing_ok=True)
        return copied

    monkeypatch.setattr(shutil, "copyfile", copyfile)


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "tokenizer.json"])
def test_an_input_that_goes_away_in_the_middle(
    name: str, factors_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line, exit code 2, nothing left; with the file back, the same command ends well."""
    model = pico_folder(tmp_path / "model")
    in_two_files(model)
    kept = shutil.copytree(model, tmp_path / "kept")
    convert = ("convert", model, "--to", "hf", "--factors", factors_file, "-o", tmp_path / "out")
    with monkeypatch.context() as patched:
        gone_after(patched, model / name)
        done = run_cli(*convert)
    assert (done.code, name in done.lines[-1]) == (2, True), done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "model"]
    shutil.copyfile(kept / name, model / name)
    assert run_cli(*convert).code == 0


def test_a_text_that_goes_away_before_a_run_goes_on(pico: Checkpoint, texts: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(texts, tmp_path / "texts")
    search = ("search", pico.path, "--target-length", TARGET, "--text", mine, "--threads", 1, "-o", tmp_path / "f.json")
    assert run_cli(*search, "--max-evals", 2).code == 0
    (tmp_path / "f.json").unlink()
    shutil.rmtree(mine)
    done = run_cli(*search, "--max-evals", 2, "--resume")
    assert (done.code, str(mine) in done.lines[-1]) == (2, True), done.err
    shutil.copytree(texts, mine)
    assert run_cli(*search, "--max-evals", 2, "--resume").code == 0


def test_a_clock_that_steps_backwards_changes_nothing(
    pico: Checkpoint, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(name: str, *more: str) -> dict[str, object]:
        file = tmp_path / f"{name}.json"
        options = ("--target-length", TARGET, "--text", texts, "--threads", 1, "--max-evals", 2, "-o", file, *more)
        done = run_cli("search", pico.path, *options)
        assert done.code == 0, done.err
        return {key: value for key, value in json.loads(file.read_text()).items() if key != "provenance"}

    undisturbed = found("a")
    days: Callable[[], float] = itertools.count(time.time(), -86_400).__next__
    monkeypatch.setattr(time, "time", days)
    assert found("b") == undisturbed
    (tmp_path / "b.json").unlink()
    assert found("b", "--resume") == undisturbed


WRITERS = (
    "convert MODEL --to hf --factors FACTORS -o PLACE/out",
    "search MODEL --target-length 256 --text TEXT --max-evals 2 -o PLACE/f.json",
    "finetune MODEL --factors FACTORS --text TEXT --steps 1 -o PLACE/out",
)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="this system has no /proc")
@pytest.mark.parametrize("command", WRITERS)
def test_a_place_where_no_file_can_be_made(command: str, pico: Checkpoint, factors_file: Path, texts: Path) -> None:
    """To the library of locks such a place looks like one that somebody holds."""
    given = {"MODEL": pico.path, "FACTORS": factors_file, "TEXT": texts}
    done = run_cli(*(given.get(word, word.replace("PLACE", "/proc")) for word in command.split()))
    assert (done.code, "not writable" in done.lines[-1]) == (3, True), done.err
