"""A GGUF file as a source: what comes out of it is the model that went in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from converters.base import Export
from converters.gguf import GgufConverter
from converters.gguf.container import GgufFile, text
from converters.gguf.source import open_gguf
from converters.gguf.tokenizer import awkward_texts, difference
from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.errors import InputError, UnsupportedError
from longrope.factors import RescaleFactors
from longrope.family import RopeFamily
from longrope.modeling import TorchSource, build_model
from longrope.progress import Silent
from longrope.scoring import compare_windows
from tests import common
from tests.gguf_files import CASES, checkpoint, factors_for, rewrite


def exported(folder: Path, outtype: str, **changes: Any) -> tuple[Checkpoint, Path]:
    model = common.pico_checkpoint(folder / "m", **changes)
    path = folder / f"{outtype}.gguf"
    GgufConverter().convert(Export(model, model.bind(common.pico_factors()), outtype), path, Silent())
    return model, path


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}])
def test_weights_and_config_come_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    model, path = exported(tmp_path, "f32", **changes)
    back = open_checkpoint(path)
    assert (back.window, back.max_position_embeddings, back.rope_theta) == (64, 256, model.rope_theta)
    for name in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "vocab_size"):
        assert back.config[name] == model.config[name]
    assert back.config["tie_word_embeddings"] is changes.get("tie_word_embeddings", False)
    expected, actual = load_file(model.weight_files[0]), load_file(back.weight_files[0])
    assert set(actual) == set(expected)
    assert all(np.array_equal(actual[name], expected[name]) for name in expected)


def test_factors_come_back_into_the_config(tmp_path: Path) -> None:
    model, path = exported(tmp_path, "f16")
    back = open_checkpoint(path)
    assert back.factors is not None
    wanted = np.float32(common.pico_factors().long_factor).astype(float)
    assert back.factors.long_factor == tuple(wanted)
    assert back.factors.attention_factor is None
    source, reference = (
        TorchSource(build_model(m, f), f) for m, f in ((back, back.factors), (model, model.bind(common.pico_factors())))
    )
    ids = np.random.default_rng(0).integers(0, 384, 200)
    assert compare_windows(reference, {"a": source}, [ids], factor_set="long")["a"].kl_mean < 1e-4


def test_tokenizer_agrees_with_llama_cpp(tmp_path: Path) -> None:
    model, path = exported(tmp_path, "q8_0")
    back = open_checkpoint(path)
    with GgufFile(path) as file:
        assert difference(back.tokenizer, file.values) is None
    for line in awkward_texts(model.tokenizer):
        assert back.encode(line) == model.encode(line)


def test_quantized_tensors_become_float32(tmp_path: Path) -> None:
    model, path = exported(tmp_path, "q8_0")
    back = open_checkpoint(path)
    expected, actual = load_file(model.weight_files[0]), load_file(back.weight_files[0])
    for name, wanted in expected.items():
        assert actual[name].dtype == np.float32
        assert np.linalg.norm(actual[name] - wanted) <= 0.01 * np.linalg.norm(wanted)


def test_the_folder_vanishes_with_its_checkpoint(tmp_path: Path) -> None:
    _, path = exported(tmp_path, "f16")
    back = open_checkpoint(path)
    folder = back.path
    assert json.loads((folder / "generation_config.json").read_text()) == {"bos_token_id": 0, "eos_token_id": 0}
    del back
    assert not folder.exists()


def test_a_truncated_file_is_one_line(tmp_path: Path) -> None:
    _, path = exported(tmp_path, "f16")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InputError, match=r"truncated GGUF: expected \d+ bytes, got \d+$"):
        open_gguf(path)


@pytest.mark.parametrize(
    ("key", "value", "error", "reason"),
    [
        ("llama.rope.scaling.type", "yarn", UnsupportedError, "does not load rope_factors_long.weight beside"),
        ("general.architecture", "gemma2", UnsupportedError, "architecture 'gemma2'"),
        ("tokenizer.ggml.model", "bert", UnsupportedError, "'bert' vocabulary"),
        ("tokenizer.ggml.pre", "mystery", UnsupportedError, "pre-tokenizer 'mystery'"),
    ],
)
def test_what_has_no_counterpart(tmp_path: Path, key: str, value: str, error: type[Exception], reason: str) -> None:
    _, path = exported(tmp_path, "f16")
    odd = rewrite(path, tmp_path / "odd.gguf", lambda values, tensors: values.update({key: text(value)}))
    with pytest.raises(error, match=reason):
        open_gguf(odd)


# -- conversion that keeps the weights


def converted(path: Path, target: Path, outtype: str | None, **options: Any) -> Checkpoint:
    source = open_checkpoint(path)
    factors = source.bind(common.pico_factors(method="other"))
    GgufConverter().convert(Export(source, factors, outtype, options), target, Silent())
    return source


@pytest.mark.parametrize("outtype", [None, "q8_0"])
def test_weights_are_copied_and_never_unpacked(tmp_path: Path, outtype: str | None) -> None:
    _, path = exported(tmp_path, "q8_0")
    source = converted(path, tmp_path / "b.gguf", outtype)
    assert not (source.path / "model.safetensors").exists()
    with GgufFile(path) as before, GgufFile(tmp_path / "b.gguf") as after:
        assert all(np.array_equal(before.raw(name), after.raw(name)) for name in before.tensors)
        assert json.loads(after.get("longrope_export.factors"))["method"] == "other"
        assert after.get("tokenizer.ggml.tokens") == before.get("tokenizer.ggml.tokens")


def test_another_type_goes_through_floats(tmp_path: Path) -> None:
    _, path = exported(tmp_path, "q8_0")
    converted(path, tmp_path / "b.gguf", "f16")
    with GgufFile(tmp_path / "b.gguf") as after:
        assert after.get("general.name") == "M"
        assert {info.type for info in after.tensors.values()} == {0, 1}


def test_a_copy_can_be_split_and_a_split_file_joined(tmp_path: Path) -> None:
    _, path = exported(tmp_path, "q8_0")
    converted(path, tmp_path / "s.gguf", None, split_max_size="40K")
    parts = sorted(tmp_path.glob("s-*.gguf"))
    assert len(parts) > 1
    converted(parts[0], tmp_path / "j.gguf", None)
    with GgufFile(path) as before, GgufFile(tmp_path / "j.gguf") as after:
        assert all(np.array_equal(before.raw(name), after.raw(name)) for name in before.tensors)
        assert not any(key.startswith("split.") for key in after.values)


def test_a_changed_byte_is_found_in_a_copy(tmp_path: Path) -> None:
    _, path = exported(tmp_path, "q8_0")
    source = converted(path, tmp_path / "b.gguf", None)
    with GgufFile(tmp_path / "b.gguf") as file:
        at = file.parts[0].data_start + file.tensors["blk.1.ffn_up.weight"].offset + 100
    data = bytearray((tmp_path / "b.gguf").read_bytes())
    data[at] ^= 1
    (tmp_path / "b.gguf").write_bytes(bytes(data))
    checks = GgufConverter().static_checks(
        tmp_path / "b.gguf", source.bind(common.pico_factors(method="other")), source
    )
    assert [check.id for check in checks if check.status == "fail"] == ["gguf.patch.data"]


# -- other architectures

PHI3 = {
    "pad_token_id": 0,
    "original_max_position_embeddings": 256,
    "rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5},
}
GRANITE = {"attention_multiplier": 0.3, "embedding_multiplier": 1.5, "residual_multiplier": 0.8, "logits_scaling": 2.0}


@pytest.mark.parametrize(("model_type", "changes"), [("phi3", PHI3), ("granite", GRANITE)])
def test_other_architectures_come_back(tmp_path: Path, model_type: str, changes: dict[str, Any]) -> None:
    model = checkpoint(tmp_path / "m", model_type, **changes)
    factors = factors_for(model)
    GgufConverter().convert(Export(model, factors, "f32"), tmp_path / "a.gguf", Silent())
    back = open_checkpoint(tmp_path / "a.gguf")
    assert (back.model_type, back.rotary_dim) == (model.model_type, model.rotary_dim)
    source, reference = (
        TorchSource(build_model(back, back.factors), back.factors),
        TorchSource(build_model(model, factors), factors),
    )
    ids = np.random.default_rng(0).integers(0, 384, 300)
    for factor_set in ("short", "long"):
        score = compare_windows(reference, {"a": source}, [ids], factor_set=factor_set)["a"]  # type: ignore[arg-type]
        assert score.max_logit_diff < 1e-4


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_a_file_whose_architecture_loads_no_factors_is_a_source_too(tmp_path: Path, model_type: str) -> None:
    """As Qwen publishes them; its factors go into the architecture that carries the model."""
    model = checkpoint(tmp_path / "m", CASES[model_type][0], **CASES[model_type][1])
    linear = RopeFamily("linear", 1.0, model.rope_theta)
    ones = (1.0,) * (model.rotary_dim // 2)
    plain = model.bind(RescaleFactors(ones, ones, attention_factor=1.0, family=linear), target=model.window)
    GgufConverter().convert(Export(model, plain, "f32"), tmp_path / "a.gguf", Silent())
    back = open_checkpoint(tmp_path / "a.gguf")
    assert (back.model_type, back.base.is_plain, back.factors) == (model_type, True, None)
    factors = factors_for(model).as_single()
    GgufConverter().convert(Export(back, back.bind(factors.unbound()), None), tmp_path / "b.gguf", Silent())
    source = GgufConverter().open_source(tmp_path / "b.gguf", factors, max_length=300, threads=1)
    ids = np.random.default_rng(0).integers(0, 384, 300)
    reference = TorchSource(build_model(model, factors), factors)
    assert compare_windows(reference, {"a": source}, [ids], factor_set="long")["a"].kl_mean <= 1e-4
    source.close()


@pytest.mark.parametrize("parts", [None, "100K"])
@pytest.mark.parametrize("outtype", ["iq4_nl", "q4_0"])
def test_small_types_and_split_files_are_read_as_llama_cpp_reads_them(
    tmp_path: Path, outtype: str, parts: str | None
) -> None:
    model = checkpoint(tmp_path / "m")
    factors, options = factors_for(model), {"split_max_size": parts} if parts else {}
    converter = GgufConverter()
    converter.convert(Export(model, factors, outtype, options), tmp_path / "a.gguf", Silent())
    path = converter.files_of(tmp_path / "a.gguf")[0]
    back = open_checkpoint(path)
    assert back.factors is not None
    ids = np.random.default_rng(0).integers(0, 384, 300)
    source = converter.open_source(path, back.factors, max_length=300, threads=1)
    reference = TorchSource(build_model(back, back.factors), back.factors)
    # llama.cpp multiplies with activations rounded to 8 bits; another reading of the weights would be far off.
    assert compare_windows(reference, {"a": source}, [ids], factor_set="long")["a"].kl_mean <= 1e-3
    source.close()


@pytest.mark.parametrize("model_type", ["mixtral", "minicpm3", "apertus"])
def test_architectures_that_cannot_be_opened(tmp_path: Path, model_type: str) -> None:
    model_type, changes = CASES[model_type]
    model = checkpoint(tmp_path / "m", model_type, **changes)
    GgufConverter().convert(Export(model, factors_for(model), "f32"), tmp_path / "a.gguf", Silent())
    with pytest.raises(UnsupportedError, match="cannot be opened as a source"):
        open_gguf(tmp_path / "a.gguf")
