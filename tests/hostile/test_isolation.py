"""Artifacts that kill, stop or bloat a runtime: its process ends, this one says why and keeps what it knew."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters import registry
from converters.base import Export
from converters.gguf.container import f32, text, u32
from converters.isolation import Limits, RemoteRuntime, Workplace, open_source, workplace_for
from longrope.checkpoint import Checkpoint
from longrope.errors import RuntimeFailedError
from longrope.factors import BoundFactors
from longrope.progress import Silent
from tests.common import cli_process, pico_checkpoint, pico_factors, pico_text, run_cli
from tests.gguf_files import Fault, Tensors, Values, rewrite, set_key

WINDOW, TARGET = 256, 512


@dataclasses.dataclass(frozen=True)
class Room:
    model: Checkpoint
    factors: BoundFactors
    gguf: Path
    onnx: Path
    text: Path


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    folder = tmp_path_factory.mktemp("room")
    model = pico_checkpoint(folder / "model", max_position_embeddings=WINDOW)
    factors = model.bind(pico_factors(target=TARGET, original_max_position_embeddings=WINDOW))
    for name, place in (("gguf", "model.gguf"), ("onnx", "onnx")):
        registry.converter(name).convert(
            Export(model, factors, "f32" if name == "gguf" else None), folder / place, Silent()
        )
    (folder / "text.txt").write_text(pico_text(30), encoding="utf-8")
    return Room(model, factors, folder / "model.gguf", folder / "onnx", folder / "text.txt")


def measured(room: Room, artifact: Path) -> tuple[str, ...]:
    return (
        *("validate", str(artifact), "--reference", str(room.model.path), "--text", str(room.text)),
        *("--windows-per-length", "1", "--no-crossing", "--threads", "1", "--json", "-"),
    )


# -- llama.cpp ends its process


def two_equal_tokens(values: Values, tensors: Tensors) -> None:
    tokens = values["tokenizer.ggml.tokens"]
    data = list(tokens.data)
    data[300] = data[299]
    values["tokenizer.ggml.tokens"] = dataclasses.replace(tokens, data=tuple(data))


# Fault → a check before the load that must be kept, and what llama.cpp says last.
KILLERS: dict[str, tuple[Fault, str, str]] = {
    "an unknown scaling type": (set_key("rope.scaling.type", text("foo")), "gguf.rope.scaling.type", ""),
    "two equal tokens": (two_equal_tokens, "gguf.vocab.tokens", "SIGABRT"),
    "a thousand experts": (set_key("expert_count", u32(1000)), "gguf.keys", "SIGABRT"),
    "five thousand layers": (set_key("block_count", u32(5000)), "gguf.block_count", "SIGABRT"),
    "a negative epsilon": (
        set_key("attention.layer_norm_rms_epsilon", f32(-1.0)),
        "gguf.attention.layer_norm_rms_epsilon",
        "",
    ),
}


@pytest.mark.parametrize("name", KILLERS)
def test_what_ends_llama_cpp_is_a_failed_check(room: Room, tmp_path: Path, name: str) -> None:
    fault, kept, signal_name = KILLERS[name]
    broken = rewrite(room.gguf, tmp_path / "broken.gguf", fault)
    done = run_cli(*measured(room, broken))
    assert done.code == 1, done.err
    failed = {check["id"]: check for check in json.loads(done.out)["checks"] if check["status"] == "fail"}
    assert kept in failed
    if "gguf.loads" in failed:
        assert signal_name in failed["gguf.loads"]["message"]
        assert "/tmp" not in failed["gguf.loads"]["message"].replace(str(tmp_path), "")
    else:
        assert any(id.startswith("gguf.parity.") for id in failed) or not signal_name


def test_the_words_of_an_abort_reach_the_user_of_eval(room: Room, tmp_path: Path) -> None:
    broken = rewrite(room.gguf, tmp_path / "broken.gguf", two_equal_tokens)
    done = run_cli("eval", broken, "--text", room.text, "--windows", "64", "--threads", "1")
    assert done.code == 1, done.err
    (line,) = [line for line in done.lines if line.startswith("Error: ")]
    assert "check gguf.loads: its runtime ended its process (signal 6, SIGABRT)" in line
    assert "GGML_ASSERT" in line


def test_without_isolation_the_process_would_end(room: Room, tmp_path: Path) -> None:
    """What the tests above are about: without it this fault is no check, but a dead command."""
    broken = rewrite(room.gguf, tmp_path / "broken.gguf", two_equal_tokens)
    words = ("eval", broken, "--text", room.text, "--windows", "64", "--threads", "1", "--isolate", "off")
    process = cli_process(*words, env={**os.environ, "GGML_NO_BACKTRACE": "1"})
    process.communicate(timeout=120)
    assert process.returncode == -6


# -- bombs in ONNX

Change = Callable[[onnx.GraphProto], None]


def endless(graph: onnx.GraphProto, after: str, value: str) -> None:
    """Loop 2^62 times over `value`, which a node computes."""
    node = next(item for item in graph.node if after in item.output)
    node.output[list(node.output).index(after)] = f"{after}_before"
    scalar = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["condition_in"], ["condition_out"]),
            helper.make_node("Identity", ["state_in"], ["state_out"]),
        ],
        "body",
        [
            scalar("step", TensorProto.INT64, []),
            scalar("condition_in", TensorProto.BOOL, []),
            scalar("state_in", TensorProto.FLOAT, None),
        ],
        [scalar("condition_out", TensorProto.BOOL, []), scalar("state_out", TensorProto.FLOAT, None)],
    )
    graph.initializer.extend(
        [numpy_helper.from_array(np.int64(1 << 62), "steps"), numpy_helper.from_array(np.bool_(True), "always")]
    )
    _insert(graph, node, helper.make_node("Loop", ["steps", "always", f"{after}_before"], [value], body=body))


def gigabytes(graph: onnx.GraphProto, after: str, value: str) -> None:
    """Add the largest of 4.5 GB of zeros."""
    node = next(item for item in graph.node if after in item.output)
    node.output[list(node.output).index(after)] = f"{after}_before"
    graph.initializer.append(numpy_helper.from_array(np.array([1_125_000_000]), "size"))
    zeros = helper.make_node("ConstantOfShape", ["size"], ["zeros"])
    most = helper.make_node("ReduceMax", ["zeros"], ["most"], keepdims=0)
    _insert(graph, node, zeros, most, helper.make_node("Add", [f"{after}_before", "most"], [value]))


def _insert(graph: onnx.GraphProto, node: onnx.NodeProto, *added: onnx.NodeProto) -> None:
    at = list(graph.node).index(node) + 1
    nodes = [*graph.node[:at], *added, *graph.node[at:]]
    del graph.node[:]
    graph.node.extend(nodes)


def bombed(room: Room, folder: Path, change: Callable[[onnx.GraphProto, str, str], None], value: str) -> Path:
    folder.mkdir()
    for file in room.onnx.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    change(model.graph, value, value)
    onnx.save(model, folder / "model.onnx")
    return folder


BOMBS = {"a loop of 2^62": endless, "4.5 GB of zeros": gigabytes}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_in_the_rotary_part_is_not_run(room: Room, tmp_path: Path, name: str) -> None:
    broken = bombed(room, tmp_path / "onnx", BOMBS[name], "rope.cos")
    before, start = psutil.Process().memory_info().rss, time.monotonic()
    checks = registry.converter("onnx").static_checks(broken, room.factors, room.model)
    assert time.monotonic() - start < 10
    assert psutil.Process().memory_info().rss - before < 1 << 30
    failed = {check.id: check.message for check in checks if check.status == "fail"}
    assert "is no operator of a rotary part" in failed["onnx.rope.chain"]


class Impatient(Limits):
    """The limits of a small artifact, and a second for each pass."""

    def seconds(self, tokens: int) -> float:
        return 1.0


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_in_the_model_ends_its_process_alone(room: Room, tmp_path: Path, name: str) -> None:
    broken = bombed(room, tmp_path / "onnx", BOMBS[name], "logits")
    limits = Impatient(artifact_bytes=sum(file.stat().st_size for file in broken.iterdir()), max_length=64, threads=1)
    assert limits.memory < 2 << 30
    with Workplace(registry.converter("onnx"), broken) as workplace:
        runtime = RemoteRuntime(workplace, broken, room.factors, limits, threads=1, options={})
        with pytest.raises(RuntimeFailedError, match=r"took more time|memory|bad_alloc|SIGABRT|[Ff]ailed to allocate"):
            list(runtime.logits(np.arange(64), "long", 64))
        assert workplace.failed


def test_a_failure_in_the_middle_keeps_the_checks(room: Room, tmp_path: Path) -> None:
    """The graph loads and then fails in its first pass: once exit code 70, now a failed check."""

    def fail(graph: onnx.GraphProto, after: str, value: str) -> None:
        node = next(item for item in graph.node if after in item.output)
        node.output[list(node.output).index(after)] = f"{after}_before"
        graph.initializer.append(numpy_helper.from_array(np.array([5, 1, 384]), "shape"))
        _insert(graph, node, helper.make_node("Reshape", [f"{after}_before", "shape"], [value]))

    broken = bombed(room, tmp_path / "onnx", fail, "logits")
    done = run_cli(*measured(room, broken))
    assert done.code == 1, done.err
    failed = {check["id"]: check for check in json.loads(done.out)["checks"] if check["status"] == "fail"}
    assert {"onnx.graph", "onnx.loads"} <= set(failed)
    assert "failed" in failed["onnx.loads"]["message"]


# -- what a process of its own must not change, know or leave


@pytest.mark.parametrize("name", ["gguf", "onnx", "hf"])
def test_it_gives_what_the_runtime_gives_here(room: Room, tmp_path: Path, name: str) -> None:
    converter = registry.converter(name)
    artifact = {"gguf": room.gguf, "onnx": room.onnx}.get(name) or tmp_path / "hf"
    if name == "hf":
        converter.convert(Export(room.model, room.factors), artifact, Silent())
    ids = np.random.default_rng(0).integers(0, room.model.vocab_size, 100)
    here, there = (
        open_source(
            converter,
            artifact,
            room.factors,
            max_length=TARGET,
            threads=1,
            workplace=workplace_for(converter, artifact, isolate),  # type: ignore[arg-type]
        )
        for isolate in ("off", "on")
    )
    assert (here.name, here.vocab_size, here.rule) == (there.name, there.vocab_size, there.rule)
    assert here.set_for(TARGET) == there.set_for(TARGET) == "long"
    for one, other in zip(here.logits(ids, "long", 64), there.logits(ids, "long", 64), strict=True):
        assert one.equal(other)
    assert here.decode_logits(ids, 90).equal(there.decode_logits(ids, 90))
    assert here.tail_logits(ids, "long", 97).equal(there.tail_logits(ids, "long", 97))  # type: ignore[attr-defined]
    for stop in (lambda tokens: False, lambda tokens: len(tokens) == 2):
        written = [source.greedy(ids, 4, "long", stop).tolist() for source in (here, there)]  # type: ignore[attr-defined]
        assert written[0] == written[1]
    here.close()
    there.close()


def test_it_sees_no_secrets_and_is_gone_afterwards(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_not_for_runtimes")
    others = {child.pid for child in psutil.Process().children()}
    with Workplace(registry.converter("gguf"), room.gguf) as workplace:
        (child,) = [child for child in psutil.Process().children() if child.pid not in others]
        assert "HF_TOKEN" not in child.environ()
        assert os.environ["HF_TOKEN"]
        head = {"do": "set_for", "length": 1}
        with pytest.raises(RuntimeFailedError, match="no artifact was opened"):
            workplace.ask(head, seconds=10)
    assert not child.is_running()


def test_inspect_reads_in_a_process_of_its_own_too(room: Room) -> None:
    for artifact in (room.gguf, room.onnx):
        found = [json.loads(run_cli("inspect", artifact, "--isolate", how, "--json", "-").out) for how in ("on", "off")]
        assert found[0] == found[1]
