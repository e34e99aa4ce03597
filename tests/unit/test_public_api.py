"""`import longrope` and `import converters`: every public name is there, documented, lazy, and the same in whatever order."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest

import converters
import longrope
from tests.common import REPOSITORY

PACKAGES = {package.__name__: package for package in (longrope, converters)}
PUBLIC = [(package, name) for package in PACKAGES for name in PACKAGES[package].__all__]


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_a_public_name_is_there_and_documented(package: str, name: str) -> None:
    value = getattr(PACKAGES[package], name)
    assert inspect.getdoc(value)
    assert name in dir(PACKAGES[package])


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_a_public_function_says_what_each_argument_is(package: str, name: str) -> None:
    value = getattr(PACKAGES[package], name)
    function = getattr(value, name, value) if inspect.ismodule(value) else value
    if not inspect.isfunction(function):
        return
    documentation = inspect.getdoc(function) or ""
    parameters = [parameter for parameter in inspect.signature(function).parameters if parameter != "self"]
    if len(parameters) > 1:
        documented = set(re.findall(r"\w+", " ".join(re.findall(r"^ +([\w, ]+): ", documentation, re.MULTILINE))))
        assert set(parameters) - documented == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_sorted_and_unique(package: str) -> None:
    names = PACKAGES[package].__all__
    assert list(names) == sorted(set(names))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="serach"):
        _ = longrope.serach  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "first", ["import longrope.search.run", "import longrope.search as s; s.SearchOptions", "pass"]
)
def test_a_package_named_like_its_function_is_both(first: str) -> None:
    code = (
        f"import longrope; {first}; from longrope.search import SearchOptions; "
        "assert callable(longrope.search) and longrope.search.SearchOptions is SearchOptions is longrope.SearchOptions"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, timeout=120)


def test_a_callable_module_has_its_functions_signature() -> None:
    assert list(inspect.signature(longrope.search).parameters)[:3] == ["checkpoint", "corpus", "target_length"]
    assert inspect.signature(longrope.extend) == inspect.signature(sys.modules["longrope.extend"].extend)


def test_what_lies_in_converters_is_the_same_function() -> None:
    assert longrope.convert is converters.convert
    assert longrope.validate is converters.validate
    assert longrope.read_factors is converters.read_factors
