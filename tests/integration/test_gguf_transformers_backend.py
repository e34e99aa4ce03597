"""GGUF in transformers' exporter registry: export, save, load, run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.exporters import AutoExportConfig, AutoHfExporter, ExportedModel

from converters.transformers_exporter import GgufConfig, register
from longrope.errors import InputError, UnsupportedError
from longrope.modeling import build_model
from tests.gguf_files import checkpoint, factors_for


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.exporters import auto

    monkeypatch.setattr(auto, "EXPORT_BACKENDS", dict(auto.EXPORT_BACKENDS))
    register()


def inputs(length: int) -> dict[str, Any]:
    ids = torch.randint(0, 384, (1, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_export_save_load_and_run(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m")
    built = build_model(model, factors_for(model))
    config = AutoExportConfig.from_dict({"export_format": "gguf", "tokenizer": str(model.path), "outtype": "f32"})
    exported = AutoHfExporter.from_config(config).export(built, inputs(8), config)
    exported.save_pretrained(tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {"model.gguf", "export.json", "config.json"}
    loaded = ExportedModel.from_pretrained(tmp_path / "out", threads=1)
    for length in (200, 700):
        given = inputs(length)
        assert torch.allclose(loaded(**given).logits, built(**given).logits, atol=1e-3)


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m")
    plain = GgufConfig(tokenizer=str(model.path))
    exporter = AutoHfExporter.from_config(plain)
    with pytest.raises(UnsupportedError, match="no rope factors"):
        exporter.export(build_model(model), inputs(8), plain)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        exporter.export(build_model(model), inputs(8), GgufConfig())
