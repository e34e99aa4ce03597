"""Everything that `longrope-export doctor --gpu` needs on a machine that can download nothing, in parts of at most 60 MiB.

    python -m benchmarks.gpu_bundle runs/smollm2/….gguf -o runs/gpu-bundle

    model, training texts, wheels ──► gpu-bundle.tar.gz.00, .01 …, unpack.sh

The machine has Python, torch, transformers and numpy; `wheels` are this package and the rest, for its Python. There:

    bash unpack.sh gpu-bundle.tar.gz.* && bash longrope-gpu/check.sh RESULTS

Parts may arrive one after the other: `unpack.sh` joins those that it is given, in the order of their names.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

import click

from benchmarks.default_model.texts import load_corpus
from benchmarks.figures import ROOT
from longrope_export.default_model import SEARCH_TEXTS

PART_BYTES = 60 << 20
NAME, MODEL, TEXTS, WHEELS = "longrope-gpu", "model.gguf", "train.jsonl", "wheels"
# What a machine with torch and transformers has.
THERE = ("torch", "transformers", "numpy", "safetensors", "tokenizers", "huggingface_hub")
CHECK = """#!/usr/bin/env bash
# Check this machine's device; RESULTS is the folder of the runs and of gpu_check.json, further arguments go to doctor.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
results=$(realpath -m "$1"); shift
[ -d "$here/venv" ] || python3 -m venv --system-site-packages "$here/venv"
"$here/venv/bin/pip" install -q --no-index --no-deps "$here"/wheels/*.whl
cd "$here"
HF_HUB_OFFLINE=1 "$here/venv/bin/python" -m longrope_export doctor --gpu --resume \\
  --model model.gguf --train-text train.jsonl -o "$results" "$@"
"""
UNPACK = """#!/usr/bin/env bash
# Join the parts and unpack them here.
set -euo pipefail
cat "$@" | tar xz
"""


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--texts", type=click.Path(path_type=Path), help="Cache of the default model's sources, to train on.")
@click.option("--python", default="3.12", help="Of the machine.")
def main(model: Path, output: Path, texts: Path | None, python: str) -> None:
    """Pack MODEL, a GGUF file, with texts and wheels, this package among them."""
    with tempfile.TemporaryDirectory() as scratch:
        room = Path(scratch) / NAME
        room.mkdir()
        shutil.copyfile(model, room / MODEL)
        add_texts(room / TEXTS, texts)
        add_wheels(room / WHEELS, python)
        (room / "check.sh").write_text(CHECK)
        archive = Path(scratch) / "gpu-bundle.tar.gz"
        with tarfile.open(archive, "w:gz", compresslevel=6) as tar:
            tar.add(room, NAME)
        shutil.rmtree(output, ignore_errors=True)
        for part in split(archive, output):
            click.echo(f"{part}: {part.stat().st_size / 2**20:.1f} MiB")
        (output / "unpack.sh").write_text(UNPACK)


def add_texts(file: Path, cache: Path | None) -> None:
    """The default model's training texts, one document a line; without a cache the built-in search texts."""
    if cache is None:
        found = [path.read_text(encoding="utf-8") for path in sorted(SEARCH_TEXTS.glob("*.txt"))]
    else:
        found = [document.text for document in load_corpus(cache).train]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in found), encoding="utf-8")


def add_wheels(folder: Path, python: str) -> None:
    """This package, whose entry points open GGUF files, and what a machine with torch and transformers may lack."""
    wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(wheel, check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    gguf = next(name for name in project["optional-dependencies"]["gguf"] if name.startswith("gguf"))
    wanted = [name for name in (*project["dependencies"], gguf) if not name.startswith(THERE)]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    platform = ["--python-version", python, "--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_28_x86_64"]
    subprocess.run([*command, *platform, *wanted, "markdown-it-py", "mdurl", "pygments"], check=True)


def split(archive: Path, folder: Path) -> list[Path]:
    """The archive in parts of at most `PART_BYTES`, by number."""
    folder.mkdir(parents=True)
    parts = []
    with archive.open("rb") as handle:
        while content := handle.read(PART_BYTES):
            parts.append(folder / f"{archive.name}.{len(parts):02d}")
            parts[-1].write_bytes(content)
    return parts


if __name__ == "__main__":
    main()
