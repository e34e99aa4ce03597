"""Generate past the original window with a `dual` export: prefill again where the sets change.

    tokens 1 … L       short set, cache grows
    token  L + 1       cache dropped, the whole sequence goes in again under the long set
    tokens L + 2 …     long set, cache grows

A cached key keeps the set it was rotated under, and deeper keys and values came from states computed under it, so no
rotation of the cache can repair it; only a new prefill does. It happens once in the life of a sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from converters.onnx.readback import OnnxFile
from converters.onnx.runtime import prefill_prompt
from converters.onnx.session import OnnxSession
from longrope.errors import InputError
from longrope.text import TokenIds


class RefillingDecoder:
    """Decodes one sequence, right at every length.

    Args:
        path: an ONNX folder of this project.
        threads: None for one a core.

    Raises:
        InputError: not an ONNX artifact, or one without factors.

    Example:
        decoder = RefillingDecoder(Path("runs/demo/onnx"))
        ids = list(decoder.generate(prompt_ids, max_new_tokens=100))
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        factors = OnnxFile(path).factors()
        original = factors.original_max_position_embeddings if factors else None
        if original is None:
            raise InputError(f"{path}: expected an ONNX export with rescale factors, found none in its graph")
        self.original = original
        self.session = OnnxSession(path, threads)
        self.reset()

    def reset(self) -> None:
        """Forget the sequence."""
        self._ids: TokenIds = np.empty(0, dtype=np.int64)
        self._cache = self.session.empty_cache()
        self.refills = 0

    def append(self, ids: TokenIds) -> Tensor:
        """Add tokens to the sequence; returns the logits [V] that predict the next one."""
        before = len(self._ids)
        self._ids = np.concatenate((self._ids, np.asarray(ids, dtype=np.int64)))
        crosses = self.session.switches and 0 < before <= self.original < len(self._ids)
        self.refills += crosses
        if before == 0 or crosses:
            row, self._cache = prefill_prompt(self.session, self._ids)
            return torch.from_numpy(row)
        rows, self._cache = self.session.forward(self._ids[before:], before, self._cache, len(self._ids))
        return torch.from_numpy(rows[-1])

    def generate(self, ids: TokenIds, max_new_tokens: int) -> Iterator[int]:
        """Greedy continuation of `ids`, token by token."""
        row = self.append(ids)
        for _ in range(max_new_tokens):
            token = int(row.argmax())
            yield token
            row = self.append(np.array([token]))
