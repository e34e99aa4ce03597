"""What `--device auto` and `--dtype auto` mean, with and without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.extend_options import ExtendOptions
from longrope.finetune.options import TrainOptions
from longrope.machine import resolve, resolve_device, stored_precision
from longrope.search import SearchOptions
from tests.common import TARGET, pico_folder, run_cli


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """A pico model in each precision; one small tensor stays float32."""
    made = {}
    for name in ("float32", "bfloat16", "float16"):
        folder = pico_folder(tmp_path_factory.mktemp(name))
        weights = {
            key: value if key == "model.norm.weight" else value.to(getattr(torch, name))
            for key, value in load_file(folder / "model.safetensors").items()
        }
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        made[name] = open_checkpoint(folder)
    return made


def gpu(monkeypatch: pytest.MonkeyPatch, *, cuda: bool = False, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "device"),
    [(False, False, "cpu"), (True, False, "cuda"), (True, True, "cuda"), (False, True, "mps")],
)
def test_auto_is_the_gpu_when_there_is_one(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, device: str) -> None:
    gpu(monkeypatch, cuda=cuda, mps=mps)
    assert resolve_device("auto") == device
    assert resolve_device("cuda:1") == "cuda:1"


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_the_precision_is_the_checkpoints_on_a_gpu_and_float32_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, half: dict[str, Checkpoint], stored: str
) -> None:
    checkpoint = half[stored]
    assert stored_precision(checkpoint) == stored
    gpu(monkeypatch)
    assert resolve("auto", "auto", checkpoint) == ("cpu", "float32")
    assert resolve("cuda", "auto", checkpoint) == ("cuda", stored)
    gpu(monkeypatch, cuda=True)
    assert resolve("auto", "auto", checkpoint) == ("cuda", stored)
    assert resolve("cpu", "auto", checkpoint) == ("cpu", "float32")
    assert resolve("auto", "float16", checkpoint) == ("cuda", "float16")


@pytest.mark.parametrize(
    ("stored", "trained"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "bfloat16")]
)
def test_training_takes_bfloat16_for_checkpoints_of_16_bits(
    monkeypatch: pytest.MonkeyPatch, half: dict[str, Checkpoint], stored: str, trained: str
) -> None:
    gpu(monkeypatch, cuda=True)
    options = TrainOptions().on(half[stored])
    assert (options.device, options.dtype) == ("cuda", trained)
    assert options.settings()["dtype"] == trained


def test_what_decides_a_result_is_recorded_as_it_was(
    monkeypatch: pytest.MonkeyPatch, half: dict[str, Checkpoint]
) -> None:
    """Settings of a run on a GPU and of one on a CPU differ, although both were asked for with `auto`."""
    gpu(monkeypatch, cuda=True)
    assert SearchOptions().on(half["float16"]).settings()["dtype"] == "float16"
    both = ExtendOptions(TARGET).on(half["float16"]).settings()
    assert (both["search"]["dtype"], both["training"]["dtype"]) == ("float16", "bfloat16")
    gpu(monkeypatch)
    assert SearchOptions().on(half["float16"]).settings()["dtype"] == "float32"


def test_a_journal_holds_no_auto(pico: Checkpoint, texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "factors.json"
    asked = ("--target-length", TARGET, "--text", texts, "-o", output, "--max-evals", 2, "--documents", 1)
    assert run_cli("search", pico.path, *asked, "--strategy", "evolution").code == 0
    header = (tmp_path / "factors.json.journal" / "search.jsonl").read_text().splitlines()[0]
    assert '"dtype":"float32"' in header
    assert "auto" not in header.replace('"strategy":"auto"', "")
