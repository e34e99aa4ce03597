"""GGUF files as other tools write them: what a file's RoPE means is what llama.cpp computes from it, or exit 4."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.base import Export
from converters.gguf import GgufConverter
from converters.gguf.container import GgufFile, TensorInfo, Value, f32, flag, text, u32
from converters.gguf.patch import patch_gguf
from converters.gguf.runtime import LlamaCppSource
from longrope.checkpoint import Checkpoint, open_checkpoint, unscaled_factors
from longrope.errors import UnsupportedError
from longrope.factors import RescaleFactors
from longrope.modeling import TorchSource, build_model
from longrope.progress import Silent
from longrope.scoring import compare_windows
from tests.gguf_files import CASES, F32, TARGET, WINDOW, Tensors, Values, checkpoint, holding, rewrite, stock

FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
FACTORS = np.array([1, 2, 3, 3.2, 3.4, 3.6, 3.8, 4], np.float32)
ONES = RescaleFactors((1.0,) * 8, (1.0,) * 8, attention_factor=1.0, target_length=TARGET)
Keys = dict[str, Value]

# What a file says of its RoPE: keys under `llama.rope.`, tensors that hold FACTORS.
LONGROPE: Keys = {"scaling.type": text("longrope"), "scaling.original_context_length": u32(64)}
SETS = (LONG, SHORT)
VARIANTS: dict[str, tuple[Keys, tuple[str, ...]]] = {
    "plain": ({}, ()),
    "Llama 3.1": ({}, (FREQS,)),
    "the old key": ({"scale_linear": f32(4.0)}, ()),
    "a factor without a type": ({"scaling.factor": f32(4.0)}, ()),
    "a factor of 0": ({"scaling.factor": f32(0.0)}, ()),
    "linear": ({"scaling.type": text("linear"), "scaling.factor": f32(4.0)}, ()),
    "linear on Llama 3.1": ({"scaling.factor": f32(2.0)}, (FREQS,)),
    "yarn": (
        {
            "scaling.type": text("yarn"),
            "scaling.factor": f32(4.0),
            "scaling.original_context_length": u32(64),
            "scaling.yarn_beta_fast": f32(16.0),
        },
        (),
    ),
    "none": ({"scaling.type": text("none"), "scaling.factor": f32(4.0)}, ()),
    "an attention factor without a type": ({"scaling.attn_factor": f32(1.5)}, ()),
    "longrope": ({**LONGROPE, "scaling.attn_factor": f32(1.15)}, SETS),
    "longrope without an attention factor": (LONGROPE, SETS),
    "longrope with a factor on top": ({**LONGROPE, "scaling.factor": f32(4.0)}, SETS),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    return stock(checkpoint(folder / "m"), folder / "a.gguf", "f32")


def written(plain: Path, path: Path, keys: Keys, tensors: tuple[str, ...]) -> Path:
    """The file with these keys and tensors; the tensors come first, as llama.cpp's converter writes them."""

    def change(values: Values, contents: Tensors) -> None:
        values |= {f"llama.rope.{name}": value for name, value in keys.items()}
        own = dict(contents)
        contents.clear()
        contents |= {name: holding(TensorInfo(name, FACTORS.shape, F32), FACTORS) for name in tensors}
        contents |= own

    return rewrite(plain, path, change)


@dataclass
class Logits:
    """The largest difference of a logit to llama.cpp's of a source file, over a window longer than the original one."""

    path: Path

    def __post_init__(self) -> None:
        self.ids = np.random.default_rng(0).integers(0, 384, WINDOW)

    def of_file(self, other: Path) -> float:
        return self._difference(LlamaCppSource(other, None, max_length=WINDOW, threads=1))

    def of_model(self, model: Checkpoint) -> float:
        factors = unscaled_factors(model, TARGET)
        return self._difference(TorchSource(build_model(model, factors), factors))

    def _difference(self, source: Any) -> float:
        reference = LlamaCppSource(self.path, None, max_length=WINDOW, threads=1)
        score = compare_windows(reference, {"a": source}, [self.ids], factor_set="long")["a"]
        reference.close()
        return score.max_logit_diff


@pytest.mark.parametrize("name", VARIANTS)
def test_a_source_means_what_llama_cpp_computes(plain: Path, tmp_path: Path, name: str) -> None:
    path = written(plain, tmp_path / "source.gguf", *VARIANTS[name])
    difference = Logits(path)
    assert difference.of_model(open_checkpoint(path)) <= 1e-3
    patch_gguf(path, ONES, tmp_path / "patched.gguf")
    assert difference.of_file(tmp_path / "patched.gguf") <= 1e-3


@pytest.mark.parametrize("name", ["Llama 3.1", "yarn", "linear"])
def test_weights_are_kept_on_a_base_too(plain: Path, tmp_path: Path, name: str) -> None:
    path = written(plain, tmp_path / "source.gguf", *VARIANTS[name])
    source = open_checkpoint(path)
    GgufConverter().convert(Export(source, source.bind(ONES)), tmp_path / "copy.gguf", Silent())
    assert Logits(path).of_file(tmp_path / "copy.gguf") <= 1e-3
    with GgufFile(path) as before, GgufFile(tmp_path / "copy.gguf") as after:
        assert set(after.tensors) == set(before.tensors) - {FREQS} | set(SETS)
        assert after.model_key("rope.scaling.factor") is None


@pytest.mark.parametrize("tensors", [(FREQS,), ()])
def test_a_split_file_with_a_base_is_patched(plain: Path, tmp_path: Path, tensors: tuple[str, ...]) -> None:
    path = written(plain, tmp_path / "source.gguf", *VARIANTS["Llama 3.1"])
    source = open_checkpoint(path)
    assert source.base.long_factor == tuple(FACTORS.tolist())
    options = {"split_max_size": "100K"}
    GgufConverter().convert(Export(source, source.bind(ONES), options=options), tmp_path / "s.gguf", Silent())
    assert len(list(tmp_path.glob("s-*.gguf"))) > 1
    assert Logits(path).of_file(tmp_path / "s.gguf") <= 1e-3


def test_a_base_of_a_publisher_is_named(plain: Path, tmp_path: Path) -> None:
    path = written(plain, tmp_path / "source.gguf", *VARIANTS["a factor without a type"])
    base = GgufConverter().base_rope(path)
    assert base is not None
    assert (base.rope_type, base.long_factor, base.window) == ("linear", (4.0,) * 8, WINDOW)


# -- what is refused


def opened(path: Path) -> object:
    return open_checkpoint(path)


def patched(path: Path) -> object:
    return patch_gguf(path, ONES, path.with_name("patched.gguf"))


REFUSED: dict[str, tuple[Keys, tuple[str, ...], str]] = {
    "another type": ({"scaling.type": text("ntk")}, (), "expected one of none, linear, yarn, longrope"),
    "YaRN's own overrides": (
        {"scaling.type": text("yarn"), "scaling.factor": f32(4.0), "scaling.yarn_ext_factor": f32(0.5)},
        (),
        "yarn_ext_factor changes YaRN",
    ),
    "yarn beside a tensor": ({"scaling.type": text("yarn"), "scaling.factor": f32(4.0)}, (FREQS,), "by yarn and by a"),
    "both kinds of tensors": (LONGROPE, (*SETS, FREQS), "expected one of them"),
    "sets without their type": ({}, SETS, "llama.cpp does not load rope_factors_long.weight beside"),
}


@pytest.mark.parametrize("use", [opened, patched])
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_counterpart_is_refused(
    plain: Path, tmp_path: Path, name: str, use: Callable[[Path], object]
) -> None:
    keys, tensors, reason = REFUSED[name]
    path = written(plain, tmp_path / "source.gguf", keys, tensors)
    with pytest.raises(UnsupportedError, match=reason):
        use(path)


@pytest.fixture(params=["granite", "phi3"])
def switched(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """Files whose switches change the network, and the reason why they are refused."""
    model_type, changes = CASES[request.param]
    model = checkpoint(tmp_path / "m", model_type, **changes)
    path = stock(model, tmp_path / "a.gguf", "f32")
    key, value, reason = {
        "granite": ("rope.scaling.finetuned", flag(False), "switched off"),
        "phi3": ("attention.sliding_window", u32(WINDOW // 2), "llama.cpp ignores it"),
    }[request.param]

    def change(values: Values, tensors: Tensors) -> None:
        values[f"{model_type}.{key}"] = value

    return rewrite(path, tmp_path / "switched.gguf", change), reason


def test_switches_that_change_the_network_are_refused(switched: tuple[Path, str]) -> None:
    path, reason = switched
    with pytest.raises(UnsupportedError, match=reason):
        open_checkpoint(path)


def test_a_switched_off_rotary_embedding_is_not_patched(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", *[CASES["granite"][0]], **CASES["granite"][1])
    path = stock(model, tmp_path / "a.gguf", "f32")

    def change(values: Values, tensors: Tensors) -> None:
        values["granite.rope.scaling.finetuned"] = flag(False)

    with pytest.raises(UnsupportedError, match="switched off"):
        patch_gguf(rewrite(path, tmp_path / "s.gguf", change), ONES, tmp_path / "p.gguf")
