"""What can be said of a Hugging Face folder without its reference: fields that contradict, or that engines do not read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from converters.base import Check
from converters.companion_checks import files_check
from converters.folder import config_checks, tokenizer_config
from longrope.base_rope import LONGROPE
from longrope.checkpoint import Checkpoint
from longrope.errors import LongRopeError
from longrope.factors import RescaleFactors

_ORIGINAL = "original_max_position_embeddings"


def own_checks(artifact: Checkpoint, recorded: RescaleFactors | None) -> Iterator[Check]:
    """Checks of one folder, those that hold left out.

    Args:
        artifact: the folder.
        recorded: the factors.json that our exporter put into it.
    """
    config = artifact.config
    found = list(_of_record(artifact, recorded)) if recorded else list(_of_strangers(config))
    found += [_tokenizer_length(artifact), files_check("hf.files", artifact.path, artifact.whole_config)]
    yield from (check for check in found if check.status != "pass")


def _of_record(artifact: Checkpoint, recorded: RescaleFactors) -> Iterator[Check]:
    """config.json against the record beside it."""
    try:
        expected = artifact.bind_product(recorded, target=artifact.max_position_embeddings)
    except LongRopeError as error:
        yield Check("hf.config", "fail", "the record's model", "another", f"longrope.json does not fit: {error}")
        return
    yield from config_checks(artifact.config, expected, keys="hf.config", rope="hf")


def _of_strangers(config: Mapping[str, Any]) -> Iterator[Check]:
    """A rescaled RoPE that some engines do not see, or switch elsewhere; of one that was not written here."""
    new, old = (config.get(name) or {} for name in ("rope_parameters", "rope_scaling"))
    kind = str((new or old).get("rope_type", (new or old).get("type", "default")))
    is_longrope = kind in LONGROPE
    if kind != "default" and not old:
        message = "engines that read only the older spelling, as transformers 4 did, run plain RoPE, silently"
        yield Check("hf.rope_scaling", "fail" if is_longrope else "warn", kind, None, message)
    if is_longrope:
        yield from _switch(config, new or old)


def _switch(config: Mapping[str, Any], rope: Mapping[str, Any]) -> Iterator[Check]:
    top, nested = config.get(_ORIGINAL), rope.get(_ORIGINAL)
    if top is None:
        message = "without it at the top level vLLM and transformers 4 never use the long set, or refuse the model"
        yield Check(f"hf.config.{_ORIGINAL}", "fail" if nested is None else "warn", nested, None, message)
    elif nested not in (None, top):
        yield Check(
            "hf.rope_parameters.original", "fail", top, nested, "engines switch between the sets at another length"
        )


def _tokenizer_length(artifact: Checkpoint) -> Check:
    longest, window = tokenizer_config(artifact.path).get("model_max_length"), artifact.max_position_embeddings
    short = isinstance(longest, int | float) and longest < window
    message = "texts are cut, or warned of, below the model's window" if short else ""
    return Check("hf.tokenizer_config", "warn" if short else "pass", f"at least {window}", longest, message)
