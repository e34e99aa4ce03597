"""An ONNX folder in transformers.js's layout: `onnx/model*.onnx` by weight type, what describes the model at the root."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from converters.onnx.export import DATA_FILE
from converters.onnx.genai import GENAI_FILE, GENAI_MODEL
from converters.onnx.readback import OnnxFile
from converters.onnx.weight_names import DTYPES, SUFFIXES
from longrope.files import json_text
from longrope.reading import OBJECT, TEXT, check, check_fields, read_object, record

FOLDER = "onnx"


def hub_files(path: Path) -> dict[str, Path | bytes]:
    """Files by their place in the repository; bytes where the name of the external data changes inside the graph."""
    file = OnnxFile(path)
    name = f"model{SUFFIXES[file.outtype]}.onnx"
    data = f"{name}_data"
    found: dict[str, Path | bytes] = {f"{FOLDER}/{name}": _with_data(file, data)}
    if (path / DATA_FILE).is_file():
        found[f"{FOLDER}/{data}"] = path / DATA_FILE
    for each in sorted(path.iterdir()):
        if each.name.startswith(".") or not each.is_file() or ".onnx" in each.suffix:
            continue
        found[f"{FOLDER}/{each.name}"] = _genai(each, name) if each.name == GENAI_FILE else each
        if each.name != GENAI_FILE:
            found[each.name] = each
    found["config.json"] = _root_config(path / "config.json", name, file.outtype)
    return found


def metadata_strings(path: Path) -> dict[str, str]:
    """Texts of the graph that no runtime computes with."""
    proto = OnnxFile(path).proto
    graph = proto.graph
    return {
        **{f"metadata {entry.key}": entry.value for entry in proto.metadata_props},
        "doc_string": f"{proto.doc_string} {graph.doc_string} {graph.name}",
        "producer": f"{proto.producer_name} {proto.producer_version} {proto.domain}",
        "node texts": " ".join(sorted({node.doc_string for node in graph.node} - {""})),
    }


def _with_data(file: OnnxFile, data: str) -> Path | bytes:
    """The graph with its external data under another name; the file itself where that is its name already."""
    if data == DATA_FILE:
        path: Path = file.path
        return path
    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value == DATA_FILE:
                entry.value = data
    return bytes(proto.SerializeToString(deterministic=True))


def _genai(path: Path, name: str) -> Path | bytes:
    config = read_genai(path)
    if config["model"]["decoder"][GENAI_MODEL] == name:
        return path
    config["model"]["decoder"][GENAI_MODEL] = name
    return json_text(config).encode()


def read_genai(path: Path) -> dict[str, Any]:
    """genai_config.json, with what is read of it. Raises InputError."""
    kind = record({"model": record({"decoder": record({GENAI_MODEL: TEXT})})})
    config: dict[str, Any] = check(read_object(path), kind, str(path))
    return config


def _root_config(path: Path, name: str, outtype: str) -> bytes:
    """config.json that tells transformers.js which weight type is there and that its data lie beside the graph."""
    config = read_object(path, non_finite=True)
    check_fields(config, {"transformers.js_config": OBJECT}, str(path))
    js = config.get("transformers.js_config", {})
    config["transformers.js_config"] = {**js, "dtype": DTYPES[outtype], "use_external_data_format": {name: 1}}
    return json_text(config, keep_non_finite=True).encode()
