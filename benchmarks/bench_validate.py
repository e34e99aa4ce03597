"""What `validate` costs: SmolLM2's three artifacts together, against one plain pass of transformers over the same tokens.

    python -m benchmarks.bench_validate [--windows 2048,9216] [--rounds 1]

The artifacts are those of NTK's factors for 16,384 tokens, each in its format's default type. Each call is a command of its
own, in turns with the plain pass, which loads the extended model in float32 and takes its own loss of each window. A first
call fills the cache of passes, a second one finds them there. `--quick` and judging again are timed, too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from functools import partial
from pathlib import Path

from benchmarks.costs import Cost, cpu_seconds, of_command, ratio, seconds, taking_turns
from benchmarks.figures import ROOT, Figures, smollm2
from converters.conversion import convert
from longrope import rope
from longrope.checkpoint import open_checkpoint
from longrope.factors import RescaleFactors
from longrope.pass_cache import VARIABLE
from longrope_export import default_model

ROOM = ROOT / "runs" / "bench" / "validate"
TEXT = default_model.TEST_TEXTS / "moby_dick.txt"
TARGET = 16_384
# One window that the short set serves, one that the long set does.
WINDOWS = (2048, 9216)
MOST, MOST_SECONDS, MOST_JUDGING = 3.0, 60.0, 1.0
PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, text, *lengths = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
ids = torch.tensor([AutoTokenizer.from_pretrained(folder)(open(text, encoding="utf-8").read())["input_ids"]])
with torch.inference_mode():
    for length in map(int, lengths):
        window = ids[:, :length]
        model(window, labels=window)
"""


def gib(costs: list[Cost]) -> float:
    return max(cost.peak_anonymous for cost in costs) / 2**30


def artifacts(room: Path) -> list[Path]:
    """The three artifacts, with their factors beside them."""
    checkpoint = open_checkpoint(str(smollm2()))
    numbers = tuple(rope.ntk_factors(checkpoint.rotary_dim, TARGET / checkpoint.window).tolist())
    factors = RescaleFactors(
        short_factor=numbers,
        long_factor=numbers,
        original_max_position_embeddings=checkpoint.window,
        target_length=TARGET,
    )
    factors.save(room / "factors.json")
    paths = [room / "hf", room / "smollm2.gguf", room / "onnx"]
    for path, to in zip(paths, ("hf", "gguf", "onnx"), strict=True):
        convert(checkpoint, path, to=to, factors=factors, overwrite=True)
    return paths


def measure(figures: Figures, windows: tuple[int, ...], rounds: int) -> None:
    """The section's rows."""
    shutil.rmtree(ROOM, ignore_errors=True)
    ROOM.mkdir(parents=True)
    paths, result, cache = artifacts(ROOM), ROOM / "result.json", ROOM / "cache"
    command = [sys.executable, "-m", "longrope_export", "validate"]
    shared = ["--reference", str(smollm2()), "--factors", str(ROOM / "factors.json"), "--text", str(TEXT)]
    shared = [*command, *map(str, paths), *shared, "--json", str(result)]
    whole = [*shared, "--windows", ",".join(map(str, windows)), "--windows-per-length", "1", "--no-crossing"]
    plain = [sys.executable, "-c", PLAIN, str(paths[0]), str(TEXT), *map(str, windows)]
    kept = {VARIABLE: str(cache)}

    def first() -> Cost:
        shutil.rmtree(cache, ignore_errors=True)
        return of_command(whole, kept)

    runs = {"plain": partial(of_command, plain), "first": first, "second": partial(of_command, whole, kept)}
    costs = taking_turns(runs, rounds)
    section = f"three artifacts of SmolLM2-135M, windows of {' and '.join(f'{length:,}' for length in windows)} tokens"
    for name in ("first", "second"):
        times = f"{seconds(costs[name]):.0f} s against {seconds(costs['plain']):.0f} s"
        times += f", processor {cpu_seconds(costs[name]):.0f} s against {cpu_seconds(costs['plain']):.0f} s"
        over, row = ratio(costs[name], costs["plain"]), f"{name} call, wall time over a plain pass's"
        figures.add(section, row, f"≤ {MOST:g}×", f"{over:.2f}× ({times})", over <= MOST)
    memory = gib(costs["first"]) / gib(costs["plain"])
    got = f"{memory:.2f}× ({gib(costs['first']):.2f} GiB, all its processes, against {gib(costs['plain']):.2f})"
    figures.add(section, "peak memory over a plain pass's", f"≤ {MOST:g}×", got, memory <= MOST)
    judging = seconds([of_command([*command, "--from", str(result)]) for _ in range(3)])
    figures.add(
        section, "judging the result again", f"≤ {MOST_JUDGING:g} s", f"{judging:.2f} s", judging <= MOST_JUDGING
    )
    quick = seconds([of_command([*shared, "--quick", "--no-cache"])])
    got = f"{quick:.1f} s, windows of {' and '.join(measured_lengths(result))} tokens"
    figures.add(section, "`--quick`, all three", f"≤ {MOST_SECONDS:g} s", got, quick <= MOST_SECONDS)


def measured_lengths(result: Path) -> list[str]:
    """Of the first artifact's windows."""
    (entry, *_) = json.loads(result.read_text(encoding="utf-8"))["artifacts"]
    return [f"{window['length']:,}" for window in entry["windows"]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--windows", default=",".join(map(str, WINDOWS)), help="lengths in tokens")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    windows = tuple(map(int, given.windows.split(",")))
    figures = Figures("validate", {"windows": windows, "rounds": given.rounds})
    return figures.run({"cost": lambda: measure(figures, windows, given.rounds)})


if __name__ == "__main__":
    sys.exit(main())
