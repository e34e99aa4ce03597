"""An artifact on the Hub as a hollow copy: what describes the model, heads of its weight files, and holes for its weights.

org/name ──► config.json and the like, whole, from the Hub's cache ─┐
         ──► heads of safetensors and GGUF files, by Range ─────────┼─► a folder or file that readers of headers take
         ──► an ONNX graph, whole; its external data as a hole ─────┘   for the artifact itself
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from converters.hub_files import RemoteFile, hub_errors
from longrope.errors import InputError
from longrope.hub import hub_snapshot
from longrope.weights import INDEX, MAX_HEADER, SINGLE

# What describes a model: small, and of use to whoever reads headers.
DESCRIPTIONS = (
    "config.json",
    "longrope.json",
    "adapter_config.json",
    "tokenizer_config.json",
    "generation_config.json",
)
# Bytes of a safetensors file that are asked for first: the header of a file of 5 GB takes some 40 KB.
FIRST = 1 << 18
# A graph above that has its weights inside, as protobuf, and no header.
MAX_GRAPH = 256 << 20
# Files whose heads are asked for at the same time.
AT_ONCE = 8


@dataclass(frozen=True)
class Hollow:
    """What stands for an artifact.

    Args:
        path: the folder, or the GGUF file.
        others: files of the repository in other formats, or of other weight types, that were not looked at.
    """

    path: Path
    others: tuple[str, ...]


def hollow_artifact(hub_id: str, room: Path) -> Hollow:
    """The artifact of a repository, with holes in the place of its weights; the space on the disk is that of headers.

    A repository's Hugging Face weights come first, then its ONNX graph, then the first of its GGUF files.

    Args:
        hub_id: `org/name` or `org/name@revision`.
        room: folder to write into.

    Raises:
        InputError: no such repository, one without an artifact, or damaged heads.
        MissingRequirementError: the Hub cannot be reached.
    """
    descriptions = hub_snapshot(hub_id, DESCRIPTIONS)
    with hub_errors(hub_id):
        sizes = _sizes(hub_id)
        weights = [name for name in sizes if name in (SINGLE, INDEX)]
        graphs = sorted((name for name in sizes if name.endswith(".onnx")), key=_plain_first)
        ggufs = sorted(name for name in sizes if name.endswith(".gguf") and _is_first(name))
        if weights:
            path, used = _hollow_folder(hub_id, sizes, room), set[str]()
        elif graphs:
            path, used = _hollow_graph(hub_id, graphs[0], sizes, room), {graphs[0]}
        elif ggufs:
            return Hollow(_hollow_gguf(hub_id, ggufs[0], sizes, room), tuple(ggufs[1:]))
        else:
            raise InputError(f"{hub_id}: expected {SINGLE}, {INDEX}, an ONNX graph or a GGUF file, found none")
    for name in DESCRIPTIONS:
        if (descriptions / name).is_file():
            shutil.copyfile(descriptions / name, room / name)
    return Hollow(path, tuple(name for name in (*graphs, *ggufs) if name not in used))


def _sizes(hub_id: str) -> dict[str, int]:
    """Bytes of each file of a repository."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    repo, _, revision = hub_id.partition("@")
    tree = HfApi().list_repo_tree(repo, recursive=True, revision=revision or None)
    files = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
    return {name: size for name, size in files.items() if not {"..", ""} & set(PurePosixPath(name).parts)}


def _plain_first(name: str) -> tuple[bool, str]:
    """`model.onnx` before the graphs of its other weight types."""
    return PurePosixPath(name).name != "model.onnx", name


def _is_first(name: str) -> bool:
    """Whether a GGUF file is whole, or the first part of one."""
    return "-of-" not in name or "-00001-of-" in name


# -- safetensors


def _hollow_folder(hub_id: str, sizes: Mapping[str, int], room: Path) -> Path:
    names = [SINGLE]
    if SINGLE not in sizes:
        index = RemoteFile(hub_id, INDEX, sizes[INDEX]).read(0, sizes[INDEX])
        (room / INDEX).write_bytes(index)
        names = _shards(hub_id, index, sizes)

    def fill(name: str) -> None:
        _hollow_safetensors(RemoteFile(hub_id, name, sizes[name]), room / name)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(fill, names))
    return room


def _shards(hub_id: str, index: bytes, sizes: Mapping[str, int]) -> list[str]:
    """Files that an index names and the repository has at its root; readers of the folder say what else is wrong."""
    try:
        weight_map = json.loads(index)["weight_map"]
        return sorted({name for name in weight_map.values() if name in sizes and "/" not in name})
    except (ValueError, LookupError, TypeError, AttributeError):
        raise InputError(f"{hub_id}: {INDEX}: expected a weight_map of tensor names to files") from None


def _hollow_safetensors(source: RemoteFile, path: Path) -> None:
    head = source.read(0, min(FIRST, source.size))
    length = 8 + int.from_bytes(head[:8], "little")
    if len(head) < length <= min(source.size, MAX_HEADER):
        head += source.read(len(head), length)
    with path.open("wb") as file:
        file.truncate(source.size)
        file.write(head[:length])


# -- ONNX


def _hollow_graph(hub_id: str, name: str, sizes: Mapping[str, int], room: Path) -> Path:
    """The folder of a graph: that whole, other files beside it as holes of their size."""
    if sizes[name] > MAX_GRAPH:
        raise InputError(f"{hub_id}: {name} holds its weights in the graph; download it and name the file")
    beside = PurePosixPath(name).parent
    for other, size in sizes.items():
        if PurePosixPath(other).parent == beside and not other.endswith((".onnx", ".json", ".jinja", ".md")):
            place = room / other
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as file:
                file.truncate(size)
    place = room / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(RemoteFile(hub_id, name, sizes[name]).read(0, sizes[name]))
    return room


# -- GGUF


def _hollow_gguf(hub_id: str, first: str, sizes: Mapping[str, int], room: Path) -> Path:
    """A GGUF file with its later parts."""
    from converters.gguf.remote import hollow_copy

    stem, mark, _ = first.partition("-00001-of-")
    parts = (
        sorted(name for name in sizes if name.startswith(f"{stem}-") and name.endswith(".gguf")) if mark else [first]
    )
    for name in parts:
        hollow_copy(RemoteFile(hub_id, name, sizes[name]), room / PurePosixPath(name).name)
    return room / PurePosixPath(first).name
