"""The container: what is written is what is read, by us and by the reference library; broken files get one line."""

from __future__ import annotations

import struct
import time
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from converters.gguf.container import (
    GgufFile,
    TensorInfo,
    Value,
    aligned,
    array,
    f32,
    flag,
    tensor_bytes,
    text,
    u32,
)
from converters.gguf.writing import Content, encode_head, write_gguf
from longrope.errors import InputError

F32, Q8_0 = 0, 8
Kind = gguf.GGUFValueType

VALUES = {
    "general.architecture": text("llama"),
    "llama.block_count": u32(2),
    "llama.rope.freq_base": f32(10_000.1),
    "tokenizer.ggml.add_bos_token": flag(True),
    "tokenizer.ggml.tokens": array(Kind.STRING, ["a", "ß", "漢", "", "😀"]),
    "tokenizer.ggml.scores": array(Kind.FLOAT32, [0.5, -1.0]),
    "other.big": Value(Kind.UINT64, 1 << 40),
    "other.negative": Value(Kind.INT16, -3),
    "other.double": Value(Kind.FLOAT64, 0.1),
}


def sample(path: Path) -> Path:
    arrays = {"m": np.arange(12, dtype=np.float32).reshape(3, 4), "v": np.ones(5, dtype=np.float32)}
    contents = [Content(TensorInfo(name, data.shape, F32), lambda data=data: (data,)) for name, data in arrays.items()]
    write_gguf(path, VALUES, contents)
    return path


def many(count: int, rows: int = 7) -> list[Content]:
    """Tensors of odd sizes, each in blocks of one row."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((rows, 1 + index % 5), dtype=np.float32) for index in range(count)]
    return [
        Content(TensorInfo(f"t{i}", data.shape, F32), lambda data=data: iter(data)) for i, data in enumerate(arrays)
    ]


def test_threads_write_the_same_bytes_and_report_all_of_them(tmp_path: Path) -> None:
    contents = many(200)
    reported: list[int] = []
    write_gguf(tmp_path / "one.gguf", VALUES, contents)
    write_gguf(tmp_path / "four.gguf", VALUES, contents, reported.append, threads=4)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "four.gguf").read_bytes()
    assert sum(reported) == sum(content.info.nbytes for content in contents)


def test_a_tensor_that_fails_stops_the_others(tmp_path: Path) -> None:
    made: list[int] = []

    def failing() -> Any:
        raise InputError("this one")

    def slow(index: int) -> Any:
        made.append(index)
        time.sleep(0.01)
        return iter(())

    info = TensorInfo("t", (1,), F32)
    contents = [Content(info, failing), *(Content(info, partial(slow, index)) for index in range(200))]
    with pytest.raises(InputError, match="this one"):
        write_gguf(tmp_path / "a.gguf", VALUES, contents, threads=2)
    assert len(made) < 100


def test_reads_what_it_wrote(tmp_path: Path) -> None:
    with GgufFile(sample(tmp_path / "a.gguf")) as file:
        assert file.values == VALUES
        assert file.architecture == "llama"
        assert file.model_key("block_count") == 2
        assert file.floats("m").tolist() == np.arange(12).reshape(3, 4).tolist()
        assert file.parts[0].data_start % 32 == 0


def test_reference_library_reads_the_same(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(sample(tmp_path / "a.gguf"))
    assert {name: reader.fields[name].contents() for name in VALUES} == {
        name: list(value.data) if value.item is not None else value.data for name, value in VALUES.items()
    }
    assert [(t.name, t.data.tolist()) for t in reader.tensors] == [
        ("m", np.arange(12).reshape(3, 4).tolist()),
        ("v", [1.0] * 5),
    ]


def test_reads_what_the_reference_library_wrote(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama")
    writer.add_custom_alignment(64)
    writer.add_block_count(7)
    writer.add_token_list(["x", "y"])
    writer.add_tensor(
        "q",
        gguf.quants.quantize(np.ones((2, 32), np.float32), gguf.GGMLQuantizationType.Q8_0),
        raw_dtype=gguf.GGMLQuantizationType.Q8_0,
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GgufFile(tmp_path / "b.gguf") as file:
        assert (file.parts[0].alignment, file.model_key("block_count"), file.get("tokenizer.ggml.tokens")) == (
            64,
            7,
            ("x", "y"),
        )
        assert file.tensors["q"].shape == (2, 32)
        assert np.allclose(file.floats("q"), 1.0, atol=1e-2)


def test_every_truncation_is_an_input_error(tmp_path: Path) -> None:
    data = sample(tmp_path / "a.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in range(0, len(data) - 12):  # the last 12 bytes are padding
        cut.write_bytes(data[:size])
        with pytest.raises(InputError):
            GgufFile(cut)


def broken(changes: str) -> bytes:
    infos = {
        "overlap": [TensorInfo("a", (8,), F32, 0), TensorInfo("b", (8,), F32, 0)],
        "misaligned": [TensorInfo("a", (8,), F32, 4)],
        "beyond the end": [TensorInfo("a", (8,), F32, 1 << 40)],
        "twice": [TensorInfo("a", (8,), F32, 0), TensorInfo("a", (8,), F32, 32)],
        "unknown type": [TensorInfo("a", (8,), 999, 0)],
        "half a block": [TensorInfo("a", (33,), Q8_0, 0)],
        "alignment": [],
    }[changes]
    values = {"general.alignment": u32(3)} if changes == "alignment" else {}
    return encode_head(values, infos, 32) + bytes(256)


@pytest.mark.parametrize(
    "changes", ["overlap", "misaligned", "beyond the end", "twice", "unknown type", "half a block", "alignment"]
)
def test_inconsistent_heads_are_input_errors(tmp_path: Path, changes: str) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(broken(changes))
    with pytest.raises(InputError, match=r"broken\.gguf"):
        GgufFile(path)


@pytest.mark.parametrize(
    "data",
    [
        b"GGUF" + struct.pack("<IQQ", 0x03000000, 0, 0),  # big-endian
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 62),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 4, 1 << 61),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sI", 1, b"k", 77) + bytes(8),
        b"PK\x03\x04" + bytes(40),
    ],
)
def test_hostile_heads_are_input_errors(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data + bytes(16))
    with pytest.raises(InputError):
        GgufFile(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        GgufFile(tmp_path / "none.gguf")


def test_sizes() -> None:
    assert tensor_bytes((3, 64), Q8_0) == 3 * 2 * 34
    assert [aligned(n, 32) for n in (0, 1, 32, 33)] == [0, 32, 32, 64]
