"""The artifact in onnxruntime, as a source of logits: every window goes through the KV cache in chunks.

    ids [T] ─► chunk ─► session ─► logits [t,V]
                          ▲  │ present
                          └──┘ (stays in onnxruntime's memory)

With `dual` sets, each chunk is given the length of the whole window (the input `rope_total_length`), or the first
chunks would be rotated under the short set.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from converters.onnx.names import layer_outputs, locate
from converters.onnx.session import Cache, OnnxSession
from converters.sources import TensorSource
from longrope.factors import BoundFactors, FactorSet
from longrope.sources import Hidden, Rows, Rule, Stop, never
from longrope.text import TokenIds

# A prompt is prefilled in chunks of this size: attention scores take heads × chunk × keys floats.
PREFILL_TOKENS = 512


class OnnxRuntime:
    """An ONNX artifact in onnxruntime (see `longrope.sources.Runtime`).

    Args:
        path: the folder or model file.
        factors: what it carries; the original window decides how a set is pinned.
        threads: None for one a core.

    Raises:
        InputError: onnxruntime does not open it.
    """

    rule: Rule = "per_forward"

    def __init__(self, path: Path, factors: BoundFactors | None, *, threads: int | None = None) -> None:
        self.name = "onnxruntime"
        self.path, self.threads, self.factors = path, threads, factors
        self.session = OnnxSession(path, threads)
        self.vocab_size = self.session.vocab_size

    def set_for(self, length: int) -> FactorSet:
        """The set of a fresh window whose length the graph is given."""
        return self.factors.set_for_length(length) if self.factors else "short"

    def logits(self, ids: TokenIds, factor_set: FactorSet, chunk: int) -> Iterator[Rows]:
        """Logits of one window [T] under one set, in blocks of `chunk` rows: [chunk, V] float32."""
        total = self._pinned_length(len(ids), factor_set)
        cache = self.session.empty_cache()
        for start in range(0, len(ids), chunk):
            rows, cache = self.session.forward(ids[start : start + chunk], start, cache, total)
            yield rows

    def decode_logits(self, ids: TokenIds, prefill: int) -> Rows:
        """Logits as a generating user gets them: a prompt of `prefill` tokens, then one by one through the cache.

        The prompt goes in with its own length, which gives what one pass over it gives; decoding goes without.

        Returns:
            [T - prefill + 1, V] float32: the rows of positions prefill - 1 … T - 1.
        """
        row, cache = prefill_prompt(self.session, ids[:prefill])
        found = [row]
        for position in range(prefill, len(ids)):
            rows, cache = self.session.forward(ids[position : position + 1], position, cache)
            found.append(rows[-1])
        return np.stack(found)

    def tail_logits(self, ids: TokenIds, factor_set: FactorSet, first: int) -> Rows:
        """[T - first, V] float32: the rows of positions first … T - 1; the graph's head computes hardly any other."""
        kept = [rows for rows, _, _ in self._passes(ids, factor_set, first)]
        return np.concatenate([rows for rows in kept if len(rows)])

    def greedy(self, prompt: TokenIds, count: int, factor_set: FactorSet, stop: Stop = never) -> TokenIds:
        """At most `count` tokens after a prompt [T], each the likeliest, through the cache, all under one set."""
        *_, (rows, cache, total) = self._passes(prompt, factor_set, len(prompt) - 1)
        written = [int(rows[-1].argmax())]
        while len(written) < count and not stop(written):
            position = len(prompt) + len(written) - 1
            rows, cache = self.session.forward(np.asarray(written[-1:]), position, cache, total)
            written.append(int(rows[-1].argmax()))
        return np.asarray(written, dtype=np.int64)

    def padded_batch(self, short: TokenIds, long: TokenIds) -> Rows:
        """Two texts in one pass, the shorter one padded in front: both texts' rows, one under the other, [T + T', V]."""
        padding = len(long) - len(short)
        ids = np.stack([np.concatenate([np.zeros(padding, dtype=np.int64), short]), np.asarray(long)])
        mask = np.ones_like(ids)
        mask[0, :padding] = 0
        positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
        rows = self.session.run({"input_ids": ids, "attention_mask": mask, "position_ids": positions})
        return np.concatenate([rows[0, padding:], rows[1]]).astype(np.float32, copy=False)

    def hidden_states(self, ids: TokenIds, factor_set: FactorSet, keep: int) -> Hidden | None:
        """The residual stream of the first `keep` positions of a window; None where the graph has other names for it.

        See `longrope.sources.Hidden`. The graph is opened again with these values among its outputs.
        """
        names = residual_names(self.path)
        if not names:
            return None
        watched = OnnxSession(self.path, self.threads, names)
        return np.stack(watched.values(names, ids[:keep], self._pinned_length(len(ids), factor_set)))

    def _passes(self, ids: TokenIds, factor_set: FactorSet, first: int) -> Iterator[tuple[Rows, Cache, int]]:
        """A prompt in chunks through the cache: each chunk's rows from position `first` on, the cache, the length given."""
        total, cache = self._pinned_length(len(ids), factor_set), self.session.empty_cache()
        for start in range(0, len(ids), PREFILL_TOKENS):
            chunk = ids[start : start + PREFILL_TOKENS]
            wanted = max(start + len(chunk) - max(first, start), 0)
            rows, cache = self.session.forward(chunk, start, cache, total, logits_to_keep=max(wanted, 1))
            yield rows[len(rows) - wanted :], cache, total

    def close(self) -> None:
        """Free the session."""
        del self.session

    def _pinned_length(self, length: int, factor_set: FactorSet) -> int:
        """A total length that makes the graph use `factor_set`."""
        if self.factors is None or not self.session.switches:
            return 0
        original = self.factors.original
        return max(length, original + 1) if factor_set == "long" else min(length, original)


class OnnxSource(TensorSource):
    """An ONNX artifact in onnxruntime, for the scorer; arguments and errors as of `OnnxRuntime`."""

    def __init__(self, path: Path, factors: BoundFactors | None, *, threads: int | None = None) -> None:
        runtime = OnnxRuntime(path, factors, threads=threads)
        super().__init__(runtime)
        self.session = runtime.session


def residual_names(path: Path) -> list[str]:
    """What a graph of this exporter calls the residual stream before its first layer and behind each; empty for others."""
    import onnx

    file = locate(path)
    nodes = [] if file is None else onnx.load(file, load_external_data=False).graph.node
    adding = {node.name: node for node in nodes if node.op_type == "Add"}
    found = [name for layer in range(len(adding)) for name in layer_outputs(layer) if name in adding]
    first = adding.get("model.layers.0.attention_residual") or adding.get("model.layers.0.residual")
    return [] if first is None or not found else [first.input[0], *(adding[name].output[0] for name in found)]


def prefill_prompt(session: OnnxSession, ids: TokenIds) -> tuple[Rows, Cache]:
    """Fill an empty cache with a prompt [T], in chunks: the last row of logits [V], and the cache."""
    cache, rows = session.empty_cache(), np.empty(0, dtype=np.float32)
    for start in range(0, len(ids), PREFILL_TOKENS):
        rows, cache = session.forward(ids[start : start + PREFILL_TOKENS], start, cache, len(ids), logits_to_keep=1)
    return rows[-1], cache
