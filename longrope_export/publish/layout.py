"""Which file goes into which repository, under which name.

ORG/NAME         the Hugging Face folder, and onnx/ in transformers.js's layout
ORG/NAME-GGUF    every GGUF file          (one repository for all with the layout `single`)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from longrope.errors import InputError, MissingRequirementError
from longrope.factors import RescaleFactors
from longrope.files import json_text
from longrope.reading import as_object, parsed_json
from longrope_export.conversion import FACTORS_FILE
from longrope_export.publish.card import FORMATS, Page
from longrope_export.publish.content import Content
from longrope_export.publish.scan import metadata_of
from longrope_export.publish.subject import Exported, Subject

Layout = Literal["separate", "single"]
PLOT = "factors.png"
JS_CONFIG = "transformers.js_config"


@dataclass(frozen=True)
class Draft:
    """A repository as it is to be, but for its card.

    Args:
        page: what the card is about.
        contents: files, by place.
        strings: texts in binary metadata, to be scanned.
        notes: what a person should know of it.
    """

    page: Page
    contents: Sequence[Content]
    strings: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def drafts(subject: Subject, repo_id: str, layout: Layout) -> list[Draft]:
    """The repositories of a subject, the model's own first.

    Raises:
        InputError: two artifacts would get the same name.
    """
    plot = _plot(subject.factors)
    if subject.is_factors:
        return [_factors_draft(subject, repo_id, plot)]
    groups: dict[str, list[Exported]] = {}
    alone = len({each.converter.hub_suffix for each in subject.exported}) == 1 and not subject.run
    for each in sorted(subject.exported, key=lambda each: bool(each.converter.hub_suffix)):
        suffix = "" if layout == "single" or alone else each.converter.hub_suffix
        groups.setdefault(repo_id + suffix, []).append(each)
    return [_draft(subject, id, groups, plot) for id in groups]


def _draft(subject: Subject, repo_id: str, groups: Mapping[str, Sequence[Exported]], plot: Content | None) -> Draft:
    name, members = repo_id.split("/")[-1], groups[repo_id]
    contents = _together(members, name)
    contents += [plot] if plot else []
    folder = next((id for id, some in groups.items() if any(each.converter.name == "hf" for each in some)), None)
    page = Page(
        repo_id,
        subject,
        members,
        [content.place for content in contents],
        {_formats(some): id for id, some in groups.items() if id != repo_id},
        subject.base.id if folder in (None, repo_id) else folder,
        plot.place if plot else "",
        [each.fault.replace(f"{each.path}: ", "") for each in members if each.fault],
    )
    strings = {key: text for each in members for key, text in metadata_of(each.converter, each.path).items()}
    return Draft(page, contents, strings, list(_notes(subject, page)))


def _formats(members: Sequence[Exported]) -> str:
    return " and ".join(dict.fromkeys(FORMATS.get(each.converter.name, each.converter.name) for each in members))


def _together(members: Sequence[Exported], name: str) -> list[Content]:
    """The artifacts' files by place. What several describe alike comes once; config.json says what transformers.js needs."""
    found: dict[str, Content] = {}
    for each in members:
        stem = name.removesuffix(each.converter.hub_suffix) if each.converter.hub_suffix else name
        for place, source in each.converter.hub_files(each.path, stem).items():
            new = Content(place, source, _known_hash(each, source))
            if place not in found:
                found[place] = new
            elif place.endswith("config.json") and "/" not in place:
                found[place] = _with_js(found[place], new)
            elif found[place].sha256 != new.sha256 and place.endswith((".onnx", ".gguf", ".safetensors")):
                raise InputError(f"{each.path}: another artifact is called {place}, too; publish them one by one")
    return sorted(found.values(), key=lambda content: content.place)


def _known_hash(exported: Exported, source: Path | bytes) -> str | None:
    if isinstance(source, bytes):
        return None
    root = exported.path if exported.path.is_dir() else exported.path.parent
    return exported.hashes.get(source.relative_to(root).as_posix())


def _with_js(first: Content, second: Content) -> Content:
    """The first config.json with what the second one says to transformers.js."""
    config, other = _config(first), _config(second).get(JS_CONFIG)
    if not other:
        return first
    mine = config.get(JS_CONFIG, {})
    external = {**mine.get("use_external_data_format", {}), **other["use_external_data_format"]}
    config[JS_CONFIG] = {**other, **mine, "use_external_data_format": external}
    return Content(first.place, json_text(config, keep_non_finite=True).encode())


def _config(content: Content) -> dict[str, Any]:
    return as_object(parsed_json(content.read(), content.place, non_finite=True), content.place)


def _plot(factors: RescaleFactors) -> Content | None:
    """The factors' picture; None without matplotlib."""
    from longrope_export import plots

    try:
        return Content(PLOT, plots.render(plots.factors_figure({"found": factors}), "png"))
    except MissingRequirementError:
        return None


def _factors_draft(subject: Subject, repo_id: str, plot: Content | None) -> Draft:
    contents = [Content(FACTORS_FILE, json_text(subject.factors.to_json()).encode()), *([plot] if plot else [])]
    page = Page(
        repo_id, subject, (), [each.place for each in contents], {}, subject.base.id, plot.place if plot else ""
    )
    return Draft(page, contents, {}, list(_notes(subject, page)))


def _notes(subject: Subject, page: Page) -> Iterable[str]:
    """What is missing and which option adds it."""
    if subject.base.id is None:
        yield "the card names no base model; --base-model ORG/NAME adds it"
    if not subject.base.metadata.get("license"):
        yield "the card states no licence; --license NAME adds it"
    if not page.plot:
        yield "no picture of the factors: pip install 'longrope-export[report]' adds it"
    if any("-of-0" in place and place.endswith(".gguf") for place in page.files):
        yield "a GGUF file in parts: Ollama's tags do not find it; llama.cpp takes the first part"
