"""The converter's refusals, its facts for inspect, and what it leaves on the disk."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import pytest
from safetensors.numpy import load_file, save_file

from converters.base import Export
from converters.onnx import OnnxConverter
from converters.onnx.decoder_graph import DecoderGraph
from converters.onnx.export import OnnxExport
from converters.onnx.graph import GraphBuilder
from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.errors import InputError, LongRopeError, UnsupportedError
from longrope.factors import N_HAT_CHOICES, BoundFactors
from longrope.progress import Silent
from tests.common import WINDOW, pico_checkpoint, pico_factors, said
from tests.onnx_faults import FAULTS


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return pico_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def factors(checkpoint: Checkpoint) -> BoundFactors:
    return checkpoint.bind(pico_factors(checkpoint.rotary_dim))


@pytest.fixture(scope="module")
def artifact(checkpoint: Checkpoint, factors: BoundFactors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("out") / "onnx"
    OnnxConverter().convert(Export(checkpoint, factors), path, Silent())
    return path


def test_the_folder_holds_what_tools_look_for(artifact: Path) -> None:
    names = {file.name for file in artifact.iterdir()}
    assert {"model.onnx", "model.onnx_data", "config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert OnnxConverter().recognizes(artifact)


@pytest.fixture(scope="module")
def planned(checkpoint: Checkpoint) -> OnnxExport:
    return OnnxConverter().plan(Export(checkpoint, checkpoint.bind(pico_factors(checkpoint.rotary_dim, target=512))))


@pytest.mark.parametrize("n_hat", N_HAT_CHOICES)
def test_two_sets_are_written_with_every_number_of_start_tokens(
    checkpoint: Checkpoint, planned: OnnxExport, tmp_path: Path, n_hat: int
) -> None:
    """All of the paper's, up to beyond the original window; and a graph that never changes sets is still told apart."""
    factors = checkpoint.bind(pico_factors(checkpoint.rotary_dim, target=512, n_hat=n_hat))
    again = planned.with_factors(factors)
    again.save(tmp_path / "onnx", Silent())
    baked, id = FAULTS["short set baked"]
    baked(tmp_path / "onnx")
    assert id in {check.id for check in again.check(tmp_path / "onnx") if check.status == "fail"}


def test_initializers_are_named_and_hold_every_digit(artifact: Path, factors: BoundFactors) -> None:
    found = {item.name: item for item in onnx.load(artifact / "model.onnx", load_external_data=False).graph.initializer}
    assert onnx.numpy_helper.to_array(found["rope.long_factor"]).tolist() == list(factors.long_factor)
    assert onnx.numpy_helper.to_array(found["rope.short_factor"]).tolist() == list(factors.short_factor)
    assert float(onnx.numpy_helper.to_array(found["rope.attention_factor"])) == factors.effective_attention_factor


@pytest.mark.parametrize("attention_factor", [None, 1.25])
def test_factors_are_read_back_as_written(
    checkpoint: Checkpoint, tmp_path: Path, attention_factor: float | None
) -> None:
    written = checkpoint.bind(
        pico_factors(checkpoint.rotary_dim, attention_factor=attention_factor, n_hat=4, provenance={"seed": 1})
    )
    OnnxConverter().convert(Export(checkpoint, written), tmp_path / "onnx", Silent())
    assert said(OnnxConverter().read_factors(tmp_path / "onnx")) == said(written)


@pytest.mark.parametrize("outtype", ["f32", "int4"])
@pytest.mark.parametrize("n_hat", [0, 4])
@pytest.mark.parametrize("dual", [True, False], ids=["dual", "single"])
def test_other_factors_give_the_bytes_of_a_plan_of_their_own(
    checkpoint: Checkpoint, tmp_path: Path, dual: bool, n_hat: int, outtype: str
) -> None:
    first, other = (
        checkpoint.bind(pico_factors(checkpoint.rotary_dim, dual=dual, n_hat=n_hat, **changes))
        for changes in ({}, {"target": 4 * WINDOW - 8, "attention_factor": 1.25, "provenance": {"seed": 1}})
    )
    planned = OnnxConverter().plan(Export(checkpoint, first, outtype))
    changed = planned.with_factors(other)
    for name, plan in {"first": planned, "other": changed}.items():
        plan.write(tmp_path / name, Silent())
    for name, factors in {"first": first, "other": other}.items():
        OnnxConverter().plan(Export(checkpoint, factors, outtype)).write(tmp_path / f"fresh_{name}", Silent())
        assert contents(tmp_path / name) == contents(tmp_path / f"fresh_{name}")
    assert contents(tmp_path / "first")["model.onnx"] != contents(tmp_path / "other")["model.onnx"]


@pytest.mark.parametrize(("n_hat", "dual"), [(0, False), (4, True), (4, False), (0, True)])
def test_factors_of_another_structure_give_another_graph(
    checkpoint: Checkpoint, factors: BoundFactors, tmp_path: Path, n_hat: int, dual: bool
) -> None:
    other = checkpoint.bind(pico_factors(checkpoint.rotary_dim, dual=dual, n_hat=n_hat))
    OnnxConverter().plan(Export(checkpoint, factors)).with_factors(other).save(tmp_path / "changed", Silent())
    OnnxConverter().plan(Export(checkpoint, other)).save(tmp_path / "fresh", Silent())
    assert contents(tmp_path / "changed") == contents(tmp_path / "fresh")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_graph_is_built_once(
    checkpoint: Checkpoint, factors: BoundFactors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[DecoderGraph] = []
    build = DecoderGraph.build

    def counted(graph: DecoderGraph) -> GraphBuilder:
        built.append(graph)
        return build(graph)

    monkeypatch.setattr(DecoderGraph, "build", counted)
    other = checkpoint.bind(pico_factors(checkpoint.rotary_dim, attention_factor=1.25))
    planned = OnnxConverter().plan(Export(checkpoint, factors)).with_factors(other)
    planned.save(tmp_path / "onnx", Silent())
    assert {check.status for check in planned.check(tmp_path / "onnx")} == {"pass"}
    assert len(built) == 1


@pytest.mark.parametrize("n_hat", [16, WINDOW // 2])
def test_both_sets_are_told_apart_beyond_many_start_tokens(checkpoint: Checkpoint, tmp_path: Path, n_hat: int) -> None:
    factors = checkpoint.bind(pico_factors(checkpoint.rotary_dim, n_hat=n_hat))
    checks = OnnxConverter().convert(Export(checkpoint, factors), tmp_path / "onnx", Silent())
    assert {check.id: check.status for check in checks}["onnx.switch"] == "pass"


def test_the_graph_passes_the_onnx_checker(artifact: Path) -> None:
    onnx.checker.check_model(str(artifact / "model.onnx"), full_check=True)


def test_describe_is_json(artifact: Path, factors: BoundFactors) -> None:
    facts = json.loads(json.dumps(OnnxConverter().describe(artifact)))
    assert facts["opset"]["ai.onnx"] == 23
    assert "prefill again" in facts["metadata"]["longrope.crossing"]
    assert facts["factors_from"] == {"method": factors.method, **factors.provenance}


def test_half_precision_is_cast_at_the_ends_only(checkpoint: Checkpoint, factors: BoundFactors, tmp_path: Path) -> None:
    OnnxConverter().convert(Export(checkpoint, factors, "f16"), tmp_path / "onnx", Silent())
    graph = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False).graph
    casts = {node.name for node in graph.node if node.op_type == "Cast"}
    ends = {"rope.cos", "rope.sin", "attention_bias.full.seen", "logits_float32"}
    wide = {"rope.position_float64", "rope.reduced_angle", "rope.attention_factor_float32"}
    assert casts == ends | wide


def test_an_unknown_weight_type_or_option_is_refused(checkpoint: Checkpoint, factors: BoundFactors) -> None:
    with pytest.raises(UnsupportedError, match="expected --outtype"):
        OnnxConverter().plan(Export(checkpoint, factors, outtype="q8_0"))
    with pytest.raises(InputError, match="unknown ONNX option colour; known: attention"):
        OnnxConverter().plan(Export(checkpoint, factors, options={"colour": "red"}))
    with pytest.raises(InputError, match="expected standard or grouped, got 'sparse'"):
        OnnxConverter().plan(Export(checkpoint, factors, options={"attention": "sparse"}))


def change_weights(checkpoint: Checkpoint, folder: Path, **changes: object) -> Checkpoint:
    """A copy of a checkpoint with weights added, or removed where the value is None."""
    folder.mkdir()
    for file in checkpoint.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    weights.update(changes)
    save_file({k: v for k, v in weights.items() if v is not None}, folder / "model.safetensors")
    return open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "error"),
    [("model.layers.0.adapter.weight", InputError), ("v_head.weight", UnsupportedError)],
    ids=["in a layer", "beside the model"],
)
def test_a_weight_without_a_place_in_the_graph_is_refused(
    checkpoint: Checkpoint, factors: BoundFactors, tmp_path: Path, name: str, error: type[LongRopeError]
) -> None:
    norm = load_file(checkpoint.path / "model.safetensors")["model.norm.weight"]
    odd = change_weights(checkpoint, tmp_path / "odd", **{name: norm})
    with pytest.raises(error, match=re.escape(name)):
        OnnxConverter().plan(Export(odd, factors))


def test_a_missing_weight_is_refused(checkpoint: Checkpoint, factors: BoundFactors, tmp_path: Path) -> None:
    odd = change_weights(checkpoint, tmp_path / "odd", **{"model.norm.weight": None})
    with pytest.raises(InputError, match=r"model\.norm\.weight is missing"):
        OnnxConverter().plan(Export(odd, factors))


def test_nothing_is_left_when_an_output_exists(checkpoint: Checkpoint, factors: BoundFactors, tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    with pytest.raises(InputError, match="exists"):
        OnnxConverter().convert(Export(checkpoint, factors), tmp_path / "onnx", Silent())
    assert [file.name for file in tmp_path.iterdir()] == ["onnx"]


# The paper's values of n_hat; the last ones are above the pico model's window, where both sets give the same angles.
N_HATS = (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)


def test_every_n_hat_of_the_paper_can_be_written(checkpoint: Checkpoint, tmp_path: Path) -> None:
    plans = {}
    for n_hat in N_HATS:
        factors = checkpoint.bind(pico_factors(checkpoint.rotary_dim, n_hat=n_hat))
        before = plans.get(n_hat > 0)
        plans[n_hat > 0] = before.with_factors(factors) if before else OnnxConverter().plan(Export(checkpoint, factors))
        plans[n_hat > 0].save(tmp_path / f"n_hat{n_hat}", Silent())
