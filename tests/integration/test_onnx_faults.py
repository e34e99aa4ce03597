"""A catalogue of broken exports: each is caught by the check that names it; the good export passes every check."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from converters.base import Check, Export
from converters.onnx import OnnxConverter
from longrope.checkpoint import Checkpoint
from longrope.errors import LongRopeError
from longrope.factors import RescaleFactors
from longrope.progress import Silent
from tests.common import REPOSITORY, pico_checkpoint, pico_factors
from tests.onnx_faults import FAULTS

# Far enough for float32 angles to be visibly wrong.
TARGET = 65_536


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, RescaleFactors, Path]:
    room = tmp_path_factory.mktemp("good")
    checkpoint = pico_checkpoint(room / "model")
    factors = checkpoint.bind(pico_factors(checkpoint.rotary_dim, target=TARGET, n_hat=4))
    OnnxConverter().convert(Export(checkpoint, factors), room / "onnx", Silent())
    return checkpoint, factors, room / "onnx"


def run_checks(good: tuple[Checkpoint, RescaleFactors, Path], path: Path) -> list[Check]:
    checkpoint, factors, _ = good
    return OnnxConverter().static_checks(path, factors, checkpoint)


def test_a_good_export_passes_every_check(good: tuple[Checkpoint, RescaleFactors, Path]) -> None:
    checks = run_checks(good, good[2])
    assert [check for check in checks if check.status != "pass"] == []
    assert len({check.id for check in checks}) == len(checks)


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_export_is_caught(good: tuple[Checkpoint, RescaleFactors, Path], tmp_path: Path, name: str) -> None:
    fault, id = FAULTS[name]
    broken = tmp_path / "room" / "onnx"
    shutil.copytree(good[2], broken)
    fault(broken)
    failed = {check.id: check for check in run_checks(good, broken) if check.status == "fail"}
    assert id in failed, f"{name}: failed only {sorted(failed)}"
    assert failed[id].message


def test_the_page_counts_the_catalogue() -> None:
    page = (REPOSITORY / "docs" / "onnx.md").read_text(encoding="utf-8")
    assert f"the catalogue: {len(FAULTS)} broken exports" in page


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_is_a_failed_check_or_a_clear_error(
    good: tuple[Checkpoint, RescaleFactors, Path], tmp_path: Path, seed: int
) -> None:
    shutil.copytree(good[2], tmp_path / "onnx")
    file = tmp_path / "onnx" / "model.onnx"
    data = bytearray(file.read_bytes())
    rng = np.random.default_rng(seed)
    for place in rng.integers(len(data), size=3):
        data[place] ^= 1 << int(rng.integers(8))
    file.write_bytes(bytes(data))
    assert run_checks(good, tmp_path / "onnx")
    for read in (OnnxConverter().read_factors, OnnxConverter().describe):
        with contextlib.suppress(LongRopeError):
            read(tmp_path / "onnx")
