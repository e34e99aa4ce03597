"""What each model type is written as: the architectures of llama.cpp that compute its network *and* load rope factors.

    qwen2 ── its own architecture loads no factors ──► carried by llama: the same network, q and k interleaved
    qwen3 ── the same ──► carried by exaone-moe (one set for every context) or step35 (both sets)

A family of few parameters needs no such architecture: `NATIVES` has the model's own, whose keys hold it.

One table, one row a model type, the default first; the first that computes a model with its factors is taken. What a
carrier wants beyond the model's own keys and weights stands in its row: keys, tensors of one number, an output matrix of
its own. A carrier is a stock architecture, so files run in every program with llama.cpp inside that knows it.

Source: llama.cpp as vendored by llama-cpp-python 0.3.36 (src/models/*.cpp).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from converters.gguf.container import Value, array, f32, flag, u32
from converters.gguf.native import gguf
from longrope.checkpoint import Checkpoint
from longrope.errors import UnsupportedError
from longrope.factors import BoundFactors
from longrope.hf_config import SLIDING, local_parameters, rope_parameters

GgufRope = Literal["sets", "freqs", "full_freqs"]
Values = dict[str, Value]

# What an attention sink must be to take no part: exp(x - max) is 0 for it. An infinity would fail `--check-tensors`.
NO_SINK = -1e30
# What values of 1 are before the norm of gemma4, so that it is exact to 3e-8 of a value's square and float16 holds them.
SMALL_VALUES = 2.0**-12
# What other numbers of 1 are before a norm that is to leave them as they are.
TINY = 2.0**-30
# Width of a shared expert that adds nothing: one block of the simple quantized types.
_ZERO_WIDTH = 32


@dataclass(frozen=True)
class Fill:
    """A tensor that the carrier wants and the model does not have: one number throughout."""

    name: str
    shape: tuple[int, ...]
    number: float


@dataclass(frozen=True)
class Sizes:
    """Numbers of a model that carriers' keys and tensors are made of."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Sizes:
        config = checkpoint.config
        return cls(
            layers=int(config["num_hidden_layers"]),
            hidden=int(config["hidden_size"]),
            intermediate=int(config["intermediate_size"]),
            heads=int(config["num_attention_heads"]),
            kv_heads=num_key_value_heads(config),
            head_dim=checkpoint.head_dim,
        )


def _no_keys(_checkpoint: Checkpoint, _factors: BoundFactors) -> Values:
    return {}


def _no_fills(_checkpoint: Checkpoint) -> Iterator[Fill]:
    yield from ()


@dataclass(frozen=True)
class Target:
    """What a checkpoint is written as.

    Args:
        architecture: llama.cpp's name.
        rope: "sets" for both factor tensors, "freqs" for the one that serves every context, "full_freqs" for the same in
            layers that see everything, and no attention factor in the others.
        permute_qk: the rows of q and k are interleaved.
        carried: the model's own architecture in llama.cpp, which is not taken; None where this is it.
        reason: why it is not.
        layout: name in `LAYOUTS`; "" for the architecture's own.
        keys: hyperparameters beside those of the layout, some in their place.
        fills: tensors that the model does not have.
        own_head: the output matrix must be in the file, even where it is the embedding's.
        slides: attention looks back over the model's sliding window, as in transformers; else over the whole context.
        one_base: layers that slide are rotated by the base of the others, so that it has to stay the model's.
        needs: fields of config.json with the only value that is computed, beside those of the layout.
    """

    architecture: str
    rope: GgufRope = "sets"
    permute_qk: bool = False
    carried: str | None = None
    reason: str = "loads no rope factors"
    layout: str = ""
    keys: Callable[[Checkpoint, BoundFactors], Values] = _no_keys
    fills: Callable[[Checkpoint], Iterator[Fill]] = _no_fills
    own_head: bool = False
    slides: bool = False
    one_base: bool = False
    needs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layout_name(self) -> str:
        return self.layout or self.architecture

    @property
    def explanation(self) -> str | None:
        """Why tools will show another architecture than the model's own; None where they don't."""
        if self.carried is None:
            return None
        return (
            f"written as architecture {self.architecture}, which computes the same network and is what tools show: "
            f"llama.cpp's own {self.carried} {self.reason}"
        )


# -- exaone-moe: rotates and takes factors in its sliding layers only, so every layer slides, over the whole window


def _exaone_moe(checkpoint: Checkpoint, factors: BoundFactors) -> Values:
    layers = Sizes.of(checkpoint).layers
    return {
        "attention.sliding_window": u32(factors.target),
        "attention.sliding_window_pattern": _flags([True] * layers),
        "expert_gating_func": u32(gguf.ExpertGatingFuncType.SOFTMAX),
    }


def _exaone_moe_dense(checkpoint: Checkpoint, factors: BoundFactors) -> Values:
    sizes = Sizes.of(checkpoint)
    return {
        **_exaone_moe(checkpoint, factors),
        "leading_dense_block_count": u32(sizes.layers),
        "expert_feed_forward_length": u32(sizes.intermediate),
    }


def _exaone_moe_sparse(checkpoint: Checkpoint, factors: BoundFactors) -> Values:
    config = checkpoint.config
    return {
        **_exaone_moe(checkpoint, factors),
        "expert_count": u32(config.get("num_experts") or config["num_local_experts"]),
        "expert_used_count": u32(config["num_experts_per_tok"]),
        "expert_feed_forward_length": u32(config["moe_intermediate_size"]),
        "expert_shared_feed_forward_length": u32(_ZERO_WIDTH),
        "expert_weights_norm": flag(config.get("norm_topk_prob", False)),
        "expert_weights_scale": f32(1.0),
    }


def _zero_shared_experts(checkpoint: Checkpoint) -> Iterator[Fill]:
    sizes = Sizes.of(checkpoint)
    for layer in range(sizes.layers):
        for name, shape in (
            ("gate", (_ZERO_WIDTH, sizes.hidden)),
            ("up", (_ZERO_WIDTH, sizes.hidden)),
            ("down", (sizes.hidden, _ZERO_WIDTH)),
        ):
            yield Fill(f"blk.{layer}.ffn_{name}_shexp.weight", shape, 0.0)


# -- step35: rotates half of `rope.dimension_count`, takes factors where it does not slide, and aborts unless a layer
#    slides: one layer of zeros, which adds nothing, does


def _step35(checkpoint: Checkpoint, factors: BoundFactors) -> Values:
    sizes = Sizes.of(checkpoint)
    return {
        "rope.dimension_count": u32(2 * checkpoint.rotary_dim),
        "rope.dimension_count_swa": u32(checkpoint.rotary_dim),
        **_sizes_with_zero_layer(sizes, factors),
        "expert_feed_forward_length": u32(sizes.intermediate),
    }


def _sizes_with_zero_layer(sizes: Sizes, factors: BoundFactors) -> Values:
    """Sizes with a last layer that slides and adds nothing."""
    return {
        "block_count": u32(sizes.layers + 1),
        "attention.sliding_window": u32(factors.target),
        "attention.sliding_window_pattern": _flags([False] * sizes.layers + [True]),
        "attention.head_count": _numbers([sizes.heads] * sizes.layers + [1]),
        "attention.head_count_kv": _numbers([sizes.kv_heads] * sizes.layers + [1]),
    }


def _zero_layer(checkpoint: Checkpoint) -> Iterator[Fill]:
    sizes = Sizes.of(checkpoint)
    hidden, head, wide = sizes.hidden, sizes.head_dim, sizes.intermediate
    norms = {"attn_norm": hidden, "ffn_norm": hidden, "attn_q_norm": head, "attn_k_norm": head}
    matrices = {
        "attn_q": (head, hidden),
        "attn_k": (head, hidden),
        "attn_v": (head, hidden),
        "attn_output": (hidden, head),
        "ffn_gate": (wide, hidden),
        "ffn_up": (wide, hidden),
        "ffn_down": (hidden, wide),
    }
    for name, size in norms.items():
        yield Fill(f"blk.{sizes.layers}.{name}.weight", (size,), 1.0)
    for name, shape in matrices.items():
        yield Fill(f"blk.{sizes.layers}.{name}.weight", shape, 0.0)


# -- granite_swa: Llama with sliding layers, layers that are not rotated, and sinks


def _granite_swa(checkpoint: Checkpoint, factors: BoundFactors) -> Values:
    """Where no layer slides one must: the last one does, over the whole window."""
    slides = sliding_layers(checkpoint)
    return {
        "attention.sliding_window": u32(sliding_window(checkpoint) or factors.target),
        "attention.sliding_window_pattern": _flags(slides if any(slides) else [*slides[:-1], True]),
        "logit_scale": f32(1.0),
    }


def _granite_swa_nope(checkpoint: Checkpoint, factors: BoundFactors) -> Values:
    config, layers = checkpoint.config, Sizes.of(checkpoint).layers
    every = int(config.get("no_rope_layer_interval") or 4)
    rotated = config.get("no_rope_layers") or [(layer + 1) % every != 0 for layer in range(layers)]
    return {**_granite_swa(checkpoint, factors), "attention.rope_pattern": _numbers(map(int, rotated))}


# -- gemma4: layers that see everything take one factor set. It normalizes values, which other Gemmas do not: values far
#    below the epsilon of the norm stay as they are, but for a scale, which is put right behind the attention


def _gemma4(checkpoint: Checkpoint, factors: BoundFactors) -> Values:
    config, slides = checkpoint.config, [kind == SLIDING for kind in checkpoint.layer_types]
    local = int(config.get("head_dim") or 256)
    return {
        "attention.key_length": u32(checkpoint.rotary_dim),
        "attention.value_length": u32(checkpoint.rotary_dim),
        "attention.key_length_swa": u32(local),
        "attention.value_length_swa": u32(local),
        "rope.dimension_count_swa": u32(local),
        "rope.freq_base_swa": f32(local_parameters(config)["rope_theta"]),
        "attention.sliding_window": u32(config.get("sliding_window") or factors.target),
        "attention.sliding_window_pattern": _flags(slides),
    }


def _gemma3_as_gemma4(checkpoint: Checkpoint, factors: BoundFactors) -> Values:
    return {**_gemma4(checkpoint, factors), "embedding_length_per_layer_input": u32(0)}


def _gemma_as_gemma4(checkpoint: Checkpoint, factors: BoundFactors) -> Values:
    """All layers see everything, and llama.cpp wants one that slides: one of zeros, which adds nothing."""
    return {**_gemma3_as_gemma4(checkpoint, factors), **_sizes_with_zero_layer(Sizes.of(checkpoint), factors)}


def _norms_without_effect(checkpoint: Checkpoint) -> Iterator[Fill]:
    """gemma4 normalizes queries, keys and what attention and MLP add, too: all far below epsilon, and back."""
    sizes = Sizes.of(checkpoint)
    tiny = _below_epsilon(checkpoint, TINY)
    for layer in range(sizes.layers):
        scales = {"attn_q": tiny, "attn_k": tiny, "ffn_down": tiny, "attn_v": _below_epsilon(checkpoint, SMALL_VALUES)}
        for name, number in {**scales, "attn_output": tiny / SMALL_VALUES}.items():
            yield Fill(f"blk.{layer}.{name}.scale", (1,), number)
        norms = {"attn_q_norm": sizes.head_dim, "attn_k_norm": sizes.head_dim}
        norms |= {"post_attention_norm": sizes.hidden, "post_ffw_norm": sizes.hidden}
        for name, size in norms.items():
            scale = 1 / math.sqrt(sizes.head_dim) if name == "attn_q_norm" else 1.0
            yield Fill(f"blk.{layer}.{name}.weight", (size,), scale / TINY)
    yield from _zero_layer(checkpoint)
    for name in ("post_attention_norm", "post_ffw_norm"):
        yield Fill(f"blk.{sizes.layers}.{name}.weight", (sizes.hidden,), 1.0)


def _values_as_they_are(checkpoint: Checkpoint) -> Iterator[Fill]:
    for layer in range(Sizes.of(checkpoint).layers):
        yield Fill(f"blk.{layer}.attn_v.scale", (1,), _below_epsilon(checkpoint, SMALL_VALUES))
        yield Fill(f"blk.{layer}.attn_output.scale", (1,), 1 / SMALL_VALUES)


def _below_epsilon(checkpoint: Checkpoint, small: float) -> float:
    """What numbers are multiplied by so that a norm without weights makes `small` of 1."""
    return small * math.sqrt(checkpoint.config.get("rms_norm_eps") or 1e-6)


def _no_sinks(checkpoint: Checkpoint) -> Iterator[Fill]:
    sizes = Sizes.of(checkpoint)
    for layer in range(sizes.layers):
        yield Fill(f"blk.{layer}.attn_sinks.weight", (sizes.heads,), NO_SINK)


def sliding_window(checkpoint: Checkpoint) -> int | None:
    """Tokens that layers look back over; None where all layers see everything."""
    config, row = checkpoint.config, checkpoint.architecture
    if not (row.sliding_window and config.get("use_sliding_window", True)):
        return None
    return config.get("sliding_window", row.default_window) or None


def sliding_layers(checkpoint: Checkpoint) -> list[bool]:
    """Which layers look back over the sliding window only."""
    layers, slides = Sizes.of(checkpoint).layers, sliding_window(checkpoint) is not None
    types = checkpoint.config.get("layer_types") or [SLIDING] * layers
    return [slides and kind == SLIDING for kind in types]


# -- the table

_LLAMA = Target("llama", permute_qk=True)
_GRANITEMOE = Target("granitemoe", permute_qk=True)


_ONE_SET = "loads one factor set only"


def _as_llama(carried: str, **changes: Any) -> Target:
    return dataclasses.replace(_LLAMA, carried=carried, **changes)


TARGETS: Mapping[str, tuple[Target, ...]] = {
    "llama": (_LLAMA,),
    "mistral": (_LLAMA,),
    "mixtral": (_LLAMA,),
    "ministral3": (Target("mistral3", permute_qk=True),),
    "granite": (Target("granite", permute_qk=True),),
    "granitemoe": (_GRANITEMOE,),
    "granitemoeshared": (_GRANITEMOE,),
    "granitemoehybrid": (
        Target(
            "granite",
            permute_qk=True,
            carried="granitehybrid",
            reason=_ONE_SET,
            layout="granitemoehybrid",
            needs={"position_embedding_type": "rope", "num_local_experts": 0},
        ),
    ),
    "minicpm3": (Target("minicpm3"),),
    "phi3": (Target("phi3"),),
    "apertus": (Target("apertus"),),
    "arcee": (Target("arcee", "freqs", permute_qk=True),),
    "exaone4": (Target("exaone4", "freqs"),),
    "exaone": (_as_llama("exaone", reason=_ONE_SET, layout="exaone"),),
    "internlm3": (_LLAMA,),
    "ernie4_5": (_as_llama("ernie4_5", permute_qk=False),),  # rotates neighbouring rows, as llama.cpp does
    "seed_oss": (_as_llama("seed_oss"),),
    "qwen2": (_as_llama("qwen2"),),
    "qwen3": (
        Target("exaone-moe", "freqs", carried="qwen3", layout="qwen3", keys=_exaone_moe_dense, own_head=True),
        Target("step35", carried="qwen3", layout="qwen3", keys=_step35, fills=_zero_layer, own_head=True),
    ),
    "qwen3_moe": (
        Target(
            "exaone-moe",
            "freqs",
            carried="qwen3moe",
            layout="qwen3_moe",
            keys=_exaone_moe_sparse,
            fills=_zero_shared_experts,
            own_head=True,
            needs={"decoder_sparse_step": 1, "mlp_only_layers": []},
        ),
    ),
    "gemma4_text": (Target("gemma4", "full_freqs", keys=_gemma4, slides=True),),
    "gemma": (
        Target(
            "gemma4",
            "full_freqs",
            carried="gemma",
            layout="gemma",
            keys=_gemma_as_gemma4,
            fills=_norms_without_effect,
            slides=True,
        ),
    ),
    "gemma3_text": (
        Target(
            "gemma4",
            "full_freqs",
            carried="gemma3",
            layout="gemma3 as gemma4",
            keys=_gemma3_as_gemma4,
            fills=_values_as_they_are,
            slides=True,
        ),
    ),
    "smollm3": (
        Target(
            "granite_swa",
            permute_qk=True,
            carried="smollm3",
            layout="llama",
            keys=_granite_swa_nope,
            fills=_no_sinks,
            slides=True,
        ),
    ),
}

# What llama.cpp uses, whether transformers has such a type or not: files of these can be patched.
LOADS_SETS = frozenset({"llama", "mistral3", "deci", "granite", "granitemoe", "minicpm", "minicpm3", "phi3", "apertus"})
LOADS_FREQS = frozenset({"arcee", "exaone", "exaone4"})


def num_key_value_heads(config: Mapping[str, Any]) -> int:
    """Heads of k and v: as many as of q when config.json is silent."""
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def _flags(data: list[bool]) -> Value:
    return array(gguf.GGUFValueType.BOOL, data)


def _numbers(data: Any) -> Value:
    return array(gguf.GGUFValueType.UINT32, data)


# -- architectures of the models' own that need more than their keys


def _qwen35(checkpoint: Checkpoint, _factors: BoundFactors) -> Values:
    config, rope = checkpoint.config, rope_parameters(checkpoint.config)
    sections = [*(rope.get("mrope_section") or (11, 11, 10)), 0]
    return {
        "ssm.inner_size": u32(config["linear_num_value_heads"] * config["linear_value_head_dim"]),
        "rope.dimension_sections": array(gguf.GGUFValueType.INT32, sections),
    }


def _deepseek2(checkpoint: Checkpoint, factors: BoundFactors) -> Values:
    """The softmax scale is (0.1 m ln s + 1)² and stays; an attention factor would be in it a second time."""
    if factors.family is None or factors.family.type != "yarn":
        raise UnsupportedError("llama.cpp's deepseek2 rescales by YaRN only; export to HF or ONNX instead")
    if not math.isclose(factors.family.attention_factor, 1.0, rel_tol=1e-6):
        raise UnsupportedError(
            f"llama.cpp's deepseek2 has the attention factor {factors.family.attention_factor:g} in its softmax scale, too; "
            "expected 1, as DeepSeek's own YaRN has it; export to HF or ONNX instead"
        )
    written = rope_parameters(checkpoint.extended_config(factors))
    return {
        "expert_gating_func": u32(gguf.ExpertGatingFuncType.SOFTMAX),
        "rope.scaling.attn_factor": f32(1.0),
        "rope.scaling.yarn_log_multiplier": f32(0.1 * written.get("mscale_all_dim", 0.0)),
    }


def _local_base(checkpoint: Checkpoint, _factors: BoundFactors) -> Values:
    return {"rope.freq_base_swa": f32(checkpoint.rope_theta)}


# Architectures that have no output matrix beside the embedding.
_TIED = {"tie_word_embeddings": True}
# The model types whose own architecture loads no factors, or not both sets.
NATIVES: Mapping[str, Target] = {
    "qwen2": Target("qwen2"),
    "qwen3": Target("qwen3"),
    "qwen3_moe": Target("qwen3moe"),
    "seed_oss": Target("seed_oss"),
    "smollm3": Target("smollm3", permute_qk=True),
    "olmo2": Target("olmo2"),
    "gemma": Target("gemma", needs=_TIED),
    "gemma2": Target("gemma2", slides=True, needs=_TIED),
    "gemma3_text": Target("gemma3", slides=True),
    "olmo3": Target("olmo2", layout="olmo3", keys=_local_base, slides=True, one_base=True),
    "glm4": Target("glm4"),
    "cohere": Target("command-r", needs=_TIED),
    "phi": Target("phi2"),
    "gpt_neox": Target("gptneox"),
    "gpt_oss": Target("gpt-oss", slides=True),
    "deepseek_v2": Target("deepseek2", keys=_deepseek2),
    "qwen3_5_text": Target("qwen35", keys=_qwen35, slides=True),
}
# Architectures that compute a family's keys as transformers computes its parameters; the tests compare logits of each.
# mistral3 does not: it scales queries by the original window, which the keys move.
COMPUTES_FAMILIES = frozenset(
    {"llama", "granite", "granitemoe", "minicpm3", "apertus", "arcee", "exaone4"}
    | {target.architecture for target in NATIVES.values()}
)
# Carriers that rotate all layers by the same keys as a model's own architecture would.
_PLAIN_CARRIERS = ("llama", "granite")


def candidates(
    checkpoint: Checkpoint, factors: BoundFactors, *, carrier: str | None = None, llama: bool = True
) -> tuple[Target, ...]:
    """The rows of a checkpoint's type, at least one. Raises UnsupportedError when none is left."""
    rows = _of_family(checkpoint.model_type) if factors.family else TARGETS.get(checkpoint.model_type, ())
    if not rows:
        raise UnsupportedError(f"GGUF cannot hold {_words(checkpoint, factors)}; export to HF or ONNX instead")
    left = tuple(row for row in rows if carrier in (None, row.architecture) and (llama or row.architecture != "llama"))
    if not left:
        wanted = f"as {carrier}" if carrier else "as anything but llama"
        known = ", ".join(row.architecture for row in rows)
        raise UnsupportedError(f"a {checkpoint.model_type} network cannot be written {wanted}; expected {known}")
    return left


def _of_family(model_type: str) -> tuple[Target, ...]:
    """Its own architecture, then those that compute the same network with the same keys."""
    own = (NATIVES[model_type],) if model_type in NATIVES else ()
    rows = (row for row in TARGETS.get(model_type, ()) if row.carried is None or row.architecture in _PLAIN_CARRIERS)
    return tuple(row for row in (*own, *rows) if row.architecture in COMPUTES_FAMILIES)


def _words(checkpoint: Checkpoint, factors: BoundFactors) -> str:
    if factors.family:
        kind = factors.family.type
        return (
            f"{kind} for {checkpoint.model_type}: no architecture of llama.cpp is known here that computes both alike"
        )
    way_out = "; its own computes YaRN (--family yarn)" if checkpoint.model_type in NATIVES else ""
    return (
        f"rope factors for {checkpoint.model_type}: llama.cpp has no architecture that computes this network and loads rope "
        f"factors{way_out}"
    )


def own_rows() -> list[tuple[str, Target]]:
    """Every model type with a row for its own architecture, whether that loads factors or not."""
    rows = [(model_type, row) for model_type, each in TARGETS.items() for row in each if row.carried is None]
    return [*rows, *NATIVES.items()]


def architectures_of(model_type: str) -> frozenset[str]:
    """What models of a type are written as."""
    own = (NATIVES[model_type],) if model_type in NATIVES else ()
    return frozenset(row.architecture for row in (*own, *TARGETS.get(model_type, ())))
