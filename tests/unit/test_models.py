"""What a MODEL or ARTIFACT argument can name."""

from __future__ import annotations

from pathlib import Path

import pytest

from longrope.errors import InputError, MissingRequirementError
from longrope_export import default_model, models


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for what was downloaded from the Hub."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    monkeypatch.setattr(models, "hub_snapshot", lambda name, patterns: folder)
    return folder


@pytest.mark.parametrize("name", ["here.gguf", "./org/name", "a/b/c"])
def test_a_path_stays_as_it_stands(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert models.artifact_path(name) == Path(name)


def test_default_is_the_built_in_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert models.artifact_path("default") == default_model.CHECKPOINT


def test_a_repository_with_a_configuration_is_a_folder(repository: Path) -> None:
    for name in ("config.json", "model.gguf"):
        (repository / name).write_text("{}")
    assert models.artifact_path("org/name@main") == repository


@pytest.mark.parametrize(
    "files",
    [["model-q4.gguf"], ["model-00001-of-00003.gguf", "model-00002-of-00003.gguf", "model-00003-of-00003.gguf"]],
)
def test_a_repository_of_one_gguf_is_that_file(repository: Path, files: list[str]) -> None:
    for name in files:
        (repository / name).write_bytes(b"GGUF")
    assert models.artifact_path("org/name") == repository / files[0]


@pytest.mark.parametrize(("files", "found"), [([], "found none"), (["a.gguf", "b.gguf"], r"found a\.gguf, b\.gguf")])
def test_a_repository_that_leaves_open_which_file(repository: Path, files: list[str], found: str) -> None:
    for name in files:
        (repository / name).write_bytes(b"GGUF")
    with pytest.raises(InputError, match=found):
        models.artifact_path("org/name")


def test_without_a_network_the_hub_is_missing() -> None:
    with pytest.raises(MissingRequirementError, match="the Hub cannot be reached"):
        models.artifact_path("nobody/nothing")
