"""Fixtures of all tests. One thread everywhere: pico models gain nothing from more, and CI machines are shared."""

from __future__ import annotations

import os

# Before torch and the tokenizers are imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["LONGROPE_CACHE"] = ""  # nothing is kept between tests

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from converters.base import Check
from converters.check_table import row_of
from longrope.checkpoint import Checkpoint
from longrope.factors import BoundFactors
from tests.common import Outcome, pico_checkpoint, pico_factors, pico_text, run_cli
from tests.hub import LocalHub


@pytest.fixture(scope="session", autouse=True)
def every_check_is_in_the_table() -> Iterator[None]:
    """Each check that the tests see, in this process, has a row in `converters/check_table.py`."""
    seen, init = set[str](), Check.__init__

    def record(self: Check, id: str, *more: Any, **named: Any) -> None:
        seen.add(id)
        init(self, id, *more, **named)

    Check.__init__ = record  # type: ignore[method-assign]
    yield
    Check.__init__ = init  # type: ignore[method-assign]
    unknown = sorted(id for id in seen if id.startswith(("hf.", "gguf.", "onnx.", "factors.")) and row_of(id) is None)
    assert not unknown, f"without a row in converters/check_table.py: {unknown}"


@pytest.fixture(scope="session")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A llama of two layers, window 64; read only."""
    return pico_checkpoint(tmp_path_factory.mktemp("pico") / "model")


@pytest.fixture(scope="session")
def dual(pico: Checkpoint) -> BoundFactors:
    """Factors with two sets, bound to `pico`, for 256 tokens."""
    return pico.bind(pico_factors())


@pytest.fixture(scope="session")
def factors_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """factors.json with the two sets of `dual`."""
    file = tmp_path_factory.mktemp("factors") / "factors.json"
    pico_factors().save(file)
    return file


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four documents, each a few times as long as the target."""
    folder = tmp_path_factory.mktemp("texts")
    for seed in range(4):
        (folder / f"{seed}.txt").write_text(pico_text(40, seed), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def cli() -> Callable[..., Outcome]:
    """The command line in this process."""
    return run_cli


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    """An empty Hub that huggingface_hub talks to instead of the real one."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    with LocalHub() as hub:
        close_session()
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub
        close_session()
