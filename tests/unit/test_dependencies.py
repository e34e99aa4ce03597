"""The dependency rule: longrope ← converters ← longrope_export, and each heavy library in its own place, lazily."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.common import REPOSITORY

FORMAT_LIBRARIES = {"gguf", "llama_cpp", "onnx", "onnxruntime", "onnxscript", "onnx_ir"}
HEAVY = FORMAT_LIBRARIES | {"torch", "transformers", "matplotlib", "ray", "huggingface_hub"}
# Top-level package → what it must not import anywhere, not even in a function.
FORBIDDEN = {
    "longrope": {"converters", "longrope_export", "click", "rich"} | FORMAT_LIBRARIES,
    "converters": {"longrope_export", "click", "rich"},
    "longrope_export": FORMAT_LIBRARIES - {"onnx"} | {"tests"},
}
# Used where they are installed; what needs them says how to install them.
UNDECLARED = {"bitsandbytes", "flash_attn", "liger_kernel", "lm_eval"}
# Distributions whose modules have other names.
MODULES = {"pyyaml": "yaml", "llama-cpp-python": "llama_cpp"}
# Imported by a name that is put together, or by the libraries that are.
IMPORTED_BY_NAME = {"accelerate", "llama_cpp", "gguf"}
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
# The only packages that may import a format's library.
HOMES = {
    "converters/gguf": {"gguf", "llama_cpp"},
    "converters/onnx": {"onnx", "onnxruntime", "onnx_ir"},
}


def sources(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level names that a module imports, in functions too; dynamic imports of literal names as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            yield from (str(arg.value).split(".")[0] for arg in node.args[:1] if isinstance(arg, ast.Constant))


def imports_of(path: Path) -> set[str]:
    return set(imported(ast.parse(path.read_text(encoding="utf-8"), str(path))))


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_only_what_is_below_it(package: str) -> None:
    assert sources(package)
    found = {path.name: bad for path in sources(package) if (bad := imports_of(path) & FORBIDDEN[package])}
    assert found == {}


def test_a_formats_library_is_imported_in_its_own_package_only() -> None:
    for path in sources("converters"):
        home = next((libraries for folder, libraries in HOMES.items() if (REPOSITORY / folder) in path.parents), set())
        assert imports_of(path) & FORMAT_LIBRARIES <= home, path.relative_to(REPOSITORY)


def test_no_relative_imports_blur_the_picture() -> None:
    for package in FORBIDDEN:
        for path in sources(package):
            relative = [
                node
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.ImportFrom) and node.level
            ]
            assert not relative, path.relative_to(REPOSITORY)


def declared(*extras: str) -> set[str]:
    """Modules that the core of pyproject.toml and these extras bring by name."""
    project = PYPROJECT["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    names = [re.split(r"[<>=\[]", line)[0] for line in lines]
    return {MODULES.get(name, name.replace("-", "_").lower()) for name in names}


def test_what_is_imported_is_declared_and_nothing_else() -> None:
    """Much is installed beside us by chance; a clean installation has only what is declared."""
    found = {name for package in FORBIDDEN for path in sources(package) for name in imports_of(path)}
    foreign = found - sys.stdlib_module_names - FORBIDDEN.keys() - UNDECLARED
    brought = declared("gguf", "onnx", "ray", "train", "report", "sentencepiece", "sharded")
    assert foreign - brought == set()
    assert brought - foreign - IMPORTED_BY_NAME == set()


def test_types_are_shipped() -> None:
    """A marker in each package, which the wheel takes along."""
    data = PYPROJECT["tool"]["setuptools"]["package-data"]
    for package in FORBIDDEN:
        assert (REPOSITORY / package / "py.typed").is_file()
        assert "py.typed" in data[package]


# -- laziness, by running


def heavy_modules_after(code: str) -> set[str]:
    """Heavy libraries that a fresh interpreter has loaded after some code."""
    script = f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY, timeout=120
    )
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])} & HEAVY


@pytest.mark.parametrize(
    "code",
    [
        "import converters.registry; converters.registry.formats()",
        "import longrope.checkpoint, longrope.factors, longrope.rope, longrope.text",
        "import longrope; longrope.open_checkpoint, longrope.RescaleFactors, longrope.load_corpus",
        "import longrope; longrope.convert, longrope.validate",
        "import longrope_export.cli",
        "import longrope_export.default_model",
        "from converters import registry; registry.converter('hf')",
        "from converters import registry; registry.converter('gguf')",
        "from converters import registry; registry.converter('onnx')",
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_used(code: str) -> None:
    assert heavy_modules_after(code) == set()


def test_errors_of_the_engine_name_no_option_in_their_text() -> None:
    """`LongRopeError.option` says which option mends it; the command line adds it."""
    found = []
    for file in (REPOSITORY / "longrope").rglob("*.py"):
        for raised in (
            node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Raise)
        ):
            texts = [part.value for part in ast.walk(raised) if isinstance(part, ast.Constant)]
            found += [
                (file.name, raised.lineno) for text in texts if isinstance(text, str) and re.search(r"--[a-z]", text)
            ]
    assert found == []
