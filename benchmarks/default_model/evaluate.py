"""How good the default model is: perplexity on held-out text by length and rope type, and passkey recall.

The documents are cut into windows of the longest length; shorter windows are pieces of the same tokens, so the numbers
of one document can be compared across lengths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from longrope.retrieval import Encode, RetrievalSample, passkey_sample
from longrope.text import TokenIds


@torch.inference_mode()
def total_loss(model: LlamaForCausalLM, windows: TokenIds, batch: int = 8) -> float:
    """Sum of next-token losses in nats over `windows` (num_windows, length), every token after the first counted."""
    total = 0.0
    for part in torch.from_numpy(windows).split(batch):
        logits = model(input_ids=part, use_cache=False).logits[:, :-1]
        total += F.cross_entropy(logits.float().flatten(0, 1), part[:, 1:].flatten(), reduction="sum").item()
    return total


def perplexities(model: LlamaForCausalLM, documents: Mapping[str, TokenIds]) -> dict[str, float]:
    """exp of the mean loss per token of each document's windows, and of "all" documents together."""
    losses = {name: total_loss(model, windows) for name, windows in documents.items()}
    counts = {name: windows.shape[0] * (windows.shape[1] - 1) for name, windows in documents.items()}
    overall = math.exp(sum(losses.values()) / sum(counts.values()))
    return {name: math.exp(loss / counts[name]) for name, loss in losses.items()} | {"all": overall}


def perplexity(model: LlamaForCausalLM, windows: TokenIds) -> float:
    """exp of the mean loss per token over `windows` (num_windows, length)."""
    return perplexities(model, {"": windows})["all"]


@torch.inference_mode()
def recall(model: LlamaForCausalLM, samples: list[RetrievalSample], batch: int = 32) -> float:
    """Fraction of `samples` (all of one length) whose whole answer is predicted, teacher-forced."""
    hits = 0
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        ids = torch.from_numpy(np.stack([sample.token_ids for sample in part]))
        predicted = model(input_ids=ids, use_cache=False).logits.argmax(-1).numpy()
        hits += sum(sample.recalled(row) for sample, row in zip(part, predicted, strict=True))
    return hits / len(samples)


def passkeys(encode: Encode, filler: TokenIds, length: int, count: int, seed: int = 0) -> list[RetrievalSample]:
    """`count` passkey prompts of `length` tokens at evenly spread depths, 0 and 1 included."""
    rng = np.random.default_rng(seed)
    return [passkey_sample(encode, filler, length, depth, rng) for depth in np.linspace(0.0, 1.0, count)]


@dataclass(frozen=True)
class HeldOut:
    """A small fixed sample of held-out text for a look at a model in training."""

    windows: TokenIds
    samples: list[RetrievalSample]

    @classmethod
    def of(cls, stream: TokenIds, encode: Encode, length: int, count: int = 64) -> HeldOut:
        """`count` windows of `length` tokens spread evenly over `stream`, and as many passkey prompts."""
        starts = np.linspace(0, stream.size - length, count).astype(np.int64)
        windows = np.stack([stream[start : start + length] for start in starts])
        return cls(windows, passkeys(encode, stream, length, count))

    def measure(self, model: LlamaForCausalLM) -> dict[str, float]:
        """Perplexity and passkey recall at the sample's length."""
        ppl, hits = perplexity(model, self.windows), recall(model, self.samples)
        return {"held_out_perplexity": round(ppl, 3), "passkey_recall": round(hits, 4)}


EXTENSION: Final = 8


def rope_settings(theta: float, rotary_dim: int, scale: float) -> dict[str, dict[str, Any]]:
    """transformers' `rope_parameters` of the known methods at length scale `scale`."""
    return {
        "none": {"rope_type": "default", "rope_theta": theta},
        "PI": {"rope_type": "linear", "rope_theta": theta, "factor": scale},
        "NTK": {"rope_type": "default", "rope_theta": theta * scale ** (rotary_dim / (rotary_dim - 2))},
        "YaRN": {"rope_type": "yarn", "rope_theta": theta, "factor": scale},
    }


def open_model(folder: Path, rope: Mapping[str, Any] | None = None) -> LlamaForCausalLM:
    """The checkpoint in float32; `rope` replaces its rope parameters and makes room for the extended window."""
    config = LlamaConfig.from_pretrained(folder)
    if rope is not None:
        window = config.max_position_embeddings
        config.rope_parameters = {**rope, "original_max_position_embeddings": window}
        config.max_position_embeddings = EXTENSION * window
    return LlamaForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()


def read_windows(path: Path, tokenizer: Tokenizer, length: int, limit: int) -> TokenIds:
    """The first `limit` whole windows of a text file, shape (num_windows, length)."""
    text = path.read_text(encoding="utf-8")[: 8 * limit * length]  # far fewer characters than that make a token
    ids = np.array(tokenizer.encode(text).ids, dtype=np.int64)
    num_windows = min(limit, ids.size // length)
    return ids[: num_windows * length].reshape(num_windows, length)


@dataclass(frozen=True)
class Quality:
    """What the model card says: perplexities over the test documents, and passkey recall, by window length."""

    perplexity: dict[str, dict[str, float]]
    """Document (or "all") → column ("none at 256", "YaRN at 2048", …) → perplexity."""
    passkey_recall: dict[int, float]
    """Prompt length → fraction of keys recalled by the model as it is."""
    num_tokens: int
    """Tokens scored in each column."""


def measure(folder: Path, texts: Path, limit: int = 6) -> Quality:
    """Judge the checkpoint in `folder` on the first `limit` extended windows of each document of `texts`."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = open_model(folder)
    window, head_dim = model.config.max_position_embeddings, model.config.head_dim
    long = EXTENSION * window
    documents = {path.stem: read_windows(path, tokenizer, long, limit) for path in sorted(texts.glob("*.txt"))}
    short = {name: windows.reshape(-1, window) for name, windows in documents.items()}
    columns = {f"none at {window}": perplexities(model, short)}
    for method, rope in rope_settings(model.config.rope_parameters["rope_theta"], head_dim, EXTENSION).items():
        columns[f"{method} at {long}"] = perplexities(open_model(folder, rope), documents)
    table = {name: {column: values[name] for column, values in columns.items()} for name in (*documents, "all")}
    encode: Encode = lambda text: tokenizer.encode(text).ids  # noqa: E731
    filler = np.concatenate([windows.reshape(-1) for windows in documents.values()])
    hits = {length: recall(model, passkeys(encode, filler, length, 128)) for length in (window // 2, window)}
    return Quality(table, hits, int(filler.size))
