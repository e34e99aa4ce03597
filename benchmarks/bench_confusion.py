"""Faults and good artifacts against the checks: `python -m benchmarks.bench_confusion`; writes benchmarks/confusion.md.

    catalogues of the tests ──put into a copy of a good artifact──► static checks, and `validate --quick` ──► the page
    runs/bench/validation.json, which `make bench-validation` leaves ──judged──► good artifacts that a policy flags

Without that file the page keeps the lines that it has about good artifacts.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from benchmarks.figures import ROOT, say
from converters import registry
from converters.base import Export
from converters.judging import judge
from converters.measurements import Validation, measured_of
from converters.policy import PRESETS
from converters.validation import validate
from longrope.checkpoint import Checkpoint
from longrope.errors import LongRopeError
from longrope.factors import BoundFactors
from longrope.files import write_atomically
from longrope.progress import Silent
from tests import gguf_files, hf_faults, onnx_faults
from tests.common import pico_checkpoint, pico_corpus, pico_factors
from tests.culprits import CASES, DRAWN, Workshop
from tests.folder_faults import copied

PAGE = ROOT / "benchmarks" / "confusion.md"
GOOD = ROOT / "runs" / "bench" / "validation.json"
# Tokens beyond the original window that quick is sure to measure, however slow the model is.
BEYOND = 256
# Checks whose second part is one of these come of running the artifact.
MEASURED = ("parity", "rounding", "loads", "batch")
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

    def validated(self, path: Path, effort: str) -> list[str]:
        """Ids of the checks that a copy of it fails in `validate` of an effort, or that it is refused."""
        windows = (self.factors.original, min(self.factors.target, self.factors.original + BEYOND))
        try:
            found = validate(
                path,
                self.model,
                pico_corpus(self.model),
                factors=self.factors,
                windows=windows,
                effort=effort,
                threads=1,
                cache=False,
            )
        except LongRopeError:
            return ["refused"]
        return sorted({check.id for check in found.failures})


@dataclass(frozen=True)
class Case:
    """A fault: the good artifact, its name, the check meant for it (empty for any), and what puts it into a copy."""

    good: Good
    name: str
    meant: str
    put: Callable[[Path], object]


@dataclass(frozen=True)
class Verdict:
    """What is said of a fault.

    Args:
        case: the fault.
        static: static checks that fail.
        quick: checks that fail in `validate --quick`.
        default: checks that fail in `validate`.
    """

    case: Case
    static: Sequence[str]
    quick: Sequence[str]
    default: Sequence[str]

    @property
    def run_quickly(self) -> list[str]:
        """What fails in `--quick` only because it is run."""
        return _of_runs(self.quick)

    @property
    def run(self) -> list[str]:
        """What fails in `validate` only because it is run."""
        return _of_runs(self.default)


def _of_runs(ids: Sequence[str]) -> list[str]:
    return [id for id in ids if id == "refused" or id.split(".")[1] in MEASURED]


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


def further_cases(workshop: Workshop) -> Iterator[Case]:
    """Faults that change what is computed: of other weight types, after public reports, and drawn by chance."""
    catalogues = {"hf": hf_faults.FAULTS, "gguf": gguf_files.CATALOGUE, "onnx": onnx_faults.FAULTS}
    for case in (*CASES, *DRAWN):
        if case.outtype or case.name not in catalogues[case.format]:
            workshop.plan(case)
            good = Good(workshop.model, workshop.factors(case.format), workshop.path(case), case.format)
            yield Case(good, f"{case.outtype}: {case.name}" if case.outtype else case.name, "", case.fault)


def judged(case: Case, room: Path) -> Verdict:
    """What is said once the fault is in."""
    copy = copied(case.good.path, room)
    case.put(copy)
    return Verdict(
        case, case.good.failed(copy), *(case.good.validated(copy, effort) for effort in ("quick", "default"))
    )


def good_lines() -> list[str]:
    """What each policy says of the good artifacts."""
    if not GOOD.is_file():
        say(f"no {GOOD.name}: the page keeps what it says of good artifacts; make bench-validation measures them")
        rows = tuple(f"| `{name}` |" for name in PRESETS)
        return [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(rows)]
    measured: list[Validation] = [measured_of(entry, str(GOOD)) for entry in json.loads(GOOD.read_text())["artifacts"]]
    flagged = {
        name: sum(any(check.status == "fail" for check in judge(each, policy)) for each in measured)
        for name, policy in PRESETS.items()
    }
    return [f"| `{name}` | {number} of {len(measured)} |" for name, number in flagged.items()]


def main() -> None:
    """Break, check, write the page."""
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        (room / "further").mkdir()
        for number, case in enumerate(chain(cases(room), further_cases(Workshop(room / "further")))):
            place = room / f"case-{number}"
            place.mkdir()
            verdicts.append(judged(case, place))
            shutil.rmtree(place)
            last = verdicts[-1]
            say(f"{number + 1:4d} {case.good.format} {case.name}: {len(last.static)} static, {', '.join(last.run)}")
    write_atomically(PAGE, page(verdicts))
    missed = [each.case.name for each in verdicts if each.case.meant and each.case.meant not in each.static]
    say(f"{len(verdicts)} faults, {len(missed)} not caught by the check meant for them: {', '.join(missed) or 'none'}")


def page(verdicts: Sequence[Verdict]) -> str:
    """benchmarks/confusion.md."""
    aimed = [each for each in verdicts if each.case.meant]
    hits = sum(each.case.meant in each.static for each in aimed)
    lines = [
        "# Faults and good artifacts against the checks",
        "",
        f"Made by `make bench-confusion`: {len(verdicts)} faults in pico models of three formats. {len(aimed)} of them have",
        f"a static check meant for them, which catches {hits}; the others change what a runtime computes, in other weight",
        "types, after public reports, or by numbers that are drawn by chance.",
        "",
        "| good artifacts under the policy | flagged |",
        "|---|---|",
        *good_lines(),
        "",
        *_misses(verdicts),
        "",
        "## Each fault and the check meant for it",
        "",
        "| format | fault | check meant for it | caught by it | others that fail, too | when it is run |",
        "|---|---|---|---|---|---|",
    ]
    for each in aimed:
        others = [f"`{id}`" for id in each.static if id != each.case.meant]
        found = "yes" if each.case.meant in each.static else "**no**"
        cells = (each.case.good.format, each.case.name, f"`{each.case.meant}`", found, _shown(others), _run(each))
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "## The other faults",
        "",
        "| format | fault | static checks that fail | when it is run |",
        "|---|---|---|---|",
    ]
    for each in verdicts:
        if not each.case.meant:
            static = _shown([f"`{id}`" for id in each.static]) or "none"
            lines.append(f"| {each.case.good.format} | {each.case.name} | {static} | {_run(each)} |")
    return "\n".join(lines) + "\n"


def _misses(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """What each effort misses."""
    total = len(verdicts)
    found: dict[str, Callable[[Verdict], Sequence[str]]] = {
        "`validate --static`": lambda each: each.static,
        "`validate --quick`": lambda each: each.quick,
        "`validate`": lambda each: each.default,
        "what `--quick` runs, without static checks": lambda each: each.run_quickly,
        "what `validate` runs, without static checks": lambda each: each.run,
    }
    yield "## What each effort misses"
    yield ""
    yield f"`--quick` runs one window of the original length and one that is up to {BEYOND} tokens longer, makes no second"
    yield "reference and decodes nothing across the original window; `validate` does, on the same lengths."
    yield ""
    yield "| | caught | missed |"
    yield "|---|---|---|"
    for name, holds in found.items():
        caught = sum(bool(holds(each)) for each in verdicts)
        yield f"| {name} | {caught} of {total} | {total - caught} |"
    lists = {
        "Missed by `--quick`": [each for each in verdicts if not each.quick],
        "Missed by `--static`, and shown when it is run": [each for each in verdicts if not each.static and each.run],
        "Shown by what `validate` runs, and not by what `--quick` runs": [
            each for each in verdicts if each.run and not each.run_quickly
        ],
        "Shown by static checks alone": [each for each in verdicts if each.static and not each.run],
    }
    for title, missed in lists.items():
        yield ""
        yield f"**{title}**: {len(missed)}."
        yield from ("", *(f"- {each.case.good.format}: {each.case.name}" for each in missed)) if missed else ()


def _shown(ids: Sequence[str]) -> str:
    return f"{', '.join(ids[:3])}{f' and {len(ids) - 3} more' if len(ids) > 3 else ''}"


def _run(each: Verdict) -> str:
    return _shown([f"`{id}`" for id in each.run]) or "nothing"


if __name__ == "__main__":
    main()
