"""Tools to break a folder of a model with: its JSON, its files, its tokenizer, its weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

Fault = Callable[[Path], object]


def copied(source: Path, room: Path) -> Path:
    """A file or a folder, copied into a folder."""
    target = room / source.name
    if source.is_dir():
        return Path(shutil.copytree(source, target))
    return Path(shutil.copyfile(source, target))


def both(*faults: Fault) -> Fault:
    """One after the other."""
    return lambda folder: [fault(folder) for fault in faults]


# -- JSON


def change_json(name: str, change: Callable[[Any], object]) -> Fault:
    """Change the object of a JSON file in place; a file that is not there begins empty."""

    def fault(folder: Path) -> None:
        file = folder / name
        data = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        change(data)
        file.write_text(json.dumps(data), encoding="utf-8")

    return fault


def edit(name: str, **changes: Any) -> Fault:
    """Set fields of a JSON file; None takes one away. `a__b` is b within a."""

    def change(data: Any) -> None:
        for place, value in changes.items():
            *outer, key = place.split("__")
            inner = data
            for step in outer:
                inner = inner[step]
            inner.pop(key, None)
            if value is not None:
                inner[key] = value

    return change_json(name, change)


def config(**changes: Any) -> Fault:
    return edit("config.json", **changes)


def overwrite(name: str, **changes: Any) -> Fault:
    """Set fields of a JSON file; None is written as null."""
    return change_json(name, lambda data: data.update(changes))


def rope(change: Callable[[dict[str, Any]], object]) -> Fault:
    """A change of both spellings of the rope parameters in config.json."""
    return change_json("config.json", lambda data: [change(data[name]) for name in ("rope_scaling", "rope_parameters")])


# -- files


def lose(name: str) -> Fault:
    return lambda folder: (folder / name).unlink()


def put(name: str, content: str | bytes) -> Fault:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def on_bytes(name: str, change: Callable[[bytes], bytes]) -> Fault:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def cut(name: str, size: int) -> Fault:
    """Keep so many bytes; of a negative size, all but so many."""
    return on_bytes(name, lambda content: content[:size])


def half(name: str) -> Fault:
    return on_bytes(name, lambda content: content[: len(content) // 2])


def pointer(name: str) -> Fault:
    """What git leaves where Git LFS is not installed."""
    return put(name, f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123456\n")


# -- tokenizer


def tokenizer(change: Callable[[Tokenizer], object]) -> Fault:
    """Change a tokenizer as the tokenizers library does, and save it."""

    def fault(folder: Path) -> None:
        loaded = Tokenizer.from_file(str(folder / "tokenizer.json"))
        change(loaded)
        loaded.save(str(folder / "tokenizer.json"))

    return fault


# -- weights


def weights(change: Callable[[dict[str, Any]], object]) -> Fault:
    """Change the tensors, each in the file that holds it; what has been added goes into the first."""

    def fault(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        files = sorted(folder.glob("*.safetensors"))
        loaded = {file: load_file(file) for file in files}
        tensors = {name: tensor for each in loaded.values() for name, tensor in each.items()}
        places = {name: file for file, each in loaded.items() for name in each}
        change(tensors)
        for file in files:
            kept = {
                name: tensor.contiguous().clone()
                for name, tensor in tensors.items()
                if places.get(name, files[0]) == file
            }
            save_file(kept, file, metadata={"format": "pt"})
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            table = {name: places.get(name, files[0]).name for name in tensors}
            index.write_text(json.dumps({"metadata": {}, "weight_map": table}))

    return fault


def in_pairs(weight: Any) -> Any:
    """The rows of q or k as Meta's files and llama.cpp have them, the two of a rotary pair side by side; heads of 16."""
    return weight.unflatten(0, (-1, 2, 8)).transpose(1, 2).flatten(0, 2)


def in_two_files(folder: Path) -> None:
    """Cut model.safetensors into two files and an index, as large models are saved."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write_shards(tensors, folder)


def write_shards(tensors: dict[str, Any], folder: Path) -> None:
    """Write tensors as two files and an index."""
    from safetensors.torch import save_file

    names = sorted(tensors)
    table = {
        name: f"model-0000{1 + (2 * place >= len(names))}-of-00002.safetensors" for place, name in enumerate(names)
    }
    for file in set(table.values()):
        save_file(
            {name: tensors[name] for name in names if table[name] == file}, folder / file, metadata={"format": "pt"}
        )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
