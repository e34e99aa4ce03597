"""Factors of a repository on the Hub, without its weights.

org/name ──► factors.json │ longrope.json │ config.json │ graph of an ONNX export │ head of a GGUF file ──► RescaleFactors
             (by Hub's cache, also offline)                 (by Range: the head, and the factors' own bytes)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from converters import registry
from converters.hub_files import RemoteFile, hub_errors
from longrope.errors import InputError
from longrope.factors import RescaleFactors
from longrope.hf_config import from_config
from longrope.hub import hub_snapshot
from longrope.reading import read_object
from longrope.unfinished import temporary_folder

# What this program writes them to, the complete records first.
RECORDS = ("factors.json", "longrope.json")
CONFIG = "config.json"


def hub_factors(hub_id: str) -> RescaleFactors:
    """Factors of a repository, exactly as stored; of its weights nothing is downloaded.

    Args:
        hub_id: `org/name` or `org/name@revision`.

    Raises:
        InputError: no such repository, or it holds no factors.
        MissingRequirementError: the Hub cannot be reached, or HF_HUB_OFFLINE is set and the cache does not have it.
    """
    folder = hub_snapshot(hub_id, (*RECORDS, CONFIG))
    for name in RECORDS:
        if (folder / name).is_file():
            return RescaleFactors.load(folder / name)
    names = _names(hub_id, folder)
    graphs = [name for name in names if name.endswith(".onnx")]
    if graphs and not any(name.endswith(".safetensors") for name in names):  # a config.json holds no start tokens
        found = registry.converter("onnx").read_factors(hub_snapshot(hub_id, graphs[:1]) / graphs[0])
    elif (folder / CONFIG).is_file():
        found = from_config(read_object(folder / CONFIG, f"{hub_id}: {CONFIG}"))
    else:
        found = _of_gguf(hub_id, [name for name in names if name.endswith(".gguf") and "-of-0" not in name])
    if found is None:
        raise InputError(f"{hub_id}: holds no rescale factors; `inspect` says which RoPE it has")
    return found


def _names(hub_id: str, folder: Path) -> Sequence[str]:
    """Names of a repository's files; offline, of those in the cache."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    repo, _, revision = hub_id.partition("@")
    with hub_errors(hub_id):
        try:
            return sorted(HfApi().list_repo_files(repo, revision=revision or None))
        except OfflineModeIsEnabled:
            return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*"))


def _of_gguf(hub_id: str, names: Sequence[str]) -> RescaleFactors | None:
    """Those of a repository's first whole GGUF file: every weight type of a model has the same."""
    if not names:
        raise InputError(f"{hub_id}: expected a {CONFIG}, factors.json, an ONNX or a GGUF file in one part, found none")
    from converters.gguf.remote import hollow_copy

    with temporary_folder("hub") as room, hub_errors(hub_id):
        file = Path(room, Path(names[0]).name)
        hollow_copy(RemoteFile(hub_id, names[0]), file)
        return registry.converter("gguf").read_factors(file)
