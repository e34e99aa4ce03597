"""Checkpoints: the curve goes on as if nothing had happened, whatever killed the run and however many processes resume it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from longrope.errors import InputError, MissingRequirementError
from longrope.finetune.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint, step_folder
from longrope.finetune.parallel import Parallel
from longrope.weights import safetensors_header
from tests.common import pico_folder
from tests.processes import Run, file_size_limit, run_processes, start_process, train


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico model with tied embeddings and dropout, so that random states count."""
    folder = tmp_path_factory.mktemp("tied") / "model"
    return pico_folder(folder, tie_word_embeddings=True, attention_dropout=0.1)


def lines(file: Path) -> dict[int, float]:
    """Step → loss, the last one where a step was done twice."""
    return {record["step"]: record["loss"] for record in map(json.loads, file.read_text().splitlines())}


# -- kill and resume


@pytest.mark.parametrize("save_every", [1, 3])
def test_a_run_that_is_killed_after_every_step_gives_the_same_curve(
    tied: Path, tmp_path: Path, save_every: int
) -> None:
    torch.manual_seed(0)
    whole = train(Run(tied, steps=6))
    run = Run(
        tied,
        steps=6,
        checkpoints=tmp_path / "checkpoints",
        save_every=save_every,
        log=tmp_path / "log.jsonl",
        killed_after=tuple(range(6)),
    )
    codes = []
    while not codes or codes[-1] != 0:
        process = start_process(seeded_train, run)
        process.join()
        codes.append(process.exitcode)
        assert len(codes) < 8
        run = replace(run, killed_after=run.killed_after[save_every:])
    assert codes.count(-signal.SIGKILL) >= 1
    assert lines(tmp_path / "log.jsonl") == pytest.approx(dict(enumerate(whole.losses)), abs=1e-6)


def seeded_train(run: Run) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    train(run)


def test_two_processes_save_and_one_or_four_go_on(pico: Any, tmp_path: Path) -> None:
    run = Run(pico.path)
    whole = train(run)
    half = replace(run, steps=5, save_every=5, checkpoints=tmp_path / "saved")
    run_processes(2, train, {"half": half})
    for count, changes in ((1, {}), (4, {"sequence_parallel": 2})):
        folder = tmp_path / f"resumed-{count}"
        shutil.copytree(tmp_path / "saved", folder)
        rest = replace(run, checkpoints=folder, save_every=100, **changes)
        outcome = train(rest) if count == 1 else run_processes(count, train, {"rest": rest})["rest"][3]
        assert outcome.losses == pytest.approx(whole.losses[5:], abs=1e-5)
        worst = max((outcome.weights[name] - whole.weights[name]).abs().max().item() for name in whole.weights)
        assert worst < 1e-5


# -- what a small model is enough for


def trained(seed: int, steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A two-layer network with a frozen layer, and two groups of parameters with different settings."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].requires_grad_(False)
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "weight_decay": 0.5}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    for _ in range(steps):
        advance(model, optimizer)
    return model, optimizer


def advance(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    loss = model(torch.randn(4, 8)).square().sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def save(folder: Path, step: int, seed: int = 0, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    model, optimizer = trained(seed, step)
    save_checkpoint(step_folder(folder, step), model, optimizer, {"step": step}, **options)
    return model, optimizer


def test_everything_comes_back(tmp_path: Path) -> None:
    """Weights, moments, settings of each group, random states: the next losses are the same bits."""
    model, optimizer = save(tmp_path, 3)
    expected = [advance(model, optimizer) for _ in range(3)]
    other, its_optimizer = trained(seed=1, steps=0)
    its_optimizer.param_groups[0]["lr"] = 7.0
    other[1].load_state_dict(model[1].state_dict())  # frozen: whoever resumes has it
    assert load_checkpoint(step_folder(tmp_path, 3), other, its_optimizer) == {"step": 3}
    assert [group["lr"] for group in its_optimizer.param_groups] == [0.1, 0.01]
    assert [group["weight_decay"] for group in its_optimizer.param_groups] == [0.01, 0.5]
    assert [advance(other, its_optimizer) for _ in range(3)] == expected


def test_files_are_safetensors_and_json_and_hold_no_frozen_weight(tmp_path: Path) -> None:
    save(tmp_path, 1)
    files = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {".json", ".safetensors"}
    (file,) = step_folder(tmp_path, 1).glob("tensors/*")
    names = [name for name in safetensors_header(file) if name.startswith("model.")]
    assert sorted(names) == ["model.0.bias", "model.0.weight", "model.2.bias", "model.2.weight"]


def test_many_small_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longrope.finetune.checkpoints.FILE_BYTES", 300)
    model, _ = save(tmp_path, 2)
    assert len(list(step_folder(tmp_path, 2).glob("tensors/*"))) > 3
    other, optimizer = trained(seed=1, steps=0)
    load_checkpoint(step_folder(tmp_path, 2), other, optimizer)
    assert torch.equal(weights(other), weights(model))


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10, 3):
        save(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000010"]
    assert latest_checkpoint(tmp_path) == step_folder(tmp_path, 10)


def test_the_same_step_again_replaces(tmp_path: Path) -> None:
    save(tmp_path, 2, seed=0)
    model, _ = save(tmp_path, 2, seed=5)
    other, optimizer = trained(seed=1, steps=0)
    load_checkpoint(step_folder(tmp_path, 2), other, optimizer)
    assert torch.equal(weights(other), weights(model))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / ".step-00000002.partial").mkdir()
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "missing") is None


# -- kill -9 while it is written


def test_killed_at_any_flush_or_rename_a_whole_checkpoint_is_left(tmp_path: Path) -> None:
    save(tmp_path / "start", 1)
    kept, killed = set(), 0
    for moment in range(1, 40):
        folder = tmp_path / str(moment)
        shutil.copytree(tmp_path / "start", folder)
        process = start_process(save_until_killed, folder, moment)
        process.join()
        latest = latest_checkpoint(folder)
        assert latest is not None
        model, optimizer = trained(seed=1, steps=0)
        state = load_checkpoint(latest, model, optimizer)
        assert torch.equal(weights(model), weights(trained(0, state["step"])[0]))
        kept.add(state["step"])
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        killed += 1
        save(folder, 3)  # the next one sweeps
        assert not list(folder.glob(".*"))
    assert killed >= 6
    assert kept == {1, 2}


def save_until_killed(folder: Path, moment: int) -> None:
    """Save step 2 and die at the given flush or rename."""
    calls = 0

    def counted(original: Any) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments)

        return call

    os.fsync, os.rename, os.replace = map(counted, (os.fsync, os.rename, os.replace))
    Path.replace = counted(Path.replace)  # type: ignore[method-assign]
    save(folder, 2)


# -- a full disk


def test_a_full_disk_leaves_the_last_checkpoint_good(tmp_path: Path) -> None:
    before, _ = save(tmp_path, 1)
    process = start_process(save_on_a_full_disk, tmp_path)
    process.join()
    assert process.exitcode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    model, optimizer = trained(seed=1, steps=0)
    load_checkpoint(step_folder(tmp_path, 1), model, optimizer)
    assert torch.equal(weights(model), weights(before))


def save_on_a_full_disk(folder: Path) -> None:
    full = pytest.raises(MissingRequirementError, match=r"step-00000002: no room left on the disk \(File too large\)")
    with file_size_limit(1000), full:
        save(folder, 2)


def test_a_full_disk_of_one_process_stops_all(tmp_path: Path) -> None:
    save(tmp_path, 1)
    messages = run_processes(2, save_where_only_the_second_disk_is_full, {"save": tmp_path})["save"]
    assert all("no room left on the disk" in message for message in messages)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def save_where_only_the_second_disk_is_full(folder: Path) -> str:
    with Parallel.from_environment(device="cpu") as parallel:
        disk = file_size_limit(1000) if parallel.rank == 1 else nullcontext()
        with disk, pytest.raises(MissingRequirementError) as error:
            save(folder, 2)
    return str(error.value)


# -- damaged, or another's


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (file,) = step_folder(tmp_path, 1).glob("tensors/*")
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(InputError, match="truncated or damaged"):
        load_checkpoint(step_folder(tmp_path, 1), *trained(1, 0))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (file,) = step_folder(tmp_path, 1).glob("tensors/*")
    file.unlink()
    with pytest.raises(InputError, match="another model or damaged"):
        load_checkpoint(step_folder(tmp_path, 1), *trained(1, 0))


@pytest.mark.parametrize("name", ["state.json", "random-00000.json"])
def test_damaged_json_is_refused(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    (step_folder(tmp_path, 1) / name).write_text('{"version": 1, "pro')
    with pytest.raises(InputError, match="damaged"):
        load_checkpoint(step_folder(tmp_path, 1), *trained(1, 0))


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with pytest.raises(InputError, match="another model or optimizer: they differ in"):
        load_checkpoint(step_folder(tmp_path, 1), model, torch.optim.AdamW(model.parameters()))


def test_another_shape_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    model = nn.Sequential(nn.Linear(8, 9), nn.Linear(8, 8).requires_grad_(False), nn.Linear(9, 8))
    optimizer = torch.optim.AdamW([{"params": model[0].parameters()}, {"params": model[2].parameters()}])
    with pytest.raises(InputError, match="another model or damaged"):
        load_checkpoint(step_folder(tmp_path, 1), model, optimizer)


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    file = step_folder(tmp_path, 1) / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 99}))
    with pytest.raises(InputError, match="expected a checkpoint of version 1, got 99"):
        load_checkpoint(step_folder(tmp_path, 1), *trained(1, 0))
