"""Pico models and texts that tests share. Everything is made here, from a seed; nothing is downloaded."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.version import Version
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from converters import registry
from converters.base import Export, PlannedExport
from longrope import rope
from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.factors import BoundFactors, RescaleFactors, read_authors_csv
from longrope.progress import Silent
from longrope.text import Corpus, Document

WINDOW = 64
TARGET = 256

# The transformers that rows of longrope/architectures.py were checked against; it has all their types.
ARCHITECTURES_CHECKED_AGAINST = Version("5.23")

# Options of `extend` that make a run of a pico model a matter of seconds.
PICO_BUDGET = (
    "--max-evals 6 --short-evals 4 --documents 2 --short-windows 2 --test-windows 1 --windows-per-length 1 "
    "--threads 1 --methods PI,NTK"
)

REPOSITORY = Path(__file__).resolve().parents[1]
# The authors' files lie beside the repository on development machines; tests that use them are skipped elsewhere.
PUBLISHED_FACTORS = REPOSITORY.parent / "shared" / "data" / "published_factors"
needs_published_factors = pytest.mark.skipif(
    not PUBLISHED_FACTORS.is_dir(), reason="the authors' files are not beside this repository"
)

SENTENCES = (
    "The captain of the small ship had not slept since the storm, and nobody dared to ask him why.",
    "In 1847 there were 36 houses in the village; by 1901 only 9 of them were left.",
    "She answered: “Surely not!” – and went on writing, line after line, until the lamp went out.",
    "Ten thousand years are nothing to a mountain, my grandfather used to say, and he was right.",
    "A good tool tells you what it did, what it did not do, and how it knows.",
)


def pico_text(num_sentences: int, seed: int = 0) -> str:
    """Prose of so many sentences, in an order that depends on the seed."""
    rng = np.random.default_rng(seed)
    return " ".join(SENTENCES[i] for i in rng.integers(len(SENTENCES), size=num_sentences))


def pico_corpus(checkpoint: Checkpoint, documents: int = 3) -> Corpus:
    """Documents of 60 sentences in a checkpoint's tokens."""
    texts = [checkpoint.encode(pico_text(60, seed)) for seed in range(documents)]
    return Corpus(tuple(Document(f"d{i}", np.array(ids)) for i, ids in enumerate(texts)))


def pico_tokenizer(vocab_size: int = 384) -> Tokenizer:
    """A byte-level BPE tokenizer of the SmolLM kind: digits one by one, GPT-2 split."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    missing = vocab_size - tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"<extra_{i}>" for i in range(missing)])
    return tokenizer


def pico_config(model_type: str = "llama", **changes: Any) -> Any:
    """A transformers configuration of a two-layer model with window 64 and head size 16; skips types older ones lack."""
    from transformers import CONFIG_MAPPING, AutoConfig, __version__

    if model_type not in CONFIG_MAPPING and Version(__version__) < ARCHITECTURES_CHECKED_AGAINST:
        pytest.skip(f"transformers {__version__} has no {model_type}")
    values: dict[str, Any] = {
        "vocab_size": 384,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": WINDOW,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    return AutoConfig.for_model(model_type, **{**values, **changes})


# Latent attention, state-space layers, and layers that slide.
MLA = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16}
SMALL_EXPERTS = {
    "n_routed_experts": 4,
    "moe_intermediate_size": 64,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_key_value_heads": 4,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"]}
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
# What a model type needs beyond the values above: no rescaled RoPE by default, few experts, layers that rotate.
PICO_CHANGES: dict[str, dict[str, Any]] = {
    "ministral3": {
        "head_dim": 16,
        "rope_parameters": {"rope_theta": 1e5, "llama_4_scaling_beta": 0.1, "rope_type": "default"},
    },
    "minicpm3": {
        "num_key_value_heads": 4,
        "q_lora_rank": 48,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "head_dim": 16,
        "v_head_dim": 16,
    },
    "apertus": {"rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}},
    "exaone4": {"sliding_window": None, "layer_types": ["full_attention"] * 2},
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "cohere2": {"layer_types": ["full_attention"] * 2},
    "deepseek_v2": {**MLA, **SMALL_EXPERTS},
    "deepseek_v3": {**MLA, **SMALL_EXPERTS},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 128},
    "gemma3_text": LAYERS,
    "gemma4_text": {**LAYERS, "global_head_dim": 32, "vocab_size_per_layer_input": 384},
    "granitemoehybrid": {**MAMBA, "position_embedding_type": "rope", "layer_types": ["mamba", "attention"]},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 2},
    "llama4_text": {"no_rope_layers": [1, 1], "attention_chunk_size": None},
    "olmo3": LAYERS,
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_next": LINEAR,
    "qwen3_5_text": LINEAR,
    "qwen3_5_moe_text": {**LINEAR, "num_experts": 4, "num_experts_per_tok": 2},
}

EXPERTS = {
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
}
PARTIAL = {
    "rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5},
    "num_key_value_heads": 4,
}
YARN = {
    **{"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": WINDOW // 2},
    **{"beta_fast": 32.0, "beta_slow": 1.0},
}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 24}
DELTA_NET = {
    "layer_types": ["linear_attention", "full_attention"],
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16},
    "head_dim": 32,
}

# What makes a model type that ONNX can express use the features that set it apart.
FEATURES: dict[str, dict[str, Any]] = {
    "gemma": {"head_dim": 16},
    # Scores near the cap, a window shorter than the text: both kinds of layers and both caps matter.
    "gemma2": {
        "head_dim": 16,
        "sliding_window": 24,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0,
        "query_pre_attn_scalar": 4,
    },
    "granite": {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
        "logits_scaling": 2.0,
    },
    "llama": {"attention_bias": True, "mlp_bias": True},
    **dict.fromkeys(("phi", "stablelm", "nemotron", "gpt_neox"), PARTIAL),
    "apertus": PICO_CHANGES["apertus"],
    "cohere": {"logit_scale": 0.1},
    "deepseek_v2": {
        **{**MLA, **SMALL_EXPERTS, "qk_nope_head_dim": 24, "head_dim": 16},
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
        "routed_scaling_factor": 2.0,
    },
    # Two of four groups are chosen first, then two of their four experts.
    "deepseek_v3": {
        **{**MLA, **SMALL_EXPERTS, "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "n_shared_experts": 1},
        **{"first_k_dense_replace": 1, "num_local_experts": 8},
    },
    "glm4_moe": {**EXPERTS, "first_k_dense_replace": 1, "n_shared_experts": 1, "use_qk_norm": True, "head_dim": 16},
    "exaone4": PICO_CHANGES["exaone4"],
    "gemma3_text": {**SLIDING, "head_dim": 16, "query_pre_attn_scalar": 4},
    "glm": {**PARTIAL, "head_dim": 16, "attention_bias": True},
    "glm4": {**PARTIAL, "head_dim": 16, "attention_bias": True},
    "gpt_oss": {**SLIDING, **EXPERTS, "head_dim": 16, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
    **dict.fromkeys(("granitemoe", "mixtral"), EXPERTS),
    "granitemoeshared": {**EXPERTS, "shared_intermediate_size": 64},
    "hunyuan_v1_dense": {"head_dim": 16},
    "internlm3": {"head_dim": 16},
    "minicpm3": {**PICO_CHANGES["minicpm3"], "scale_emb": 3, "scale_depth": 1.4},
    "ministral3": {
        "head_dim": 16,
        # Windows of 32 tokens, so that queries grow within the text.
        "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.5},
    },
    "olmo3": {**SLIDING, "num_key_value_heads": 4},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 64},
    "qwen3_moe": {**EXPERTS, "head_dim": 16, "decoder_sparse_step": 2},
    "qwen3_5_text": DELTA_NET,
    "qwen3_5_moe_text": {**DELTA_NET, **EXPERTS, "shared_expert_intermediate_size": 64},
    "olmoe": {**EXPERTS, "num_key_value_heads": 4},
    "qwen3_next": {**DELTA_NET, **EXPERTS, "shared_expert_intermediate_size": 64},
    "phi3": {"partial_rotary_factor": 0.5, "pad_token_id": 0},
    "qwen2": {"tie_word_embeddings": True},
    "smollm3": {"num_hidden_layers": 4},
}


def pico_folder(path: Path, model_type: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """Write a randomly initialised pico model with its tokenizer; weights are large enough that logits differ."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(pico_config(model_type, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.15)
    model.save_pretrained(path)
    pico_tokenizer().save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<|endoftext|>",
                "eos_token": "<|endoftext|>",
                "add_bos_token": False,
            }
        )
    )
    return path


def pico_checkpoint(path: Path, model_type: str = "llama", **changes: Any) -> Checkpoint:
    return open_checkpoint(pico_folder(path, model_type, **changes))


def published_llama2_factors() -> RescaleFactors:
    """The authors' sets for LLaMA2: 4096 → 2,097,152 tokens, and 8192 as the short one."""
    short, long = (read_authors_csv(PUBLISHED_FACTORS / f"{name}_la2_256k.csv") for name in ("8k", "2048k"))
    return RescaleFactors(short, long, target_length=2_097_152)


def pico_factors(rotary_dim: int = 16, *, dual: bool = True, target: int = TARGET, **changes: Any) -> RescaleFactors:
    """Factors of both kinds: NTK for the long set, its fourth root for the short one if dual."""
    long_factor = rope.ntk_factors(rotary_dim, target / WINDOW) * 1.01
    short_factor = long_factor**0.25 if dual else long_factor
    values: dict[str, Any] = {
        "short_factor": tuple(short_factor.tolist()),
        "long_factor": tuple(long_factor.tolist()),
        "original_max_position_embeddings": WINDOW,
        "target_length": target,
        "method": "test",
    }
    return RescaleFactors(**{**values, **changes})


def said(factors: RescaleFactors | None) -> dict[str, Any]:
    """What factors say, bound or as they were read, to compare them by."""
    assert factors is not None, "no factors were found"
    return factors.to_json()


def unscaled(original: int, target: int, *, rotary_dim: int = 32) -> BoundFactors:
    """The original RoPE of a model that is not there, as search spaces want it; theta 10,000."""
    ones = (1.0,) * (rotary_dim // 2)
    return RescaleFactors(ones, ones, attention_factor=1.0).bound_to(
        original=original, target=target, rope_theta=10_000.0, rotary_dim=rotary_dim, model_type="llama"
    )


def write_every_format(checkpoint: Checkpoint, factors: BoundFactors, room: Path) -> dict[str, Path]:
    """An artifact of every format in a folder, in float32: format → place."""
    artifacts = {"hf": room / "hf", "gguf": room / "model.gguf", "onnx": room / "onnx"}
    for name, path in artifacts.items():
        plan_in_float32(name, checkpoint, factors).save(path, Silent())
    return artifacts


def plan_in_float32(format_name: str, checkpoint: Checkpoint, factors: BoundFactors) -> PlannedExport:
    """The plan of an export whose weights are those of a pico model, to the bit."""
    return registry.converter(format_name).plan(Export(checkpoint, factors, "f32" if format_name == "gguf" else None))


# -- reports


def junit_faults(text: str) -> list[str]:
    """What is wrong with a JUnit file by tests/junit.xsd."""
    import xmlschema

    schema = xmlschema.XMLSchema11(Path(__file__).parent / "junit.xsd")
    return [f"{fault.path}: {fault.reason}" for fault in schema.iter_errors(text)]


# -- the command line


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code, what it printed, what it said."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Lines of standard error."""
        return self.err.splitlines()


def run_cli(*arguments: object) -> Outcome:
    """Run the command line in this process."""
    from longrope_export.cli import main

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    return Outcome(int(exit.value.code or 0), out.getvalue(), err.getvalue())


def cli_process(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """The command line as a process of its own, to be killed or limited; Ctrl-C reaches it even from a background job."""
    options.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    command = [sys.executable, "-m", "longrope_export", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, **options
    )
