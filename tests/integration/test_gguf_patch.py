"""`patch_gguf`: factors into existing files, by bytes; weights untouched, contradictions refused, nothing left behind."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.gguf import GgufConverter
from converters.gguf.container import GgufFile, f32, text
from converters.gguf.patch import patch_gguf
from converters.gguf.writing import copy_range
from longrope.errors import InputError, UnsupportedError
from tests.gguf_files import checkpoint, factors_for, rewrite, scores, stock


@pytest.mark.parametrize("outtype", ["q8_0", "f32", "q4_0"])
def test_equals_a_conversion_with_the_same_factors(tmp_path: Path, outtype: str) -> None:
    model = checkpoint(tmp_path / "m")
    factors = factors_for(model)
    plain = stock(model, tmp_path / "a.gguf", outtype)
    checks = patch_gguf(plain, factors.unbound(), tmp_path / "p.gguf")
    assert {check.status for check in checks} == {"pass"}
    converter = GgufConverter()
    assert converter.read_factors(tmp_path / "p.gguf") == converter.read_factors(tmp_path / "a.gguf")
    with GgufFile(tmp_path / "p.gguf") as patched, GgufFile(tmp_path / "a.gguf") as converted:
        assert set(patched.tensors) == set(converted.tensors)
        assert all(np.array_equal(patched.raw(name), converted.raw(name)) for name in patched.tensors)
    fails = [c for c in converter.static_checks(tmp_path / "p.gguf", factors, model) if c.status == "fail"]
    assert fails == []
    assert scores(model, factors, tmp_path / "p.gguf") == scores(model, factors, tmp_path / "a.gguf")


def test_patching_again_puts_new_numbers_in_their_place(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m")
    plain = stock(model, tmp_path / "a.gguf")
    patch_gguf(plain, factors_for(model), tmp_path / "one.gguf")
    other = factors_for(model, dual=False)
    patch_gguf(tmp_path / "one.gguf", other, tmp_path / "two.gguf")
    found = GgufConverter().read_factors(tmp_path / "two.gguf")
    assert found is not None
    assert found.factor_sets == "single"
    assert found.long_factor == tuple(np.float32(other.long_factor).astype(float))
    patch_gguf(plain, other, tmp_path / "direct.gguf")
    assert (tmp_path / "two.gguf").stat().st_size == (tmp_path / "direct.gguf").stat().st_size


def test_in_place(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m")
    plain = stock(model, tmp_path / "a.gguf")
    patch_gguf(plain, factors_for(model), tmp_path / "p.gguf")
    patch_gguf(plain, factors_for(model), in_place=True)
    assert plain.read_bytes() == (tmp_path / "p.gguf").read_bytes()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_in_place_keeps_who_may_read_a_file(tmp_path: Path, mode: int) -> None:
    model = checkpoint(tmp_path / "m")
    plain = stock(model, tmp_path / "a.gguf")
    plain.chmod(mode)
    patch_gguf(plain, factors_for(model), in_place=True)
    assert plain.stat().st_mode & 0o777 == mode


def test_a_crash_in_place_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = checkpoint(tmp_path / "m")
    plain = stock(model, tmp_path / "a.gguf")
    before, listing = plain.read_bytes(), sorted(tmp_path.iterdir())

    def crash(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        patch_gguf(plain, factors_for(model), in_place=True)
    assert plain.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == listing


@pytest.mark.parametrize("in_place", [False, True])
def test_split_files(tmp_path: Path, in_place: bool) -> None:
    model = checkpoint(tmp_path / "m")
    other = factors_for(model, dual=False)
    stock(model, tmp_path / "s.gguf", "q8_0", split_max_size="30K")
    first = min(tmp_path.glob("s-*.gguf"))
    count = len(list(tmp_path.glob("s-*.gguf")))
    patch_gguf(first, other, None if in_place else tmp_path / "p.gguf", in_place=in_place)
    patched = first if in_place else min(tmp_path.glob("p-*.gguf"))
    assert len(list(tmp_path.glob("p-*.gguf"))) == (0 if in_place else count)
    assert [c for c in GgufConverter().static_checks(patched, other, model) if c.status == "fail"] == []
    assert scores(model, other, patched)["long"].kl_mean < 1e-2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"original_max_position_embeddings": 512}, "original_max_position_embeddings = 512"),
        ({"rope_theta": 500.0}, "rope_theta = 500.0"),
        ({"model_type": "granite"}, "factors are for granite"),
        ({"short_factor": (1.0,) * 4, "long_factor": (1.0,) * 4, "rotary_dim": 8}, "expected 8 factors"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    model = checkpoint(tmp_path / "m")
    plain = stock(model, tmp_path / "a.gguf")
    with pytest.raises(InputError, match=reason):
        patch_gguf(plain, dataclasses.replace(factors_for(model), **changes), tmp_path / "p.gguf")
    assert not (tmp_path / "p.gguf").exists()


@pytest.mark.parametrize(
    ("key", "value", "error", "reason"),
    [
        (
            "llama.rope.scaling.type",
            text("ntk"),
            UnsupportedError,
            "rope.scaling.type 'ntk': expected one of none, linear",
        ),
        ("general.architecture", text("qwen2"), UnsupportedError, "qwen2 uses no rope factors"),
        ("llama.rope.freq_base", f32(5000.0), InputError, "rope_theta"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, key: str, value: Any, error: type[Exception], reason: str) -> None:
    model = checkpoint(tmp_path / "m")
    odd = rewrite(stock(model, tmp_path / "a.gguf"), tmp_path / "odd.gguf", lambda v, t: v.update({key: value}))
    with pytest.raises(error, match=reason):
        patch_gguf(odd, factors_for(model), tmp_path / "p.gguf")


def test_wrong_usage(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m")
    plain = stock(model, tmp_path / "a.gguf")
    with pytest.raises(InputError, match="either an output or in_place"):
        patch_gguf(plain, factors_for(model))
    with pytest.raises(InputError, match="exists"):
        patch_gguf(plain, factors_for(model), tmp_path / "a.gguf")
    with pytest.raises(UnsupportedError, match="n_hat"):
        patch_gguf(plain, dataclasses.replace(factors_for(model), n_hat=4), tmp_path / "p.gguf")
    plain.write_bytes(plain.read_bytes()[:-4000])
    with pytest.raises(InputError, match="truncated"):
        patch_gguf(plain, factors_for(model), tmp_path / "p.gguf")


def test_copying_a_range(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(data)
    with (tmp_path / "a").open("rb") as source, (tmp_path / "b").open("wb") as target:
        copy_range(source.fileno(), 10, target.fileno(), 5, 2_900_000)
        with pytest.raises(InputError, match="became shorter"):
            copy_range(source.fileno(), 10, target.fileno(), 5, 3_000_000)
    assert (tmp_path / "b").read_bytes()[:2_900_005] == bytes(5) + data[10:2_900_010]
