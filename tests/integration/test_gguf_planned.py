"""A planned GGUF export is a value: what it needs is worked out once, whatever is then asked of it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from converters.base import Export
from converters.gguf import GgufConverter, blueprint, converter, source
from converters.gguf.container import GgufFile
from longrope.checkpoint import open_checkpoint
from longrope.errors import UnsupportedError
from longrope.factors import BoundFactors
from longrope.progress import Silent
from tests.gguf_files import checkpoint, export, factors_for

# What costs time, by where it is called: the tokenizer read, the vocabulary split by llama.cpp, the tensors planned, the
# model card read, and the head of a GGUF source parsed.
COUNTED = (
    (blueprint, "vocabulary_of"),
    (converter, "difference"),
    (blueprint.TensorPlanner, "plan"),
    (gguf.Metadata, "load"),
    (source, "GgufFile"),
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    found: Counter[str] = Counter()

    def counting(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            found[name] += 1
            return work(*arguments, **named)

        return call

    for owner, name in COUNTED:
        monkeypatch.setattr(owner, name, counting(name, getattr(owner, name)))
    return found


def others(factors: BoundFactors) -> BoundFactors:
    """Other numbers for another length."""
    return dataclasses.replace(
        factors, long_factor=tuple(2 * number for number in factors.long_factor), target_length=512
    )


def test_each_part_is_built_once(tmp_path: Path, calls: Counter[str]) -> None:
    model = checkpoint(tmp_path / "m")
    placeholder = factors_for(model)
    planned = GgufConverter().plan(Export(model, placeholder, "q8_0"))
    final = planned.with_factors(others(placeholder))
    checks = final.save(tmp_path / final.file_name, Silent())
    checks += final.check(tmp_path / final.file_name)
    assert {check.status for check in checks} == {"pass"}
    assert calls == {"vocabulary_of": 1, "difference": 1, "plan": 1, "load": 1}


def test_a_copy_parses_its_source_once(tmp_path: Path, calls: Counter[str]) -> None:
    model = checkpoint(tmp_path / "m")
    path = export(model, factors_for(model), "f32", tmp_path / "a.gguf")
    calls.clear()
    copied = open_checkpoint(path)
    planned = GgufConverter().plan(Export(copied, others(factors_for(model))))
    final = planned.with_factors(factors_for(model))
    final.save(tmp_path / "b.gguf", Silent())
    assert calls == {"GgufFile": 1, "difference": 1}
    assert (tmp_path / "b.gguf").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("outtype", ["f32", "q4_0"])
def test_exchanged_factors_give_the_file_of_a_new_plan(tmp_path: Path, outtype: str) -> None:
    model = checkpoint(tmp_path / "m")
    factors = factors_for(model)
    exchanged, anew = tmp_path / "exchanged.gguf", tmp_path / "anew.gguf"
    GgufConverter().plan(Export(model, others(factors), outtype)).with_factors(factors).save(exchanged, Silent())
    GgufConverter().plan(Export(model, factors, outtype)).save(anew, Silent())
    assert exchanged.read_bytes() == anew.read_bytes()
    with GgufFile(exchanged) as file:
        assert file.floats("rope_factors_long.weight").ravel().tolist() == pytest.approx(factors.long_factor)


def test_factors_that_cannot_be_exchanged(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", "arcee")
    factors = factors_for(model, dual=False)
    planned = GgufConverter().plan(Export(model, factors))
    with pytest.raises(UnsupportedError, match="one factor set"):
        planned.with_factors(factors_for(model))
    with pytest.raises(UnsupportedError, match="n_hat = 4"):
        planned.with_factors(dataclasses.replace(factors, n_hat=4))
