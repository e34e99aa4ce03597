"""Which pages the site has, in which order, and those that are made of code: a page a runtime, and the Python API."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from converters.runtimes import RUNTIMES, Runtime

ROOT = Path(__file__).resolve().parents[1]
GENERATED = "generated"
# Caption → pages, relative to docs/. A test holds it against the pages that are there.
SECTIONS: Mapping[str, Sequence[str]] = {
    "Start": ("getting-started", "method", "factors"),
    "How-tos": ("extend", "search", "finetuning", "distributed", "evaluation", "validation", "ci", "publish"),
    "Formats": ("huggingface", "gguf", "onnx", "models"),
    "Runtimes": (f"{GENERATED}/runtimes/*",),
    "Reference": ("checks", "python", f"{GENERATED}/api/longrope", f"{GENERATED}/api/converters"),
    "Benchmarks": (
        "../benchmarks/README",
        "../benchmarks/search",
        "../benchmarks/smollm2",
        "../benchmarks/progressive",
        "../benchmarks/training",
        "../benchmarks/hf",
        "../benchmarks/gguf",
        "../benchmarks/onnx",
        "../benchmarks/onnx_architectures",
        "../benchmarks/engines",
        "../benchmarks/validation",
        "../benchmarks/confusion",
        "../benchmarks/explain",
        "../benchmarks/hardening",
    ),
    "The project": ("../DESIGN", "../CONTRIBUTING", "../SECURITY", "../CHANGELOG"),
}
# Words for how each format's artifact is called on the page of a runtime.
_ARTIFACTS = {"hf": "huggingface.md", "gguf": "gguf.md", "onnx": "onnx.md"}
_NAMES = {"hf": "Hugging Face folders", "gguf": "GGUF files", "onnx": "ONNX folders"}
_WINDOWS = {"original": "L", "target": "N"}


def contents(sections: Mapping[str, Sequence[str]]) -> str:
    """Trees of pages for the index, hidden there and shown at the side."""
    trees = []
    for caption, pages in sections.items():
        glob = ":glob:\n" if any("*" in page for page in pages) else ""
        trees.append("\n".join(("", "```{toctree}", ":hidden:", f":caption: {caption}", f"{glob}", *pages, "```", "")))
    return "\n".join(trees)


def write_generated(folder: Path) -> None:
    """Write the pages that are made of code; a page that has not changed keeps its date, so that it is not built again."""
    pages = {f"runtimes/{_slug(name)}.md": text for name, text in runtime_pages()}
    pages |= {f"api/{package}.md": api_page(package) for package in ("longrope", "converters")}
    for place, text in pages.items():
        page = folder / place
        page.parent.mkdir(parents=True, exist_ok=True)
        if not page.is_file() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


# -- runtimes


def runtime_pages() -> Iterator[tuple[str, str]]:
    """Name and page of each runtime; transformers has a row for model types that drop their cache, too."""
    for name in dict.fromkeys(runtime.name for runtime in RUNTIMES):
        rows = [runtime for runtime in RUNTIMES if runtime.name == name]
        yield name, runtime_page(name, rows)


def runtime_page(name: str, rows: Sequence[Runtime]) -> str:
    """What a runtime does with two sets, how it is started, and how this is known."""
    format = rows[0].format
    lines = [
        f"# {name}",
        "",
        f"Runs [{_NAMES[format]}](../../{_ARTIFACTS[format]}). L is the original window, N the target.",
        "",
    ]
    lines += [
        "With one factor set it is right at every length." if not rows[0].refuses else "It refuses these models.",
        "",
    ]
    for row in rows:
        if row.uses:
            lines += _of_two_sets(row)
    if run := next((row.run for row in rows if row.run), ""):
        lines += ["## Starting it", "", run.replace("$repo", "ORG/NAME").replace("$target", "N"), ""]
    known = [row.checked for row in rows if row.uses or row.ran]
    lines += ["## How this is known", "", *(f"- {each}" for each in dict.fromkeys(known) or ("nobody has looked",)), ""]
    lines += ["[What was measured, and how to repeat it](../../../benchmarks/engines.md)."]
    return "\n".join(lines) + "\n"


def _of_two_sets(row: Runtime) -> list[str]:
    which = {
        True: " (model types that drop their cache at the window, phi3)",
        False: " (all other model types)",
        None: "",
    }
    safe = "A sequence may grow past L." if row.safe else "**Not safe** while a sequence grows past L."
    advice = f" {_filled(row.advice, row)[:1].upper()}{_filled(row.advice, row)[1:]}." if row.advice else ""
    return [f"## Two sets{which[row.drops_cache]}", "", f"Uses {_filled(row.uses, row)}. {safe}{advice}", ""]


def _filled(text: str, row: Runtime) -> str:
    for name, value in {**_WINDOWS, "option": row.option}.items():
        text = text.replace(f"${name}", value)
    return text


def _slug(name: str) -> str:
    return name.lower().replace(".", "-").replace(" ", "-")


# -- the Python API


def api_page(package: str) -> str:
    """Every public name of a package, with its docstring, in the order of its `__init__.pyi`."""
    lines = [
        f"# {package}",
        "",
        f"The public names of `{package}`; how they work together is on [this page](../../python.md).",
        "",
    ]
    for name in public_names(package):
        lines += ["```{eval-rst}", f".. {_directive(name)}:: {package}.{name}", *_options(name), "```", ""]
    return "\n".join(lines)


def public_names(package: str) -> list[str]:
    """Names of a package, without those of functions that live in another one and stand on its page."""
    tree = ast.parse((ROOT / package / "__init__.pyi").read_text(encoding="utf-8"))
    imports = (node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level)
    return [alias.name for node in imports for alias in node.names]


def _directive(name: str) -> str:
    kind = "exception" if name.endswith("Error") else "class" if name[0].isupper() else "function"
    return f"auto{kind}"


def _options(name: str) -> list[str]:
    return ["   :members:"] if _directive(name) == "autoclass" else []
