"""docs/models.md is what was measured, and what is planned today is what it says, for a sample of its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.families import FORMATS, PAGE, known_cells, markdown
from benchmarks.figures import RESULTS
from converters import registry
from converters.base import Export
from longrope.errors import UnsupportedError
from longrope.search.space import make_space
from tests.common import FEATURES
from tests.gguf_files import CASES, TARGET, checkpoint, factors_for

Row = dict[str, str]


def rows() -> dict[str, Row]:
    """The table by family: format → cell."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {line[0]: dict(zip(FORMATS, line[4:], strict=True)) for line in cells}


def test_the_page_is_made_of_the_results() -> None:
    found = {(cell.family, cell.format): cell for cell in known_cells(RESULTS / "families.json")}
    table = rows()
    assert {family for family, _ in found} == set(table)
    for family, row in table.items():
        assert row == {each: markdown(found.get((family, each))) for each in FORMATS}, family


SAMPLE: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": CASES["qwen3"],
    "mistral-v0.1": CASES["mistral-sliding"],
    "gemma-3-1b": CASES["gemma3_text"],
    "gemma-2": ("gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16, "tie_word_embeddings": True}),
    "gpt-oss": ("gpt_oss", FEATURES["gpt_oss"]),
    "pythia": ("gpt_neox", FEATURES["gpt_neox"]),
    "bamba": ("bamba", {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "attn_layer_indices": [1]}),
}


@pytest.mark.parametrize("family", SAMPLE)
def test_a_sample_is_refused_where_the_page_says_no_and_nowhere_else(tmp_path: Path, family: str) -> None:
    model_type, changes = SAMPLE[family]
    model = checkpoint(tmp_path / "m", model_type, **changes)
    space = make_space(model, TARGET, family="yarn")
    yarn = space.to_factors(space.known_methods()[0].candidate)
    for each, cell in rows()[family].items():
        factors = yarn if each.endswith("-yarn") else factors_for(model).as_single()
        if cell == "not needed":
            continue
        try:
            registry.converter(each.removesuffix("-yarn")).plan(Export(model, factors, None, {}))
        except UnsupportedError:
            assert cell.startswith("no: "), (family, each)
        else:
            assert not cell.startswith("no: "), (family, each)
