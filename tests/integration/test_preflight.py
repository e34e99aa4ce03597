"""Everything that is refused before a run: in which order, with nothing written, and by `--plan` as by the run."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from longrope.checkpoint import Checkpoint
from longrope.errors import LongRopeError
from longrope.extend_options import ExtendOptions
from longrope.finetune.options import TrainOptions
from longrope.finetune.stages import Stage, StagePlan
from longrope.progress import Silent
from longrope.search import SearchOptions
from longrope_export import preflight
from longrope_export.commands.extend import ExtendRequest
from tests.common import PICO_BUDGET, TARGET, WINDOW, pico_factors, run_cli

DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.fixture
def room(texts: Path, tmp_path: Path) -> Path:
    """A folder with texts, long and short, and factors; no run yet."""
    shutil.copytree(texts, tmp_path / "texts")
    pico_factors().save(tmp_path / "factors.json")
    (tmp_path / "short.txt").write_text("Too short.", encoding="utf-8")
    return tmp_path


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a run.

    Args:
        message: what the error must say.
        request: changes of the request.
        search, training, options: changes of its options.
        machine: what else is changed, given monkeypatch and the room.
    """

    message: str
    request: Callable[[Path], dict[str, Any]] = lambda room: {}
    search: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    machine: Callable[[pytest.MonkeyPatch, Path], object] = lambda patch, room: None


# In the order in which a user meets them.
FAULTS = (
    Fault("--sequence-parallel 2: expected a divisor of the number of processes", training={"sequence_parallel": 2}),
    Fault("--fsdp 3: expected a divisor of the number of processes", training={"fsdp": 3}),
    Fault("no-such.yaml: no such file", request=lambda room: {"policy": str(room / "no-such.yaml")}),
    Fault("nowhere: no such file or folder", request=lambda room: {"model": str(room / "nowhere")}),
    Fault(f"--target-length {WINDOW}: expected more than the model's window", options={"target_length": WINDOW}),
    Fault("--from with --stages", search={"from_factors": pico_factors(target=128)}),
    Fault("did you mean evolution", search={"strategy": "evolutoin"}),
    Fault("expected cpu, cuda", search={"device": "gpu"}),
    Fault(
        "not enough memory for",
        machine=lambda patch, room: patch.setattr("longrope.estimates.memory.free_memory", lambda device: 1 << 20),
    ),
    Fault(f"expected a document of at least {TARGET} tokens", request=lambda room: {"texts": (room / "short.txt",)}),
    Fault("expected --outtype", request=lambda room: {"formats": ("hf:q9",)}),
    Fault("expected at most the model's 2 layers", training={"lora_rank": 4, "lora_layers": 9}),
    Fault(
        "artifacts may need",
        machine=lambda patch, room: patch.setattr("shutil.disk_usage", lambda folder: DiskUsage(1, 1, 0)),
    ),
    Fault("choose another output, or replace it", machine=lambda patch, room: (room / "run").mkdir()),
)


def faulty(faults: Sequence[Fault], pico: Checkpoint, room: Path, patch: pytest.MonkeyPatch) -> ExtendRequest:
    """A sound request with these faults in it."""
    search, training = SearchOptions(strategy="evolution", max_evals=2, num_documents=1, threads=1), TrainOptions()
    stages = StagePlan("two", (Stage(128, steps=2, batch=2), Stage(TARGET)))
    options = ExtendOptions(target_length=TARGET, stages=stages)
    request = ExtendRequest(model=str(pico.path), output=room / "run", options=options, texts=(room / "texts",))
    for fault in reversed(faults):
        search = replace(search, **fault.search or {})
        training = replace(training, **fault.training or {})
        options = replace(options, **fault.options or {})
        request = replace(request, **fault.request(room))
        fault.machine(patch, room)
    return replace(request, options=replace(options, search=search, training=training))


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_of_several_faults_the_first_is_reported(
    pico: Checkpoint, room: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    request = faulty(FAULTS[number:], pico, room, monkeypatch)
    before = sorted(room.rglob("*"))
    with pytest.raises(LongRopeError) as raised:
        preflight.prepare(request, Silent())
    assert FAULTS[number].message in str(raised.value)
    assert sorted(room.rglob("*")) == before


def test_a_sound_run_is_prepared_and_nothing_written(
    pico: Checkpoint, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = preflight.prepare(faulty((), pico, room, monkeypatch), Silent())
    assert [output.label for output in prepared.outputs] == ["hf", "gguf", "onnx"]
    assert [output.planned.export.factors.factor_sets for output in prepared.outputs] == ["single", "dual", "single"]
    assert prepared.corpus.fingerprint != prepared.held_out.fingerprint
    assert not (room / "run").exists()


def test_a_plan_says_what_does_not_fit_instead_of_refusing_it(
    pico: Checkpoint, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longrope.estimates.memory.free_memory", lambda device: 1 << 20)
    asked = ("--target-length", TARGET, "--text", room / "texts", "-o", room / "run", "--threads", 1)
    for command in ("extend", "search"):
        planned = run_cli(command, pico.path, *asked, "--plan")
        assert (planned.code, "does not fit: the search would be refused" in planned.out) == (0, True), planned.err
        refused = run_cli(command, pico.path, *asked)
        assert (refused.code, "use a smaller --dtype, a shorter --target-length" in refused.err) == (3, True)
    assert not list(room.glob("run*"))


EXTEND = f"extend MODEL --target-length {TARGET} -o OUT --text TEXTS {PICO_BUDGET}"
SEARCH = f"search MODEL --target-length {TARGET} -o OUT --text TEXTS --max-evals 2 --documents 1 --threads 1"
FINETUNE = "finetune MODEL --factors FACTORS --text TEXTS -o OUT --steps 2 --batch 2 --threads 1"


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (EXTEND.replace(str(TARGET), str(WINDOW)), 2, "expected more than the model's window"),
        (EXTEND.replace("TEXTS", "SHORT"), 2, f"expected a document of at least {TARGET} tokens"),
        (f"{EXTEND} --test-text SHORT", 2, f"expected a document of at least {TARGET} tokens"),
        (f"{EXTEND} --windows 64 --test-text SHORT", 2, f"expected a document of at least {TARGET} tokens"),
        (f"{EXTEND} --windows {TARGET + 1}", 2, f"expected 2 to the target length {TARGET}"),
        (f"{EXTEND} --formats hf,hf", 2, "is there twice"),
        (f"{EXTEND} --formats hf:q9", 4, "expected --outtype"),
        (f"{EXTEND} --formats hf --n-hat 4", 4, "cannot hold n_hat = 4"),
        (f"{EXTEND} --device cuda", 3, "device"),
        (f"{EXTEND} --lora 4", 2, "need --stages PLAN"),
        (f"{EXTEND} --from FACTORS", 2, "expected more than the 256 tokens that --from reaches"),
        (f"{EXTEND} --policy quantised", 2, "did you mean quantized?"),
        (f"{EXTEND} --policy SHORT", 2, "expected"),
        (f"{EXTEND} --resume", 2, "no such run to resume"),
        (EXTEND.replace("OUT", "TEXTS"), 2, "choose another output, or replace it (--overwrite)"),
        (EXTEND.replace("OUT", "TEXTS --overwrite"), 2, "expected a run of extend to overwrite"),
        (SEARCH.replace(str(TARGET), str(WINDOW)), 2, "expected more than the model's window"),
        (SEARCH.replace("TEXTS", "SHORT"), 2, f"expected a document of at least {TARGET} tokens"),
        (SEARCH.replace("OUT", "FACTORS"), 2, "choose another output, or replace it (--overwrite)"),
        (SEARCH.replace("OUT", "TEXTS --overwrite"), 2, "expected the name of a file"),
        (f"{SEARCH} --plots SHORT", 2, "is a file; expected a folder"),
        (f"{SEARCH} --from FACTORS", 2, "expected more than the 256 tokens that --from reaches"),
        (FINETUNE.replace("TEXTS", "SHORT"), 2, "tokens to train on"),
        (f"{FINETUNE} --length 512", 2, "expected at most the factors' target of 256"),
        (f"{FINETUNE} --teacher MODEL", 2, "expected --distil-short beside it"),
        (f"{FINETUNE} --lora 4 --lora-layers 9", 2, "expected at most the model's 2 layers"),
        (FINETUNE.replace("OUT", "TEXTS"), 2, "choose another output, or replace it (--overwrite)"),
    ],
)
def test_a_plan_refuses_what_the_run_refuses(
    pico: Checkpoint, room: Path, command: str, code: int, message: str
) -> None:
    places = {
        "MODEL": pico.path,
        "TEXTS": room / "texts",
        "SHORT": room / "short.txt",
        "FACTORS": room / "factors.json",
        "OUT": room / "out",
    }
    words = [places.get(word, word) for word in command.split()]
    before = sorted(room.rglob("*"))
    run, plan = run_cli(*words), run_cli(*words, "--plan")
    assert (run.code, message in run.err) == (code, True), run.err
    assert (plan.code, plan.lines[-1], plan.out) == (run.code, run.lines[-1], "")
    assert sorted(room.rglob("*")) == before
