"""Which models people download come through, format by format: `python -m benchmarks.families --models FOLDER`.

    pico model ──convert, 4× NTK──► artifact ──validate at L and 4 L──► largest difference of a logit, or the refusal

Each family is worked on in a process of its own, for llama.cpp ends the process on some files. A cell counts when `convert`
and `validate` exit with 0. Weights are judged shares of downloads, in percent, given with the families. The families are
built by a script that lies outside this repository (`--families`, a module with `FAMILIES`), each in FOLDER/NAME.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import RESULTS, ROOT, say

WINDOW, TARGET = 128, 512
FORMATS = ("hf", "gguf", "onnx")
TYPES = {"hf": "auto", "gguf": "f32", "onnx": "f32"}
SECONDS = 300
OK, REFUSED = "ok", "refused"


@dataclass(frozen=True)
class Cell:
    """One family in one format.

    Args:
        state: `ok`, `refused` (exit 4 before anything was written), or what went wrong.
        detail: the largest difference of a logit, or the message.
    """

    family: str
    format: str
    state: str
    detail: str


def main() -> int:
    """Measure every family, print the table, write it to results/families.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", type=Path, default=ROOT.parent / "shared" / "tools" / "families.py")
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--only", nargs="+", default=())
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=RESULTS / "families.json")
    options = parser.parse_args()
    if options.one:
        for cell in measure(options.models / options.one, options.one, options.formats, options.texts):
            say(json.dumps(asdict(cell)))
        return 0
    families = load_families(options.families)
    cells = list(measured(families, options))
    report(families, cells)
    if not options.only:
        options.results.write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n")
    return 0


def load_families(path: Path) -> list[Any]:
    """The families of a module by path."""
    spec = importlib.util.spec_from_file_location("families", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["families"] = module
    spec.loader.exec_module(module)
    return list(module.FAMILIES)


def measured(families: Sequence[Any], options: argparse.Namespace) -> Iterator[Cell]:
    """The cells of all families, each measured in a process of its own."""
    for family in families:
        if options.only and family.name not in options.only:
            continue
        command = [sys.executable, "-m", "benchmarks.families", "--one", family.name, "--models", str(options.models)]
        command += ["--texts", str(options.texts), "--formats", *options.formats]
        left = set(options.formats)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=ROOT, check=False)
            lines, ending = done.stdout.splitlines(), f"exit {done.returncode}: {done.stderr.strip()[-200:]}"
        except subprocess.TimeoutExpired as error:
            lines, ending = (error.stdout or b"").decode().splitlines(), f"longer than {SECONDS} s"
        for line in lines:
            if line.startswith('{"family"'):
                cell = Cell(**json.loads(line))
                left.discard(cell.format)
                yield cell
        for name in sorted(left):
            yield Cell(family.name, name, "died", ending)


def measure(model: Path, name: str, formats: Sequence[str], texts: Path) -> Iterator[Cell]:
    """The cells of one family, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        try:
            factors = write_factors(model, room / "factors.json")
        except Exception as error:  # noqa: BLE001  a refusal, or a fault that the table must show
            yield from (Cell(name, each, state_of(error), str(error)) for each in formats)
            return
        for each in formats:
            yield Cell(name, each, *convert_and_validate(model, each, factors, texts, room))


def write_factors(model: Path, path: Path) -> Path:
    """Factors of 4× NTK on top of whatever RoPE the model has."""
    from longrope import rope
    from longrope.checkpoint import open_checkpoint
    from longrope.factors import RescaleFactors

    checkpoint = open_checkpoint(model)
    values = tuple(rope.ntk_factors(checkpoint.rotary_dim, TARGET / WINDOW).tolist())
    RescaleFactors(values, values, target_length=TARGET).save(path)
    return path


def convert_and_validate(model: Path, format: str, factors: Path, texts: Path, room: Path) -> tuple[str, str]:
    """State and detail of one format; `convert` with no option but the type."""
    out, result = room / ("model.gguf" if format == "gguf" else format), room / f"{format}.json"
    common = ["--factors", str(factors), "--factor-sets", "single"]
    code, said = run_cli(["convert", str(model), "--to", format, "--outtype", TYPES[format], "-o", str(out), *common])
    if code:
        return (REFUSED if code == 4 else f"convert exit {code}"), said
    windows = f"{WINDOW},{TARGET}"
    check = ["validate", str(out), "--reference", str(model), "--text", str(texts), "--windows", windows, *common]
    code, said = run_cli([*check, "--windows-per-length", "2", "--json", str(result)])
    if code not in (0, 1):
        return f"validate exit {code}", said
    data = json.loads(result.read_text(encoding="utf-8"))
    failed = [check for check in data["checks"] if check["status"] == "fail"]
    if code or failed:
        return "validate failed", f"{failed[0]['id']}: {failed[0]['message']}" if failed else said
    worst = max(window["max_logit_diff"] for window in data["windows"])
    return OK, f"{worst:.1e}"


def run_cli(arguments: Sequence[str]) -> tuple[int, str]:
    """Exit code and last line of standard error of a command in this process."""
    import contextlib
    import io

    from longrope_export.cli import main as command_line

    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            command_line(list(arguments))
        except SystemExit as ending:
            code = int(ending.code or 0)
    lines = said.getvalue().strip().splitlines()
    return code, lines[-1] if lines else ""


def state_of(error: Exception) -> str:
    code = getattr(error, "exit_code", None)
    return REFUSED if code == 4 else f"open exit {code}" if code else f"traceback {type(error).__name__}"


def report(families: Sequence[Any], cells: Sequence[Cell]) -> None:
    """The table, then the weighted share of every format."""
    by_family: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        by_family.setdefault(cell.family, {})[cell.format] = cell
    weights = {family.name: family.weight for family in families if family.name in by_family}
    for name, row in by_family.items():
        shown = "  ".join(f"{each}: {cell.state} {cell.detail[:110]}" for each, cell in row.items())
        say(f"{name:20s} {weights[name]:5.1f}  {shown}")
    for each in dict.fromkeys(cell.format for cell in cells):
        say(f"{each}: {share(each, by_family, weights):.1f} % of downloads")


def share(format: str, cells: Mapping[str, Mapping[str, Cell]], weights: Mapping[str, float]) -> float:
    """Weighted percentage of the families that come through."""
    good = sum(weights[name] for name, row in cells.items() if format in row and row[format].state == OK)
    return 100 * good / sum(weights.values())


if __name__ == "__main__":
    sys.exit(main())
