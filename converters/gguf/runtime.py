"""llama.cpp as a source of logits: low-level calls, blocks of rows, one context for each window.

llama.cpp chooses the factor set once, when a context is made: the long one if n_ctx, rounded up to a multiple of 256,
is above the original window. So a set is chosen here by the size of the context, and a context lives for one window.

Attention is llama.cpp's fused one, as its users run it, wherever weights are rounded: long windows take half the time. It
moves KL by 4e-7 nats per token on SmolLM2, which is nothing beside f16 (4e-6) or 8 bits, and too much beside float32
(2e-10), where every step is computed by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from converters.gguf import native
from converters.gguf.container import GgufFile, aligned, first_part, type_name
from converters.sources import TensorSource
from longrope.errors import InputError, MissingRequirementError
from longrope.factors import BoundFactors, FactorSet
from longrope.provenance import usable_cpus
from longrope.sources import Hidden, Rows, Rule, Stop, never
from longrope.text import TokenIds

# llama.cpp rounds the size of a context up to a multiple of this.
CONTEXT_STEP = 256
KV_TYPES = {"f32": "F32", "f16": "F16"}
KvType = Literal["f32", "f16"]
# What llama.cpp calls the embeddings, the last one first where a model scales them, and what leaves each layer.
EMBEDDED = ("inp_scaled", "inp_embd", "embd")
LAYER_OUTPUT = "l_out-"


def context_size(tokens: int, factor_set: FactorSet, original: int | None) -> int:
    """The n_ctx for a window under one set, as llama.cpp rounds it.

    Args:
        tokens: of the window.
        factor_set: the set that is wanted.
        original: window before extension; None where there is one set or none, and any context will do.

    Raises:
        InputError: no context that holds the window uses that set.
    """
    needed = aligned(tokens, CONTEXT_STEP)
    if original is None:
        return needed
    if factor_set == "long":
        return max(needed, aligned(original + 1, CONTEXT_STEP))
    if needed > original:
        raise InputError(
            f"llama.cpp uses the short set only in contexts up to {original // CONTEXT_STEP * CONTEXT_STEP} tokens of "
            f"this model (n_ctx is rounded up to a multiple of {CONTEXT_STEP}, and the original window is {original}); "
            f"a window of {tokens} tokens gets a context of {needed} and the long set. Score it as long, or a shorter one"
        )
    return needed


class LlamaCppRuntime:
    """A GGUF file in llama.cpp (see `longrope.sources.Runtime`).

    Args:
        path: the file.
        factors: those in the file; None for a file without.
        max_length: longest window that will be asked for, in tokens.
        threads: None for all processors this process may use (llama.cpp's own choice is 4, whatever there is).
        kv: type of the key/value cache; f32 for parity, f16 is what users run.

    Raises:
        InputError: llama.cpp does not load the file.
    """

    rule: Rule = "per_context"

    def __init__(
        self,
        path: Path,
        factors: BoundFactors | None,
        *,
        max_length: int,
        threads: int | None = None,
        kv: KvType = "f32",
    ) -> None:
        self.name, self.factors, self.max_length = path.name, factors, max_length
        self.threads, self.kv = threads, kv
        with GgufFile(path) as file:
            self._is_rounded = {type_name(info.type) for info in file.tensors.values()} != {"f32"}
        self._stack = ExitStack()
        self._model = self._stack.enter_context(native.loaded_model(first_part(path)))
        library = native.llama()
        self.vocab_size = int(library.llama_vocab_n_tokens(library.llama_model_get_vocab(self._model)))

    def set_for(self, length: int) -> FactorSet:
        """The set of the smallest context that holds the window: the long one, if rounding passes the original window."""
        if self._original is None:
            return self.factors.set_for_length(length) if self.factors else "short"
        return "long" if aligned(length, CONTEXT_STEP) > self._original else "short"

    def logits(self, ids: TokenIds, factor_set: FactorSet, chunk: int) -> Iterator[Rows]:
        """Logits of one window [T] under one set, in blocks of `chunk` rows: [chunk, V] float32."""
        size = context_size(self._checked(ids), factor_set, self._original)
        with self._context(size, chunk) as context:
            for start in range(0, len(ids), chunk):
                yield self._decode(context, ids[start : start + chunk], start)

    def decode_logits(self, ids: TokenIds, prefill: int) -> Rows:
        """[T - prefill + 1, V] float32: rows prefill - 1 … T - 1, the last ones decoded one by one through the cache.

        The context is what a user of this length would allocate, so the set is the long one beyond the original window.
        """
        tokens = self._checked(ids)
        size = aligned(tokens, CONTEXT_STEP)
        batch = min(prefill, CONTEXT_STEP)
        with self._context(size, batch) as context:
            for start in range(0, prefill, batch):
                last = self._decode(context, ids[start : min(start + batch, prefill)], start)[-1:]
            rows = [self._decode(context, ids[at : at + 1], at) for at in range(prefill, tokens)]
        return np.concatenate([last, *rows])

    def tail_logits(self, ids: TokenIds, factor_set: FactorSet, first: int) -> Rows:
        """[T - first, V] float32: the rows of positions first … T - 1; llama.cpp computes the head for these only."""
        with self._context(context_size(self._checked(ids), factor_set, self._original), CONTEXT_STEP) as context:
            return np.concatenate(list(self._tail(context, ids, first)))

    def greedy(self, prompt: TokenIds, count: int, factor_set: FactorSet, stop: Stop = never) -> TokenIds:
        """At most `count` tokens after a prompt [T], each the likeliest, in a context that holds all of them."""
        room = self._checked(prompt) + count - 1  # the last token is written, never read
        written: list[int] = []
        with self._context(context_size(room, factor_set, self._original), CONTEXT_STEP) as context:
            *_, rows = self._tail(context, prompt, len(prompt) - 1)
            while True:
                written.append(int(rows[-1].argmax()))
                if len(written) == count or stop(written):
                    return np.asarray(written, dtype=np.int64)
                rows = self._decode(context, np.asarray(written[-1:]), len(prompt) + len(written) - 1)

    def hidden_states(self, ids: TokenIds, factor_set: FactorSet, keep: int) -> Hidden | None:
        """The residual stream of the first `keep` positions of a window; None where llama.cpp has no names for it.

        See `longrope.sources.Hidden`.
        """
        library, found = native.llama(), dict[str, Rows]()
        layers, width = library.llama_model_n_layer(self._model), library.llama_model_n_embd(self._model)
        reading = native.reading_callback(lambda name: name in EMBEDDED or name.startswith(LAYER_OUTPUT), found)
        size = context_size(self._checked(ids), factor_set, self._original)
        with self._context(size, keep, reading) as context:
            self._decode(context, ids[:keep], 0)
        embedded = next((name for name in EMBEDDED if name in found), "")
        names = [embedded, *(f"{LAYER_OUTPUT}{layer}" for layer in range(layers))]
        if any(name not in found or found[name].size != min(keep, len(ids)) * width for name in names):
            return None
        return np.stack([found[name].reshape(-1, width) for name in names])

    def close(self) -> None:
        """Free the model."""
        self._stack.close()

    def _tail(self, context: Any, ids: TokenIds, first: int) -> Iterator[Rows]:
        """Decode a prompt in batches; the rows of positions `first` and later, batch by batch."""
        for start in range(0, len(ids), CONTEXT_STEP):
            part = ids[start : start + CONTEXT_STEP]
            rows = self._decode(context, part, start, skip=max(first - start, 0))
            if len(rows):
                yield rows

    @property
    def _original(self) -> int | None:
        """The window where the sets change; None where they do not, so that any context will do."""
        if self.factors is None or self.factors.factor_sets == "single":
            return None
        return self.factors.original

    def _checked(self, ids: TokenIds) -> int:
        if len(ids) > self.max_length:
            raise InputError(f"{self.name} was opened for windows of up to {self.max_length} tokens, got {len(ids)}")
        return len(ids)

    @contextmanager
    def _context(self, size: int, batch: int, reading: Any = None) -> Iterator[Any]:
        library, params = native.llama(), self._context_params(size, batch)
        if reading is not None:
            params.cb_eval = reading
        context = library.llama_init_from_model(self._model, params)
        if not context:
            raise MissingRequirementError(f"{self.name}: no memory for a context of {size} tokens; use shorter windows")
        try:
            yield context
        finally:
            library.llama_free(context)

    def _context_params(self, size: int, batch: int) -> Any:
        library = native.llama()
        params = library.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = size, batch, batch
        fused = library.LLAMA_FLASH_ATTN_TYPE_AUTO if self._is_rounded else library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.flash_attn_type = fused
        params.type_k = params.type_v = getattr(library, f"GGML_TYPE_{KV_TYPES[self.kv]}")
        params.swa_full = True
        params.n_threads = params.n_threads_batch = self.threads or usable_cpus()
        return params

    def _decode(self, context: Any, ids: TokenIds, start: int, skip: int = 0) -> Rows:
        """Run one batch at positions start … and return its rows but the first `skip`, [len(ids) - skip, V]."""
        library = native.llama()
        batch = library.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for row, token in enumerate(ids):
                batch.token[row], batch.pos[row] = int(token), start + row
                batch.n_seq_id[row], batch.seq_id[row][0] = 1, 0
                batch.logits[row] = row >= skip
            if library.llama_decode(context, batch):
                raise native.failure(f"{self.name}: llama.cpp failed to decode {len(ids)} tokens at {start}")
        finally:
            library.llama_batch_free(batch)
        if skip >= len(ids):
            return np.empty((0, self.vocab_size), dtype=np.float32)
        address = library.llama_get_logits(context)
        rows: Rows = np.ctypeslib.as_array(address, (len(ids) - skip, self.vocab_size)).copy()
        return rows


class LlamaCppSource(TensorSource):
    """A GGUF file in llama.cpp, for the scorer; arguments and errors as of `LlamaCppRuntime`."""

    def __init__(
        self,
        path: Path,
        factors: BoundFactors | None,
        *,
        max_length: int,
        threads: int | None = None,
        kv: KvType = "f32",
    ) -> None:
        super().__init__(LlamaCppRuntime(path, factors, max_length=max_length, threads=threads, kv=kv))
