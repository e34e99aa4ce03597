"""The reference's passes between calls of `validate`: what is kept, when it is taken, and when it is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from converters.measurements import Validation
from converters.validation import validate
from longrope import pass_cache
from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.factors import BoundFactors
from longrope.files import sha256_of
from longrope.owners import Owner
from longrope.pass_cache import PassCache
from longrope.text import Corpus, load_corpus
from tests.common import TARGET, WINDOW, pico_checkpoint, run_cli

# Two lengths of one window, and the crossing: a pass of the long set, and one of the short that the first window was.
PASSES = 4
FIRST, AGAIN = {"kept": 1, "run": PASSES - 1}, {"kept": PASSES, "run": 0}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A folder that `validate` is called on again and again."""

    model: Checkpoint
    artifact: Path
    corpus: Corpus
    factors: BoundFactors

    def validate(self, **changes: Any) -> Validation:
        options: dict[str, Any] = {
            "factors": self.factors,
            "windows": (WINDOW, TARGET),
            "windows_per_length": 1,
            "threads": 1,
            **changes,
        }
        return validate(
            self.artifact, options.pop("reference", self.model), options.pop("corpus", self.corpus), **options
        )

    def passes(self, **changes: Any) -> dict[str, int]:
        found: dict[str, int] = self.validate(**changes).provenance["reference_passes"]
        return found


@pytest.fixture
def setting(
    dual: BoundFactors, factors_file: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Setting:
    monkeypatch.setenv(pass_cache.VARIABLE, str(tmp_path / "cache"))
    model = pico_checkpoint(tmp_path / "model")
    where = ("--to", "hf", "--factors", factors_file, "--factor-sets", "dual", "-o", tmp_path / "hf")
    assert run_cli("convert", model.path, *where).code == 0
    return Setting(model, tmp_path / "hf", load_corpus([texts], model.encode), dual)


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("cache/*"))


def test_a_second_call_runs_no_pass_of_the_reference_and_finds_the_same(setting: Setting, tmp_path: Path) -> None:
    first = setting.validate()
    assert first.passed
    assert first.provenance["reference_passes"] == FIRST
    assert len(kept(tmp_path)) == PASSES - 1
    second = setting.validate()
    assert second.provenance["reference_passes"] == AGAIN
    for name in ("windows", "checks"):
        assert getattr(second, name) == getattr(first, name)
    assert len(kept(tmp_path)) == PASSES - 1


def other_texts(setting: Setting, room: Path) -> dict[str, Any]:
    return {"corpus": Corpus(setting.corpus.documents[1:])}


def other_factors(setting: Setting, room: Path) -> dict[str, Any]:
    return {"factors": dataclasses.replace(setting.factors, attention_factor=1.3)}


def other_precision(setting: Setting, room: Path) -> dict[str, Any]:
    return {"reference_dtype": "bfloat16"}


def other_threads(setting: Setting, room: Path) -> dict[str, Any]:
    return {"threads": 2}


def one_weight(setting: Setting, room: Path) -> dict[str, Any]:
    """The last byte of the weights, which no sample of the model's fingerprint holds."""
    (file,) = setting.model.weight_files
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    return {"reference": open_checkpoint(setting.model.path)}


def broken_files(setting: Setting, room: Path) -> dict[str, Any]:
    for path in kept(room):
        path.write_bytes(path.read_bytes()[:-1])
    return {}


def of_other_shape(setting: Setting, room: Path) -> dict[str, Any]:
    from safetensors.torch import save_file

    for path in kept(room):
        save_file({"hidden_states": torch.zeros(3, 64)}, path)
    return {}


def other_bits(setting: Setting, room: Path) -> dict[str, Any]:
    for path in kept(room):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    return {}


def of_other_width(setting: Setting, room: Path) -> dict[str, Any]:
    from safetensors.torch import load_file, save_file

    for path in kept(room):
        save_file({name: states[:, :-1].contiguous() for name, states in load_file(path).items()}, path)
    return {}


@pytest.mark.parametrize(
    "change",
    [
        *(other_texts, other_factors, other_precision, other_threads, one_weight),
        *(broken_files, of_other_shape, of_other_width, other_bits),
    ],
    ids=lambda change: change.__name__,
)
def test_nothing_is_taken_that_another_pass_left(
    change: Callable[[Setting, Path], dict[str, Any]], setting: Setting, tmp_path: Path
) -> None:
    setting.validate()
    assert setting.passes(**change(setting, tmp_path)) == FIRST


def test_a_pass_under_another_setting_of_torch_is_another(setting: Setting) -> None:
    setting.validate()
    torch.set_float32_matmul_precision("high")
    try:
        assert setting.passes() == FIRST
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_pass_of_another_processor_or_engine_is_another(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    setting.validate()
    with monkeypatch.context() as patched:
        patched.setattr(pass_cache, "processor", lambda: "another")
        assert setting.passes() == FIRST
    monkeypatch.setattr(pass_cache, "sha256_of", lambda path: path.name if path.suffix == ".py" else sha256_of(path))
    assert setting.passes() == FIRST


@pytest.mark.parametrize("name", ["cache", "c" * 300], ids=["a file", "too long"])
def test_a_cache_that_cannot_be_written_is_none(
    name: str, setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(pass_cache.VARIABLE, str(tmp_path / name))
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert [setting.passes() for _ in range(2)] == [{"kept": 0, "run": PASSES}] * 2


def test_the_cache_can_be_left_out(setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "reference_passes" not in setting.validate(cache=False).provenance
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv(pass_cache.VARIABLE, "")
    assert "reference_passes" not in setting.validate().provenance


def test_the_variable_may_name_a_folder_as_a_shell_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipelines set variables without a shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv(pass_cache.VARIABLE, "~/passes")
    assert pass_cache.cache_folder() == tmp_path / "passes"


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states, cache = torch.zeros(8, 32), PassCache(tmp_path, {})
    windows = [np.arange(8) + start for start in range(4)]
    monkeypatch.setattr(pass_cache, "LIMIT", 4096)
    for at, ids in enumerate(windows[:3]):
        cache.put(ids, "long", states + at)
    assert cache.get(windows[0], "long") is not None  # used since the second was
    cache.put(windows[3], "long", states)
    there = [cache.get(ids, "long") is not None for ids in windows]
    assert there == [True, False, True, True]
    cache.put(windows[1], "long", torch.zeros(8, 300))
    assert cache.get(windows[1], "long") is None, "larger than the limit, so that it would only push out the rest"
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4096


def test_files_of_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model, for example, in the folder that the variable names; what dead processes left of passes goes."""
    monkeypatch.setattr(pass_cache, "LIMIT", 4096)
    others = [tmp_path / name for name in ("model.safetensors", ".download.partial", f"{'e' * 64}.safetensors/model")]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(8000))
    dead = dataclasses.replace(Owner.current(), pid=2**22, started=1).text
    (tmp_path / f".{'f' * 64}.safetensors.{dead}-0.partial").write_bytes(bytes(8000))
    cache, ids = PassCache(tmp_path, {}), np.arange(8)
    cache.put(ids, "long", torch.zeros(8, 32))
    assert cache.get(ids, "long") is not None
    assert sorted(path for path in tmp_path.rglob("*.*") if path.stat().st_size == 8000) == sorted(others[:2])
    assert others[2].exists()


def test_a_pass_lies_in_memory_and_not_in_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, ids, states = PassCache(tmp_path, {}), np.arange(8), torch.ones(8, 4)
    cache.put(ids, "long", states)
    taken = cache.get(ids, "long")
    (file,) = tmp_path.iterdir()
    file.write_bytes(bytes(file.stat().st_size))
    assert taken is not None
    assert torch.equal(taken, states)
    cache.put(ids, "long", states)
    monkeypatch.setattr(pass_cache, "LIMIT", 64)
    assert cache.get(ids, "long") is None, "no file of ours is as large"


def test_sets_and_tokens_have_files_of_their_own(tmp_path: Path) -> None:
    cache, ids = PassCache(tmp_path, {"weights": 1}), np.arange(8)
    cache.put(ids, "long", torch.ones(8, 4))
    assert cache.get(ids, "short") is None
    assert cache.get(ids[::-1].copy(), "long") is None
    assert PassCache(tmp_path, {"weights": 2}).get(ids, "long") is None
    again = PassCache(tmp_path, {"weights": 1}).get(ids, "long")
    assert again is not None
    assert torch.equal(again, torch.ones(8, 4))


def test_a_rate_is_measured_on_passes_that_are_run(setting: Setting, tmp_path: Path) -> None:
    """What fits in a time would else be reckoned by passes that cost nothing, and windows that are not kept do not fit."""
    first = setting.validate(budget=600.0)
    assert first.provenance["reference_passes"] == FIRST
    assert len(kept(tmp_path)) == PASSES - 1
    assert setting.passes(budget=600.0) == AGAIN
