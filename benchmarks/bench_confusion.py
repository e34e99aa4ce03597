"""Faults and good artifacts against the checks: `python -m benchmarks.bench_confusion`; writes benchmarks/confusion.md.

The tests' catalogues of faults, each put into a good artifact: which static checks fail, and whether the one meant for
it is among them. Good artifacts are those that `make bench-validation` has left, measured, in runs/bench/validation.json.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.figures import ROOT, say
from converters import registry
from converters.base import Export
from converters.judging import judge
from converters.measurements import Validation, measured_of
from converters.policy import PRESETS
from longrope.checkpoint import Checkpoint
from longrope.factors import BoundFactors
from longrope.files import write_atomically
from longrope.progress import Silent
from tests import gguf_files, hf_faults, onnx_faults
from tests.common import pico_checkpoint, pico_factors
from tests.folder_faults import copied

PAGE = ROOT / "benchmarks" / "confusion.md"
GOOD = ROOT / "runs" / "bench" / "validation.json"
# Bytes of a block of 32 numbers, its scale in float16 first.
BLOCKS = {"q4_0": 18, "q8_0": 34}


@dataclass(frozen=True)
class Good:
    """A good artifact, to put faults into."""

    model: Checkpoint
    factors: BoundFactors
    path: Path
    format: str

    def failed(self, path: Path) -> list[str]:
        """Ids of the static checks that a copy of it fails."""
        checks = registry.converter(self.format).static_checks(path, self.factors, self.model)
        return sorted({check.id for check in checks if check.status == "fail"})


@dataclass(frozen=True)
class Case:
    """A fault: the good artifact, its name, the check meant for it, and what puts it into a copy."""

    good: Good
    name: str
    meant: str
    put: Callable[[Path], object]


def written(room: Path, format_name: str, outtype: str | None, window: int, target: int, n_hat: int = 0) -> Good:
    """A good artifact of a pico model."""
    model = pico_checkpoint(room / f"{format_name}-{outtype}-model", max_position_embeddings=window)
    values = {"original_max_position_embeddings": window, "n_hat": n_hat}
    factors = model.bind(pico_factors(model.rotary_dim, target=target, **values))
    converter = registry.converter(format_name)
    path = room / f"{format_name}-{outtype}{converter.suffix}"
    converter.convert(Export(model, factors, outtype), path, Silent())
    return Good(model, factors, path, format_name)


def broken(change: Callable[[bytes], bytes], path: Path) -> None:
    """Damage a file's bytes."""
    path.write_bytes(change(path.read_bytes()))


def cases(room: Path) -> Iterator[Case]:
    """Every fault of the catalogues."""
    folder = written(room, "hf", None, hf_faults.ORIGINAL, hf_faults.TARGET)
    yield from (Case(folder, name, id, fault) for name, (fault, id) in hf_faults.FAULTS.items())
    graph = written(room, "onnx", None, 64, 65_536, n_hat=4)
    yield from (Case(graph, name, id, fault) for name, (fault, id) in onnx_faults.FAULTS.items())
    file = written(room, "gguf", "f32", 256, 1024)
    for name, (fault, id) in gguf_files.CATALOGUE.items():
        yield Case(file, name, id, gguf_files.in_file(fault))
    for name, change in gguf_files.BROKEN.items():
        yield Case(file, name, "gguf.readable", partial(broken, change))
    for outtype, size in BLOCKS.items():
        quantized = written(room, "gguf", outtype, 256, 1024)
        for scale in (1.05, 0.95):
            fault = gguf_files.in_file(gguf_files.scale_blocks(gguf_files.UP, scale, size))
            yield Case(quantized, f"{outtype}: one matrix {scale:g} times too large", "gguf.weights", fault)


def caught(case: Case, room: Path) -> list[str]:
    """The checks that fail once the fault is in."""
    copy = copied(case.good.path, room)
    case.put(copy)
    return case.good.failed(copy)


def good_lines() -> Iterator[str]:
    """What each policy says of the good artifacts."""
    if not GOOD.is_file():
        raise SystemExit(f"{GOOD}: no such file; run make bench-validation first")
    measured: list[Validation] = [measured_of(entry, str(GOOD)) for entry in json.loads(GOOD.read_text())["artifacts"]]
    for name, policy in PRESETS.items():
        flagged = sum(any(check.status == "fail" for check in judge(each, policy)) for each in measured)
        yield f"| `{name}` | {flagged} of {len(measured)} |"


def main() -> None:
    """Break, check, write the page."""
    rows: list[tuple[Case, list[str]]] = []
    with tempfile.TemporaryDirectory() as room:
        for number, case in enumerate(cases(Path(room))):
            place = Path(room) / f"case-{number}"
            place.mkdir()
            rows.append((case, caught(case, place)))
            shutil.rmtree(place)
    write_atomically(PAGE, page(rows))
    missed = [case.name for case, failed in rows if case.meant not in failed]
    say(f"{len(rows)} faults, {len(missed)} not caught by the check meant for them: {', '.join(missed) or 'none'}")


def page(rows: list[tuple[Case, list[str]]]) -> str:
    """benchmarks/confusion.md."""
    hits = sum(case.meant in failed for case, failed in rows)
    lines = [
        "# Faults and good artifacts against the checks",
        "",
        "Made by `make bench-confusion`. Static checks alone (`validate --static`), which run nothing: "
        f"{len(rows)} faults, {hits} of them caught by the check meant for it.",
        "",
        "| good artifacts under the policy | flagged |",
        "|---|---|",
        *good_lines(),
        "",
        "| format | fault | check meant for it | caught by it | others that fail, too |",
        "|---|---|---|---|---|",
    ]
    for case, failed in rows:
        others = [f"`{id}`" for id in failed if id != case.meant]
        more = f"{', '.join(others[:3])}{f' and {len(others) - 3} more' if len(others) > 3 else ''}"
        found = "yes" if case.meant in failed else "**no**"
        lines.append(f"| {case.good.format} | {case.name} | `{case.meant}` | {found} | {more} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
