"""What an export costs: ours and torch.onnx's, each in a process of its own, and a large model to export."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.common import pico_tokenizer

LARGE = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 16, "num_attention_heads": 32}


@dataclass(frozen=True)
class Cost:
    """CPU seconds, which a busy machine does not lengthen, and peak resident bytes of an export."""

    seconds: float
    peak_bytes: int
    note: str = ""


def cost_of(exporter: str, model: Path, room: Path) -> Cost:
    """Run an export of the folder `model` in a fresh process; its output is deleted."""
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir(parents=True)
    command = [sys.executable, "-m", "benchmarks.onnx_exporters", exporter, str(model), str(room / "out")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = usage.ru_utime + usage.ru_stime
    shutil.rmtree(room, ignore_errors=True)
    note = "" if process.returncode == 0 else f" (failed: {errors.decode()[-200:].strip()})"
    return Cost(seconds, usage.ru_maxrss * 1024, note)


def large_llama(folder: Path) -> Path:
    """A Llama of 3.4 GB in float32 with random weights, in shards of one layer."""
    if (folder / "model.safetensors.index.json").is_file():
        return folder
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        **LARGE,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "vocab_size": 32_000,
        "max_position_embeddings": 4096,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    pico_tokenizer().save(str(folder / "tokenizer.json"))
    rng, names = np.random.default_rng(0), {}
    for shard, shapes in enumerate(_shards()):
        file = f"model-{shard:05}.safetensors"
        tensors = {name: rng.standard_normal(shape, dtype=np.float32) * 0.02 for name, shape in shapes.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        names |= dict.fromkeys(tensors, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


def _shards() -> Iterator[dict[str, tuple[int, ...]]]:
    """Names and shapes of the tensors, a layer at a time."""
    width, inner = LARGE["hidden_size"], LARGE["intermediate_size"]
    yield {"model.embed_tokens.weight": (32_000, width), "model.norm.weight": (width,)}
    yield {"lm_head.weight": (32_000, width)}
    for index in range(LARGE["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        yield {
            f"{layer}.input_layernorm.weight": (width,),
            f"{layer}.post_attention_layernorm.weight": (width,),
            f"{layer}.self_attn.q_proj.weight": (width, width),
            f"{layer}.self_attn.k_proj.weight": (512, width),
            f"{layer}.self_attn.v_proj.weight": (512, width),
            f"{layer}.self_attn.o_proj.weight": (width, width),
            f"{layer}.mlp.gate_proj.weight": (inner, width),
            f"{layer}.mlp.up_proj.weight": (inner, width),
            f"{layer}.mlp.down_proj.weight": (width, inner),
        }


def export_ours(model: Path, out: Path) -> None:
    """Write and nothing more: torch.onnx reads nothing back either."""
    from converters.base import Export
    from converters.onnx import OnnxConverter
    from longrope import rope
    from longrope.checkpoint import open_checkpoint
    from longrope.factors import RescaleFactors
    from longrope.progress import Silent

    checkpoint = open_checkpoint(model)
    values = tuple(rope.ntk_factors(checkpoint.rotary_dim, 2.0).tolist())
    factors = checkpoint.bind(RescaleFactors(values, values), target=2 * checkpoint.window)
    OnnxConverter().plan(Export(checkpoint, factors)).write(out, Silent())


def export_with_torch(model: Path, out: Path) -> None:
    """The plain way: load the model, trace it, save; without a cache, which is the cheapest graph there is."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    out.mkdir()
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, use_cache=False).eval()
    ids = torch.zeros((1, 8), dtype=torch.int64)
    length = torch.export.Dim("length", min=2, max=4096)
    torch.onnx.export(
        loaded,
        (ids,),
        str(out / "model.onnx"),
        dynamo=True,
        external_data=True,
        opset_version=23,
        dynamic_shapes={"input_ids": {1: length}},
    )


if __name__ == "__main__":
    {"ours": export_ours, "torch.onnx": export_with_torch}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
