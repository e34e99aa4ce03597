"""What a model or a file says of its own RoPE, as factors: `python -m benchmarks.bench_sources`.

    base      each rescaled RoPE of the families (`make families` builds them), with 4× NTK on top: logits of the product as
              longrope factors against transformers' own frequencies of that RoPE, divided by NTK's factors
    llama     Llama 3.2's real numbers (head 64, θ 5e5, factor 32 of 8,192), positions up to 129,350
    gguf      GGUF files as other tools write them: logits of the model that is opened, and of the patched file, against
              llama.cpp's of the source; or the refusal

Random pico models; the largest difference of a logit. Results go to benchmarks/results/sources.json.
"""

from __future__ import annotations

import inspect
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from benchmarks.families import load_families
from benchmarks.figures import ROOT, Figures
from converters.gguf.patch import patch_gguf
from longrope import rope
from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.errors import InputError, LongRopeError, UnsupportedError
from longrope.factors import RescaleFactors
from longrope.modeling import build_model, replace_rotary, rotary_module
from tests.common import pico_checkpoint
from tests.gguf_files import checkpoint, stock
from tests.gguf_sources import ONES, REFUSED, VARIANTS, Logits, written

SCALE, TOKENS = 4, 120
# Tokens of the Llama 3.2 row, and how far apart they are: the last one is at 129,350.
FAR_TOKENS, STRIDE = 200, 650
LLAMA32 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@torch.no_grad()
def logits(model: torch.nn.Module, tokens: int, stride: int) -> Tensor:
    """[T, V] of random tokens that stand `stride` positions apart."""
    ids = torch.randint(1, 380, (1, tokens), generator=torch.Generator().manual_seed(0))
    return model(input_ids=ids, position_ids=torch.arange(tokens)[None] * stride).logits[0].float()  # type: ignore[no-any-return]


class Slowed(torch.nn.Module):
    """transformers' rotary embedding with its own frequencies divided by factors, and without its own switches.

    Those of the dynamic type, which follow the length, are the ones at the end of the window.
    """

    def __init__(self, inner: Any, factors: Tensor, window: int) -> None:
        super().__init__()
        self.inner, self._forward = inner, inspect.unwrap(type(inner).forward)
        if inner.rope_type == "dynamic":
            inner.inv_freq.copy_(ROPE_INIT_FUNCTIONS["dynamic"](inner.config, "cpu", seq_len=window)[0])
        name = "full_attention_inv_freq" if hasattr(inner, "full_attention_inv_freq") else "inv_freq"
        getattr(inner, name).div_(factors.to(getattr(inner, name).dtype))

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self._forward(self.inner, *arguments, **named)


def composed(model: Checkpoint) -> tuple[float, float]:
    """The product of a model's own RoPE and NTK's factors against transformers' own frequencies, divided by them; and what
    NTK changes, which must not be little."""
    factors = rope.ntk_factors(model.rotary_dim, SCALE)
    numbers = tuple(factors.tolist())
    given = RescaleFactors(numbers, numbers, target_length=SCALE * model.window, attention_factor=1.0)
    published = build_model(model)
    before = logits(published, TOKENS, SCALE)
    replace_rotary(published, Slowed(rotary_module(published), torch.tensor(factors), model.window))
    expected, found = (logits(each, TOKENS, SCALE) for each in (published, build_model(model, model.bind(given))))
    return float((found - expected).abs().max()), float((expected - before).abs().max())


def base(figures: Figures, families: Path, models: Path) -> None:
    """A row for each family whose publisher rescaled its RoPE."""
    for family in load_families(families):
        try:
            model = open_checkpoint(models / family.name)
            if model.base.rope_type in ("default", "longrope"):
                continue
            difference, effect = composed(model)
        except (InputError, UnsupportedError) as error:
            figures.add("base", f"{family.name}", "-", f"refused: {str(error).partition(': ')[2][:90]}")
            continue
        what = f"{family.name}: {model.base.rope_type}, attention factor {model.base.attention_factor:.4g}"
        got = f"{difference:.1e}, where NTK changes {effect:.2g}"
        figures.add("base", what, "≤ 1e-5", got, difference <= 1e-5 and effect > 1e-2)


def llama(figures: Figures, room: Path) -> None:
    """Closed-form factors of Llama 3.2 against transformers' own RoPE, far out."""
    model = pico_checkpoint(room / "m", head_dim=64, max_position_embeddings=131_072, rope_parameters=LLAMA32)
    ones = (1.0,) * (model.rotary_dim // 2)
    given = RescaleFactors(ones, ones, target_length=2 * model.window, attention_factor=1.0)
    found, own = (logits(build_model(model, each), FAR_TOKENS, STRIDE) for each in (model.bind(given), None))
    difference = float((found - own).abs().max())
    what = f"positions up to {(FAR_TOKENS - 1) * STRIDE:,}"
    figures.add("llama", what, "≤ 1e-4", f"{difference:.1e}", difference <= 1e-4)


def gguf(figures: Figures, room: Path) -> None:
    """A row for each way to write a RoPE into a GGUF file."""
    plain = stock(checkpoint(room / "m"), room / "plain.gguf", "f32")
    for name, (keys, tensors) in VARIANTS.items():
        path = written(plain, room / "source.gguf", keys, tensors)
        difference = Logits(path)
        opened = difference.of_model(open_checkpoint(path))
        patch_gguf(path, ONES, room / "patched.gguf", overwrite=True)
        patched = difference.of_file(room / "patched.gguf")
        got = f"opened {opened:.1e}, patched {patched:.1e}"
        figures.add("gguf", name, "≤ 1e-3", got, max(opened, patched) <= 1e-3)
    for name, (keys, tensors, _) in REFUSED.items():
        path = written(plain, room / "source.gguf", keys, tensors)
        figures.add("gguf", name, "exit 4", f"exit {refusal(path)}", refusal(path) == 4)


def refusal(path: Path) -> int:
    """The exit code with which a file is refused; 0 for one that is opened."""
    try:
        open_checkpoint(path)
    except LongRopeError as error:
        return error.exit_code
    return 0


@click.command()
@click.option(
    "--families", type=Path, default=ROOT.parent / "shared" / "tools" / "families.py", help="As `make families`."
)
@click.option("--models", type=Path, default=ROOT / "runs" / "families", help="The families' models.")
@click.option("--only", type=click.Choice(["base", "llama", "gguf"]), multiple=True, help="Sections; all of them.")
def main(families: Path, models: Path, only: tuple[str, ...]) -> None:
    """Measure every section."""
    figures = Figures("sources")
    with tempfile.TemporaryDirectory() as room:
        sections = {
            "base": partial(base, figures, families, models),
            "llama": partial(llama, figures, Path(room) / "llama"),
            "gguf": partial(gguf, figures, Path(room)),
        }
        sys.exit(figures.run(sections, only))


if __name__ == "__main__":
    main()
