"""Broken artifacts of every format: `validate` exits 1 and names the check, whatever the reference knows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from longrope.checkpoint import Checkpoint
from longrope.factors import RescaleFactors
from tests.common import Outcome, pico_checkpoint, pico_factors, pico_text, run_cli, write_every_format
from tests.folder_faults import Fault, copied
from tests.gguf_files import CATALOGUE as GGUF_CATALOGUE
from tests.gguf_files import in_file
from tests.hf_faults import FAULTS as HF_CATALOGUE
from tests.hf_faults import ORIGINAL, TARGET, Json
from tests.onnx_faults import FAULTS as ONNX_CATALOGUE


@dataclass(frozen=True)
class Studio:
    """A model, its sound artifacts in every format, and a text that is long enough."""

    plain: Checkpoint
    factors: RescaleFactors
    artifacts: dict[str, Path]
    text: Path

    def reference(self, kind: str) -> Path:
        """The model before extension, or extended with both sets."""
        return self.plain.path if kind == "plain" else self.artifacts["hf"]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    room = tmp_path_factory.mktemp("studio")
    plain = pico_checkpoint(room / "model", max_position_embeddings=ORIGINAL)
    factors = plain.bind(pico_factors(target=TARGET, original_max_position_embeddings=ORIGINAL))
    artifacts = write_every_format(plain, factors, room)
    (room / "text.txt").write_text(pico_text(60), encoding="utf-8")
    return Studio(plain, factors, artifacts, room / "text.txt")


def validate(studio: Studio, artifact: Path, reference: str, *more: object) -> tuple[Outcome, Json]:
    """Run the command; returns what it left and its JSON."""
    model = ("--reference", studio.reference(reference), "--text", studio.text)
    amount = ("--windows-per-length", 1, "--no-crossing", "--threads", 1)
    done = run_cli("validate", artifact, *model, *amount, "--json", "-", *more)
    return done, json.loads(done.out) if done.out else {}


def failed(data: Json) -> set[str]:
    return {check["id"] for check in data["checks"] if check["status"] == "fail"}


# -- faults


FAULTS: dict[str, dict[str, tuple[Fault, str]]] = {
    "hf": HF_CATALOGUE,
    "gguf": {
        name: (in_file(fault), id)
        for name, (fault, id) in GGUF_CATALOGUE.items()
        if name
        in (
            "no factors",
            "wrong attention factor",
            "no original length",
            "stale scaling factor",
            "q and k not interleaved",
        )
    },
    "onnx": {
        name: ONNX_CATALOGUE[name]
        for name in ("factors dropped", "attention factor missing", "short set baked", "weights of two layers swapped")
    },
}
CASES = [(kind, name) for kind, faults in FAULTS.items() for name in faults]


def break_artifact(studio: Studio, room: Path, kind: str, name: str) -> tuple[Path, str]:
    """A copy with the fault in it, and the check that must name it."""
    fault, id = FAULTS[kind][name]
    (room / "broken").mkdir()
    copy = copied(studio.artifacts[kind], room / "broken")
    fault(copy)
    return copy, id


# -- the sound ones pass, so that a failure below means something


@pytest.mark.parametrize("reference", ["plain", "extended"])
@pytest.mark.parametrize("kind", FAULTS)
def test_a_sound_artifact_passes(studio: Studio, kind: str, reference: str) -> None:
    done, data = validate(studio, studio.artifacts[kind], reference)
    assert (done.code, data["passed"], failed(data)) == (0, True, set())
    regimes = [(window["length"], window["regime"]) for window in data["windows"]]
    assert regimes == [(ORIGINAL, "short"), (TARGET, "long")]
    warned = {check["id"] for check in data["checks"] if check["status"] == "warn"}
    assert warned == ({"factors.unverified"} if reference == "plain" else set())


# -- the broken ones


@pytest.mark.parametrize("reference", ["plain", "extended"])
@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind}-{name}" for kind, name in CASES])
def test_a_broken_artifact_is_named(studio: Studio, tmp_path: Path, kind: str, name: str, reference: str) -> None:
    broken, id = break_artifact(studio, tmp_path, kind, name)
    done, data = validate(studio, broken, reference)
    assert done.code == 1, done.err
    assert not data["passed"]
    if "factors" in id and failed(data) == {f"{kind}.factors"}:
        id = f"{kind}.factors"  # neither side knows any factors: there is nothing more to compare with
    assert id in failed(data)
    assert f"fail: {id}: " in done.err
    assert "{'" not in done.err, "values are words"
    assert "Traceback" not in done.err


@pytest.mark.parametrize("kind", FAULTS)
def test_factors_of_another_run_are_not_these(studio: Studio, tmp_path: Path, kind: str) -> None:
    other = pico_factors(target=TARGET, original_max_position_embeddings=ORIGINAL).to_json()
    other["long_factor"] = (np.array(other["long_factor"]) * 1.0001).tolist()
    RescaleFactors.from_json(other).save(tmp_path / "other.json")
    done, data = validate(studio, studio.artifacts[kind], "plain", "--factors", tmp_path / "other.json")
    assert done.code == 1
    assert any("long" in id and "factor" in id for id in failed(data)), failed(data)


def test_a_plain_model_is_not_an_extended_one(studio: Studio) -> None:
    done, data = validate(studio, studio.plain.path, "plain")
    assert done.code == 1
    assert failed(data) == {"hf.factors"}


# -- what perplexity would have let through

# Fault → the window in which perplexity does not rise. Every one of them loads and runs without a word of complaint.
UNSEEN_BY_PERPLEXITY = [
    ("hf", "wrong attention factor", TARGET),
    ("hf", "no original length", TARGET),
    ("hf", "sets swapped", TARGET),
    ("hf", "weights of two layers swapped", ORIGINAL),
    ("gguf", "no factors", ORIGINAL),
    ("gguf", "wrong attention factor", TARGET),
    ("gguf", "no original length", TARGET),
    ("onnx", "attention factor missing", TARGET),
    ("onnx", "short set baked", TARGET),
]


@pytest.mark.parametrize(("kind", "name", "length"), UNSEEN_BY_PERPLEXITY)
def test_kl_catches_what_lowers_perplexity(studio: Studio, tmp_path: Path, kind: str, name: str, length: int) -> None:
    broken, id = break_artifact(studio, tmp_path, kind, name)
    _, data = validate(studio, broken, "extended", "--windows", length)
    (window,) = data["windows"]
    assert window["ppl_delta_percent"] < 0
    assert window["kl_mean"] > 1e-2
    (parity,) = (check for check in data["checks"] if check["id"].startswith(f"{kind}.parity."))
    assert parity["status"] == "fail"
    assert "mean KL" in parity["message"]
    assert id in failed(data)
