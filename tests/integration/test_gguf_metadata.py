"""What a file says of itself: from the model card into `general.*`, as llama.cpp and `gguf` read it, and its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from converters.gguf.target import FACTORS_KEY
from longrope.checkpoint import open_checkpoint
from longrope.factors import RescaleFactors
from tests.common import run_cli
from tests.integration.test_gguf_export import checkpoint, export, factors_for

CARD = """---
model_name: Tiny Poet
author: Ann Author
license: apache-2.0
base_model: some-org/Poet-1B-v2
tags: [poetry]
language: [en]
---
# Tiny Poet
"""


@pytest.fixture
def model(tmp_path: Path) -> Any:
    made = checkpoint(tmp_path / "tiny-poet")
    (made.path / "README.md").write_text(CARD)
    return open_checkpoint(made.path)


def test_the_model_card_is_in_the_file(tmp_path: Path, model: Any) -> None:
    factors = factors_for(model)
    reader = gguf.GGUFReader(export(model, factors, "q8_0", tmp_path / "a.gguf"))
    said = {name: reader.fields[name].contents() for name in reader.fields if name.startswith("general.")}
    assert said["general.name"] == "Tiny Poet"
    assert said["general.author"] == "Ann Author"
    assert said["general.license"] == "apache-2.0"
    assert said["general.languages"] == ["en"]
    assert set(said["general.tags"]) >= {"poetry", "longrope", "long-context"}
    assert said["general.base_model.0.name"] == "Tiny Poet"  # what is exported is this checkpoint's extension
    assert said["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
    assert said["general.quantization_version"] == gguf.GGML_QUANT_VERSION
    record = json.loads(reader.fields[FACTORS_KEY].contents())
    assert RescaleFactors.from_json(record, "the file").to_json() == factors.to_json()


def test_llama_cpp_reads_it(tmp_path: Path, model: Any) -> None:
    from llama_cpp import Llama

    read = Llama(str(export(model, factors_for(model), "f16", tmp_path / "a.gguf")), vocab_only=True, verbose=False)
    assert read.metadata["general.name"] == "Tiny Poet"
    assert read.metadata["llama.rope.scaling.type"] == "longrope"
    assert json.loads(read.metadata[FACTORS_KEY])["long_factor"]
    read.close()


def test_in_a_folder_a_file_is_named_by_convention(tmp_path: Path, model: Any) -> None:
    factors, folder = tmp_path / "factors.json", tmp_path / "out"
    factors_for(model).save(factors)
    folder.mkdir()
    command = ["convert", model.path, "--to", "gguf", "--factors", factors, "--outtype", "q8_0", "-o", folder]
    done = run_cli(*command)
    (written,) = folder.iterdir()
    assert (done.code, written.name.endswith("-Q8_0.gguf"), written.name.startswith("Tiny-Poet-")) == (0, True, True)
    assert str(written) in done.err
    again = run_cli(*command)
    assert (again.code, "exists" in again.err) == (2, True)
    copied = tmp_path / "copied"
    copied.mkdir()
    assert run_cli("convert", written, "--to", "gguf", "-o", copied).code == 0
    assert [file.name for file in copied.iterdir()] == [written.name]
