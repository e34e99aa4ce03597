"""GGUF files whose RoPE is written as other tools write it, and how far logits are from llama.cpp's of such a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.gguf.container import TensorInfo, Value, f32, text, u32
from converters.gguf.runtime import LlamaCppSource
from longrope.checkpoint import Checkpoint, unscaled_factors
from longrope.factors import RescaleFactors
from longrope.modeling import TorchSource, build_model
from longrope.scoring import compare_windows
from tests.gguf_files import F32, TARGET, WINDOW, Tensors, Values, holding, rewrite

FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
FACTORS = np.array([1, 2, 3, 3.2, 3.4, 3.6, 3.8, 4], np.float32)
ONES = RescaleFactors((1.0,) * 8, (1.0,) * 8, attention_factor=1.0, target_length=TARGET)
Keys = dict[str, Value]

# What a file says of its RoPE: keys under `llama.rope.`, tensors that hold FACTORS.
LONGROPE: Keys = {"scaling.type": text("longrope"), "scaling.original_context_length": u32(64)}
SETS = (LONG, SHORT)
VARIANTS: dict[str, tuple[Keys, tuple[str, ...]]] = {
    "plain": ({}, ()),
    "Llama 3.1": ({}, (FREQS,)),
    "the old key": ({"scale_linear": f32(4.0)}, ()),
    "a factor without a type": ({"scaling.factor": f32(4.0)}, ()),
    "a factor of 0": ({"scaling.factor": f32(0.0)}, ()),
    "linear": ({"scaling.type": text("linear"), "scaling.factor": f32(4.0)}, ()),
    "linear on Llama 3.1": ({"scaling.factor": f32(2.0)}, (FREQS,)),
    "yarn": (
        {
            "scaling.type": text("yarn"),
            "scaling.factor": f32(4.0),
            "scaling.original_context_length": u32(64),
            "scaling.yarn_beta_fast": f32(16.0),
        },
        (),
    ),
    "none": ({"scaling.type": text("none"), "scaling.factor": f32(4.0)}, ()),
    "an attention factor without a type": ({"scaling.attn_factor": f32(1.5)}, ()),
    "longrope": ({**LONGROPE, "scaling.attn_factor": f32(1.15)}, SETS),
    "longrope without an attention factor": (LONGROPE, SETS),
    "longrope with a factor on top": ({**LONGROPE, "scaling.factor": f32(4.0)}, SETS),
}
# What has no counterpart in transformers, or what llama.cpp does not load, and the reason that is given.
REFUSED: dict[str, tuple[Keys, tuple[str, ...], str]] = {
    "another type": ({"scaling.type": text("ntk")}, (), "expected one of none, linear, yarn, longrope"),
    "YaRN's own overrides": (
        {"scaling.type": text("yarn"), "scaling.factor": f32(4.0), "scaling.yarn_ext_factor": f32(0.5)},
        (),
        "yarn_ext_factor changes YaRN",
    ),
    "yarn beside a tensor": ({"scaling.type": text("yarn"), "scaling.factor": f32(4.0)}, (FREQS,), "by yarn and by a"),
    "both kinds of tensors": (LONGROPE, (*SETS, FREQS), "expected one of them"),
    "sets without their type": ({}, SETS, "llama.cpp does not load rope_factors_long.weight beside"),
}


def written(plain: Path, path: Path, keys: Keys, tensors: tuple[str, ...]) -> Path:
    """The file with these keys and tensors; the tensors come first, as llama.cpp's converter writes them."""

    def change(values: Values, contents: Tensors) -> None:
        values |= {f"llama.rope.{name}": value for name, value in keys.items()}
        own = dict(contents)
        contents.clear()
        contents |= {name: holding(TensorInfo(name, FACTORS.shape, F32), FACTORS) for name in tensors}
        contents |= own

    return rewrite(plain, path, change)


@dataclass
class Logits:
    """The largest difference of a logit to llama.cpp's of a source file, over a window longer than the original one."""

    path: Path

    def __post_init__(self) -> None:
        self.ids = np.random.default_rng(0).integers(0, 384, WINDOW)

    def of_file(self, other: Path) -> float:
        return self._difference(LlamaCppSource(other, None, max_length=WINDOW, threads=1))

    def of_model(self, model: Checkpoint) -> float:
        factors = unscaled_factors(model, TARGET)
        return self._difference(TorchSource(build_model(model, factors), factors))

    def _difference(self, source: Any) -> float:
        reference = LlamaCppSource(self.path, None, max_length=WINDOW, threads=1)
        score = compare_windows(reference, {"a": source}, [self.ids], factor_set="long")["a"]
        reference.close()
        return score.max_logit_diff
