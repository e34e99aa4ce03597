"""How long `inspect` takes on files of gigabytes: `python -m benchmarks.bench_inspect`.

The files are Llama 3.1 8B as its headers say it, vocabulary of 128,256 tokens included; the weights are holes, so that
nothing large is on the disk. Each turn is the whole command, start of Python included.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import gguf
import numpy as np

from benchmarks.costs import cpu_seconds, of_command, seconds, taking_turns
from benchmarks.figures import Figures
from longrope.base_rope import base_rope
from longrope.files import write_json
from longrope.weights import INDEX

ROUNDS = 7
SECONDS = 2.0
HIDDEN, HEADS, KV_HEADS, LAYERS, INTERMEDIATE, VOCABULARY, MERGES = 4096, 32, 8, 32, 14_336, 128_256, 280_147
SHARDS = 4
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 131_072,
    "rope_theta": ROPE["rope_theta"],
    "rope_scaling": ROPE,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
# Each weight of a layer: names of transformers and of GGUF, rows and columns.
_LAYER = {
    ("self_attn.q_proj", "attn_q"): (HIDDEN, HIDDEN),
    ("self_attn.k_proj", "attn_k"): (HIDDEN * KV_HEADS // HEADS, HIDDEN),
    ("self_attn.v_proj", "attn_v"): (HIDDEN * KV_HEADS // HEADS, HIDDEN),
    ("self_attn.o_proj", "attn_output"): (HIDDEN, HIDDEN),
    ("mlp.gate_proj", "ffn_gate"): (INTERMEDIATE, HIDDEN),
    ("mlp.up_proj", "ffn_up"): (INTERMEDIATE, HIDDEN),
    ("mlp.down_proj", "ffn_down"): (HIDDEN, INTERMEDIATE),
    ("input_layernorm", "attn_norm"): (HIDDEN,),
    ("post_attention_layernorm", "ffn_norm"): (HIDDEN,),
}
_ENDS = {
    ("model.embed_tokens", "token_embd"): (VOCABULARY, HIDDEN),
    ("model.norm", "output_norm"): (HIDDEN,),
    ("lm_head", "output"): (VOCABULARY, HIDDEN),
}


def shapes(of_gguf: bool) -> dict[str, tuple[int, ...]]:
    """Every weight by its name in one of the formats."""
    layer = "blk.{}.{}" if of_gguf else "model.layers.{}.{}"
    found = {f"{names[of_gguf]}.weight": shape for names, shape in _ENDS.items()}
    for number in range(LAYERS):
        for names, shape in _LAYER.items():
            found[f"{layer.format(number, names[of_gguf])}.weight"] = shape
    return found


def hollow_folder(folder: Path) -> Path:
    """A Hugging Face folder in shards, bfloat16."""
    folder.mkdir()
    write_json(folder / "config.json", CONFIG)
    weights, table = shapes(False), dict[str, str]()
    for number in range(SHARDS):
        name = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        own = list(weights)[number::SHARDS]
        table |= dict.fromkeys(own, name)
        header, end = {}, 0
        for weight in own:
            start, end = end, end + 2 * math.prod(weights[weight])
            header[weight] = {"dtype": "BF16", "shape": list(weights[weight]), "data_offsets": [start, end]}
        encoded = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            file.truncate(8 + len(encoded) + end)
    write_json(folder / INDEX, {"metadata": {}, "weight_map": table})
    return folder


def hollow_gguf(path: Path) -> Path:
    """The same as q8_0, with its vocabulary, as llama.cpp's converter writes it: factors in rope_freqs.weight."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(int(CONFIG["max_position_embeddings"]))  # type: ignore[call-overload]
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(ROPE["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([f"token{number}" for number in range(VOCABULARY)])
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges([f"t{number} o{number}" for number in range(MERGES)])
    known = base_rope({}, ROPE, rotary_dim=HIDDEN // HEADS, window=131_072)
    writer.add_tensor("rope_freqs.weight", np.array(known.long_factor, np.float32))
    for name, shape in shapes(True).items():
        if len(shape) == 1:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * shape[0])
        else:
            stored = (shape[0], shape[1] // 32 * 34)  # bytes of a row of q8_0
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor_info(name, stored, np.dtype(np.uint8), math.prod(stored), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    padded = sum(-(-info.nbytes // 32) * 32 for part in writer.tensors for info in part.values())
    with path.open("r+b") as file:
        start = -(-path.stat().st_size // 32) * 32
        file.seek(start)
        file.write(np.array(known.long_factor, np.float32).tobytes())
        file.truncate(start + padded)
    writer.close()
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(arguments)
    figures = Figures("inspect", {"rounds": options.rounds})
    with tempfile.TemporaryDirectory() as room:
        made = {
            "GGUF, q8_0": hollow_gguf(Path(room) / "model.gguf"),
            "safetensors, bfloat16": hollow_folder(Path(room) / "model"),
        }
        command = [sys.executable, "-m", "longrope_export", "inspect"]
        runs: dict[str, Callable[[], object]] = {
            name: partial(of_command, [*command, str(path)]) for name, path in made.items()
        }
        costs = taking_turns(runs, options.rounds)  # type: ignore[arg-type]
        for name, path in made.items():
            files = [path] if path.is_file() else list(path.iterdir())
            size, spent = sum(file.stat().st_size for file in files) / 1e9, seconds(costs[name])
            got = f"{spent:.2f} s ({cpu_seconds(costs[name]):.2f} s of processor time)"
            what = f"inspect of {size:.1f} GB, {name}, median of {options.rounds}"
            figures.add("inspect", what, f"≤ {SECONDS:g} s", got, spent <= SECONDS)
    figures.save()
    return 0 if all(row.passed for row in figures.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
