"""Two runs at one place: the second is refused by name of the first, and nothing is lost."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.common import PICO_BUDGET, TARGET, pico_factors, pico_folder, pico_text, run_cli

HOLDER = """
import sys
from contextlib import ExitStack
from pathlib import Path
from longrope.locks import alone_at
with ExitStack() as held:
    for name in sys.argv[1:]:
        held.enter_context(alone_at(Path(name)))
    print("held", flush=True)
    sys.stdin.read()
"""
HELD = ("run", "factors.json", "both.json", "tuned.training", "model", "model.gguf")
SEARCH = f"--target-length {TARGET} --text ROOM/texts --max-evals 2 --threads 1"
TRAIN = "--factors ROOM/given.json --text ROOM/texts --steps 2 --batch 1 --threads 1"
SECOND = {
    "extend --resume beside a run": f"extend ROOM/source {SEARCH} -o ROOM/run {PICO_BUDGET} --resume",
    "extend --overwrite under a run": f"extend ROOM/source {SEARCH} -o ROOM/run {PICO_BUDGET} --overwrite",
    "search --resume beside a search": f"search ROOM/source {SEARCH} -o ROOM/factors.json --resume",
    "search --overwrite under a search": f"search ROOM/source {SEARCH} -o ROOM/factors.json --overwrite",
    "recover --overwrite under one": "recover ROOM/source --factors ROOM/given.json --window 64 --text ROOM/texts "
    "-o ROOM/both.json --overwrite",
    "finetune --resume beside a run": f"finetune ROOM/source {TRAIN} -o ROOM/tuned --resume",
    "finetune --overwrite under a run": f"finetune ROOM/source {TRAIN} -o ROOM/tuned --overwrite",
    "convert --overwrite under a writer": "convert ROOM/source --factors ROOM/given.json --to hf -o ROOM/model --overwrite",
    "convert beside a writer": "convert ROOM/source --factors ROOM/given.json --to hf -o ROOM/model",
    "patch --in-place under a writer": "patch ROOM/model.gguf --factors ROOM/given.json --in-place",
    "publish of a run at work": "publish ROOM/run --repo-id someone/pico --dry-run",
}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model and what is there of every kind, each held by another process."""
    room = tmp_path_factory.mktemp("held")
    pico_folder(room / "source")
    (room / "texts").mkdir()
    for seed in range(2):
        (room / "texts" / f"{seed}.txt").write_text(pico_text(40, seed), encoding="utf-8")
    pico_factors(dual=False).save(room / "given.json")
    for kind, name in (("gguf", "model.gguf"), ("hf", "model")):
        done = run_cli("convert", room / "source", "--factors", room / "given.json", "--to", kind, "-o", room / name)
        assert done.code == 0, done.err
    for name in ("run/run.json", "tuned.training/training.json", "tuned.training/checkpoints/step-00000001/state.json"):
        (room / name).parent.mkdir(parents=True, exist_ok=True)
        (room / name).write_text("{}")
    shutil.copyfile(room / "given.json", room / "factors.json")
    shutil.copyfile(room / "given.json", room / "both.json")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, *(room / name for name in HELD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    yield room
    holder.communicate("")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", SECOND)
def test_the_second_is_refused_by_name_of_the_first_and_nothing_is_lost(room: Path, name: str) -> None:
    before = contents(room)
    done = run_cli(*SECOND[name].replace("ROOM", str(room)).split())
    assert done.code == 2, done.err
    assert "another run is at work here (process " in done.lines[-1]
    assert " since 2" in done.lines[-1]
    assert contents(room) == before
