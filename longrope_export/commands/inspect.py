"""`longrope-export inspect`: what an artifact is, what its RoPE does, who uses which set when, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrope.base_rope import NOT_ROTATED
from longrope.errors import LongRopeError
from longrope.options import option
from longrope_export import options

# What people call the formats; third parties' go by their names.
FORMATS = {"hf": "Hugging Face folder", "gguf": "GGUF file", "onnx": "ONNX model"}
# Facts with a line of their own, after the architecture and the weights.
LINES = {
    "name": "name",
    "carried_architecture": "carried_architecture",
    "quantization": "quantized by",
    "producer": "written by",
    "pre_tokenizer": "pre-tokenizer",
}
# Weight types that are named in a line; the rest are counted.
MOST_TYPES = 5
OTHERS_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class InspectRequest:
    """The options of `inspect`."""

    artifact: str = option(argument=True, help="Artifact to inspect: a folder, a GGUF or ONNX file, or a Hub id.")
    json_path: str | None = options.json_file()
    isolate: options.Isolate = options.isolate()


@options.command(InspectRequest)
def command(request: InspectRequest) -> int:
    """Say what ARTIFACT is, what its RoPE does, which runtime uses which set when, and what is wrong with it.

    Headers are read, no weights; of a Hub id nothing else is downloaded.
    """
    from longrope.provenance import published_name
    from longrope_export.console import write_json

    with found_artifact(request.artifact) as (path, others), _called(request.artifact, path):
        result = {**inspected(path, request.isolate), "others": list(others)}
        result = _renamed(result, str(path), request.artifact)
    if request.json_path is None:
        print_inspection(result)
    write_json({**result, "artifact": published_name(result["artifact"])}, request.json_path)
    return 0


@contextmanager
def found_artifact(name: str) -> Iterator[tuple[Path, Sequence[str]]]:
    """Where an artifact is, and what else lies in its repository; of one on the Hub a hollow copy, for as long as it is used.

    Raises:
        InputError, MissingRequirementError: as `artifact_path` and `hollow_artifact`.
    """
    from huggingface_hub import constants

    from converters.hub_heads import hollow_artifact
    from longrope.hub import hub_id_of
    from longrope.unfinished import temporary_folder
    from longrope_export.models import artifact_path

    hub_id = hub_id_of(name)
    if hub_id is None or constants.HF_HUB_OFFLINE:
        yield artifact_path(name), ()
        return
    with temporary_folder("hub") as room:
        hollow = hollow_artifact(hub_id, Path(room))
        yield hollow.path, hollow.others


@contextmanager
def _called(name: str, path: Path) -> Iterator[None]:
    """An error about an artifact calls it as its user called it."""
    try:
        yield
    except LongRopeError as error:
        error.args = (str(error).replace(str(path), name),)
        raise


def _renamed(result: Any, path: str, name: str) -> Any:
    """A result in which the artifact is called so, too, wherever its path stands."""
    if isinstance(result, Mapping):
        return {key: _renamed(value, path, name) for key, value in result.items()}
    if isinstance(result, list):
        return [_renamed(value, path, name) for value in result]
    return result.replace(path, name) if isinstance(result, str) else result


def inspected(path: Path, isolate: options.Isolate) -> dict[str, Any]:
    """`inspect_artifact`, in a process of its own where its format's runtime gets one. Raises as there."""
    from converters import registry
    from converters.isolation import Limits, workplace_for
    from longrope_export import inspection

    converter = registry.recognize(path)
    converter.check_reading()
    workplace = workplace_for(converter, path, isolate, runtime=False)
    if workplace is None:
        return inspection.inspect_artifact(path)
    with workplace:
        limits = Limits.of(converter, path, max_length=0, threads=1)
        head = {"do": "call", "function": f"{inspection.__name__}:inspect_by_name", "arguments": [str(path)]}
        found, _ = workplace.ask(head, seconds=limits.loading_seconds, memory=limits.memory)
        return dict(found)


# -- for a person


def print_inspection(result: dict[str, Any]) -> None:
    """A screenful: what it is, its RoPE in words and as curves, problems, runtimes."""
    from longrope_export.console import print_lines, say

    say(f"{result['artifact']}: {FORMATS.get(result['format'], result['format'])}")
    for line in fact_lines(result["facts"]):
        _paragraph(line)
    if result["others"]:
        _paragraph(f"also there, not looked at: {_listed(result['others'])}")
    say("RoPE")
    for line in result["rope"]:
        _paragraph(line)
    if curves := _curves(result):
        from longrope_export.terminal_plot import log_plot

        print_lines(log_plot(curves))
    _print_problems(result["problems"])
    _print_runtimes(result["runtimes"])


def fact_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """What an artifact is, a line a fact."""
    sizes = [f"{_count(facts['parameters'], 'B')} parameters"] if facts.get("parameters") else []
    sizes += [f"{_count(facts['bytes'], 'G')}B"] if facts.get("bytes") else []
    yield ", ".join([f"architecture: {facts.get('architecture')}", *sizes])
    types = sorted(facts.get("tensor_types", {}).items(), key=lambda entry: -entry[1])
    if types:
        rest = f", {len(types) - MOST_TYPES} types more" if len(types) > MOST_TYPES else ""
        yield f"weights: {', '.join(f'{name} ×{count}' for name, count in types[:MOST_TYPES])}{rest}"
    for key, words in LINES.items():
        if facts.get(key):
            yield f"{words}: {facts[key]}"
    made = facts.get("provenance") or facts.get("factors_from") or {}
    if made.get("method"):
        yield f"factors by: {made['method']}"


def _count(number: int, billion: str) -> str:
    """`134.5 M`: a number in thousands, millions or billions, which go by another letter where bytes are counted."""
    for unit, size in (("T", 10**12), (billion, 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number} "


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - OTHERS_SHOWN} more" if len(names) > OTHERS_SHOWN else ""
    return ", ".join(names[:OTHERS_SHOWN]) + rest


def _curves(result: Mapping[str, Any]) -> dict[str, list[float]]:
    """What is plotted: both sets of an extended model, or the publisher's rescaling; nothing of plain RoPE."""
    source = result["factors"] or result["base"]
    if not source:
        return {}
    sets = {"long": source["long_factor"], "short": source["short_factor"]}
    if sets["long"] == sets["short"]:
        sets = {"factor": sets["long"]}
    rotated = {name: [value for value in values if value < NOT_ROTATED] for name, values in sets.items()}
    return rotated if any(len(set(values)) > 1 for values in rotated.values()) else {}


def _print_problems(problems: Sequence[Mapping[str, Any]]) -> None:
    none = "Problems: none found without a reference; `validate` compares the artifact with one"
    _paragraph("Problems" if problems else none, indent=0)
    for problem in problems:
        id = f"{problem['id']}: " if "." in problem["id"] else ""  # of a check, to be searched for
        _paragraph(f"{problem['severity']}: {id}{problem['message']}")
        if problem["mend"]:
            _paragraph(f"mend: {problem['mend']}", indent=4)


def _print_runtimes(runtimes: Sequence[Mapping[str, Any]]) -> None:
    """Who uses which set when; runtimes that do alike share a line."""
    from longrope_export.console import say

    alike: dict[tuple[Any, ...], list[str]] = {}
    for use in runtimes:
        how = "run" if use["checked"].startswith("run") else "source read"
        alike.setdefault((use["uses"], use["safe"], use["advice"]), []).append(f"{use['runtime']} ({how})")
    if alike:
        say("Who uses which set when")
    for (uses, safe, advice), names in alike.items():
        _paragraph(f"{', '.join(names)}: {uses}")
        if not safe or advice:
            _paragraph(f"{'' if safe else 'not safe while a sequence grows past it: '}{advice}", indent=4)


def _paragraph(text: str, indent: int = 2) -> None:
    """Text under its heading, wrapped with its indent on a terminal."""
    from longrope_export.console import say_indented

    say_indented(text, indent)
