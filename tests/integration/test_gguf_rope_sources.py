"""GGUF files as other tools write them: what a file's RoPE means is what llama.cpp computes from it, or exit 4."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from converters.base import Export
from converters.gguf import GgufConverter
from converters.gguf.container import GgufFile, flag, u32
from converters.gguf.patch import patch_gguf
from longrope.checkpoint import open_checkpoint
from longrope.errors import UnsupportedError
from longrope.progress import Silent
from tests.gguf_files import CASES, WINDOW, Tensors, Values, checkpoint, rewrite, stock
from tests.gguf_sources import FACTORS, FREQS, ONES, REFUSED, SETS, VARIANTS, Logits, written


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    return stock(checkpoint(folder / "m"), folder / "a.gguf", "f32")


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
