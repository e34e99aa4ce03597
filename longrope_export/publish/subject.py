"""What is published: a run, one artifact, or a file of factors, with its proof.

The proof is a validation.json whose entry lists the SHA-256 of every file that was validated. It holds for these bytes and
no others, so an artifact that was touched afterwards is found out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from converters import registry
from converters.base import Converter, RuntimeUse
from converters.factor_files import read_factors
from converters.judging import judge
from converters.measurements import measured_of
from converters.policy import PRESETS
from longrope.errors import InputError
from longrope.factors import RescaleFactors
from longrope.hub import hub_id_of
from longrope.locks import refuse_occupied
from longrope.reading import TEXT, Kind, check_fields, read_utf8, said_by
from longrope_export import default_model
from longrope_export.conversion import FACTORS_FILE
from longrope_export.models import DEFAULT
from longrope_export.run_files import RUN, VALIDATION, read_evaluation, read_finished_run, read_validation

_WORDS = Kind(
    "a word or a list of them",
    lambda value: all(isinstance(word, str) for word in (value if isinstance(value, list) else [value])),
)
_INHERITED = {"license": TEXT, "license_name": TEXT, "license_link": TEXT, "language": _WORDS}


@dataclass(frozen=True)
class Exported:
    """One artifact and what is known of it.

    Args:
        path: the artifact.
        converter: of its format.
        factors: that it holds; None for plain RoPE.
        claims: entries of validation.json files about an artifact of its format.
    """

    path: Path
    converter: Converter
    factors: RescaleFactors | None
    claims: Sequence[Mapping[str, Any]] = ()

    @cached_property
    def hashes(self) -> dict[str, str]:
        return self.converter.hashes(self.path)

    @cached_property
    def proof(self) -> Mapping[str, Any] | None:
        """The entry that is about these very bytes; None without one."""
        return next((claim for claim in self.claims if _files(claim) == self.hashes), None)

    @property
    def fault(self) -> str:
        """Why it may not be published, empty where it may."""
        if self.factors is None:
            return f"{self.path}: holds no rescale factors; it is not an extended model"
        if self.proof is not None:
            if not self.proof["windows"]:
                return f"{self.path}: only its static checks were made; run longrope-export validate without --static"
            failed = _failures(self.proof, self.path)
            return (
                "" if self.proof["passed"] and not failed else f"{self.path}: its validation failed ({_some(failed)})"
            )
        for claim in self.claims:
            known = _files(claim)
            if known and known.keys() & self.hashes.keys():
                changed = sorted(
                    name for name in known.keys() | self.hashes.keys() if known.get(name) != self.hashes.get(name)
                )
                return f"{self.path}: changed after its validation ({_some(changed)}); validate it again"
        return f"{self.path}: no {VALIDATION} is about these files; run longrope-export validate with --json first"

    @property
    def uses(self) -> list[RuntimeUse]:
        return self.converter.runtime_uses(self.factors) if self.factors else []


def _failures(proof: Mapping[str, Any], path: Path) -> list[str]:
    """Checks that failed, and those that only the validation's own policy let pass: the widest preset decides here."""
    failed = [check["id"] for check in proof["checks"] if check["status"] == "fail"]
    if failed or "rounding" not in proof:  # which files of earlier versions have not
        return failed
    judged = judge(measured_of(proof, f"the validation of {path}"), PRESETS["quantized"])
    return [check.id for check in judged if check.status == "fail"]


@dataclass(frozen=True)
class Base:
    """The model that was extended.

    Args:
        id: on the Hub; None where it has none that is known.
        metadata: of its model card: licence and language.
    """

    id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """What is published.

    Args:
        path: that was named.
        factors: of the run, or of its only artifact.
        exported: artifacts; none for a file of factors.
        base: what was extended.
        run: run.json; empty without a run.
        evaluation: evaluation.json of the run; empty without one.
    """

    path: Path
    factors: RescaleFactors
    exported: Sequence[Exported]
    base: Base
    run: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_factors(self) -> bool:
        return not self.exported


def open_subject(path: Path, *, validation: Path | None = None, base: Base | None = None) -> Subject:
    """What is at `path`.

    Args:
        path: the folder of a finished run, an artifact, or a factors.json.
        validation: what `validate --json` wrote about it; None looks in the run and beside the artifact.
        base: what the caller knows of the model that was extended; the run's own knowledge fills the gaps.

    Raises:
        InputError: nothing of the kind is there, the run has not finished, or somebody is writing it.
    """
    refuse_occupied(path)
    if (path / RUN).is_file():
        return _open_run(path, base or Base(), validation)
    if path.suffix.lower() == ".json" and path.is_file():
        return Subject(path, read_factors(path), (), base or Base())
    found = [validation] if validation else [path.parent / VALIDATION, path.parent.parent / VALIDATION]
    exported = _exported(path, found)
    if exported.factors is None:
        raise InputError(exported.fault)
    return Subject(path, exported.factors, (exported,), base or Base())


def _open_run(folder: Path, base: Base, validation: Path | None) -> Subject:
    run = read_finished_run(folder)
    files = [validation or folder / VALIDATION]
    return Subject(
        folder,
        RescaleFactors.load(folder / FACTORS_FILE),
        tuple(_exported(folder / export["path"], files) for export in run["exports"]),
        _base_of(run, base),
        run,
        read_evaluation(folder),
    )


def _base_of(run: Mapping[str, Any], given: Base) -> Base:
    """What the run knows: a Hub id, and the metadata of the card in the model's folder."""
    name = str(run.get("recipe", {}).get("model", ""))
    id = given.id or (hub_id_of(name) or "").partition("@")[0] or None
    card = (default_model.CHECKPOINT if name == DEFAULT else Path(name)) / "README.md"
    known = inherited(read_utf8(card), str(card)) if name and card.is_file() else {}
    return Base(id, {**known, **given.metadata})


def inherited(card: str, name: str) -> dict[str, Any]:
    """What a derived model takes over from the card of its base, called `name` in messages. Raises InputError."""
    from huggingface_hub import ModelCard

    with said_by("huggingface_hub", name):
        data = ModelCard(card, ignore_metadata_errors=True).data.to_dict()
    found = {key: data[key] for key in _INHERITED if data.get(key)}
    check_fields(found, _INHERITED, name)
    return found


def _exported(path: Path, validations: Sequence[Path]) -> Exported:
    converter = registry.recognize(path)
    claims = [claim for file in validations if file.is_file() for claim in read_validation(file)]
    same = tuple(claim for claim in claims if claim.get("format") == converter.name)
    return Exported(path, converter, converter.read_factors(path), same)


def _files(claim: Mapping[str, Any]) -> Mapping[str, str]:
    files: Mapping[str, str] = claim.get("provenance", {}).get("files", {})
    return files


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
