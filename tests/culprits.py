"""Faults of every format with the cause that `validate --explain` must name; tests and benchmarks share them.

All are put into exports of one pico model (four layers, window 256, target 512, two sets). Those of the catalogues that
change what the runtime computes, or keep it from opening the file; and further ones, after what people report of other
tools: keys that a reader does not know, factors in another order, rows of q and k permuted, frequencies in bfloat16.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from converters import registry
from converters.base import Export, PlannedExport
from converters.explain.causes import Explanation
from converters.explain.run import Suspect, explain
from converters.gguf.container import f32, text, u32
from converters.isolation import workplace_for
from longrope.checkpoint import Checkpoint
from longrope.factors import BoundFactors
from longrope.progress import Silent
from longrope.text import TokenIds
from tests import gguf_files as gguf
from tests import hf_faults as hf
from tests import onnx_faults as onnx
from tests.common import pico_checkpoint, pico_factors, pico_text
from tests.folder_faults import Fault, change_json, config, copied, in_pairs, rope, weights

WINDOW, TARGET = 256, 512


@dataclasses.dataclass(frozen=True)
class Case:
    """A fault, and the cause that must be named.

    Args:
        format: of the artifact.
        name: of the fault.
        fault: puts it in.
        cause: a key of `converters.explain.causes.CAUSES`.
        where: what the explanation's place must hold.
        outtype: weight type; empty for float32.
    """

    format: str
    name: str
    fault: Fault
    cause: str
    where: str = ""
    outtype: str = ""

    @property
    def kind(self) -> str:
        """The artifact's format, with its weight type where that is not float32."""
        return f"{self.format}:{self.outtype}" if self.outtype else self.format

    def is_named_by(self, said: Explanation) -> bool:
        """Whether that is the cause, and the place."""
        return said.cause == self.cause and self.where in said.where


class Workshop:
    """A model and its sound exports.

    Args:
        folder: where they are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0
        self._plans: dict[str, PlannedExport] = {}

    @cached_property
    def model(self) -> Checkpoint:
        return pico_checkpoint(self.folder / "model", max_position_embeddings=WINDOW, num_hidden_layers=4)

    @cached_property
    def ids(self) -> TokenIds:
        return np.array(self.model.encode(pico_text(60)))[:TARGET]

    def plan(self, case: Case) -> PlannedExport:
        """The sound export, written. ONNX has start tokens, which the others cannot hold."""
        if case.kind not in self._plans:
            outtype = case.outtype or ("f32" if case.format == "gguf" else None)
            plan = registry.converter(case.format).plan(Export(self.model, self.factors(case.format), outtype))
            plan.save(self.path(case), Silent())
            self._plans[case.kind] = plan
        return self._plans[case.kind]

    def factors(self, format_name: str) -> BoundFactors:
        n_hat = 4 if format_name == "onnx" else 0
        return self.model.bind(pico_factors(target=TARGET, original_max_position_embeddings=WINDOW, n_hat=n_hat))

    def path(self, case: Case) -> Path:
        ending = ".gguf" if case.format == "gguf" else ""
        return self.folder / f"{case.kind.replace(':', '-')}{ending}"

    def explained(self, case: Case) -> Explanation:
        """What is said of a copy with the fault in it."""
        plan, source = self.plan(case), self.path(case)
        self._count += 1
        room = self.folder / f"broken-{self._count}"
        room.mkdir()
        broken = copied(source, room)
        case.fault(broken)
        failed = [check for check in plan.check(broken) if check.status == "fail"]
        converter = registry.converter(case.format)
        with workplace_for(converter, broken, "auto") or nullcontext() as workplace:
            found = explain(Suspect(broken, converter, plan, failed, workplace), self.ids, threads=1)
        shutil.rmtree(room)
        return found


# -- what is put in beside the catalogues


def rope_in_config(**changes: Any) -> Fault:
    return rope(lambda data: data.update(changes))


def each_factor(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    return rope(lambda data: data.update({name: change(np.array(data[name])).tolist()}))


def other_type(**parameters: Any) -> Fault:
    """Another rescaling in config.json, in both spellings."""

    both = {
        "rope_scaling": {**parameters, "type": parameters["rope_type"]},
        "rope_parameters": {**parameters, "rope_theta": 10_000.0},
    }
    return config(**both)


def in_weights(endings: str | tuple[str, ...], change: Callable[[Any], Any]) -> Fault:
    """A change of every weight whose name ends so."""

    def edit(tensors: hf.Json) -> None:
        tensors.update({name: change(tensor) for name, tensor in tensors.items() if name.endswith(endings)})

    return weights(edit)


def swap_weights(one: str, other: str) -> Fault:
    def edit(tensors: hf.Json) -> None:
        tensors[one], tensors[other] = tensors[other], tensors[one]

    return weights(edit)


def out_of_pairs(weight: Any) -> Any:
    """`in_pairs` backwards."""
    return weight.unflatten(0, (-1, 8, 2)).transpose(1, 2).flatten(0, 2)


def bfloat16(array: np.ndarray) -> np.ndarray:
    return torch.from_numpy(array.copy()).bfloat16().double().numpy()


def both_sets(change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    def fault(folder: Path) -> None:
        for name in ("rope.long_factor", "rope.short_factor"):
            onnx.set_initializer(name, change)(folder)

    return fault


def of_catalogue(format_name: str, causes: Mapping[str, str | tuple[str, str]], outtype: str = "") -> Iterator[Case]:
    """Faults of a format's catalogue, by name."""
    catalogue: dict[str, tuple[Any, str]] = {"hf": hf.FAULTS, "gguf": gguf.CATALOGUE, "onnx": onnx.FAULTS}[format_name]
    for name, named in causes.items():
        cause, where = (named, "") if isinstance(named, str) else named
        fault = gguf.in_file(catalogue[name][0]) if format_name == "gguf" else catalogue[name][0]
        yield Case(format_name, name, fault, cause, where, outtype)


def _hf() -> Iterator[Case]:
    yield from of_catalogue(
        "hf",
        {
            "no factors": "rope.plain",
            "wrong attention factor": "rope.attention_factor",
            "no original length": "rope.switch",
            "another original at the top": "rope.switch",
            "sets swapped": "rope.sets_exchanged",
            "a factor too few": "rope.factors",
            "a factor too few in one set": "rope.factors",
            "a factor of zero": "rope.factors",
            "no short set": "rope.factors",
            "one weight changed": ("weights", "layer 1"),
            "weights of two layers swapped": ("weights", "layer 0"),
        },
    )
    ones = np.ones_like
    more: list[tuple[str, Fault, str, str]] = [
        ("long set of ones", each_factor("long_factor", ones), "rope.plain", "512"),
        ("long set in reverse", each_factor("long_factor", lambda a: a[::-1]), "rope.factors", "512"),
        ("long set inverted", each_factor("long_factor", lambda a: 1 / a), "rope.factors", "512"),
        ("short set one pair too far", each_factor("short_factor", lambda a: np.roll(a, 1)), "rope.factors", "256"),
        ("long set of another run", each_factor("long_factor", lambda a: a * 1.3), "rope.factors", "512"),
        (
            "long set in both places",
            rope(lambda data: data.update(short_factor=data["long_factor"])),
            "rope.switch",
            "256",
        ),
        (
            "short set in both places",
            rope(lambda data: data.update(long_factor=data["short_factor"])),
            "rope.switch",
            "512",
        ),
        ("attention factor squared", rope_in_config(attention_factor=1.125), "rope.attention_factor", ""),
        ("attention factor of no formula", rope_in_config(attention_factor=1.31), "rope.attention_factor", ""),
        ("theta 500,000", rope_in_config(rope_theta=5e5), "rope.theta", ""),
        ("theta of no known model", rope_in_config(rope_theta=31_415.0), "rope.theta", ""),
        ("linear scaling instead", other_type(rope_type="linear", factor=2.0), "rope.factors", ""),
        ("rows of q and k interleaved", in_weights(("q_proj.weight", "k_proj.weight"), in_pairs), "rope.layout", ""),
        (
            "rows of q and k taken apart",
            in_weights(("q_proj.weight", "k_proj.weight"), out_of_pairs),
            "rope.layout",
            "",
        ),
        ("another epsilon", config(rms_norm_eps=1e-1), "settings", ""),
        ("another activation", config(hidden_act="gelu"), "settings", ""),
        ("embeddings tied", config(tie_word_embeddings=True), "settings", ""),
        ("a layer fewer", config(num_hidden_layers=3), "settings", ""),
        (
            "k of layer 2 scaled",
            in_weights("layers.2.self_attn.k_proj.weight", lambda w: w * 1.05),
            "weights",
            "layer 2",
        ),
        ("v of layer 3 negated", in_weights("layers.3.self_attn.v_proj.weight", lambda w: -w), "weights", "layer 3"),
        ("final norm doubled", in_weights("model.norm.weight", lambda w: w * 2), "weights", "head"),
        ("embeddings scaled", in_weights("embed_tokens.weight", lambda w: w * 8), "weights", "embeddings"),
        (
            "gate and up exchanged",
            swap_weights("model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"),
            "weights",
            "layer 1",
        ),
        ("a weight of NaN", in_weights("layers.1.mlp.up_proj.weight", lambda w: w / 0), "weights", "layer 1"),
        ("a vocabulary of another size", config(vocab_size=385), "settings", ""),
    ]
    for name, fault, cause, where in more:
        yield Case("hf", name, fault, cause, where)


def _gguf() -> Iterator[Case]:
    yield from of_catalogue(
        "gguf",
        {
            "no original length": "rope.switch",
            "wrong original length": "rope.switch",
            "no attention factor": "rope.attention_factor",
            "wrong attention factor": "rope.attention_factor",
            "stale scaling factor": "rope.factors",
            "another theta": "rope.theta",
            "half of the head rotated": "rope.dimensions",
            "another number of kv heads": "settings",
            "another epsilon": "settings",
            "no factors": "rope.plain",
            "one set only": ("rope.plain", "256"),
            "sets exchanged": "rope.sets_exchanged",
            "factors in reverse": "rope.factors",
            "inverse factors": "rope.factors",
            "factors in f16": "rope.factors",
            "too few factors": "rope.factors",
            "rope_freqs beside them": "rope.factors",
            "q and k not interleaved": "rope.layout",
            "q and k interleaved twice": "rope.layout",
            "a missing tensor": "weights",
            "gate and up exchanged": ("weights", "layer 1"),
            "layers exchanged": ("weights", "layer 0"),
            "a transposed matrix": "weights",
            "one weight changed": ("weights", "layer 1"),
            "a non-finite weight": ("weights", "layer 1"),
            "another norm": ("weights", "head"),
            "another end of text": "files",
        },
    )
    more: list[tuple[str, gguf.Fault, str, str]] = [
        ("long set of ones", gguf.edit(gguf.LONG, np.ones_like), "rope.plain", "512"),
        ("long set scaled", gguf.edit(gguf.LONG, lambda a: a * np.float32(1.5)), "rope.factors", "512"),
        (
            "short set where the long one belongs",
            gguf.edit(gguf.LONG, lambda a: a ** np.float32(0.25)),
            "rope.switch",
            "",
        ),
        ("attention factor squared", gguf.set_key("rope.scaling.attn_factor", f32(1.125)), "rope.attention_factor", ""),
        ("theta 1,000,000", gguf.set_key("rope.freq_base", f32(1e6)), "rope.theta", ""),
        ("k of layer 2 scaled", gguf.edit("blk.2.attn_k.weight", lambda a: a * np.float32(1.05)), "weights", "layer 2"),
        ("yarn", gguf.set_key("rope.scaling.type", text("yarn")), "rope.factors", ""),
        ("another context", gguf.set_key("context_length", u32(WINDOW)), "settings", ""),
    ]
    for name, fault, cause, where in more:
        yield Case("gguf", name, gguf.in_file(fault), cause, where)


def _onnx() -> Iterator[Case]:
    yield from of_catalogue(
        "onnx",
        {
            "factors dropped": "rope.factors",
            "long factors all one": "rope.plain",
            "short factors scaled": "rope.factors",
            "short set baked": "rope.switch",
            "long set baked": "rope.switch",
            "switch inverted": "rope.sets_exchanged",
            "switch off by one": "rope.switch",
            "original window off by one": "rope.switch",
            "total length ignored": "rope.switch",
            "attention factor missing": "rope.attention_factor",
            "sin is NaN at far positions": "graph",
            "cos and sin swapped": ("graph", "layer 0"),
            "another theta": "rope.theta",
            "n_hat off by one": "rope.n_hat",
            "n_hat ignored": "rope.n_hat",
            "one layer not rotated": ("graph", "layer 0"),
            "pairs interleaved": ("graph", "layer 0"),
            "attention scale": ("graph", "layer 0"),
            "norm epsilon": ("graph", "head"),
            "caches of two layers swapped": "cache",
            "cache names swapped": "graph",
            "external data missing": "loads",
            "external data at another place": ("weights", "layer 0"),
            "weights of two layers swapped": ("weights", "layer 0"),
            "one bit of one weight": "weights",
            "model file truncated": "loads",
            "metadata of another export": "files",
        },
    )
    more: list[tuple[str, Fault, str, str]] = [
        ("both sets of ones", both_sets(np.ones_like), "rope.plain", ""),
        ("mask ignored", onnx.on_graph(onnx.unmask), "padding", ""),
        ("rows of a batch mixed", onnx.on_graph(onnx.mix_rows), "padding", ""),
        ("frequencies in bfloat16", onnx.set_initializer("rope.inv_freq", bfloat16), "rope.precision", ""),
        ("long set in reverse", onnx.set_initializer("rope.long_factor", lambda a: a[::-1]), "rope.factors", "512"),
        ("long set inverted", onnx.set_initializer("rope.long_factor", lambda a: 1 / a), "rope.factors", "512"),
        (
            "short set one pair too far",
            onnx.set_initializer("rope.short_factor", lambda a: np.roll(a, 1)),
            "rope.factors",
            "256",
        ),
        (
            "attention factor squared",
            onnx.set_initializer("rope.attention_factor", lambda a: a**2),
            "rope.attention_factor",
            "",
        ),
        (
            "attention factor of no formula",
            onnx.set_initializer("rope.attention_factor", lambda a: a * 1.2),
            "rope.attention_factor",
            "",
        ),
    ]
    for name, fault, cause, where in more:
        yield Case("onnx", name, fault, cause, where)


def _rounded() -> Iterator[Case]:
    """Faults of the rotation under the rounding of weights."""
    of_gguf = {
        "no factors": "rope.plain",
        "wrong attention factor": "rope.attention_factor",
        "sets exchanged": "rope.sets_exchanged",
        "another theta": "rope.theta",
        "factors in reverse": "rope.factors",
    }
    for outtype in ("q8_0", "q4_0"):
        yield from of_catalogue("gguf", of_gguf, outtype)
    yield from of_catalogue("gguf", {"gate and up exchanged": "weights"}, "q8_0")
    of_onnx = {"attention factor missing": "rope.attention_factor", "short set baked": "rope.switch"}
    yield from of_catalogue("onnx", of_onnx, "int8")
    yield from of_catalogue("hf", {"no factors": "rope.plain", "sets swapped": "rope.sets_exchanged"}, "bf16")


CASES = (*_hf(), *_gguf(), *_onnx(), *_rounded())

# -- drawn by chance: numbers and tensors that no list of known mistakes holds

_MATRICES = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")


def drawn_cases(seed: int) -> Iterator[Case]:
    """One fault of each kind with its numbers and places drawn, in transformers, and of the rotation in llama.cpp, too."""
    rng = np.random.default_rng(seed)
    layer, matrix, scale = int(rng.integers(4)), str(rng.choice(_MATRICES)), float(rng.uniform(1.05, 1.5))
    ending = f"layers.{layer}.{matrix}.weight"
    scaled = in_weights(ending, lambda weight: weight * scale)
    yield Case("hf", f"{ending} × {scale:.3f}", scaled, "weights", f"layer {layer}")
    rows = torch.from_numpy(rng.permutation(64))
    where = f"layers.{(layer + 1) % 4}.mlp.down_proj.weight"
    mixed = in_weights(where, lambda weight: weight[rows])
    yield Case("hf", f"rows of {where} mixed", mixed, "weights", f"layer {(layer + 1) % 4}")
    theta, attention = float(np.exp(rng.uniform(np.log(2e3), np.log(5e6)))), float(rng.uniform(0.7, 1.6))
    yield Case("hf", f"theta {theta:.0f}", rope_in_config(rope_theta=theta), "rope.theta")
    yield Case("gguf", f"theta {theta:.0f}", gguf.in_file(gguf.set_key("rope.freq_base", f32(theta))), "rope.theta")
    name = f"attention factor {attention:.4f}"
    yield Case("hf", name, rope_in_config(attention_factor=attention), "rope.attention_factor")
    key = gguf.set_key("rope.scaling.attn_factor", f32(attention))
    yield Case("gguf", name, gguf.in_file(key), "rope.attention_factor")
    noise = np.exp(rng.normal(0.0, 0.2, 8))
    yield Case("hf", "long set with noise", each_factor("long_factor", lambda a: a * noise), "rope.factors", "512")
    shuffled = gguf.edit(gguf.SHORT, lambda a: a[rng.permutation(8)])
    yield Case("gguf", "short set shuffled", gguf.in_file(shuffled), "rope.factors", "256")
    original = int(rng.integers(WINDOW + 2, TARGET - 1))
    moved = change_json("config.json", lambda data: _set_original(data, original))
    yield Case("hf", f"original window {original}", moved, "rope.switch")


def _set_original(data: hf.Json, original: int) -> None:
    for place in (data, data["rope_scaling"], data["rope_parameters"]):
        place["original_max_position_embeddings"] = original


DRAWN = tuple(case for seed in range(4) for case in drawn_cases(seed))
