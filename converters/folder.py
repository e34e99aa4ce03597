"""What every format that is a folder with a config.json shares: the files beside the weights, and how they are checked."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from converters.base import Check
from longrope.checkpoint import Checkpoint
from longrope.companion_files import checked_companion
from longrope.factors import BoundFactors
from longrope.files import write_json
from longrope.hf_config import FULL, SLIDING, extended_config
from longrope.reading import TEXT, Kind, check, list_of, own_file, read_object, read_text, record
from longrope.rope import attention_factor_formula
from longrope.tokenizer_files import TOKENIZER

# Rotary parameters with a check of their own, or without a meaning.
_PARTIAL = "partial_rotary_factor"
_CHECKED = ("type", "rope_type", "rope_theta", "factor", "attention_factor")
TOKENIZER_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
# What turns images, sound and video into tokens, where the language model is a part of such a model.
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "SYSTEM_PROMPT.txt",
)
GENERATION_CONFIG = "generation_config.json"
COMPANIONS = (*TOKENIZER_FILES, GENERATION_CONFIG)
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TEMPLATE, _NAMED_TEMPLATES = "chat_template.jinja", "additional_chat_templates/*.jinja"
# Types of what is read of tokenizer_config.json.
_TOKEN = Kind(
    "a string, or an object with a content",
    lambda value: TEXT.fits(value.get("content") if isinstance(value, dict) else value),
)
_NAMED = record({"name": TEXT, "template": TEXT})
_CONFIG = record(
    {},
    {
        **{f"{name}_token": _TOKEN.or_null() for name in ("bos", "eos", "unk", "pad", "sep", "mask")},
        "chat_template": Kind(
            "a string, or a list of templates with names",
            lambda value: isinstance(value, str | list),
            lambda value: list_of(_NAMED).parts(value) if isinstance(value, list) else iter(()),
        ).or_null(),
    },
)
# Terms that bind whoever passes the model on.
_TERMS = re.compile(r"[\w-]*(LICEN[CS]E|NOTICE|COPYING|USE[-_]POLICY)[\w-]*(\.(txt|md|rst|pdf))?", re.I)


def copy_files(checkpoint: Checkpoint, folder: Path, patterns: Sequence[str] = COMPANIONS) -> None:
    """Copy those of a checkpoint's files that are there, byte for byte, its tokenizer.json and its terms of use.

    Args:
        checkpoint: where from.
        folder: where to.
        patterns: names, or patterns of names, below the checkpoint's folder.

    Raises:
        InputError: a file is a link that leads out of the checkpoint, or is not what its name says.
    """
    _ = tokenizer_config(checkpoint.path)  # faults are said of the source, not of its copy
    shutil.copyfile(checkpoint.tokenizer_file, folder / TOKENIZER)
    for name in companions(checkpoint.path, patterns):
        file = checked_companion(checkpoint.path, name)
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, folder / name)


def companions(folder: Path, patterns: Sequence[str] = COMPANIONS) -> list[str]:
    """Names, relative to a model's folder, of its files that match, and of its terms of use."""
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    terms = [path for path in sorted(folder.iterdir()) if _TERMS.fullmatch(path.name)]
    return [path.relative_to(folder).as_posix() for path in (*found, *terms) if path.is_file()]


def chat_templates(folder: Path) -> dict[str, str]:
    """Chat templates by name, "default" the one used unasked: chat_template.jinja and additional_chat_templates/, or what
    tokenizer_config.json holds. Raises InputError for files that are no templates, or not the folder's own.
    """
    named = [path.relative_to(folder).as_posix() for path in sorted(folder.glob(_NAMED_TEMPLATES))]
    extra = {Path(name).stem: _template(folder, name) for name in named}
    if (folder / _TEMPLATE).is_file():
        return {"default": _template(folder, _TEMPLATE), **extra}
    template = tokenizer_config(folder).get("chat_template")
    if isinstance(template, list):
        return {entry["name"]: entry["template"] for entry in template}
    return {"default": template} if isinstance(template, str) else {}


def _template(folder: Path, name: str) -> str:
    checked_companion(folder, name)
    return read_text(folder, name)


def optional_object(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of a model's folder, empty when there is no such file. Raises InputError when it is something else."""
    file = own_file(folder, name)
    return read_object(file, non_finite=True) if file.is_file() else {}


def tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, empty when there is none. Raises InputError for fields of another type than they have."""
    found: dict[str, Any] = check(optional_object(folder, _TOKENIZER_CONFIG), _CONFIG, str(folder / _TOKENIZER_CONFIG))
    return found


def raise_limits(folder: Path, window: int, target: int) -> None:
    """Raise the tokenizer's own length limit to the new window, and that of generation where it was the old one.

    Args:
        folder: of the artifact.
        window: L in tokens, of the source.
        target: L' in tokens.
    """
    data = tokenizer_config(folder)
    if "model_max_length" in data:
        write_json(folder / _TOKENIZER_CONFIG, {**data, "model_max_length": target}, keep_non_finite=True)
    generation = optional_object(folder, GENERATION_CONFIG)
    if ends_at_the_window(generation, window):
        raised = {**generation, "max_length": max(target, generation["max_length"])}
        write_json(folder / GENERATION_CONFIG, raised, keep_non_finite=True)


def ends_at_the_window(generation: Mapping[str, Any], window: int) -> bool:
    """Whether a generation_config.json lets a text grow to the whole window and no further; a shorter one is a choice."""
    longest = generation.get("max_length")
    return isinstance(longest, int) and longest >= window


def config_checks(
    config: Mapping[str, Any], expected: BoundFactors, *, keys: str, rope: str, source: Mapping[str, Any] | None = None
) -> Iterator[Check]:
    """Compare every spelling of the rope parameters in a config.json with the factors.

    Args:
        config: the parsed file; of a multimodal model, its text part.
        expected: what it must say.
        keys: what the ids of checks of top-level keys begin with.
        rope: what the ids of checks inside `rope_parameters` and `rope_scaling` begin with.
        source: the configuration that was extended, whose other rotary parameters must still be there; None for `config`.
    """
    before = {**(source or config), "model_type": expected.model_type}
    wanted = extended_config(before, replace(expected, n_hat=0))
    messages = {
        "max_position_embeddings": "runtimes would cut sequences at another length",
        "original_max_position_embeddings": "without it the long set is never used, or used from another length on",
        "rope_theta": "engines that read the v4 spelling fall back to 10000",
    }
    for key, message in messages.items():
        if key in wanted:
            yield Check.equal(f"{keys}.{key}", wanted[key], config.get(key), message)
    if wanted.get("sliding_window") != before.get("sliding_window"):
        message = "layers would look back over the last tokens only, and the longer window have no effect on them"
        yield Check.equal(f"{keys}.sliding_window", wanted["sliding_window"], config.get("sliding_window"), message)
    for spelling in ("rope_parameters", "rope_scaling"):
        if spelling in wanted:
            yield from _spelling_checks(f"{rope}.{spelling}", spelling, config.get(spelling) or {}, wanted[spelling])


def _spelling_checks(id: str, spelling: str, rope: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[Check]:
    if not rope:
        message = f"config.json has no {spelling}: engines that read only this spelling run plain RoPE, silently"
        yield Check(id, "fail", wanted.get("rope_type", wanted.get(FULL, {}).get("rope_type")), None, message)
        return
    if FULL in wanted:
        message = "layers that slide rotate by their own parameters, which no extension changes"
        yield Check.equal(f"{id}.{SLIDING}", wanted[SLIDING], rope.get(SLIDING), message)
        rope, wanted = rope.get(FULL) or {}, wanted[FULL]
    yield from _kept(id, rope, wanted)
    yield from _names(id, rope, wanted)
    if wanted["rope_type"] != "longrope":
        yield from _parameter_checks(id, rope, wanted)
        return
    yield Check.equal(f"{id}.rope_type", "longrope", rope.get("rope_type"), "the factors are ignored")
    yield Check.equal(
        f"{id}.original",
        wanted["original_max_position_embeddings"],
        rope.get("original_max_position_embeddings"),
        "the switch between the sets sits at another length",
    )
    yield _close(f"{id}.factor", wanted["factor"], rope.get("factor"), "the attention factor follows from it")
    yield _close(
        f"{id}.attention_factor",
        _attention_factor(wanted, wanted),
        _attention_factor(rope, wanted),
        "cos and sin are scaled by another number: perplexity may even fall, the model is another one",
    )
    for name in ("short_factor", "long_factor"):
        yield Check.equal_factors(f"{id}.{name}", wanted[name], rope.get(name))
    if any(key in rope and key not in wanted for key in ("short_mscale", "long_mscale", "mscale")):
        yield Check(f"{id}.mscale", "fail", None, "present", "some engines would apply mscale on top")


def _kept(id: str, rope: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[Check]:
    """The other rotary parameters of the model are still there, and none has come that rotates another part of a head."""
    lost = [name for name in wanted if name not in rope and name not in _CHECKED]
    if lost:
        yield Check(f"{id}.kept", "fail", lost, None, "the model computes with these rotary parameters, too")
    planned, found = (each.get(_PARTIAL) for each in (wanted, rope))
    if found != planned and found not in (None, 1):
        message = "another part of each head is rotated"
        yield Check(f"{id}.{_PARTIAL}", "fail", planned, found, message)


def _names(id: str, rope: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[Check]:
    """The older spelling of the type, and θ beside it, each where it is to be written."""
    if "type" in wanted:
        yield Check.equal(f"{id}.type", wanted["type"], rope.get("type"), "older engines read the type here alone")
    if "rope_theta" in wanted:
        yield Check.equal(
            f"{id}.rope_theta", wanted["rope_theta"], rope.get("rope_theta"), "every frequency is another"
        )


def _attention_factor(rope: Mapping[str, Any], wanted: Mapping[str, Any]) -> float:
    """The written one, or what a runtime computes without."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    return attention_factor_formula(rope.get("factor") or wanted["factor"], wanted["original_max_position_embeddings"])


# What each parameter of a family does to a model when it is wrong.
_PARAMETERS = {
    "rope_type": "another rescaling, or none",
    "factor": "positions are slowed by another number",
    "original_max_position_embeddings": "the ramp of YaRN lies at other pairs",
    "beta_fast": "the ramp of YaRN begins at another pair",
    "beta_slow": "the ramp of YaRN ends at another pair",
    "truncate": "the ends of the ramp are whole pairs in some engines only",
    "attention_factor": "cos and sin are scaled by another number",
    "attn_factor": "vLLM and SGLang scale cos and sin by another number",
    "mscale": "engines compute another attention factor from it",
    "mscale_all_dim": "engines compute another attention factor from it",
}


def _parameter_checks(id: str, rope: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[Check]:
    """Of a family: every parameter is the expected one, and none is there beside them."""
    for name, message in _PARAMETERS.items():
        value, check = wanted.get(name), f"{id}.{'original' if name.startswith('original') else name}"
        if isinstance(value, float):
            yield _close(check, value, rope.get(name), message)
        elif name in wanted or name in rope:
            yield Check.equal(check, value, rope.get(name), message)


def _close(id: str, expected: float, actual: Any, message: str) -> Check:
    ok = isinstance(actual, int | float) and abs(actual - expected) <= 1e-6 * abs(expected)
    return Check(id, "pass" if ok else "fail", expected, actual, "" if ok else message)
