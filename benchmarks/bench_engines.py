"""The engine matrix, run: `python -m benchmarks.bench_engines [--only ENGINE …]`.

The built-in model with one and with two factor sets is scored by each engine on windows below, at and above the original
window, and held against transformers 5 with the set pinned. Which set an engine used is what its losses say. The table goes
to the terminal and to benchmarks/results/engines.json; what it says of each engine stands in `converters.runtimes.RUNTIMES`.

HF, GGUF, ONNX export ──engine's own runner──► NLL a window ──nearest of two references──► the set it used, how far off
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch

from benchmarks.engines import ENGINES, Engine, score
from benchmarks.environments import UnavailableError
from benchmarks.figures import Figures
from converters.base import Export
from converters.registry import converter
from longrope import rope
from longrope.checkpoint import open_checkpoint
from longrope.factors import BoundFactors, FactorSet, RescaleFactors
from longrope.modeling import TorchSource, build_model, set_threads
from longrope.progress import Silent
from longrope_export import default_model

ROOM = Path("runs") / "bench" / "engines"
TEXT = default_model.TEST_TEXTS / "moby_dick.txt"
TARGET = 2048
# Nats per token; float32 sums in another order.
TOLERANCE = 1e-4
SETS: tuple[FactorSet, ...] = ("short", "long")


@dataclass(frozen=True)
class Case:
    """A window in an engine that was started for a context."""

    factor_sets: str
    context: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.factor_sets}, context {self.context}, {self.tokens} tokens"


class Bench:
    """The model, its exports, the references and the rows measured so far."""

    def __init__(self) -> None:
        set_threads(1)
        self.figures = Figures("engines", {"model": "built-in", "target": TARGET})
        self.checkpoint = open_checkpoint(default_model.CHECKPOINT)
        self.lengths = [128, self.original, self.original + 1, 512, TARGET]
        self._references: dict[tuple[str, FactorSet], dict[int, float]] = {}
        self._sources: dict[str, TorchSource] = {}

    @property
    def original(self) -> int:
        return self.checkpoint.window

    @cached_property
    def factors(self) -> dict[str, BoundFactors]:
        """NTK beyond the window, a milder form of it inside; and one set for both."""
        long_factor = rope.ntk_factors(self.checkpoint.rotary_dim, TARGET / self.original)
        both = RescaleFactors(tuple((long_factor**0.25).tolist()), tuple(long_factor.tolist()), method="ntk")
        dual = self.checkpoint.bind(both, target=TARGET)
        return {"dual": dual, "single": dual.as_single()}

    @cached_property
    def ids(self) -> list[int]:
        return self.checkpoint.encode(TEXT.read_text(encoding="utf-8")[: 8 * TARGET])[:TARGET]

    def artifact(self, engine: Engine, factor_sets: str) -> Path:
        """An export, written if it is not there yet."""
        name = "onnx" if engine.format == "hub" else engine.format
        writer = converter(name)
        path = ROOM / f"{name}-{factor_sets}{writer.suffix}"
        if not path.exists():
            writer.convert(Export(self.checkpoint, self.factors[factor_sets], "f32"), path, Silent())
        return self._published(path) if engine.format == "hub" else path

    def _published(self, path: Path) -> Path:
        """The export's files where `publish` puts them."""
        room = path.with_name(f"hub-{path.name}")
        for place, source in converter("onnx").hub_files(path, "model").items():
            file = room / place
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(source) if isinstance(source, bytes) else shutil.copyfile(source, file)
        return room

    def reference(self, factor_sets: str, factor_set: FactorSet, tokens: int) -> float:
        """NLL of the window in transformers, float32, with the set pinned."""
        known = self._references.setdefault((factor_sets, factor_set), {})
        if tokens not in known:
            ids = torch.as_tensor(self.ids[:tokens])
            logits = torch.cat(list(self._source(factor_sets).logits(ids.numpy(), factor_set, tokens)))[:-1]
            known[tokens] = float(torch.nn.functional.cross_entropy(logits.double(), ids[1:]))
        return known[tokens]

    def _source(self, factor_sets: str) -> TorchSource:
        if factor_sets not in self._sources:
            factors = self.factors[factor_sets]
            self._sources[factor_sets] = TorchSource(build_model(self.checkpoint, factors), factors)
        return self._sources[factor_sets]

    def expected(self, engine: Engine, case: Case) -> FactorSet:
        """The set that the engine's row in the table speaks of."""
        passed = {"forward": case.tokens, "context": case.context, "always long": TARGET}[engine.rule]
        return "long" if passed > self.original else "short"

    def cases(self, engine: Engine, factor_sets: str) -> Iterator[list[Case]]:
        """Windows that one start of the engine scores."""
        for context in [self.original, TARGET] if engine.contexts else [TARGET]:
            fitting = [min(tokens, context - engine.reserved) for tokens in self.lengths if tokens <= context]
            yield [Case(factor_sets, context, tokens) for tokens in fitting]


def measure(bench: Bench, name: str) -> None:
    """All cases of one engine; an engine that cannot be had, or refuses the model, is a row that says so."""
    engine = ENGINES[name]
    for factor_sets in ("single", "dual"):
        for cases in bench.cases(engine, factor_sets):
            try:
                windows = [bench.ids[: case.tokens] for case in cases]
                answer = score(engine, bench.artifact(engine, factor_sets), windows, cases[0].context)
            except UnavailableError as error:
                bench.figures.add(name, f"{engine.runtime}, {factor_sets}", "a loss", _last_line(error), False)
            except RuntimeError as error:
                asked = "a refusal" if engine.refuses else "a loss"
                bench.figures.add(name, f"{engine.runtime}, {factor_sets}", asked, _last_line(error), engine.refuses)
            else:
                for case, nll in zip(cases, answer.nll, strict=True):
                    add(bench, name, case, f"{engine.runtime} {answer.version}", nll)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][-160:]


def add(bench: Bench, name: str, case: Case, version: str, nll: float) -> None:
    """A row: the set that the loss says, and how far it is from transformers' with that set."""
    expected = bench.expected(ENGINES[name], case)
    references = {each: bench.reference(case.factor_sets, each, case.tokens) for each in SETS}
    used = min(SETS, key=lambda each: abs(nll - references[each]))
    off, same = abs(nll - references[used]), used == expected or case.factor_sets == "single"
    asked, got = ("one set", "one set") if case.factor_sets == "single" else (f"{expected} set", f"{used} set")
    bench.figures.add(
        name,
        f"{version}: {case}",
        f"{asked}, {references[expected]:.6f}",
        f"{got}, {nll:.6f}, off by {off:.1e}",
        same and off <= TOLERANCE,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", action="append", choices=ENGINES, default=[], metavar="ENGINE", help=", ".join(ENGINES)
    )
    options = parser.parse_args(arguments)
    bench = Bench()
    ROOM.mkdir(parents=True, exist_ok=True)
    return bench.figures.run({name: partial(measure, bench, name) for name in ENGINES}, options.only)


if __name__ == "__main__":
    sys.exit(main())
