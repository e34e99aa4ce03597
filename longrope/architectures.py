"""What is known of each model type: one table, one row a type, no branches elsewhere.

A row says how transformers builds the rotary embedding, and what each format can express:
  gguf        name of the llama.cpp architecture the weights are written as, None if there is none
  gguf_rope   "sets": it loads rope_factors_long/short; "freqs": only rope_freqs (one set for every context); None: neither
  permute_qk  llama.cpp wants the rows of q and k interleaved
  refusal     why nothing can be done with this type
  gguf_as_llama  the network is Llama's under another name, and can be written as architecture llama on request
  sliding_window  config.sliding_window limits attention, in every layer where layer_types says nothing else
  default_window  transformers' sliding_window where config.json is silent
  hybrid      layers that slide beside layers that see everything share one rotary embedding, and are extended together
  drops_cache_at_crossing  transformers' generate empties the cache where the factor sets change
  onnx        how a decoder layer is put together, for the graph that ONNX export builds; None: not tested, refused
Rows were checked against llama.cpp as vendored by llama-cpp-python 0.3.36 and transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from longrope.errors import UnsupportedError, choices

GgufRope = Literal["sets", "freqs"]


@dataclass(frozen=True)
class DecoderBlock:
    """What a config.json does not say about a decoder layer, because the model class does.

    Args:
        norms: where they sit: before attention and MLP ("pre"), after both ("post"), or around both ("sandwich").
        qk_norm: queries and keys are normalized per head, over all heads at once, or not.
        norm_plus_one: the stored norm weight is an offset from 1.
        packed: q, k, v lie in one qkv_proj, gate and up in one gate_up_proj.
        scaled_embedding: token embeddings are multiplied by the square root of the hidden size.
        gated: the MLP has a gate; else it is up_proj, activation, down_proj.
    """

    norms: Literal["pre", "post", "sandwich"] = "pre"
    qk_norm: Literal["head", "all"] | None = None
    norm_plus_one: bool = False
    packed: bool = False
    scaled_embedding: bool = False
    gated: bool = True


@dataclass(frozen=True)
class Architecture:
    """Facts about one transformers model type; see the module's docstring."""

    model_type: str
    gguf: str | None = None
    gguf_rope: GgufRope | None = None
    permute_qk: bool = False
    gguf_as_llama: bool = False
    onnx: DecoderBlock | None = None
    sliding_window: bool = False
    hybrid: bool = False
    default_window: int | None = None
    drops_cache_at_crossing: bool = False
    note: str = ""
    refusal: str = ""


def _table(*rows: Architecture) -> Mapping[str, Architecture]:
    return {row.model_type: row for row in rows}


ARCHITECTURES = _table(
    Architecture("llama", gguf="llama", gguf_rope="sets", permute_qk=True, onnx=DecoderBlock()),
    Architecture(
        "mistral",
        gguf="llama",
        gguf_rope="sets",
        permute_qk=True,
        onnx=DecoderBlock(),
        sliding_window=True,
        default_window=4096,
    ),
    Architecture("mixtral", gguf="llama", gguf_rope="sets", permute_qk=True, sliding_window=True),
    Architecture("ministral3", gguf="mistral3", gguf_rope="sets", permute_qk=True, sliding_window=True),
    Architecture("granite", gguf="granite", gguf_rope="sets", permute_qk=True, onnx=DecoderBlock()),
    Architecture("granitemoe", gguf="granitemoe", gguf_rope="sets", permute_qk=True),
    Architecture("granitemoeshared", gguf="granitemoe", gguf_rope="sets", permute_qk=True),
    Architecture("minicpm3", gguf="minicpm3", gguf_rope="sets"),
    Architecture(
        "phi3",
        gguf="phi3",
        gguf_rope="sets",
        onnx=DecoderBlock(packed=True),
        sliding_window=True,
        drops_cache_at_crossing=True,
    ),
    Architecture(
        "phimoe",
        refusal="its RoPE has one attention factor a set (short_mscale, long_mscale), which no other engine reads, and "
        "llama.cpp computes RMS norms and a softmax router where it has layer norms and a sparse mixer",
    ),
    Architecture("apertus", gguf="apertus", gguf_rope="sets"),
    Architecture("arcee", gguf="arcee", gguf_rope="freqs", permute_qk=True, onnx=DecoderBlock(gated=False)),
    Architecture("exaone4", gguf="exaone4", gguf_rope="freqs", sliding_window=True, default_window=4096),
    Architecture(
        "seed_oss", gguf_as_llama=True, onnx=DecoderBlock(), note="llama.cpp's seed_oss loads no rope factors"
    ),
    Architecture(
        "qwen2",
        gguf_as_llama=True,
        onnx=DecoderBlock(),
        sliding_window=True,
        note="llama.cpp's qwen2 loads no rope factors",
    ),
    Architecture(
        "qwen3", onnx=DecoderBlock(qk_norm="head"), sliding_window=True, note="llama.cpp's qwen3 loads no rope factors"
    ),
    Architecture(
        "olmo2", onnx=DecoderBlock(norms="post", qk_norm="all"), note="llama.cpp's olmo2 loads no rope factors"
    ),
    Architecture(
        "gemma",
        onnx=DecoderBlock(norm_plus_one=True, scaled_embedding=True),
        note="llama.cpp's gemma loads no rope factors",
    ),
    Architecture(
        "gemma2",
        onnx=DecoderBlock(norms="sandwich", norm_plus_one=True, scaled_embedding=True),
        sliding_window=True,
        hybrid=True,
        note="llama.cpp's gemma2 loads no rope factors; every other layer attends to its sliding window only",
    ),
    Architecture("smollm3", onnx=DecoderBlock(), note="llama.cpp's smollm3 loads no rope factors"),
)


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The row of a config.json.

    Raises:
        UnsupportedError: the type is not in the table, or the config uses a feature that extension would break.
    """
    model_type = config.get("model_type")
    row = ARCHITECTURES.get(str(model_type))
    if row is None:
        raise UnsupportedError(f"model type {model_type!r} is not supported; {choices(model_type, ARCHITECTURES)}")
    if row.refusal:
        raise UnsupportedError(f"model type {model_type!r} is not supported: {row.refusal}")
    _refuse_sliding_window(config, row)
    return row


def _refuse_sliding_window(config: Mapping[str, Any], row: Architecture) -> None:
    """Attention that looks back fewer tokens than the window cannot be extended by rescaling alone."""
    window, layers = config.get("sliding_window", row.default_window), _sliding_layers(config, row)
    if not layers or not window or window >= config.get("max_position_embeddings", 0):
        return
    raise UnsupportedError(
        f"{layers} of this {row.model_type} model attend to the last {window} tokens only (sliding_window); a longer "
        "window has no effect on them. Set sliding_window to null in config.json if they were trained in full"
    )


def _sliding_layers(config: Mapping[str, Any], row: Architecture) -> str:
    """Which layers slide, in words; empty if none does, or if the row says that a mixture is handled."""
    types = config.get("layer_types")
    if types:
        count = sum("sliding" in str(kind) or "chunked" in str(kind) for kind in types)
        handled = count == 0 or (row.hybrid and count < len(types))
        return "" if handled else f"{count} of {len(types)} layers"
    slides = row.sliding_window and not row.hybrid and config.get("use_sliding_window", True)
    return "all layers" if slides else ""
