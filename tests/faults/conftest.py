"""The room that every fault test breaks in its own way."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from converters import registry
from converters.base import Export
from longrope.checkpoint import Checkpoint
from longrope.factors import BoundFactors
from longrope.progress import Silent
from tests.common import pico_factors


@pytest.fixture
def room(sound: Path, tmp_path: Path) -> Path:
    """A folder with a model, its artifacts, factors and a text, all sound, to break."""
    return shutil.copytree(sound, tmp_path / "room")


@pytest.fixture(scope="session")
def sound(pico: Checkpoint, dual: BoundFactors, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("sound")
    shutil.copytree(pico.path, room / "model")
    registry.converter("hf").convert(Export(pico, dual), room / "hf", Silent())
    registry.converter("gguf").convert(Export(pico, dual, "f32"), room / "model.gguf", Silent())
    pico_factors().save(room / "factors.json")
    (room / "text.txt").write_text("".join(file.read_text("utf-8") for file in sorted(texts.iterdir())), "utf-8")
    return room
