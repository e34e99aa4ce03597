"""`inspect` explains any artifact from its headers, here or on the Hub, and names what is wrong with it and what mends it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rich.text import Text

from converters import hub_heads
from converters.gguf import remote
from converters.gguf.container import Value, f32, text, u32
from longrope.base_rope import base_rope
from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.factors import BoundFactors
from longrope_export.terminal_plot import log_plot
from tests.common import REPOSITORY, WINDOW, pico_config, pico_folder, run_cli, write_every_format
from tests.gguf_files import CATALOGUE, add, checkpoint, export, factors_for, rewrite, set_key, stock
from tests.hub import LocalHub

Json = dict[str, Any]
FORMATS = ("hf", "gguf", "onnx")
FACTS = ("format", "facts", "factors", "factor_sets", "base", "rope", "runtimes")


@pytest.fixture(scope="module")
def artifacts(pico: Checkpoint, dual: BoundFactors, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_every_format(pico, dual, tmp_path_factory.mktemp("artifacts"))


def found(path: object, *more: object) -> Json:
    done = run_cli("inspect", path, "--json", "-", *more)
    assert done.code == 0, done.err
    data: Json = json.loads(done.out)
    return data


def problems(path: Path) -> dict[str, Json]:
    return {each["id"]: each for each in found(path)["problems"] if each["id"]}


def files_of(path: Path) -> dict[str, bytes]:
    root = path if path.is_dir() else path.parent
    every = root.rglob("*") if path.is_dir() else [path]
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in every if file.is_file()}


# -- what it says


@pytest.mark.parametrize("name", FORMATS)
def test_a_screenful_says_what_it_is_what_it_does_and_who_uses_it(artifacts: dict[str, Path], name: str) -> None:
    done = run_cli("inspect", artifacts[name])
    assert done.code == 0, done.err
    for words in (
        "architecture: llama",
        "LongRoPE factors, dual: 64 → 256 tokens (4×)",
        "short set, sequences up to 64",
    ):
        assert words in done.out
    assert "└ pair 0, fastest" in done.out
    assert "Problems: none found" in done.out or "note:" in done.out
    assert "error:" not in done.out
    assert len(done.out.splitlines()) <= 40
    assert "{" not in done.out, "a Python dictionary is no sentence"


@pytest.mark.parametrize("name", ["gguf", "onnx"])
def test_headers_are_read_without_the_runtime(artifacts: dict[str, Path], tmp_path: Path, name: str) -> None:
    """llama-cpp-python has no wheel: who only looks into a file does not have to build it."""
    for library in ("llama_cpp", "onnxruntime"):
        (tmp_path / f"{library}.py").write_text("raise ImportError('hidden by a test')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(REPOSITORY)))}
    command = [sys.executable, "-m", "longrope_export", "inspect", artifacts[name]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "LongRoPE factors, dual: 64 → 256 tokens (4×), θ 10,000" in done.stdout


def test_what_each_format_knows_of_its_size(artifacts: dict[str, Path], pico: Checkpoint) -> None:
    for name in ("hf", "gguf"):
        facts = found(artifacts[name])["facts"]
        assert facts["parameters"] == pico.num_parameters
    for name in FORMATS:
        facts = found(artifacts[name])["facts"]
        weights = {"hf": ".safetensors", "gguf": ".gguf", "onnx": (".onnx", ".onnx_data")}[name]
        stored = {place: len(data) for place, data in files_of(artifacts[name]).items() if place.endswith(weights)}
        assert facts["bytes"] == pytest.approx(sum(stored.values()), rel=0.01)
        assert sum(facts["tensor_types"].values()) > 10


RESCALED = {
    "plain": ({}, "plain RoPE, window 64 tokens"),
    "llama3": (
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "llama3 rescaling, up to 8× of 16 tokens",
    ),
    "yarn": ({"rope_type": "yarn", "factor": 4.0}, "YaRN, up to 4× of 16 tokens"),
    "linear": ({"rope_type": "linear", "factor": 4.0}, "linear interpolation (PI), up to 4× of 16 tokens"),
    "dynamic": ({"rope_type": "dynamic", "factor": 4.0}, "plain RoPE (dynamic NTK beyond the window)"),
}


@pytest.mark.parametrize("kind", RESCALED)
def test_a_publishers_rescaling_in_words(tmp_path: Path, kind: str) -> None:
    rope, words = RESCALED[kind]
    before = {"original_max_position_embeddings": WINDOW // 4} if kind in ("llama3", "yarn") else {}
    rope = {"rope_type": "default", "rope_theta": 1e4, **rope, **before}
    data = found(pico_folder(tmp_path / "model", rope_parameters=rope))
    assert words in data["rope"][0]
    assert (data["factors"], data["runtimes"]) == (None, [])
    shown = run_cli("inspect", tmp_path / "model").out
    assert ("└ pair 0" in shown) == (kind in ("llama3", "yarn"))  # flat curves are not drawn


def test_a_rescaling_without_a_name_is_recognized_by_its_numbers(tmp_path: Path) -> None:
    """Llama 3.1 in GGUF: rope_freqs.weight holds the factors, and no key says what they are."""
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192}
    model = checkpoint(tmp_path / "model")
    known = base_rope({}, rope, rotary_dim=model.rotary_dim, window=131072)
    file = stock(model, tmp_path / "stock.gguf", "f16")
    file = rewrite(file, tmp_path / "a.gguf", add("rope_freqs.weight", np.array(known.long_factor, np.float32)))
    file = rewrite(file, tmp_path / "b.gguf", set_key("rope.freq_base", f32(5e5)))
    (said,) = found(rewrite(file, tmp_path / "c.gguf", set_key("context_length", u32(131072))))["rope"]
    assert said.startswith("llama3 rescaling, up to 8× of 8,192 tokens")
    assert "used at every length" in said


def test_a_model_that_cannot_be_extended_is_described_all_the_same(tmp_path: Path) -> None:
    folder = pico_folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "nobodys", "architectures": ["Nobodys"]}))
    data = found(folder)
    assert data["facts"]["architecture"] == "nobodys"
    assert "not known" in data["rope"][0]
    (problem,) = data["problems"]
    assert problem["id"] == "unsupported"
    assert "nobodys" in problem["message"]


def test_an_onnx_graph_of_another_tool_goes_by_the_configuration_beside_it(
    artifacts: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(artifacts["onnx"], tmp_path / "theirs")
    model = onnx.load(tmp_path / "theirs" / "model.onnx", load_external_data=False)
    del model.metadata_props[:]
    model.producer_name = "theirs"
    for tensor in model.graph.initializer:
        if tensor.name.startswith("rope."):
            for node in model.graph.node:
                node.input[:] = [f"c{name}" if name == tensor.name else name for name in node.input]
            tensor.name = f"c{tensor.name}"
    onnx.save(model, tmp_path / "theirs" / "model.onnx")
    data = found(tmp_path / "theirs")
    assert data["factors"] is None
    assert "LongRoPE" in data["rope"][0]


# -- what is wrong


# Of the faults that `validate` finds by the reference, those that show without it.
SHOWN = {
    "short context length": "gguf.context_length",
    "no scaling type": "gguf.rope.scaling.type",
    "another scaling type": "gguf.rope.scaling.type",
    "no original length": "gguf.rope.scaling.original_context_length",
    "wrong original length": "gguf.rope.scaling.original_context_length",
    "no attention factor": "gguf.rope.scaling.attn_factor",
    "stale scaling factor": "gguf.rope.scaling.factor",
    "sets exchanged": "gguf.factors.long",
    "factors in reverse": "gguf.factors.long",
    "factors in f16": "gguf.factors.dtype",
    "another theta": "gguf.rope.freq_base",
    "no factors": "gguf.factors",
    "one set only": "gguf.factors.readable",
    "too few factors": "gguf.factors.readable",
    "half of the head rotated": "gguf.factors.readable",
}


@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the lengths that the catalogue of faults is made for."""
    room = tmp_path_factory.mktemp("long")
    model = checkpoint(room / "model")
    return export(model, factors_for(model), "f32", room / "model.gguf")


@pytest.mark.parametrize("fault", SHOWN)
def test_faults_of_a_gguf_file_that_show_without_its_reference(long_file: Path, tmp_path: Path, fault: str) -> None:
    broken = rewrite(long_file, tmp_path / "broken.gguf", CATALOGUE[fault][0])
    problem = problems(broken)[SHOWN[fault]]
    assert problem["severity"] == "error"
    shown = run_cli("inspect", broken)
    assert f"error: {SHOWN[fault]}" in shown.out
    assert not re.search(r"[{}]|\bNone\b", shown.out), "no Python in sentences"
    assert "architecture: llama" in shown.out, "all else is said, too"
    factors_for(open_checkpoint(long_file.parent / "model")).save(tmp_path / "factors.json")
    names = {"MODEL": long_file.parent / "model", "FACTORS.json": tmp_path / "factors.json"}
    names |= {"FIXED.gguf": tmp_path / "fixed.gguf"}
    words = [str(names.get(word, word)) for word in problem["mend"].split()]
    assert run_cli(*words[1:]).code == 0, problem["mend"]
    assert problems(tmp_path / "fixed.gguf") == {}
    known = ("--reference", names["MODEL"], "--factors", names["FACTORS.json"], "--static")
    assert run_cli("validate", tmp_path / "fixed.gguf", *known).code == 0, problem["mend"]


# Of a file without our record: two sets, and a key that makes them another model.
STRANGERS: dict[str, tuple[str, Value | None, str]] = {
    "no original length": ("rope.scaling.original_context_length", None, "the long set is never used"),
    "a factor on top": ("rope.scaling.factor", f32(4.0), "on top of the factors"),
    "no rule to split text by": ("tokenizer.ggml.pre", None, "other tokens"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_faults_of_a_file_of_another_tool(artifacts: dict[str, Path], tmp_path: Path, name: str) -> None:
    key, value, words = STRANGERS[name]
    theirs = rewrite(artifacts["gguf"], tmp_path / "a.gguf", lambda values, _: values.pop("longrope_export.factors"))
    theirs = rewrite(theirs, tmp_path / "theirs.gguf", set_key("tokenizer.ggml.model", text("gpt2")))
    before = set(problems(theirs))
    broken = rewrite(theirs, tmp_path / "broken.gguf", set_key(key, value))
    (new,) = set(problems(broken)) - before
    assert words in problems(broken)[new]["message"]


def changed(folder: Path, target: Path, **fields: Any) -> Path:
    """A copy of a folder with other fields in its config.json; None takes one away."""
    shutil.copytree(folder, target)
    config = {**json.loads((target / "config.json").read_text()), **fields}
    (target / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value is not None})
    )
    return target


def test_faults_of_a_folder_and_their_command_works(artifacts: dict[str, Path], tmp_path: Path) -> None:
    for field, id in (("rope_scaling", "hf.rope_scaling"), ("rope_parameters", "hf.rope_parameters")):
        broken = changed(artifacts["hf"], tmp_path / field, **{field: None})
        problem = problems(broken)[id]
        assert problem["severity"] == "error"
        words = problem["mend"].replace("FIXED", str(tmp_path / f"{field}-fixed")).split()
        assert run_cli(*words[1:]).code == 0, problem["mend"]
        assert problems(tmp_path / f"{field}-fixed") == {}


def test_a_folder_of_another_tool(artifacts: dict[str, Path], tmp_path: Path) -> None:
    theirs = changed(artifacts["hf"], tmp_path / "theirs", rope_scaling=None, original_max_position_embeddings=None)
    (theirs / "longrope.json").unlink()
    settings = json.loads((theirs / "tokenizer_config.json").read_text())
    (theirs / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": WINDOW}))
    (theirs / "modeling.py").write_text("")
    assert set(problems(theirs)) == {
        "hf.rope_scaling",
        "hf.config.original_max_position_embeddings",
        "hf.tokenizer_config",
        "hf.files",
    }


def test_faults_of_a_graph(artifacts: dict[str, Path], tmp_path: Path) -> None:
    def folder(name: str) -> Path:
        return Path(shutil.copytree(artifacts["onnx"], tmp_path / name))

    truncated = folder("truncated")
    data = truncated / "model.onnx_data"
    data.write_bytes(data.read_bytes()[:-64])
    assert problems(truncated)["onnx.external_data"]["mend"].startswith("download or copy")
    exchanged = folder("exchanged")
    model = onnx.load(exchanged / "model.onnx", load_external_data=False)
    long = next(tensor for tensor in model.graph.initializer if tensor.name == "rope.long_factor")
    long.raw_data = (np.frombuffer(long.raw_data) * 2).tobytes()
    onnx.save(model, exchanged / "model.onnx")
    assert {"onnx.factors.long", "onnx.rope.chain"} <= set(problems(exchanged))


# -- on the Hub


@pytest.mark.parametrize("name", FORMATS)
def test_of_a_hub_id_headers_alone_are_read(
    artifacts: dict[str, Path], hub: LocalHub, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(hub_heads, "FIRST", 64)  # less than a header, so that the rest is asked for
    files = files_of(artifacts[name])
    hub.make("someone/model", files)
    here, there = found(artifacts[name]), found("someone/model")
    assert there["artifact"] == "someone/model"
    assert {key: there[key] for key in FACTS} == {key: here[key] for key in FACTS}
    assert [each["id"] for each in there["problems"]] == [each["id"] for each in here["problems"]]
    if name == "hf":
        data = files["model.safetensors"]
        assert hub.sent["model.safetensors"] == 8 + int.from_bytes(data[:8], "little") < len(data) / 10
    assert "model.onnx_data" not in hub.resolved
    assert "tokenizer.json" not in hub.resolved


def test_of_a_large_gguf_file_on_the_hub_the_head_and_the_factors(
    artifacts: dict[str, Path], hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FIRST", 4096)
    hub.make("someone/model", {"a-Q8_0.gguf": artifacts["gguf"].read_bytes(), "b-F16.gguf": b"GGUF"})
    data = found("someone/model")
    assert data["others"] == ["b-F16.gguf"]
    assert data["factors"] == found(artifacts["gguf"])["factors"]
    assert 0 < hub.sent["a-Q8_0.gguf"] < artifacts["gguf"].stat().st_size
    assert "b-F16.gguf" not in hub.resolved
    assert "also there, not looked at: b-F16.gguf" in run_cli("inspect", "someone/model").out


def test_shards_of_a_repository(hub: LocalHub, artifacts: dict[str, Path], tmp_path: Path) -> None:
    files = files_of(artifacts["hf"])
    weights = files.pop("model.safetensors")
    names = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    index = {"weight_map": {name: "model-00001-of-00001.safetensors" for name in names if name != "__metadata__"}}
    files |= {"model.safetensors.index.json": json.dumps(index).encode(), "model-00001-of-00001.safetensors": weights}
    hub.make("someone/model", files)
    assert found("someone/model")["facts"]["parameters"] == found(artifacts["hf"])["facts"]["parameters"]


CONFIG = json.dumps({**pico_config().to_dict(), "model_type": "llama"}).encode()


@pytest.mark.parametrize(("repo", "files", "code", "words"), [
    ("someone/none", None, 2, "nor a repository on the Hub"),
    ("someone/text", {"README.md": b"# A"}, 2, "found none"),
    ("someone/odd", {"config.json": b"{}", "model.safetensors.index.json": b"[]"}, 2, "weight_map"),
    ("someone/cut", {"config.json": CONFIG, "model.safetensors": b"\xff" * 64}, 2, "truncated"),
])  # fmt: skip
def test_a_repository_without_an_artifact(
    hub: LocalHub, repo: str, files: dict[str, bytes] | None, code: int, words: str
) -> None:
    if files is not None:
        hub.make(repo, files)
    done = run_cli("inspect", repo)
    assert (done.code, words in done.err) == (code, True), done.err


def test_without_network_nothing_is_asked(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = run_cli("inspect", "someone/model")
    assert done.code == 3, done.err
    assert hub.seen == []


# -- the curves


def test_curves_in_a_terminal() -> None:
    lines = [line.plain for line in log_plot({"long": [1.0, 2.0, 4.0, 8.0], "short": [1.0] * 4}, columns=20, rows=4)]
    assert [line[:9] for line in lines] == ["      8 ┤", "        │", "  2.144 ┤", "      1 ┤", "        └"]
    assert lines[0].endswith("long")
    assert lines[3].endswith("short")
    assert lines[3][9] != " " != lines[0][28]
    assert lines[4].endswith("slowest, 3")
    assert {type(line) for line in log_plot({"factor": [1.0, 2.0]})} == {Text}


def test_what_it_says_fits_a_terminal_of_80_columns(artifacts: dict[str, Path], tmp_path: Path) -> None:
    for path in (*artifacts.values(), pico_folder(tmp_path / "plain", rope_theta=1e7)):
        shown = on_a_terminal("inspect", path.name, folder=path.parent)
        assert shown
        assert max(map(len, shown.splitlines())) <= 80, shown
        assert "e+0" not in shown


def on_a_terminal(*arguments: str, folder: Path) -> str:
    """What a command shows on a terminal of 80 columns, without colours."""
    ours, theirs = pytest.importorskip("pty").openpty()
    environment = {**os.environ, "COLUMNS": "80", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "longrope_export", *arguments]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=folder) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # which is how Linux says that the other end is closed
            while chunk := os.read(ours, 1 << 16):
                shown += chunk
    os.close(ours)
    assert process.returncode == 0, shown
    return "\n".join(Text.from_ansi(line).plain for line in shown.decode().splitlines())
