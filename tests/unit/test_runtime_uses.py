"""What `inspect` says of runtimes, for factors as an artifact says them."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks.engines import ENGINES
from benchmarks.figures import RESULTS
from converters import registry
from converters.runtimes import RUNTIMES
from tests.common import pico_factors


@pytest.mark.parametrize("name", ["hf", "gguf", "onnx"])
@pytest.mark.parametrize(("original", "shown"), [(64, "64"), (None, "L")])
def test_the_switch_is_described_whether_the_window_is_known_or_not(
    name: str, original: int | None, shown: str
) -> None:
    uses = registry.converter(name).runtime_uses(pico_factors(original_max_position_embeddings=original))
    assert any(f" {shown} " in use.uses for use in uses)
    assert not any("None" in use.uses + use.advice for use in uses)


def test_what_the_table_says_of_runs_was_measured() -> None:
    """Version and difference of each run are those of benchmarks/results/engines.json; nothing else claims to have run."""
    measured: dict[tuple[str, str], list[float | None]] = {}
    for row in json.loads((RESULTS / "engines.json").read_text())["rows"]:
        runtime = ENGINES[row["section"]].runtime.removesuffix(" 4")
        version = re.search(r"(\S+): ", row["what"])
        off = re.search(r"off by (\S+)", row["got"])
        found = measured.setdefault((runtime, version[1] if version else ""), [])
        found.append(float(off[1]) if off else None)
        assert row["passed"], row
    said = {(row.name, ran.version): ran.off for row in RUNTIMES for ran in row.ran}
    assert {name for name, _ in said} == {name for name, _ in measured}
    for (name, version), offs in measured.items():
        worst = max(off for off in offs if off is not None) if version else None
        claimed = next(
            off for (runtime, stated), off in said.items() if runtime == name and (stated in version or not version)
        )
        assert (claimed is None) == (worst is None), name
        assert claimed is None or (worst is not None and worst <= claimed <= 2 * worst + 1e-15), (name, worst, claimed)
