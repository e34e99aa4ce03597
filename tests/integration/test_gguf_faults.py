"""Broken GGUF files: each fault is caught by a static check of its own, and KL shows what it does to the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from converters.base import Check, Export
from converters.gguf import GgufConverter
from converters.gguf.container import Content, GgufFile, TensorInfo, Value, f32, flag, text, u32, write_gguf
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError
from longrope.factors import RescaleFactors
from longrope.modeling import TorchSource, build_model
from longrope.progress import Silent
from longrope.scoring import compare_windows
from tests import common

Array = NDArray[Any]
F32, F16 = 0, 1
Values = dict[str, Value]
Tensors = dict[str, Content]
Fault = Callable[[Values, Tensors], None]


@dataclasses.dataclass(frozen=True)
class Good:
    path: Path
    model: Checkpoint
    factors: RescaleFactors


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
    folder = tmp_path_factory.mktemp("faults")
    model = common.pico_checkpoint(folder / "m", max_position_embeddings=256)
    factors = model.bind(common.pico_factors(target=1024, original_max_position_embeddings=256))
    GgufConverter().convert(Export(model, factors, "f32"), folder / "good.gguf", Silent())
    return Good(folder / "good.gguf", model, factors)


def holding(info: TensorInfo, data: Any) -> Content:
    return Content(info, lambda: (data,))


def rewrite(source: Path, target: Path, fault: Fault) -> Path:
    """Copy a GGUF file with a fault put in."""
    with GgufFile(source) as file:
        values = dict(file.values)
        tensors = {name: holding(info, np.array(file.raw(name))) for name, info in file.tensors.items()}
        fault(values, tensors)
        write_gguf(target, values, list(tensors.values()))
    return target


# -- the catalogue: each fault with the check that names it


def set_key(name: str, value: Value | None) -> Fault:
    def fault(values: Values, tensors: Tensors) -> None:
        key = name if name.startswith(("general.", "tokenizer.")) else f"llama.{name}"
        values.pop(key, None)
        if value is not None:
            values[key] = value

    return fault


def edit_list(name: str, edit: Callable[[list[Any]], list[Any]]) -> Fault:
    def fault(values: Values, tensors: Tensors) -> None:
        key = f"tokenizer.ggml.{name}"
        values[key] = dataclasses.replace(values[key], data=edit(list(values[key].data)))

    return fault


def drop(*names: str) -> Fault:
    def fault(values: Values, tensors: Tensors) -> None:
        for name in names:
            del tensors[name]

    return fault


def swap(one: str, other: str) -> Fault:
    """Exchange what two tensors hold."""

    def fault(values: Values, tensors: Tensors) -> None:
        first, second = tensors[one], tensors[other]
        tensors[one] = dataclasses.replace(second, info=dataclasses.replace(second.info, name=one))
        tensors[other] = dataclasses.replace(first, info=dataclasses.replace(first.info, name=other))

    return fault


def edit(name: str, change: Callable[[Array], Array], type: int = F32) -> Fault:
    """Change a tensor's numbers, its shape and type with them."""

    def fault(values: Values, tensors: Tensors) -> None:
        content = tensors[name]
        data = next(iter(content.blocks())).view(np.float32).reshape(content.info.shape)
        changed = np.ascontiguousarray(change(data.copy()))
        tensors[name] = holding(TensorInfo(name, changed.shape, type), changed)

    return fault


def setting(place: tuple[int, ...], number: float) -> Callable[[Array], Array]:
    def change(data: Array) -> Array:
        data[place] = number
        return data

    return change


def add(name: str, data: Array) -> Fault:
    def fault(values: Values, tensors: Tensors) -> None:
        tensors[name] = holding(TensorInfo(name, data.shape, F32), data)

    return fault


def reorder_heads(*, undo: bool) -> Fault:
    """Reorder the rows of q and k in each of their heads of 16: undo the interleaving, or do it again."""

    def change(data: Array) -> Array:
        halves = (8, 2) if undo else (2, 8)
        return data.reshape(data.shape[0] // 16, *halves, -1).swapaxes(1, 2).reshape(data.shape)

    def fault(values: Values, tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith(("attn_q.weight", "attn_k.weight"))]:
            edit(name, change)(values, tensors)

    return fault


LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
UP, GATE = "blk.1.ffn_up.weight", "blk.1.ffn_gate.weight"

CATALOGUE: dict[str, tuple[Fault, str]] = {
    # keys
    "another architecture": (set_key("general.architecture", text("qwen2")), "gguf.arch"),
    "no architecture": (set_key("general.architecture", None), "gguf.arch"),
    "short context length": (set_key("context_length", u32(256)), "gguf.context_length"),
    "no scaling type": (set_key("rope.scaling.type", None), "gguf.rope.scaling.type"),
    "another scaling type": (set_key("rope.scaling.type", text("yarn")), "gguf.rope.scaling.type"),
    "no original length": (
        set_key("rope.scaling.original_context_length", None),
        "gguf.rope.scaling.original_context_length",
    ),
    "wrong original length": (
        set_key("rope.scaling.original_context_length", u32(1024)),
        "gguf.rope.scaling.original_context_length",
    ),
    "no attention factor": (set_key("rope.scaling.attn_factor", None), "gguf.rope.scaling.attn_factor"),
    "wrong attention factor": (set_key("rope.scaling.attn_factor", f32(1.0)), "gguf.rope.scaling.attn_factor"),
    "stale scaling factor": (set_key("rope.scaling.factor", f32(4.0)), "gguf.rope.scaling.factor"),
    "another theta": (set_key("rope.freq_base", f32(500_000.0)), "gguf.rope.freq_base"),
    "half of the head turned": (set_key("rope.dimension_count", u32(8)), "gguf.rope.dimension_count"),
    "another number of kv heads": (set_key("attention.head_count_kv", u32(4)), "gguf.attention.head_count_kv"),
    "another epsilon": (
        set_key("attention.layer_norm_rms_epsilon", f32(1e-2)),
        "gguf.attention.layer_norm_rms_epsilon",
    ),
    "a key that rescales attention": (set_key("attention.scale", f32(0.5)), "gguf.keys"),
    "a yarn key": (set_key("rope.scaling.yarn_log_multiplier", f32(0.1)), "gguf.keys"),
    # factors
    "no factors": (drop(LONG, SHORT), "gguf.factors.long"),
    "one set only": (drop(SHORT), "gguf.factors.short"),
    "sets exchanged": (swap(LONG, SHORT), "gguf.factors.long"),
    "factors in reverse": (edit(LONG, lambda data: data[::-1]), "gguf.factors.long"),
    "inverse factors": (edit(LONG, lambda data: 1 / data), "gguf.factors.long"),
    "one factor off by a bit": (
        edit(SHORT, setting((0,), np.nextafter(np.float32(1.01**0.25), 2))),
        "gguf.factors.short",
    ),
    "factors in f16": (edit(LONG, lambda data: data.astype(np.float16), type=F16), "gguf.factors.dtype"),
    "too few factors": (edit(LONG, lambda data: data[:4]), "gguf.factors.long"),
    "rope_freqs beside them": (add("rope_freqs.weight", np.ones(8, np.float32)), "gguf.rope_freqs"),
    # weights
    "q and k not interleaved": (reorder_heads(undo=True), "gguf.weights"),
    "q and k interleaved twice": (reorder_heads(undo=False), "gguf.weights"),
    "a missing tensor": (drop(UP), "gguf.tensors.missing"),
    "a tensor too many": (add("blk.0.attn_q.bias", np.zeros(64, np.float32)), "gguf.tensors.extra"),
    "gate and up exchanged": (swap(UP, GATE), "gguf.weights"),
    "layers exchanged": (swap("blk.0.attn_v.weight", "blk.1.attn_v.weight"), "gguf.weights"),
    "a transposed matrix": (edit("blk.0.attn_k.weight", lambda data: data.T), "gguf.tensors.shapes"),
    "one weight changed": (edit(UP, setting((3, 4), 0.5)), "gguf.weights"),
    "a weight that is no number": (edit(UP, setting((3, 4), np.nan)), "gguf.weights"),
    "another norm": (edit("output_norm.weight", lambda data: data * 2), "gguf.weights"),
    # vocabulary
    "two tokens exchanged": (
        edit_list("tokens", lambda data: [*data[:10], data[11], data[10], *data[12:]]),
        "gguf.vocab.tokens",
    ),
    "a shorter vocabulary": (edit_list("tokens", lambda data: data[:-1]), "gguf.vocab.tokens"),
    "merges missing": (edit_list("merges", lambda data: data[:-3]), "gguf.vocab.merges"),
    "control tokens as words": (edit_list("token_type", lambda data: [1] * len(data)), "gguf.vocab.token_type"),
    "another pre-tokenizer": (set_key("tokenizer.ggml.pre", text("gpt-2")), "gguf.vocab.pre"),
    "another end of text": (set_key("tokenizer.ggml.eos_token_id", u32(7)), "gguf.vocab.eos_token_id"),
    "a BOS nobody asked for": (set_key("tokenizer.ggml.add_bos_token", flag(True)), "gguf.vocab.add_bos_token"),
}
# Faults that llama.cpp loads silently and that change what it computes; KL shows them.
RUNNING = (
    "no factors",
    "wrong attention factor",
    "no original length",
    "stale scaling factor",
    "q and k not interleaved",
    "sets exchanged",
    "factors in reverse",
    "another theta",
)


def failures(good: Good, path: Path) -> dict[str, Check]:
    checks = GgufConverter().static_checks(path, good.factors, good.model)
    return {check.id: check for check in checks if check.status == "fail"}


def test_the_good_file_is_not_flagged(good: Good, tmp_path: Path) -> None:
    copy = rewrite(good.path, tmp_path / "same.gguf", lambda values, tensors: None)
    assert copy.read_bytes() == good.path.read_bytes()
    assert failures(good, copy) == {}


@pytest.mark.parametrize("name", CATALOGUE)
def test_static_checks_name_the_fault(good: Good, tmp_path: Path, name: str) -> None:
    fault, id = CATALOGUE[name]
    assert id in failures(good, rewrite(good.path, tmp_path / "bad.gguf", fault))


def test_unpermuted_rows_are_told_from_other_weights(good: Good, tmp_path: Path) -> None:
    fault, _ = CATALOGUE["q and k not interleaved"]
    check = failures(good, rewrite(good.path, tmp_path / "bad.gguf", fault))["gguf.weights"]
    assert "interleaved" in str(check.actual)


@pytest.mark.parametrize("name", RUNNING)
def test_kl_catches_the_fault(good: Good, tmp_path: Path, name: str) -> None:
    path = rewrite(good.path, tmp_path / "bad.gguf", CATALOGUE[name][0])
    reference = TorchSource(build_model(good.model, good.factors), good.factors)
    source = GgufConverter().open_source(path, good.factors, max_length=1024, threads=1)
    ids = np.random.default_rng(0).integers(0, 384, 700)
    score = compare_windows(reference, {"gguf": source}, [ids], factor_set="long")["gguf"]
    source.close()
    assert score.kl_mean > 1e-4


# -- quantized files, where weights are compared by rows


@pytest.fixture(scope="module")
def quantized(good: Good, tmp_path_factory: pytest.TempPathFactory) -> Good:
    path = tmp_path_factory.mktemp("quantized") / "q8_0.gguf"
    GgufConverter().convert(Export(good.model, good.factors, "q8_0"), path, Silent())
    return dataclasses.replace(good, path=path)


@pytest.mark.parametrize("pair", [(UP, GATE), ("blk.0.attn_q.weight", "blk.1.attn_q.weight")])
def test_exchanged_quantized_tensors(quantized: Good, tmp_path: Path, pair: tuple[str, str]) -> None:
    assert failures(quantized, quantized.path) == {}
    assert set(failures(quantized, rewrite(quantized.path, tmp_path / "bad.gguf", swap(*pair)))) == {"gguf.weights"}


def test_interleaving_undone_in_a_quantized_file(quantized: Good, tmp_path: Path) -> None:
    def fault(values: Values, tensors: Tensors) -> None:
        content = tensors["blk.0.attn_q.weight"]
        rows = next(iter(content.blocks())).reshape(4, 8, 2, -1).swapaxes(1, 2)
        tensors["blk.0.attn_q.weight"] = holding(content.info, np.ascontiguousarray(rows))

    assert set(failures(quantized, rewrite(quantized.path, tmp_path / "bad.gguf", fault))) == {"gguf.weights"}


# -- broken containers

BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "without its last bytes": lambda data: data[:-40],
    "not gguf": lambda data: b"FUGG" + data[4:],
    "another version": lambda data: data[:4] + (2).to_bytes(4, "little") + data[8:],
    "more tensors than it has": lambda data: data[:8] + (10**6).to_bytes(8, "little") + data[16:],
    "a key cut short": lambda data: data[:30] + data[33:],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_container_is_one_failed_check(good: Good, tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(BROKEN[name](good.path.read_bytes()))
    assert set(failures(good, path)) == {"gguf.readable"}
    with pytest.raises(InputError):
        GgufConverter().read_factors(path)


def test_the_catalogue_is_large_enough() -> None:
    assert len(CATALOGUE) + len(BROKEN) >= 25
