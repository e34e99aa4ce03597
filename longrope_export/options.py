"""Options that several commands share, each written once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Lengths(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """Comma-separated lengths in tokens; `8k` is 8192."""

    name = "N,N,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(TOKENS.convert(part, param, ctx) for part in str(value).split(","))


class Tokens(click.ParamType):  # type: ignore[type-arg]
    """A length in tokens; `128k` is 131072."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip().lower()
        number, unit = (text[:-1], 1024) if text.endswith("k") else (text, 1)
        if not number.isdigit() or int(number) == 0:
            self.fail(f"expected a number of tokens above 0, like 8192 or 8k, got {value!r}", param, ctx)
        return int(number) * unit


class Share(click.ParamType):  # type: ignore[type-arg]
    """A fraction, as `0.01` or `1%`."""

    name = "SHARE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            self.fail(f"expected a share like 1% or 0.01, got {value!r}", param, ctx)
        return share


class Depths(click.ParamType):  # type: ignore[type-arg]
    """Comma-separated places in a text, 0 (its start) to 1 (its end); each counts once."""

    name = "D,D,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            depths = tuple(dict.fromkeys(float(part) for part in str(value).split(",")))
        except ValueError:
            depths = (-1.0,)
        if not all(0 <= depth <= 1 for depth in depths):
            self.fail(f"expected numbers from 0 to 1 like 0,0.5,1, got {value!r}", param, ctx)
        return depths


class Counts(click.ParamType):  # type: ignore[type-arg]
    """Comma-separated whole numbers, 0 or more."""

    name = "N,N,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        parts = str(value).split(",")
        if not all(part.strip().isdecimal() for part in parts):
            self.fail(f"expected whole numbers like 0,1,4, got {value!r}", param, ctx)
        return tuple(dict.fromkeys(int(part) for part in parts))


TOKENS, LENGTHS, SHARE, DEPTHS, COUNTS = Tokens(), Lengths(), Share(), Depths(), Counts()
PATH = click.Path(path_type=Path)


def texts(*, required: bool) -> Callable[[Decorated], Decorated]:
    """`--text`, repeatable."""
    return click.option(
        "--text",
        "texts",
        multiple=True,
        required=required,
        type=PATH,
        help="UTF-8 file or folder of .txt, .md, .jsonl (field text); repeatable.",
    )


def output(what: str, *, required: bool = True) -> Callable[[Decorated], Decorated]:
    """`-o/--output` and `--overwrite`."""

    def decorate(function: Decorated) -> Decorated:
        overwrite = click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
        return click.option("-o", "--output", required=required, type=PATH, help=what)(overwrite(function))

    return decorate


def compute(function: Decorated) -> Decorated:
    """`--device`, `--threads`, `--seed`."""
    for option in (
        click.option("--seed", type=int, default=0, show_default=True, help="Of everything random."),
        click.option("--threads", type=click.IntRange(1), help="CPU threads of each runtime.  [default: all cores]"),
        click.option("--device", default="cpu", show_default=True, help="Torch device: cpu, cuda, cuda:1, mps."),
    ):
        function = option(function)
    return function


def dtype(
    default: str, help: str = "Of the search's forward passes; validation is always in float32."
) -> Callable[[Decorated], Decorated]:
    """`--dtype` of the engine's forward passes."""
    return click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16", "float16"]),
        default=default,
        show_default=True,
        help=help,
    )


def search_options(function: Decorated) -> Decorated:
    """Strategy, budget and what is searched."""
    for option in (
        dtype("float32"),
        click.option(
            "--workers",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="Processes or actors; one thread each by default.",
        ),
        click.option(
            "--executor",
            type=click.Choice(["local", "processes", "ray"]),
            default="local",
            show_default=True,
            help="Where candidates are measured: here, one process a device, or Ray actors.",
        ),
        click.option("--short-budget", type=SHARE, help="Cap on the rise of perplexity at the original window: 1%."),
        click.option(
            "--window-share",
            "window_shares",
            multiple=True,
            type=(TOKENS, SHARE),
            metavar="N SHARE",
            help="A further window length and its share in the objective; repeatable.",
        ),
        click.option(
            "--objective",
            type=click.Choice(["perplexity", "needle", "mixed"]),
            default="perplexity",
            show_default=True,
            help="Of whole windows, of a needle's answer, or both.",
        ),
        click.option("--start-from", multiple=True, type=PATH, help="Factor file to seed the search with; repeatable."),
        click.option("--from", "from_factors", type=PATH, help="Second interpolation: search on top of these factors."),
        click.option(
            "--attention-factor",
            default="formula",
            show_default=True,
            help="formula (portable), search (vLLM and others ignore the key), or a number.",
        ),
        click.option("--n-hat", default="0", show_default=True, help="Start tokens left alone: a number, or search."),
        click.option(
            "--documents", "num_documents", type=click.IntRange(1), default=5, show_default=True, help="To search on."
        ),
        click.option("--max-evals", type=click.IntRange(1), help="Budget in evaluations.  [default: the strategy's]"),
        click.option(
            "--strategy",
            default="auto",
            show_default=True,
            help="auto, cma, dim_mono, dim_piece_mono, evolution, gradient, longrope2, seeds.",
        ),
    ):
        function = option(function)
    return function


def train_dtype(name: str) -> Callable[[Decorated], Decorated]:
    """What training computes in, under this option name."""
    return click.option(
        name,
        "train_dtype",
        type=click.Choice(["float32", "bfloat16"]),
        default="float32",
        show_default=True,
        help="What layers compute in; weights and optimizer stay float32.",
    )


def training_options(function: Decorated) -> Decorated:
    """How training computes, apart from what a stage says."""
    for option in (
        click.option("--save-every", type=click.IntRange(1), default=20, show_default=True, help="Steps a checkpoint."),
        click.option(
            "--peak-flops", type=float, help="FLOP/s of one device, for the FLOPs use.  [default: known GPUs']"
        ),
        click.option("--liger", is_flag=True, help="Liger's kernels for norms and MLPs (needs liger-kernel)."),
        click.option(
            "--checkpointing/--no-checkpointing",
            default=None,
            help="Recompute activations in backward.  [default: when memory asks for it]",
        ),
        click.option("--pass-tokens", type=TOKENS, help="Tokens of one forward, at least a row.  [default: 8192]"),
        click.option(
            "--sequence-size",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="Processes a sequence (Ulysses).",
        ),
        click.option("--weight-decay", type=click.FloatRange(0), default=0.0, show_default=True, help="Of matrices."),
        click.option(
            "--optimizer",
            type=click.Choice(["adamw", "adamw8bit"]),
            default="adamw",
            show_default=True,
            help="adamw8bit needs bitsandbytes.",
        ),
        click.option(
            "--lora-layers",
            type=click.IntRange(1),
            help="With --lora: adapters in the last layers only, all else frozen; cheaper.  [default: all]",
        ),
        click.option("--lora-alpha", type=click.IntRange(1), help="Adapters' scale times the rank.  [default: 2 RANK]"),
        click.option(
            "--lora", "lora_rank", type=click.IntRange(1), metavar="RANK", help="Train adapters, norms and embeddings."
        ),
    ):
        function = option(function)
    return function


def factor_sets(function: Decorated) -> Decorated:
    """`--factor-sets`."""
    return click.option(
        "--factor-sets",
        type=click.Choice(["auto", "single", "dual"]),
        default="auto",
        show_default=True,
        help="auto: dual in GGUF, single in HF and ONNX. single is right in every runtime at every length.",
    )(function)


def json_output(function: Decorated) -> Decorated:
    """`--json FILE`, `-` or nothing for standard output."""
    return click.option(
        "--json",
        "json_path",
        metavar="F",
        is_flag=False,
        flag_value="-",
        help="Write the result as JSON to a file; - or no name for standard output.",
    )(function)
