"""Weight types: rounded in Python, quantized by llama.cpp with and without an importance matrix, and split files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from converters.base import Export
from converters.gguf import GgufConverter
from converters.gguf.container import GgufFile, part_path, type_name
from converters.gguf.weights import OUTTYPES, read_importance
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError, UnsupportedError
from longrope.progress import Silent
from tests.common import run_cli
from tests.gguf_files import checkpoint, factors_for, refused, scores

WIDE = {"hidden_size": 256, "intermediate_size": 512}


def written(model: Checkpoint, outtype: str, path: Path, **options: Any) -> Silent:
    progress = Silent()
    GgufConverter().convert(Export(model, factors_for(model), outtype, options), path, progress)
    return progress


def types_in(path: Path) -> dict[str, str]:
    with GgufFile(path) as file:
        return {name: type_name(info.type) for name, info in file.tensors.items()}


@pytest.mark.parametrize("outtype", [name for name, row in OUTTYPES.items() if row.matrix])
def test_python_types_equal_the_librarys_quantizer(tmp_path: Path, outtype: str) -> None:
    model = checkpoint(tmp_path / "m", **WIDE)
    written(model, outtype, tmp_path / "a.gguf")
    written(model, "f32", tmp_path / "f32.gguf")
    with GgufFile(tmp_path / "a.gguf") as file, GgufFile(tmp_path / "f32.gguf") as floats:
        for name, info in file.tensors.items():
            kind = gguf.GGMLQuantizationType(info.type)
            assert kind.name == (OUTTYPES[outtype].matrix if len(info.shape) > 1 else "F32")
            wanted = gguf.quants.quantize(floats.floats(name), kind)
            assert np.array_equal(file.raw(name), wanted.reshape(-1).view(np.uint8)), name


@pytest.mark.parametrize(("outtype", "kl"), [("q4_k_m", 2.0), ("q6_k", 0.3), ("iq4_xs", 2.0)])
def test_llama_cpp_quantizes(tmp_path: Path, outtype: str, kl: float) -> None:
    model = checkpoint(tmp_path / "m", **WIDE)
    progress = written(model, outtype, tmp_path / "a.gguf", threads=1)
    assert not progress.warnings
    found = types_in(tmp_path / "a.gguf")
    assert found["rope_factors_long.weight"] == "f32"
    assert found["blk.0.ffn_up.weight"] in {"q4_k", "q6_k", "iq4_xs"}
    factors = factors_for(model)
    assert all(score.kl_mean < kl for score in scores(model, factors, tmp_path / "a.gguf").values())
    stored = GgufConverter().read_factors(tmp_path / "a.gguf")
    assert stored is not None
    assert stored.long_factor == tuple(np.float32(factors.long_factor).astype(float))
    assert list(tmp_path.glob("*.floats")) == []


def test_fallbacks_are_counted(tmp_path: Path) -> None:
    progress = written(checkpoint(tmp_path / "m"), "q4_k_m", tmp_path / "a.gguf", threads=1)
    assert any("tensors have rows that do not divide into blocks of 256" in line for line in progress.warnings)


def test_odd_widths_are_counted(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", intermediate_size=120)
    progress = written(model, "q8_0", tmp_path / "a.gguf")
    assert any(line.startswith("2 tensors, blk.0.ffn_down.weight the first") for line in progress.warnings)
    assert types_in(tmp_path / "a.gguf")["blk.1.ffn_down.weight"] == "f16"


# -- importance matrices


def importance_of(model: Checkpoint, seed: int = 0) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    rng = np.random.default_rng(seed)
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    return {
        f"blk.{layer}.{name}.weight": rng.random(512 if name == "ffn_down" else 256, dtype=np.float32) + 0.1
        for layer in range(2)
        for name in names
    }


def gguf_imatrix(path: Path, values: dict[str, Any]) -> Path:
    writer = gguf.GGUFWriter(path, "none")
    writer.add_type("imatrix")
    for name, data in values.items():
        writer.add_tensor(f"{name}.in_sum2", (data * 8).reshape(1, -1))
        writer.add_tensor(f"{name}.counts", np.full((1, 1), 8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def legacy_imatrix(path: Path, values: dict[str, Any]) -> Path:
    data = struct.pack("<i", len(values))
    for name, entry in values.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 4, entry.size) + (entry * 4).tobytes()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("write", [gguf_imatrix, legacy_imatrix])
def test_importance_matrices_of_both_forms(tmp_path: Path, write: Any) -> None:
    model = checkpoint(tmp_path / "m", **WIDE)
    values = importance_of(model)
    path = write(tmp_path / "imatrix", values)
    found = read_importance(path)
    assert set(found) == set(values)
    assert all(np.allclose(found[name], values[name]) for name in values)
    written(model, "q4_k_m", tmp_path / "with.gguf", imatrix=path, threads=1)
    written(model, "q4_k_m", tmp_path / "without.gguf", threads=1)
    with GgufFile(tmp_path / "with.gguf") as one, GgufFile(tmp_path / "without.gguf") as other:
        assert not np.array_equal(one.raw("blk.0.ffn_up.weight"), other.raw("blk.0.ffn_up.weight"))


def test_types_that_need_an_importance_matrix(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", **WIDE)
    refused(UnsupportedError, "importance matrix", model, factors_for(model), outtype="iq2_xs")
    path = gguf_imatrix(tmp_path / "imatrix", importance_of(model))
    written(model, "iq2_xs", tmp_path / "a.gguf", imatrix=path, threads=1)
    refused(InputError, "no effect on f16", model, factors_for(model), outtype="f16", options={"imatrix": path})


def test_a_file_that_is_no_importance_matrix(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x05\x00\x00\x00nonsense")
    with pytest.raises(InputError, match="not an importance matrix"):
        read_importance(tmp_path / "x")


# -- split files


@pytest.mark.parametrize("outtype", ["f16", "q4_k_m"])
def test_split_files_load_and_agree(tmp_path: Path, outtype: str) -> None:
    model = checkpoint(tmp_path / "m", **WIDE)
    factors = factors_for(model)
    written(model, outtype, tmp_path / "whole.gguf", threads=1)
    written(model, outtype, tmp_path / "s.gguf", split_max_size="300K", threads=1)
    parts = sorted(tmp_path.glob("s-*.gguf"))
    assert len(parts) > 2
    assert parts[0] == part_path(tmp_path / "s.gguf", 0, len(parts))
    assert not (tmp_path / "s.gguf").exists()
    assert types_in(tmp_path / "s.gguf") == types_in(tmp_path / "whole.gguf")
    assert scores(model, factors, parts[0]) == scores(model, factors, tmp_path / "whole.gguf")
    assert GgufConverter().read_factors(parts[0]) == GgufConverter().read_factors(tmp_path / "whole.gguf")


def test_a_missing_part_and_a_wrong_one(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m")
    written(model, "f16", tmp_path / "s.gguf", split_max_size="60K")
    parts = sorted(tmp_path.glob("s-*.gguf"))
    with pytest.raises(InputError, match="expected the name of the first"):
        GgufFile(parts[1].replace(tmp_path / "odd.gguf"))
    with pytest.raises(InputError, match="no such file"):
        GgufFile(parts[0])


@pytest.mark.parametrize("outtype", ["f16", "q4_k_m"])
def test_parts_of_two_exports_are_told_apart(tmp_path: Path, outtype: str) -> None:
    """Same names, types and shapes: other weights, or other factors."""
    model, other = checkpoint(tmp_path / "m"), checkpoint(tmp_path / "n", seed=7)
    written(model, outtype, tmp_path / "a" / "s.gguf", split_max_size="60K")
    written(model, outtype, tmp_path / "again" / "s.gguf", split_max_size="60K")
    written(other, outtype, tmp_path / "b" / "s.gguf", split_max_size="60K")
    first, second, *_ = sorted((tmp_path / "a").iterdir())
    assert second.read_bytes() == (tmp_path / "again" / second.name).read_bytes()
    (tmp_path / "b" / second.name).replace(second)
    with pytest.raises(InputError, match=f"{second.name} is a part of another set than {first.name}"):
        GgufFile(first)
    done = run_cli("inspect", first)
    assert (done.code, "another set" in done.err) == (2, True)


@pytest.mark.parametrize("size", ["0", "two", "-5M", "1T"])
def test_sizes_that_are_none(tmp_path: Path, size: str) -> None:
    model = checkpoint(tmp_path / "m")
    refused(InputError, "split_max_size", model, factors_for(model), options={"split_max_size": size})


@pytest.mark.parametrize("threads", [-1, "two"])
def test_threads_that_are_none(tmp_path: Path, threads: Any) -> None:
    model = checkpoint(tmp_path / "m")
    refused(InputError, "threads", model, factors_for(model), options={"threads": threads})
