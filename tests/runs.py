"""Folders of finished runs as `extend` and `eval` leave them, made of JSON alone: no model, a fraction of a second."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from converters.runtimes import runtime_uses
from longrope.factors import RescaleFactors
from tests.common import pico_factors

WINDOW, TARGET = 64, 256
FILES = ("run", "factors", "validation", "evaluation")
LIMITS = {"ppl_delta_percent": "≤ 0.1", "kl_mean": "≤ 0.0001", "top1_agreement": "≥ 0.99"}

Documents = dict[str, dict[str, Any]]


def run_documents(*, dual: bool = True) -> Documents:
    """The four files of a run with everything in it: a search, stages, a front, retrieval, three formats, all passed."""
    factors = pico_factors(dual=dual, original_max_position_embeddings=WINDOW, target=TARGET, method="auto")
    return {
        "run": _run(factors),
        "factors": factors.to_json(),
        "validation": {
            "schema_version": 1,
            "passed": True,
            "artifacts": [_entry(name) for name in ("hf", "gguf:f16", "onnx")],
        },
        "evaluation": _evaluation(),
    }


def write_run(folder: Path, documents: Mapping[str, Any]) -> Path:
    """Write the files into a new folder."""
    folder.mkdir(parents=True)
    for name, data in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def changed(documents: Documents, change: Callable[[Documents], object]) -> Documents:
    """A copy of the files after a change."""
    copied = copy.deepcopy(documents)
    change(copied)
    return copied


def check_of(documents: Documents, artifact: int, id: str) -> dict[str, Any]:
    """A check of an artifact."""
    found: dict[str, Any] = next(
        check for check in documents["validation"]["artifacts"][artifact]["checks"] if check["id"] == id
    )
    return found


def fail(documents: Documents, artifact: int, id: str, **fields: Any) -> None:
    """Let a check fail, and with it the artifact and the run."""
    check_of(documents, artifact, id).update({"status": "fail", **fields})
    documents["validation"]["artifacts"][artifact]["passed"] = documents["validation"]["passed"] = False


def _run(factors: RescaleFactors) -> dict[str, Any]:
    dual = factors.factor_sets == "dual"
    return {
        "schema_version": 1,
        "state": "done",
        "passed": True,
        "configuration": {
            "model": "org/model",
            "model_fingerprint": "d740",
            "test_fingerprint": "d595",
            "formats": ["hf", "gguf:f16", "onnx"],
            "options": {"test_windows": 2, "search": {"max_evals": 24, "short_budget": None, "start_from": []}},
        },
        "provenance": {
            "versions": {"longrope-export": "0.1.0", "torch": "2.13.0", "transformers": "5.24.0"},
            "machine": {"system": "Linux", "machine": "x86_64", "cpus": 2},
            "created": "2026-11-29T21:20:54+00:00",
        },
        "recipe": {"model": "org/model", "target-length": TARGET, "text": ["/home/somebody/books"]},
        "exports": [
            _export(factors, *each) for each in (("hf", "hf"), ("gguf:f16", "gguf/m-f16.gguf"), ("onnx", "onnx"))
        ],
        "extension": {
            "search": {
                "evaluations": 4,
                "tokens": 40_000,
                "measuring_seconds": 90.0,
                "seeds": {"YaRN 32/1": 25.0},
                "history": [
                    {"tokens": 10_000 * (n + 1), "perplexity": value}
                    for n, value in enumerate((25.0, None, 25.0, 24.0))
                ],
                "short_cap": 17.5,
                "front": [
                    {"short": 17.0, "target": 25.0, "chosen": False},
                    {"short": 17.25, "target": 24.0, "chosen": True},
                    {"short": None, "target": 23.0, "chosen": False},
                ],
            },
            "methods": {
                "lengths": [WINDOW, TARGET],
                "rows": [
                    {"name": "none", "perplexities": [16.0, 80.0]},
                    {"name": "PI", "perplexities": [64.0, 90.0]},
                    {"name": "NTK", "perplexities": [16.8, 40.0]},
                    {"name": "YaRN 32/1", "perplexities": [17.0, 21.0]},
                    {"name": "searched", "perplexities": [16.64, 20.0]},
                    *([{"name": "searched, short set", "perplexities": [16.16, None]}] if dual else []),
                ],
            },
            "stages": [_stage(128, 30), _stage(TARGET, 0)],
            "recovery": {
                "comparison": [
                    {"name": "searched", "perplexity": 16.16},
                    {"name": "original RoPE", "perplexity": 16.2},
                ],
                "winner": "searched",
            },
        },
    }


def _export(factors: RescaleFactors, label: str, path: str) -> dict[str, Any]:
    uses = runtime_uses(label.partition(":")[0], factors)
    return {
        "format": label,
        "path": path,
        "factor_sets": factors.factor_sets,
        "checks": 3,
        "runtimes": [{name: getattr(use, name) for name in use.__dataclass_fields__} for use in uses],
    }


def _stage(length: int, steps: int) -> dict[str, Any]:
    curve = {
        "steps": list(range(1, steps + 1)),
        "loss": [3.0 - n / 100 for n in range(steps)],
        "learning_rate": [1e-4] * steps,
        "tokens": steps * length,
        "seconds": 12.5,
    }
    return {
        "stage": {"length": length, "steps": steps, "batch": 4},
        "factors": {"method": "auto"},
        "training": curve if steps else None,
    }


def _entry(artifact: str) -> dict[str, Any]:
    format = artifact.partition(":")[0]
    windows = [_window("short", WINDOW), _window("long", TARGET), _window("crossing", WINDOW + 8)]
    checks = [
        _check(f"{format}.readable"),
        _check(f"{format}.factors.long", "8 factors", "8 factors"),
        _check(f"{format}.tensors.missing", [], []),
        _check(f"{format}.config.fields", {}, {}),
        _check(f"{format}.switch", {"63": "short", "64": "long"}, {"63": "short", "64": "long"}),
        *(_check(f"{format}.parity.{w['regime']}.{w['length']}", LIMITS, {"kl_mean": w["kl_mean"]}) for w in windows),
    ]
    return {
        "schema_version": 1,
        "artifact": artifact,
        "format": format,
        "reference": "model",
        "passed": True,
        "checks": checks,
        "windows": windows,
        "provenance": {"files": {"config.json": "00"}},
    }


def _check(id: str, expected: Any = None, actual: Any = None) -> dict[str, Any]:
    return {"id": id, "status": "pass", "expected": expected, "actual": actual, "message": ""}


def _window(regime: str, length: int) -> dict[str, Any]:
    return {
        "length": length,
        "regime": regime,
        "tokens": 2 * (length - 1),
        "ppl_reference": 16.16,
        "ppl": 16.161,
        "ppl_delta_percent": 0.0062,
        "kl_mean": 2.6e-7,
        "kl_p99": 1.5e-6,
        "top1_agreement": 0.998,
        "max_logit_diff": 0.0116,
        "non_finite": "",
    }


def _evaluation() -> dict[str, Any]:
    rows = [
        {
            "length": length,
            "depth": depth,
            "samples": 4,
            "accuracy": 1.0 if length == WINDOW else 0.5,
            "answer_ppl": 1.1,
            "generated": None,
        }
        for length in (WINDOW, TARGET)
        for depth in (0.0, 0.5, 1.0)
    ]
    return {
        "schema_version": 1,
        "artifact": "hf",
        "perplexity": [{"length": WINDOW, "windows": 4, "ppl": 16.7}],
        "passkey": rows,
        "needle": [],
    }


def with_quality(documents: Documents) -> None:
    """Let every artifact have the quality of one extension, measured on three windows of each length."""
    for entry in documents["validation"]["artifacts"]:
        entry["quality"] = _quality()
        entry["provenance"]["text_fingerprint"] = "7e57"
        for kind, id in (("warn", f"beyond.YaRN.{TARGET}"), ("pass", f"inside.{WINDOW}")):
            entry["checks"].append(
                {**_check(f"quality.{id}"), "status": kind, "message": "" if kind == "pass" else "no"}
            )


def _quality() -> dict[str, Any]:
    before = (2.70, 2.80, 2.90)
    cost = (0.007, 0.008, 0.009)
    texts = [
        {"tokens": 63, "nll_reference": old, "nll": old + more, "kl_mean": 0.01, "top1_agreement": 0.97}
        for old, more in zip(before, cost, strict=True)
    ]
    inside = {**_score(WINDOW, "short"), "ppl_reference": 16.44, "ppl": 16.58, "kl_mean": 0.01, "texts": texts}
    return {
        "inside": [inside],
        "beyond": [
            {
                "length": TARGET,
                "extended": [3.0, 3.1, 3.2],
                "methods": {
                    "original": [4.4, 4.5, 4.3],
                    "PI": [4.0, 4.2, 4.1],
                    "NTK": [3.5, 3.6, 3.8],
                    "YaRN": [2.98, 3.09, 3.17],
                },
            }
        ],
        "passkey": [
            {"rope": "original", "length": WINDOW, "samples": 5, "found": 5},
            {"rope": "extended", "length": WINDOW, "samples": 5, "found": 5},
            {"rope": "extended", "length": TARGET, "samples": 5, "found": 3},
        ],
        "controls": {"differs": _score(TARGET, "long"), "same": _score(TARGET, "long")},
        "left_out": {"beyond.512": "no text is that long"},
    }


def _score(length: int, regime: str) -> dict[str, Any]:
    """A score with all that is kept of it."""
    measures = ("ppl_delta_low", "ppl_delta_high", "kl_mean_low", "kl_median", "kl_median_low", "kl_p99_low", "kl_max")
    differences = ("logit_diff_mean", "logit_diff_median", "logit_diff_p99")
    counts = {"tied": 0, "decided_agreements": 10, "non_finite_positions": 0}
    return {**_window(regime, length), **dict.fromkeys((*measures, *differences), 0.01), **counts, "texts": []}


def explain(documents: Documents, artifact: int, **changes: Any) -> None:
    """Let an artifact's failure be explained by the base of its frequencies."""
    documents["validation"]["artifacts"][artifact]["explanation"] = {
        "cause": "rope.theta",
        "title": "The base of the rotary frequencies is another: theta 500000 in place of 10000.",
        "advice": "Write the reference's theta.",
        "where": "at every length",
        "checks": ["gguf.rope.freq_base"],
        "evidence": ["256 tokens (long set): KL 0.38, from position 2 on, not at position 0"],
        "shapes": [
            {
                "length": length,
                "regime": regime,
                "kl_mean": 0.38,
                "positions": [0, 1, 4, 16, 60],
                "kl": [0.0, 1e-5, 0.1, 0.3, 0.4],
                "max_logit_diff": [0.0, 0.1, 1.0, 2.0, 3.0],
                "words": "from position 2 on, not at position 0",
            }
            for regime, length in (("short", WINDOW), ("long", TARGET))
        ],
        "trials": [
            {
                "cause": "rope.theta",
                "change": "theta 500000 in place of 10000",
                "length": TARGET,
                "kl_mean": 0.0003,
                "kl_unchanged": 0.34,
            }
        ],
        "parts": [
            {"name": "embeddings", "error": 0.0, "error_at_start": 0.0, "differs": False},
            {"name": "layer 0", "error": 0.18, "error_at_start": 0.0099, "differs": True},
        ],
        **changes,
    }
