"""What `validate` costs: SmolLM2's three artifacts together, against one plain pass of transformers over the same tokens.

    make demo-smollm2; python -m benchmarks.bench_validate [--run FOLDER] [--windows 2048,9216]

Each is a command of its own, in turns. The plain pass loads the extended model in float32 and takes its own loss of each
window. Judging the result again is timed, too.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from benchmarks.costs import Cost, cpu_seconds, of_command, ratio, seconds, taking_turns
from benchmarks.figures import ROOT, Figures, smollm2
from longrope_export import default_model

RUN = ROOT / "runs" / "demo-smollm2"
TEXT = default_model.TEST_TEXTS / "moby_dick.txt"
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


def measure(figures: Figures, run: Path, windows: tuple[int, ...], rounds: int, result: Path) -> None:
    """The section's rows."""
    artifacts = [run / "hf", *sorted((run / "gguf").glob("*.gguf"))[:1], run / "onnx"]
    command = [sys.executable, "-m", "longrope_export", "validate"]
    shared = ["--reference", str(smollm2()), "--factors", str(run / "factors.json"), "--text", str(TEXT)]
    lengths = ["--windows", ",".join(map(str, windows)), "--windows-per-length", "1", "--no-crossing"]
    whole = [*command, *map(str, artifacts), *shared, *lengths, "--json", str(result)]
    plain = [sys.executable, "-c", PLAIN, str(run / "hf"), str(TEXT), *map(str, windows)]
    runs = {"plain": partial(of_command, plain), "validate": partial(of_command, whole)}
    costs = taking_turns(runs, rounds)
    section = f"three artifacts of SmolLM2-135M, windows of {' and '.join(f'{length:,}' for length in windows)} tokens"
    times = f"{seconds(costs['validate']):.0f} s against {seconds(costs['plain']):.0f} s"
    times += f", processor {cpu_seconds(costs['validate']):.0f} s against {cpu_seconds(costs['plain']):.0f} s"
    over = ratio(costs["validate"], costs["plain"])
    figures.add(section, "wall time over a plain pass's", f"≤ {MOST:g}×", f"{over:.2f}× ({times})", over <= MOST)
    memory = gib(costs["validate"]) / gib(costs["plain"])
    got = f"{memory:.2f}× ({gib(costs['validate']):.2f} GiB, all its processes, against {gib(costs['plain']):.2f})"
    figures.add(section, "peak memory over a plain pass's", f"≤ {MOST:g}×", got, memory <= MOST)
    judging = [of_command([*command, "--from", str(result)]) for _ in range(3)]
    took = seconds(judging)
    figures.add(section, "judging the result again", f"≤ {MOST_JUDGING:g} s", f"{took:.2f} s", took <= MOST_JUDGING)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--run", type=Path, default=RUN, help="of `make demo-smollm2`")
    parser.add_argument("--windows", default=",".join(map(str, WINDOWS)), help="lengths in tokens")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    windows = tuple(map(int, given.windows.split(",")))
    result = ROOT / "runs" / "bench" / "validate.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    figures = Figures("validate", {"windows": windows, "rounds": given.rounds})
    return figures.run({"cost": lambda: measure(figures, given.run, windows, given.rounds, result)})


if __name__ == "__main__":
    sys.exit(main())
