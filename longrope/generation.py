"""Generating across the original window with two factor sets in transformers.

transformers chooses a set anew in every forward pass, by the longest sequence of the batch, while keys in its KV cache stay
turned by the set of their own pass. So the pass that crosses the window has to read the whole sequence again:

    tokens  1 … L     short set, through the cache
    token   L + 1     cache dropped, everything read again with the long set
    tokens  L + 2 …   long set, through the new cache
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from longrope.errors import UnsupportedError
from longrope.hf_config import from_config
from longrope.modeling import text_config

# Options of `generate` whose passes are not whole sequences, or that take tokens back, and what to do instead.
REFUSED = {
    "assistant_model": "leave it out: assisted generation takes tokens back out of the cache",
    "prompt_lookup_num_tokens": "leave it out: assisted generation takes tokens back out of the cache",
    "prefill_chunk_size": "leave it out: a prompt in chunks is read with several sets",
    "inputs_embeds": "pass input_ids: the sequence is read again from its tokens",
}


def generate_across(model: Any, inputs: Tensor | None = None, **options: Any) -> Any:
    """`model.generate(inputs, **options)` that is right across the original window of a model with two factor sets.

    Every step gives the logits that a pass over the whole sequence gives. One step reads the sequence again: that in which
    the longest row of the batch passes the original window. As in every pass of transformers, rows of one batch share
    a set; where shorter rows are to keep the short set, pass them on their own. Sampling, beams, streamers and stopping
    criteria work as in `generate`. A model with a single set, or with plain RoPE, is left to `generate`.

    Args:
        model: transformers' causal model, from `build_model` or `from_pretrained`. Its `prepare_inputs_for_generation` is
            replaced while this runs: one call at a time.
        inputs: token ids [B, T]; left out where `options` has `input_ids`.
        options: of `generate`, such as attention_mask [B, T] or max_new_tokens.

    Returns:
        What `generate` returns.

    Raises:
        UnsupportedError: an option under which tokens are read in parts or taken back (`REFUSED`).
    """
    factors = from_config(text_config(model).to_dict())
    original = factors.original_max_position_embeddings if factors is not None else None
    if factors is None or original is None or factors.factor_sets == "single":
        return model.generate(inputs, **options)
    for name, advice in REFUSED.items():
        if options.get(name) is not None:
            raise UnsupportedError(f"generate_across: {name} mixes the factor sets; {advice}")
    with _read_again(model, original):
        return model.generate(inputs, **options)


@contextmanager
def _read_again(model: Any, original: int) -> Iterator[None]:
    """Meanwhile the model drops its cache in the pass that crosses the window."""
    prepare = model.prepare_inputs_for_generation

    @functools.wraps(prepare)
    def prepare_across(input_ids: Tensor, *arguments: Any, **named: Any) -> Any:
        name = "cache" if "cache" in named else "past_key_values"  # transformers renamed it
        cache = named.get(name)
        past = cache.get_seq_length() if cache is not None else 0
        mask = named.get("attention_mask")
        if past and _longest(mask, past) <= original < _longest(mask, input_ids.shape[1]):
            named |= {name: None, "next_sequence_length": None}
        return prepare(input_ids, *arguments, **named)

    model.prepare_inputs_for_generation = prepare_across
    try:
        yield
    finally:
        del model.prepare_inputs_for_generation


def _longest(mask: Tensor | None, tokens: int) -> int:
    """Tokens of the longest row, of so many with padding."""
    return tokens if mask is None else int(mask[:, :tokens].sum(-1).max())
