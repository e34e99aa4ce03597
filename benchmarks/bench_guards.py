"""What reading, isolation, locks and signals cost: `python -m benchmarks.bench_guards [--model FOLDER]`.

`convert` and `validate` as whole commands, from this tree and from a worktree of the commit before any of it was there, in
turns; medians of processor time are compared. Both trees run with this interpreter and its libraries. Artifacts are those
that each tree writes itself.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.costs import Cost, cpu_seconds, of_command, seconds, taking_turns
from benchmarks.figures import ROOT, Figures
from longrope import rope
from longrope.checkpoint import open_checkpoint
from longrope.factors import RescaleFactors
from longrope_export import default_model

# The last tree without locks, signals and isolation.
BEFORE = "ab71b4c"
MOST = 1.05
ROUNDS = 9
SCALE = 4
FORMATS = ("hf", "gguf", "onnx")


def worktree(commit: str, folder: Path) -> Path:
    """A tree of a commit; one that is there is taken as it is."""
    if not folder.is_dir():
        subprocess.run(
            ["git", "worktree", "add", "--detach", str(folder), commit], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )
    return folder


def turn(tree: Path, compiled: Path, output: Path | None, words: Sequence[str]) -> Cost:
    """One command of a tree; what an earlier turn wrote is removed before."""
    if output is not None and output.is_dir():
        shutil.rmtree(output)
    elif output is not None:
        output.unlink(missing_ok=True)
    command = [sys.executable, "-P", "-m", "longrope_export", *words]  # -P: packages of PYTHONPATH, not of this folder
    variables = {
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(compiled),  # as an installed package has it
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return of_command(command, variables)


def compare(figures: Figures, trees: dict[str, Path], room: Path, model: Path, options: argparse.Namespace) -> None:
    """Both commands with each format."""
    factors = str(room / "factors.json")
    write_factors(model, Path(factors))
    for name in FORMATS:
        artifacts = {side: room / f"{side}.{name}" for side in trees}
        convert = {
            side: ("convert", str(model), "--to", name, "--factors", factors, "-o", str(artifact))
            for side, artifact in artifacts.items()
        }
        measured = ["--text", str(options.text), "--windows-per-length", "1", "--threads", "1"]
        measured += ["--windows", options.windows] if options.windows else []
        validate = {
            side: ("validate", str(artifact), "--reference", str(model), "--factors", factors, *measured)
            for side, artifact in artifacts.items()
        }
        for what, words, writes in (("convert", convert, True), ("validate", validate, False)):
            runs = {
                side: partial(turn, trees[side], room / "compiled", artifacts[side] if writes else None, words[side])
                for side in trees
            }
            costs = {
                side: each[1:] for side, each in taking_turns(runs, options.rounds + 1).items()
            }  # the first compiles modules
            after, before = (cpu_seconds(costs[side]) for side in ("after", "before"))
            wall = seconds(costs["after"]) / seconds(costs["before"])
            got = f"{after / before:.3f}× ({after:.2f} s against {before:.2f} s; wall clock {wall:.3f}×)"
            figures.add(model.name, f"{what} {name}, processor time", f"≤ {MOST}×", got, after <= MOST * before)


def write_factors(model: Path, file: Path) -> None:
    """A single set for four times the model's window."""
    checkpoint = open_checkpoint(model)
    numbers = tuple(rope.ntk_factors(checkpoint.rotary_dim, SCALE).tolist())
    RescaleFactors(numbers, numbers, target_length=SCALE * checkpoint.window).save(file)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default=BEFORE, help="the commit to compare with")
    parser.add_argument("--model", type=Path, default=default_model.CHECKPOINT, help="folder; the built-in model")
    parser.add_argument("--text", type=Path, default=ROOT / "docs", help="that `validate` measures on")
    parser.add_argument(
        "--windows", default="", help="lengths that it measures; the model's window and four times that"
    )
    parser.add_argument("--room", type=Path, default=Path("runs") / "bench" / "guards")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(arguments)
    room = options.room.resolve()
    room.mkdir(parents=True, exist_ok=True)
    trees = {"before": worktree(options.before, room / options.before), "after": ROOT}
    figures = Figures("guards", {"rounds": options.rounds, "before": options.before})
    compare(figures, trees, room, options.model.resolve(), options)
    figures.save()
    return 0 if all(row.passed for row in figures.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
