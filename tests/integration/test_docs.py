"""Every command and Python snippet of README and docs runs, page by page, in the order in which it stands there.

The pages speak of a model with a window of 4k tokens that is extended to 32k; here that is a pico model of 128 and 512. The
tables below are all that is changed: lengths are translated, and options that make budgets small are added to each command.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import longrope
from tests.common import PICO_BUDGET, pico_checkpoint, pico_factors, pico_text, run_cli
from tests.markdown import PAGES, Block, blocks, own_command

# Lengths on the pages and here.
LENGTHS = {
    **dict.fromkeys(("4k", "4096"), 128),
    "8k": 192,
    **dict.fromkeys(("16k", "16384"), 256),
    **dict.fromkeys(("32k", "32768", "32_768"), 512),
}
# Options that are added to a command so that it takes seconds; a later option wins.
SEARCH_BUDGET = "--max-evals 2 --documents 1 --threads 1"
BUDGETS: Mapping[str, str] = {
    "extend": PICO_BUDGET.replace("--max-evals 6", "--max-evals 2"),
    "search": SEARCH_BUDGET,
    "recover": "--max-evals 2 --threads 1",
    "finetune": "--steps 1 --batch 2 --threads 1",
    "validate": "--windows-per-length 1 --threads 1",
    "eval": "--windows-per-length 1 --samples 1 --threads 1 --queries 1 --shots 0,1 --max-new-tokens 2",
}
# What is replaced in Python and in files, for the same reason.
SMALLER = {
    "max_evals=32": "max_evals=2",
    "max_evals=24": "max_evals=2",
    "short_evals=24": "short_evals=2",
    "limit=4": "limit=1",
    "steps=400": "steps=1",
    "batch=32": "batch=2",
    "search(checkpoint, corpus, 512)": "search(checkpoint, corpus, 512, options=longrope.SearchOptions(max_evals=2))",
    "steps = 300": "steps = 1",
    "steps = 60": "steps = 1",
    "warmup = 10": "warmup = 0",
    "batch = 16": "batch = 2",
    "batch = 4": "batch = 2",
    "max_evals = 48": "max_evals = 2",
    "max-evals: 32": "max-evals: 2",
}
# Commands that say something by another exit code than 0.
EXIT_CODES = {("factors", "diff"): 1}
RUNNABLE = [page for page in PAGES if any(block.runs and block.language in ("sh", "python") for block in blocks(page))]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages take for granted."""
    desk = tmp_path_factory.mktemp("desk")
    model = pico_checkpoint(desk / "model", max_position_embeddings=LENGTHS["4k"])
    dual = pico_factors(target=LENGTHS["32k"], original_max_position_embeddings=LENGTHS["4k"])
    (desk / "books").mkdir()
    for seed in range(4):
        (desk / "books" / f"{seed}.txt").write_text(pico_text(80, seed), encoding="utf-8")
    (desk / "runs").mkdir()
    (desk / "gguf").mkdir()
    dual.save(desk / "factors.json")
    longrope.convert(model, desk / "model-extended", to="hf", factors=dual)
    longrope.convert(
        model, desk / "plain.gguf", to="gguf", factors=dual
    )  # patched and converted with factors of its own
    for file, name in (("32k.csv", "long"), ("4k.csv", "short")):
        (desk / file).write_text(",".join(map(str, dual.set(name))) + "\n", encoding="utf-8")  # type: ignore[arg-type]
    return desk


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.name)
def test_what_stands_on_a_page_runs(page: Path, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = tmp_path / "room"
    shutil.copytree(desk, room)
    if "-o factors.json" in page.read_text(encoding="utf-8"):
        (room / "factors.json").unlink()  # the page makes it
    monkeypatch.chdir(room)
    names: dict[str, Any] = {}
    for block in blocks(page):
        if not block.runs:
            continue
        where, text = f"{page.name}:{block.line}", translated(block.text)
        if block.language == "python":
            exec(compile(text, where, "exec"), names)
        elif block.language == "sh":
            run_commands(block, where)
        elif block.note:
            Path(block.note).write_text(text, encoding="utf-8")


def run_commands(block: Block, where: str) -> None:
    for words in block.commands:
        arguments = own_command(words)
        assert arguments, f"{where}: {' '.join(words)} is not ours; mark the block no-run"
        arguments = [translated(word) for word in arguments]
        runs = not {"--static", "--from"} & set(arguments)
        done = run_cli(*arguments, *(BUDGETS.get(arguments[0], "").split() if runs else ()))
        expected = EXIT_CODES.get(tuple(arguments[:2]), 0)  # type: ignore[call-overload]
        assert done.code == expected, f"{where}: {' '.join(words)}\n{done.out}\n{done.err}"


def translated(text: str) -> str:
    """What a page says, with pico lengths and budgets."""
    text = re.sub(r"(?<![\w.])(\d[\d_]*k?)(?![\w.])", lambda found: str(LENGTHS.get(found[1], found[1])), text)
    for said, small in SMALLER.items():
        text = text.replace(said, small)
    return text
