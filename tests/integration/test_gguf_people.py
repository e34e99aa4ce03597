"""What people ran into with GGUF: heads and biases of their own, names that llama.cpp takes apart, files without a suffix."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters.base import Export
from converters.gguf import GgufConverter
from converters.gguf.container import GgufFile
from longrope.checkpoint import Checkpoint, open_checkpoint
from tests import common
from tests.gguf_files import CASES, WINDOW, checkpoint, export, factors_for, rewrite, scores

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def with_weights(model: Checkpoint, **changes: np.ndarray[Any, Any]) -> Checkpoint:
    file = model.path / "model.safetensors"
    save_file({**load_file(file), **changes}, file, metadata={"format": "pt"})
    return open_checkpoint(model.path)


# -- the output matrix of tied models


def test_a_trained_head_of_a_tied_model_is_kept_as_transformers_keeps_it(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", tie_word_embeddings=True)
    head = np.random.default_rng(1).normal(0, 0.15, (384, 64)).astype(np.float32)
    model = with_weights(model, **{HEAD: head})
    factors = factors_for(model)
    path = export(model, factors, "f32", tmp_path / "a.gguf")
    assert all(score.max_logit_diff <= 1e-3 for score in scores(model, factors, path).values())
    with GgufFile(path) as file:
        assert np.array_equal(file.floats("output.weight"), head)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_copy_of_the_embedding_is_left_out(tmp_path: Path, dtype: type) -> None:
    model = checkpoint(tmp_path / "m", tie_word_embeddings=True)
    embedding = load_file(model.path / "model.safetensors")[EMBEDDING].astype(np.float16).astype(np.float32)
    model = with_weights(model, **{EMBEDDING: embedding, HEAD: embedding.astype(dtype)})
    with GgufFile(export(model, factors_for(model), "f32", tmp_path / "a.gguf")) as file:
        assert "output.weight" not in file.tensors


# -- names that llama.cpp takes apart: where one says Phi-3, added tokens swallow the white space behind them


def phi3(path: Path, name: str, *, strips: bool) -> Checkpoint:
    """A model whose vocabulary has Phi-3's tokens; its added ones swallow white space, but for three, or none does."""
    model_type, changes = CASES["phi3"]
    folder = common.pico_folder(path / name, model_type, max_position_embeddings=WINDOW, **changes)
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text())
    vocabulary, merges = data["model"]["vocab"], data["model"]["merges"]
    places = sorted(vocabulary.pop("".join(merges.pop())) for _ in range(4))
    for id, content in zip(places, ("<s>", "<unk>", "</s>", "<|user|>"), strict=True):
        data["added_tokens"].append({**data["added_tokens"][0], "id": id, "content": content})
    for token in data["added_tokens"]:
        token["rstrip"] = strips and token["content"] not in ("<s>", "<unk>", "<|endoftext|>")
    file.write_text(json.dumps(data))
    return open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "strips", "expected"),
    [
        ("Phi-3-mini-128k-instruct", True, r"Phi-3"),
        ("tiny-poet", True, r"\(Phi-3\)$"),
        ("Phi-3-mini-128k-instruct", False, r"Phi 3"),
        ("phi3-finetune", False, r"Phi 3|phi 3"),
    ],
)
def test_llama_cpp_splits_text_alike_whatever_a_phi3_is_called(
    tmp_path: Path, name: str, strips: bool, expected: str
) -> None:
    model = phi3(tmp_path, name, strips=strips)
    path = export(model, factors_for(model), "f32", tmp_path / "a.gguf")
    with GgufFile(path) as file:
        assert re.search(expected, file.get("general.name"))
    again = open_checkpoint(path)
    for line in ("a<|user|>  b", "a</s> b", "a<s>  b"):
        assert again.encode(line) == model.encode(line)


# -- files


def test_a_file_without_a_suffix_is_opened_by_its_first_bytes(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m")
    path = export(model, factors_for(model), "f16", tmp_path / "a.gguf").rename(tmp_path / "sha256-0123abc")
    done = common.run_cli("convert", path, "--to", "gguf", "-o", tmp_path / "b.gguf")
    assert done.code == 0
    (tmp_path / "plain").write_bytes(b"something else")
    done = common.run_cli("convert", tmp_path / "plain", "--to", "gguf", "-o", tmp_path / "c.gguf")
    assert (done.code, "expected a Hugging Face folder or a .gguf file" in done.err) == (2, True)


def test_a_file_that_does_not_name_its_splitting_is_converted_with_a_warning(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m")
    path = export(model, factors_for(model), "f16", tmp_path / "a.gguf")
    silent = rewrite(path, tmp_path / "s.gguf", lambda values, tensors: values.pop("tokenizer.ggml.pre") and None)
    done = common.run_cli("convert", silent, "--to", "gguf", "-o", tmp_path / "b.gguf")
    assert (done.code, "does not say how text is split before merging (tokenizer.ggml.pre)" in done.err) == (0, True)
    assert "tokenizer.ggml.pre" not in common.run_cli("convert", path, "--to", "gguf", "-o", tmp_path / "c.gguf").err


def test_a_split_export_names_the_files_that_exist(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m")
    factors = tmp_path / "factors.json"
    factors_for(model).save(factors)
    command = ["convert", model.path, "--to", "gguf", "--factors", factors, "--option", "split_max_size=200K"]
    done = common.run_cli(*command, "-o", tmp_path / "m.gguf")
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert len(parts) > 1
    assert f"{', '.join(map(str, parts))}: written" in done.err
    assert f"{tmp_path / 'm.gguf'}:" not in done.err


def test_a_model_in_the_hubs_cache_is_named_by_its_repository(tmp_path: Path) -> None:
    folder = tmp_path / "models--some-org--Tiny-Poet" / "snapshots" / ("0123456789abcdef" * 3)[:40]
    folder.parent.mkdir(parents=True)
    model = checkpoint(folder)
    plan = GgufConverter().plan(Export(model, factors_for(model), "f16"))
    assert plan.file_name.startswith("Tiny-Poet-")
    assert plan.values()["general.organization"].data.lower().replace(" ", "-") == "some-org"
    assert plan.values()["general.base_model.0.repo_url"].data == "https://huggingface.co/some-org/Tiny-Poet"


@pytest.mark.parametrize("kind", ["mmproj", "imatrix"])
def test_files_that_hold_no_language_model_are_named(tmp_path: Path, kind: str) -> None:
    """What lies beside models in the repositories of the Hub."""
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "clip")
    writer.add_type(kind)
    writer.add_tensor("v.patch_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    done = common.run_cli("inspect", tmp_path / "a.gguf")
    assert (done.code, "expected a language model" in done.err, kind in done.err) == (2, True, True)
