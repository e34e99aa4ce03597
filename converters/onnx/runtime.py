"""The artifact in onnxruntime, as a source of logits: every window goes through the KV cache in chunks.

    ids [T] ─► chunk ─► session ─► logits [t,V]
                          ▲  │ present
                          └──┘ (stays in onnxruntime's memory)

With `dual` sets, each chunk is told the length of the whole window (the input `rope_total_length`), or the first chunks
would be turned by the short set.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from converters.onnx.readback import locate
from converters.onnx.rope_graph import TOTAL_LENGTH
from longrope.errors import InputError
from longrope.factors import FactorSet, RescaleFactors
from longrope.scoring import Rule
from longrope.text import TokenIds

# A prompt is prefilled in chunks of this size: attention scores take heads × chunk × keys floats.
PREFILL_TOKENS = 512
Cache = dict[str, Any]


class OnnxSource:
    """An ONNX artifact in onnxruntime (see `longrope.scoring.LogitSource`).

    Args:
        path: the folder or model file.
        factors: what it carries; the original window decides how a set is pinned.
        threads: None for one a core.

    Raises:
        InputError: onnxruntime does not open it.
    """

    rule: Rule = "per_forward"

    def __init__(self, path: Path, factors: RescaleFactors | None, *, threads: int | None = None) -> None:
        self.name = "onnxruntime"
        self.factors = factors
        self.session = open_session(path, threads)
        self._past = [item for item in self.session.get_inputs() if item.name.startswith("past_key_values.")]
        self._outputs = [item.name for item in self.session.get_outputs()]
        self._types = {item.name: item.type for item in self.session.get_inputs()}
        self._switches = any(item.name == TOTAL_LENGTH for item in self.session.get_overridable_initializers())
        self.vocab_size = int(self.session.get_outputs()[0].shape[-1])

    def set_for(self, length: int) -> FactorSet:
        return self.factors.set_for_length(length) if self.factors else "short"

    def logits(self, ids: TokenIds, factor_set: FactorSet, chunk: int) -> Iterator[Tensor]:
        """Logits of one window [T] under one set, in blocks of `chunk` rows: [chunk, V] float32."""
        total = self._pinned_length(len(ids), factor_set)
        cache = self._empty_cache()
        for start in range(0, len(ids), chunk):
            rows, cache = self._forward(ids[start : start + chunk], start, cache, total)
            yield rows

    def decode_logits(self, ids: TokenIds, prefill: int) -> Tensor:
        """Logits as a generating user gets them: a prompt of `prefill` tokens, then one by one through the cache.

        The prompt is told its own length, which gives what one pass over it gives; decoding is told nothing.

        Returns:
            [T - prefill + 1, V] float32: the rows of positions prefill - 1 … T - 1.
        """
        cache, rows = self._empty_cache(), torch.empty(0)
        for start in range(0, prefill, PREFILL_TOKENS):
            part = ids[start : min(start + PREFILL_TOKENS, prefill)]
            rows, cache = self._forward(part, start, cache, prefill)
        found = [rows[-1:]]
        for position in range(prefill, len(ids)):
            rows, cache = self._forward(ids[position : position + 1], position, cache, 0)
            found.append(rows)
        return torch.cat(found)

    def close(self) -> None:
        """Free the session."""
        self.session = None

    def _pinned_length(self, length: int, factor_set: FactorSet) -> int:
        """A total length that makes the graph use `factor_set`."""
        if self.factors is None or not self._switches:
            return 0
        original = self.factors.original
        return max(length, original + 1) if factor_set == "long" else min(length, original)

    def _forward(self, ids: TokenIds, start: int, cache: Cache, total: int) -> tuple[Tensor, Cache]:
        """One pass over ids [t] at positions start … start + t - 1: logits [t, V] and the grown cache."""
        feeds: dict[str, Any] = {
            "input_ids": np.asarray(ids, dtype=np.int64)[None],
            "attention_mask": np.ones((1, start + len(ids)), dtype=np.int64),
            "position_ids": np.arange(start, start + len(ids), dtype=np.int64)[None],
        }
        if self._switches:
            feeds[TOTAL_LENGTH] = np.array([total], dtype=np.int64)
        values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
        results = self.session.run_with_ort_values(self._outputs, {**values, **cache})
        named = dict(zip(self._outputs, results, strict=True))
        grown = {item.name: named[item.name.replace("past_key_values", "present")] for item in self._past}
        return torch.from_numpy(named["logits"].numpy()[0]).float(), grown

    def _empty_cache(self) -> Cache:
        return {
            item.name: ort.OrtValue.ortvalue_from_numpy(
                np.zeros((1, item.shape[1], 0, item.shape[3]), dtype=_numpy_type(item.type))
            )
            for item in self._past
        }


def open_session(path: Path, threads: int | None = None) -> Any:
    """An onnxruntime session on the CPU. Raises InputError when onnxruntime refuses the model."""
    file = locate(path)
    if file is None:
        raise InputError(f"{path}: expected an ONNX model or a folder with one, found none")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  onnxruntime raises a class of its own for every status
        raise InputError(f"{file}: onnxruntime does not open it: {error}") from None


def _numpy_type(name: str) -> Any:
    return {"tensor(float)": np.float32, "tensor(float16)": np.float16}[name]
