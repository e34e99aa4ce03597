"""The model card: our section by one template, and the metadata; an existing card keeps what people wrote.

Subject ──metadata──► YAML ─┐
Subject ──section───► text ─┴─ merged with the card that is there ──► README.md, conflicts
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from string import Template
from typing import Any

from converters.factor_files import known_methods
from converters.onnx.weight_names import DTYPES, SUFFIXES
from longrope.errors import InputError
from longrope.reading import parsed_yaml
from longrope_export.console import number
from longrope_export.methods import ORIGINAL, SETS, Methods, by_length
from longrope_export.publish.subject import Base, Exported, Subject

TEMPLATE = "card.md.j2"
BEGIN, END = "<!-- longrope-export:begin -->", "<!-- longrope-export:end -->"
FORMATS = {"hf": "Hugging Face folder", "gguf": "GGUF", "onnx": "ONNX"}
TAGS = ("longrope", "long-context", "longrope-export")
LIBRARIES = {"hf": "transformers", "gguf": "gguf", "onnx": "transformers.js"}
# What the card of an updated repository takes from the new run; of everything else the person's value stays.
MEASURED = ("model-index",)
PASSKEY_TASKS = ("passkey", "needle")


@dataclass(frozen=True)
class Page:
    """What one repository's card is about.

    Args:
        repo_id: of the repository.
        subject: the run, artifact or factors.
        exported: the artifacts in this repository.
        files: their places, largest first shown.
        links: other repositories of the same run, by what they hold.
        derived_from: the model this repository's weights were made from: the base, or the repository of the folder.
        plot: the factors' picture in the repository; empty without one.
        unverified: why the artifacts have no proof; empty where they have.
    """

    repo_id: str
    subject: Subject
    exported: Sequence[Exported]
    files: Sequence[str]
    links: Mapping[str, str]
    derived_from: str | None
    plot: str = ""
    unverified: Sequence[str] = ()

    @property
    def base(self) -> Base:
        return self.subject.base


def card(page: Page, existing: str = "") -> tuple[str, list[str]]:
    """README.md of a page, merged with the one that is there; and the metadata in which a person's value stays, by line.

    Raises:
        InputError: the existing card's metadata are no YAML, or a marker of ours stands there without the other.
    """
    import yaml

    old, text = _parts(existing)
    data, conflicts = _merged(old, metadata(page))
    head = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n{_placed(text, section(page))}", conflicts


def is_ours(text: str) -> bool:
    """Whether a card has our section."""
    return BEGIN in text


def metadata(page: Page) -> dict[str, Any]:
    """The card's YAML: what the Hub's search, widgets and licence notice read."""
    from huggingface_hub import ModelCardData

    names = [each.converter.name for each in page.exported]
    relation = "quantized" if names and "hf" not in names else "finetune"
    language = page.base.metadata.get("language")
    data = ModelCardData(
        language=[language] if isinstance(language, str) else language,
        license=page.base.metadata.get("license"),
        license_name=page.base.metadata.get("license_name"),
        license_link=page.base.metadata.get("license_link"),
        library_name=next((LIBRARIES[name] for name in LIBRARIES if name in names), None),
        pipeline_tag="text-generation" if names else None,
        base_model=page.derived_from,
        tags=[*TAGS, *(name for name in names if name != "hf")],
        model_name=page.repo_id.split("/")[-1] if names else None,
        eval_results=_results(page) or None,
        ignore_metadata_errors=True,
    )
    found = data.to_dict()
    if page.derived_from and names:
        found["base_model_relation"] = relation
    return {key: value for key, value in found.items() if value not in (None, [])}


def _results(page: Page) -> list[Any]:
    """Measured perplexities of the first artifact that has a proof, one per window."""
    from huggingface_hub import EvalResult

    proof = next((each.proof for each in page.exported if each.proof is not None), None)
    windows = proof["windows"] if proof else []
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="text",
            dataset_name="held-out text",
            metric_type="perplexity",
            metric_value=round(row["ppl"], 4),
            metric_name=f"perplexity, windows of {row['length']} tokens",
        )
        for row in windows
        if row["regime"] != "crossing" and row["ppl"] is not None
    ]


def section(page: Page) -> str:
    """Our part of the text, between markers."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("longrope_export"),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "cell": _cell}
    text = environment.get_template(TEMPLATE).render(**_values(page))
    return f"{BEGIN}\n{text.strip()}\n{END}\n"


def _cell(value: object) -> str:
    """A text that cannot end a table's cell."""
    return str(value).replace("|", "\\|").replace("\n", " ")


def _values(page: Page) -> dict[str, Any]:
    """What the template is filled with."""
    subject, factors = page.subject, page.subject.factors
    return {
        "page": page,
        "title": page.repo_id.split("/")[-1],
        "factors": factors,
        "base": page.base,
        "formats": FORMATS,
        "methods": (subject.run.get("extension") or {}).get("methods"),
        "inside": _inside(subject),
        "retrieval": {
            task: _accuracies(subject.evaluation[task]) for task in PASSKEY_TASKS if subject.evaluation.get(task)
        },
        "parity": [(each, each.proof["windows"]) for each in page.exported if each.proof],
        "runtimes": _runtimes(page),
        "known": list(known_methods(factors)),
        "recipe": _recipe(subject),
        "provenance": {"versions": {}, "machine": {}, **subject.run.get("provenance", {})},
        "search": (subject.run.get("extension") or {}).get("search"),
        "stages": (subject.run.get("extension") or {}).get("stages") or [],
    }


def _accuracies(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of retrieval as a table: by length, the accuracy at each depth."""
    found = {length: {depth: row["accuracy"] for depth, row in at.items()} for length, at in by_length(rows).items()}
    return {"depths": sorted({row["depth"] for row in rows}), "rows": found}


def _inside(subject: Subject) -> dict[str, Any] | None:
    """Perplexity at the original window: of the original model, and with each set that the run found."""
    methods, length = Methods.of(subject.run), subject.factors.original_max_position_embeddings
    original = methods.at(ORIGINAL, length)
    found = {name: value for row, name in SETS.items() if (value := methods.at(row, length)) is not None}
    return {"length": length, "original": original, "found": found} if found and original is not None else None


def _runtimes(page: Page) -> list[dict[str, Any]]:
    """How each runtime is started, once per runtime, with this repository's names filled in."""
    found: dict[str, dict[str, Any]] = {}
    gguf = next((place for place in page.files if place.endswith(".gguf")), "")
    graph = next((place.split("/")[-1] for place in page.files if place.endswith(".onnx")), "")
    names = {
        "repo": page.repo_id,
        "tag": gguf.removesuffix(".gguf").rpartition("-")[2],
        "dtype": _js_dtype(graph),
    }
    for each in page.exported:
        for use in each.uses:
            run = Template(use.run).safe_substitute(names)
            found.setdefault(use.runtime, {"use": use, "run": run, "sets": each.factors and each.factors.factor_sets})
    return list(found.values())


def _js_dtype(graph: str) -> str:
    """What transformers.js calls the weight type of a graph."""
    return next((DTYPES[kind] for kind, suffix in SUFFIXES.items() if graph == f"model{suffix}.onnx"), "fp32")


def _recipe(subject: Subject) -> str:
    """The run's options as a recipe, with paths cut to their last name: where they lay is nobody's business."""
    import yaml

    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(item) for item in value]
        return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else value

    recipe = {key: short(value) for key, value in subject.run.get("recipe", {}).items()}
    if subject.base.id:
        recipe["model"] = subject.base.id
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip() if recipe else ""


# -- an existing card


def _parts(existing: str) -> tuple[dict[str, Any], str]:
    """Metadata and text of a card."""
    match = re.match(r"\s*---\s*\n(.*?)\n?---\s*(?:\n|$)", existing, re.DOTALL)
    if match is None:
        return {}, existing
    data = parsed_yaml(match.group(1), "README.md there: its metadata") or {}
    if not isinstance(data, dict):
        raise InputError("README.md there: its metadata is no mapping; correct it on the Hub first")
    return data, existing[match.end() :]


def _merged(old: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The person's keys in their order, then ours; tags of both; measured values are the new ones."""
    merged, conflicts = dict(old), []
    for key, value in ours.items():
        if key == "tags":
            merged[key] = list(dict.fromkeys([*_as_list(old.get(key)), *value]))
        elif key in MEASURED or key not in old:
            merged[key] = value
        elif old[key] != value:
            conflicts.append(f"card: {key} stays {old[key]!r}; this run would say {value!r}")
    return merged, conflicts


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _placed(text: str, section: str) -> str:
    """The text with our section in its place: where the old one stands, or at the end of what a person wrote."""
    begin, end = text.find(BEGIN), text.find(END)
    if (begin < 0) != (end < 0) or end < begin:
        raise InputError(
            f"README.md there: expected {BEGIN} and {END} in this order, or neither; correct it on the Hub first"
        )
    if begin < 0:
        return f"{text.rstrip()}\n\n{section}" if text.strip() else section
    return text[:begin] + section.rstrip("\n") + text[end + len(END) :]
