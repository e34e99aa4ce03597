"""The `general.*` keys: what the model is called, who made it, under which licence, and what it was made from.

The Hub's and llama.cpp's conventions are `gguf`'s own: it reads the model card and takes names apart; here its findings
are only turned into our values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from converters.gguf.container import Kind, TensorInfo, Value, text, u32
from converters.gguf.library import gguf_library
from converters.gguf.outtypes import OutType
from longrope.checkpoint import HUB_ID, Checkpoint

TAGS = ("longrope", "long-context")


def general_values(
    checkpoint: Checkpoint,
    architecture: str,
    outtype: OutType,
    infos: Sequence[TensorInfo],
    *,
    name: str | None = None,
) -> dict[str, Value]:
    """The `general.*` keys of an export.

    Args:
        infos: all weights, for the size label.
        name: instead of the one found.
    """
    library = gguf_library()
    found = _metadata(checkpoint, infos, name)
    if checkpoint.factors is None:
        found.base_models = [_base_model(checkpoint, found)]
    writer = library.GGUFWriter(None, architecture)
    found.set_gguf_meta_model(writer)
    values = {key: _value(entry) for key, entry in writer.kv_data[0].items()}
    return {
        "general.architecture": text(architecture),
        "general.type": text("model"),
        **values,
        "general.size_label": text(_size_label(infos)),
        "general.tags": _with_tags(values.get("general.tags")),
        "general.file_type": u32(library.LlamaFileType[outtype.file_type]),
        "general.quantization_version": u32(library.GGML_QUANT_VERSION),
    }


def conventional_name(
    checkpoint: Checkpoint, outtype: OutType, infos: Sequence[TensorInfo], *, name: str | None = None
) -> str:
    """A file name after llama.cpp's convention: base name, size, fine-tune, version, weight type.

    Args:
        infos, name: as for `general_values`.
    """
    found, size = _metadata(checkpoint, infos, name), _size_label(infos)
    encode = gguf_library().naming_convention
    return f"{encode(found.name, found.basename, found.finetune, found.version, size, outtype.name)}.gguf"


def _metadata(checkpoint: Checkpoint, infos: Sequence[TensorInfo], name: str | None) -> Any:
    """What `gguf` finds in the model card, config.json and the name of the folder or of the Hub's repository."""
    hub = _hub_id(checkpoint)
    folder = Path(hub.rpartition("/")[2]) if hub else checkpoint.path
    load = gguf_library().Metadata.load
    found = load(None, checkpoint.path, name or (folder.name if hub else None), sum(math.prod(i.shape) for i in infos))
    if hub and not found.organization:
        found.organization = hub.partition("/")[0]
    return found


def _base_model(checkpoint: Checkpoint, metadata: Any) -> dict[str, str]:
    """The checkpoint itself: what is exported is its extension."""
    found = {"name": metadata.name, "organization": metadata.organization, "version": metadata.version}
    if hub := _hub_id(checkpoint):
        found["repo_url"] = f"https://huggingface.co/{hub}"
    return {key: value for key, value in found.items() if value}


def _hub_id(checkpoint: Checkpoint) -> str | None:
    """`organization/name` of a checkpoint that came from the Hub."""
    if HUB_ID.fullmatch(checkpoint.name) and not Path(checkpoint.name).exists():
        return checkpoint.name.partition("@")[0]
    return None


def _size_label(infos: Sequence[TensorInfo]) -> str:
    """E.g. 135M, or 8x7B for experts."""
    stacks = [info for info in infos if "_exps." in info.name]
    total, in_stacks = (sum(math.prod(info.shape) for info in group) for group in (infos, stacks))
    count = stacks[0].shape[0] if stacks else 0
    expert = in_stacks // count if count else 0
    return str(gguf_library().size_label(total, total - in_stacks, expert, count))


def _value(entry: Any) -> Value:
    """A GGUFValue of the library as ours."""
    item = Kind(int(entry.sub_type)) if entry.sub_type is not None else None
    kind = Kind(int(entry.type))
    if kind is Kind.ARRAY and item is None:
        item = Kind.STRING
    return Value(kind, entry.value, item)


def _with_tags(given: Value | None) -> Value:
    tags = list(given.data) if given else []
    return Value(Kind.ARRAY, [*tags, *(tag for tag in TAGS if tag not in tags)], Kind.STRING)
