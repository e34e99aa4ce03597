"""The files of a run's folder that are read again (run.json, validation.json, evaluation.json), and their types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longrope.errors import InputError
from longrope.reading import (
    ANYTHING,
    BOOLEAN,
    COUNT,
    COUNT_OR_ZERO,
    NUMBER,
    OBJECT,
    TEXT,
    WHOLE,
    Kind,
    check,
    list_of,
    read_object,
    record,
    table_of,
)

RUN, VALIDATION, EVALUATION = "run.json", "validation.json", "evaluation.json"
# A measured number; what is not finite is written as null.
_MEASURED = NUMBER.or_null()

_METHODS = record(
    {
        "lengths": list_of(COUNT),
        "rows": list_of(record({"name": TEXT, "perplexities": list_of(_MEASURED)})),
    }
)
_SEARCH = record(
    {"measuring_seconds": NUMBER, "evaluations": COUNT_OR_ZERO, "tokens": COUNT_OR_ZERO},
    {
        "history": list_of(record({"tokens": COUNT_OR_ZERO, "perplexity": _MEASURED})),
        "front": list_of(record({"short": _MEASURED, "target": _MEASURED, "chosen": BOOLEAN})),
        "short_cap": _MEASURED,
        "seeds": OBJECT,
    },
)
_CURVE = record(
    {
        "steps": list_of(WHOLE),
        "loss": list_of(_MEASURED, least=1),
        "learning_rate": list_of(_MEASURED),
        "tokens": COUNT_OR_ZERO,
        "seconds": _MEASURED,
    }
)
_STAGE = record(
    {
        "stage": record({"length": COUNT, "steps": COUNT_OR_ZERO, "batch": COUNT_OR_ZERO}),
        "factors": record({"method": TEXT}),
        "training": _CURVE.or_null(),
    }
)
_RECOVERY = record(
    {}, {"comparison": list_of(record({"name": TEXT, "perplexity": _MEASURED})), "winner": TEXT.or_null()}
)
_EXTENSION = record(
    {"methods": _METHODS, "search": _SEARCH.or_null()},
    {"stages": list_of(_STAGE), "recovery": _RECOVERY.or_null()},
)
_USE = record(
    {"runtime": TEXT, "uses": TEXT, "safe": BOOLEAN, "advice": TEXT}, {"run": TEXT, "run_local": TEXT, "checked": TEXT}
)
_EXPORT = record({"format": TEXT, "path": TEXT, "factor_sets": TEXT, "runtimes": list_of(_USE)})
_PROVENANCE = record(
    {},
    {
        "versions": record({"longrope-export": TEXT, "torch": TEXT, "transformers": TEXT}),
        "machine": record({"cpus": WHOLE.or_null(), "machine": TEXT}),
        "files": table_of(TEXT),
        "created": TEXT,
        "text_fingerprint": TEXT.or_null(),
    },
)
_RUN = record(
    {
        "state": TEXT,
        "configuration": record({"model": TEXT}, {"options": OBJECT}),
        "provenance": _PROVENANCE,
        "recipe": OBJECT,
        "exports": list_of(_EXPORT),
    },
    {"extension": _EXTENSION.or_null()},
)
_CHECK = record({"id": TEXT, "status": TEXT, "message": TEXT, "expected": ANYTHING, "actual": ANYTHING})
_WINDOW = record(
    {
        "length": COUNT_OR_ZERO,
        "regime": TEXT,
        "tokens": COUNT_OR_ZERO,
        **dict.fromkeys(
            (
                "ppl_reference",
                "ppl",
                "ppl_delta_percent",
                "kl_mean",
                "kl_p99",
                "top1_agreement",
                "max_logit_diff",
            ),
            _MEASURED,
        ),
    },
    {"texts": list_of(record({"nll": _MEASURED}))},
)
_CLAIM = record(
    {
        "artifact": TEXT,
        "format": TEXT,
        "passed": BOOLEAN,
        "checks": list_of(_CHECK),
        "windows": list_of(_WINDOW),
    },
    {"provenance": _PROVENANCE},
)
_RETRIEVAL = list_of(
    record(
        {"length": COUNT, "depth": NUMBER, "samples": COUNT_OR_ZERO, "accuracy": NUMBER, "answer_ppl": _MEASURED},
        {"generated": _MEASURED},
    )
)
_EVALUATION = record(
    {"artifact": TEXT},
    {
        "perplexity": list_of(record({"length": COUNT, "windows": COUNT_OR_ZERO, "ppl": _MEASURED})),
        "passkey": _RETRIEVAL,
        "needle": _RETRIEVAL,
    },
)


def read_run(folder: Path) -> dict[str, Any]:
    """run.json of a run's folder. Raises InputError."""
    return _read(folder / RUN, _RUN)


def read_finished_run(folder: Path) -> dict[str, Any]:
    """run.json of a run that has ended. Raises InputError for any other."""
    run = read_run(folder)
    if run["state"] != "done" or run.get("extension") is None:
        raise InputError(f"{folder}: this run is not finished; go on with it", option="resume")
    return run


def read_validation(path: Path) -> list[dict[str, Any]]:
    """The entries of a run's validation.json, or the one that `validate --json` wrote. Raises InputError."""
    data = read_object(path)
    if "artifacts" in data:
        found: list[dict[str, Any]] = check(data, record({"artifacts": list_of(_CLAIM)}), str(path))["artifacts"]
        return found
    return [check(data, _CLAIM, str(path))]


def read_evaluation(folder: Path) -> dict[str, Any]:
    """evaluation.json of a run's folder; empty where there is none. Raises InputError."""
    if not (folder / EVALUATION).is_file():
        return {}
    try:
        return _read(folder / EVALUATION, _EVALUATION)
    except InputError as error:
        raise InputError(f"{error}; expected what eval --json writes") from None


def _read(path: Path, kind: Kind) -> dict[str, Any]:
    data: dict[str, Any] = check(read_object(path), kind, str(path))
    return data
