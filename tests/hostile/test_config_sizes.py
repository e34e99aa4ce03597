"""Sizes in config.json that the weights do not fill: one line in every command, before anything of that size is built."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.errors import InputError
from tests.common import PICO_BUDGET, run_cli

BOMBS = {
    "num_hidden_layers": 1_000_000_000,
    "vocab_size": 2_000_000_000,
    "hidden_size": 1 << 40,
    "intermediate_size": [128, 2_000_000_000],
    "num_attention_heads": 10_000_000,
    "num_key_value_heads": 10_000_000,
    "head_dim": 1 << 30,
    "num_experts": 1 << 30,
    "vision_config": {"depth": 1_000_000_000},
    "audio_config": {"encoder": 1, "encoder_layers": 1_000_000_000},
}


def bombed(model: Path, folder: Path, **changes: object) -> Path:
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_a_size_that_no_weight_has_is_named(pico: Checkpoint, tmp_path: Path) -> None:
    for field, size in BOMBS.items():
        folder = bombed(pico.path, tmp_path / field, **{field: size})
        with pytest.raises(InputError, match=next(iter(size)) if isinstance(size, dict) else field):
            open_checkpoint(folder)


COMMANDS = (
    "convert MODEL --to hf --factors FACTORS -o OUT",
    "convert MODEL --to gguf --factors FACTORS -o OUT",
    "convert MODEL --to onnx --factors FACTORS -o OUT",
    "inspect MODEL",
    "eval MODEL --text TEXT --windows 64",
    "search MODEL --target-length 256 --text TEXT -o OUT",
    f"extend MODEL --target-length 256 --text TEXT -o OUT {PICO_BUDGET}",
    "validate MODEL --reference MODEL --text TEXT",
)


def test_every_command_refuses_it(pico: Checkpoint, factors_file: Path, texts: Path, tmp_path: Path) -> None:
    model = bombed(pico.path, tmp_path / "model", vocab_size=2_000_000_000)
    places = {"MODEL": model, "FACTORS": factors_file, "TEXT": texts, "OUT": tmp_path / "out"}
    for command in COMMANDS:
        done = run_cli(*(places.get(word, word) for word in command.split()))
        assert done.code == 2, (command, done.err)
        assert "vocab_size 2000000000" in done.lines[-1], command
        assert not (tmp_path / "out").exists()
