"""What every format that is a folder with a config.json shares: the files beside the weights, and how they are checked."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from converters.base import Check
from longrope.checkpoint import Checkpoint
from longrope.factors import BoundFactors
from longrope.rope import attention_factor_formula

COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)


def copy_files(checkpoint: Checkpoint, folder: Path, names: Sequence[str] = COMPANIONS) -> None:
    """Copy those of a checkpoint's files that are there, byte for byte."""
    for name in names:
        if (checkpoint.path / name).is_file():
            shutil.copyfile(checkpoint.path / name, folder / name)


def config_checks(config: Mapping[str, Any], expected: BoundFactors, *, keys: str, rope: str) -> Iterator[Check]:
    """Compare every spelling of the rope parameters in a config.json with the factors.

    Args:
        config: the parsed file.
        expected: what it must say.
        keys: what the ids of checks of top-level keys begin with.
        rope: what the ids of checks inside `rope_parameters` and `rope_scaling` begin with.
    """
    messages = {
        "max_position_embeddings": (expected.target, "runtimes would cut sequences at another length"),
        "original_max_position_embeddings": (
            expected.original,
            "without it the long set is never used, or used from another length on",
        ),
        "rope_theta": (expected.rope_theta, "engines that read the v4 spelling fall back to 10000"),
    }
    for key, (wanted, message) in messages.items():
        yield Check.equal(f"{keys}.{key}", wanted, config.get(key), message)
    for spelling in ("rope_parameters", "rope_scaling"):
        yield from _spelling_checks(f"{rope}.{spelling}", spelling, config.get(spelling) or {}, expected)


def _spelling_checks(id: str, spelling: str, rope: Mapping[str, Any], expected: BoundFactors) -> Iterator[Check]:
    if not rope:
        message = f"config.json has no {spelling}: engines that read only this spelling run plain RoPE, silently"
        yield Check(id, "fail", "longrope", None, message)
        return
    attention = rope.get("attention_factor")
    if attention is None:
        attention = attention_factor_formula(rope.get("factor") or expected.length_scale, expected.original)
    yield Check.equal(f"{id}.rope_type", "longrope", rope.get("rope_type"), "the factors are ignored")
    yield Check.equal(
        f"{id}.original",
        expected.original,
        rope.get("original_max_position_embeddings"),
        "the switch between the sets sits at another length",
    )
    yield _close(f"{id}.factor", expected.length_scale, rope.get("factor"), "the attention factor follows from it")
    yield _close(
        f"{id}.attention_factor",
        expected.effective_attention_factor,
        attention,
        "cos and sin are scaled by another number: perplexity may even fall, the model is another one",
    )
    yield Check.equal_factors(f"{id}.short_factor", expected.short_factor, rope.get("short_factor"))
    yield Check.equal_factors(f"{id}.long_factor", expected.long_factor, rope.get("long_factor"))
    if any(key in rope for key in ("short_mscale", "long_mscale", "mscale")):
        yield Check(f"{id}.mscale", "fail", None, "present", "some engines would apply mscale on top")


def _close(id: str, expected: float, actual: float | None, message: str) -> Check:
    ok = actual is not None and abs(actual - expected) <= 1e-6 * abs(expected)
    return Check(id, "pass" if ok else "fail", expected, actual, "" if ok else message)
