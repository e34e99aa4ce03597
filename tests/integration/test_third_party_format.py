"""A format of a third party, installed beside ours, works like ours: found by name, by file, and through convert."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from tests import common

EXAMPLE = Path(__file__).parents[1] / "example_format"

USE = """
import sys
from pathlib import Path
from converters.base import Export
from converters.registry import converter, formats, recognize
from longrope.checkpoint import open_checkpoint
from longrope.factors import RescaleFactors
from longrope.progress import Silent
folder, out = map(Path, sys.argv[1:])
model = open_checkpoint(folder)
factors = model.bind(RescaleFactors.load(folder / "factors.json"))
checks = converter("csv").convert(Export(model, factors), out, Silent())
print(formats()["csv"].origin, [check.status for check in checks], recognize(out).name)
print(formats()["gguf"].origin)
"""


def installed(site: Path) -> Path:
    """What pip would make of the example: its module and the metadata with its entry point."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [line for group, items in groups for line in (f"[{group}]", *(f"{k} = {v}" for k, v in items.items()))]
    # A third party cannot take the name of one of ours.
    (info / "entry_points.txt").write_text("\n".join([*lines, "gguf = longrope_export_csv:CsvConverter", ""]))
    (site / "longrope_export_csv.py").write_text((EXAMPLE / "longrope_export_csv.py").read_text())
    return site


def test_an_installed_format_is_used_by_name(tmp_path: Path) -> None:
    folder = common.pico_folder(tmp_path / "m")
    common.pico_factors(dual=False).save(folder / "factors.json")
    root, site = Path(__file__).parents[2], installed(tmp_path / "site")
    run = subprocess.run(
        [sys.executable, "-c", USE, str(folder), str(tmp_path / "a.csv")],
        env={"PYTHONPATH": f"{site}:{root}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines() == ["longrope-export-csv ['pass'] csv", "longrope-export"]
