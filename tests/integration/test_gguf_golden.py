"""What a small file holds, byte for byte, against a golden: layout, keys, types and the bytes of every tensor.

To accept a change on purpose: `python -m tests.integration.test_gguf_golden`, and look at the difference.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from converters.base import Export
from converters.gguf import GgufConverter
from converters.gguf.container import GgufFile, type_name
from longrope.checkpoint import open_checkpoint
from longrope.progress import Silent
from tests import common

GOLDEN = Path(__file__).parents[1] / "golden" / "gguf" / "small.json"
OUTTYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Whole numbers from a seed, scaled: the same on every machine."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    return (np.random.default_rng(seed).integers(-4096, 4096, shape) / 16384).astype(np.float32)


def small_folder(folder: Path) -> Path:
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": 384,
        "tie_word_embeddings": True,
    }
    layer = {
        **{f"self_attn.{name}_proj.weight": (rows, 64) for name, rows in (("q", 64), ("k", 32), ("v", 32), ("o", 64))},
        "mlp.gate_proj.weight": (96, 64),
        "mlp.up_proj.weight": (96, 64),
        "mlp.down_proj.weight": (64, 96),
        "input_layernorm.weight": (64,),
        "post_attention_layernorm.weight": (64,),
    }
    shapes = {"model.embed_tokens.weight": (384, 64), "model.norm.weight": (64,)}
    shapes |= {f"model.layers.0.{name}": shape for name, shape in layer.items()}
    save_file({name: numbers(name, shape) for name, shape in shapes.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    common.pico_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def found(folder: Path, outtype: str) -> dict[str, Any]:
    model = open_checkpoint(folder)
    factors = model.bind(common.pico_factors(target=1024, original_max_position_embeddings=256))
    path = folder / f"{outtype}.gguf"
    GgufConverter().convert(Export(model, factors, outtype, {"name": "Small"}), path, Silent())
    with GgufFile(path) as file:
        mine = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "longrope_export.version", "longrope_export.factors")
        return {
            "keys": {key: [value.kind.name, value.data] for key, value in file.values.items() if key not in mine},
            "tensors": {
                name: [type_name(i.type), list(i.shape), i.offset, hashlib.sha256(file.raw(name)).hexdigest()[:16]]
                for name, i in file.tensors.items()
            },
        }


@pytest.mark.parametrize("outtype", OUTTYPES)
def test_equals_the_golden(tmp_path: Path, outtype: str) -> None:
    expected = json.loads(GOLDEN.read_text())[outtype]
    assert json.loads(json.dumps(found(small_folder(tmp_path / "m"), outtype))) == expected


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as room:
        small = small_folder(Path(room) / "m")
        GOLDEN.write_text(json.dumps({outtype: found(small, outtype) for outtype in OUTTYPES}, indent=1) + "\n")
