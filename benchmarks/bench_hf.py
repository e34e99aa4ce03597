"""The Hugging Face export of a large checkpoint against `cp`: `python -m benchmarks.bench_hf [--room FOLDER]`.

A Llama of 4.3 GB, whose weights do not change, is exported by the whole command, checks included, and copied by `cp`, in
turns. What was written before is on the disk when a turn begins, and the source is in the page cache; `cp` is timed alone and
with the fsync of its files that makes it as lasting as the export, which returns when its bytes are on the disk.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.costs import Cost, cpu_seconds, of_command, of_work, ratio, seconds, taking_turns
from benchmarks.figures import Figures
from longrope import rope
from longrope.checkpoint import open_checkpoint
from longrope.factors import RescaleFactors
from longrope.files import sync, write_json
from longrope.weights import INDEX
from tests.common import pico_tokenizer

ROUNDS = 5
SHARDS = 4
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_hidden_layers": 26,
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "head_dim": 128,
    "vocab_size": 16_384,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def large_llama(folder: Path) -> Path:
    """The checkpoint, of random numbers, in shards; nothing larger than a tensor is in memory."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    folder.mkdir(parents=True)
    write_json(folder / "config.json", CONFIG)
    pico_tokenizer().save(str(folder / "tokenizer.json"))
    with torch.device("meta"):
        weights = AutoModelForCausalLM.from_config(LlamaConfig(**CONFIG)).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    names = list(shapes)
    table: dict[str, str] = {}
    for number in range(SHARDS):
        file, own = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors", names[number::SHARDS]
        table |= dict.fromkeys(own, file)
        _write_shard(folder / file, {name: shapes[name] for name in own})
    write_json(folder / INDEX, {"metadata": {}, "weight_map": table})
    return folder


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for shape in shapes.values():
            numbers = (
                np.frombuffer(os.urandom(1 << 20), np.uint16) & 0xBFFF
            )  # below 2, so none of them is NaN or infinite
            block = numbers.tobytes()
            size = 2 * math.prod(shape)
            file.write((block * (size // len(block) + 1))[:size])


def turn(target: Path, work: Sequence[str], *, lasting: bool = False) -> Cost:
    """A command that writes `target`, from a disk that is at rest; what it wrote is removed afterwards."""
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    return of_work(partial(_lasting, target, work)) if lasting else of_command(list(work))


def _lasting(target: Path, work: Sequence[str]) -> None:
    subprocess.run(work, check=True)
    for file in target.iterdir():
        sync(file)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--room", type=Path, default=Path("runs") / "bench" / "hf", help="folder for 13 GB of files")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(arguments)
    source, figures = options.room / "model", Figures("hf", {"rounds": options.rounds})
    if not source.is_dir():
        large_llama(source)
    checkpoint = open_checkpoint(source)
    factors = rope.ntk_factors(checkpoint.rotary_dim, 8.0).tolist()
    RescaleFactors(tuple(factors), tuple(factors), target_length=32_768).save(options.room / "factors.json")
    size = sum(file.stat().st_size for file in source.iterdir())
    for file in source.iterdir():
        with file.open("rb") as handle:
            while handle.read(1 << 24):
                pass
    export, copy = options.room / "export", options.room / "copy"
    command = [sys.executable, "-m", "longrope_export", "convert", str(source), "--to", "hf", "-o", str(export)]
    runs = {
        "export": partial(turn, export, [*command, "--factors", str(options.room / "factors.json")]),
        "cp": partial(turn, copy, ["cp", "-r", str(source), str(copy)]),
        "cp and fsync": partial(turn, copy, ["cp", "-r", str(source), str(copy)], lasting=True),
    }
    costs = taking_turns(runs, options.rounds)
    shutil.rmtree(export)
    shutil.rmtree(copy)
    what = f"{size / 1e9:.1f} GB, medians of {options.rounds}"
    for name in ("cp", "cp and fsync"):
        times = ratio(costs["export"], costs[name])
        got = f"{times:.2f}× ({seconds(costs['export']):.1f} s against {seconds(costs[name]):.1f} s)"
        figures.add("copy", f"export over {name}, {what}", "≤ 1.2×", got, times <= 1.2)
    spent = ", ".join(f"{name} {cpu_seconds(each):.1f} s" for name, each in costs.items())
    figures.add("copy", f"processor time, {what}", "reported", spent)
    peak = max(cost.peak_anonymous + cost.peak_file for cost in costs["export"])
    figures.add(
        "copy",
        f"peak memory of the export, pages of files included, {what}",
        "≤ 300 MB",
        f"{peak / 1e6:.0f} MB",
        peak <= 300e6,
    )
    figures.save()
    return 0 if all(row.passed for row in figures.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
