"""Public names that are imported when they are first used, and modules that are called like their main function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import inspect
    from importlib.metadata import EntryPoint


def exports(
    package: str, homes: Mapping[str, Sequence[str]], *, entry_points: str = ""
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` (PEP 562) of a package whose public names lie in other modules.

    Args:
        package: its `__name__`.
        homes: module → names that it gives to the package.
        entry_points: group of entry points that give further names, for what lies in packages above this one.
    """
    modules = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name in modules:
            module = import_module(modules[name])
            value = module if module.__name__ == f"{package}.{name}" else getattr(module, name)
        elif name in _entries(entry_points):
            value = _entries(entry_points)[name].load()
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules, *_entries(entry_points)})

    return get, names


@cache
def _entries(group: str) -> Mapping[str, EntryPoint]:
    """The entry points of a group by name."""
    if not group:
        return {}
    from importlib.metadata import entry_points  # as slow to import as everything else here together

    return {entry.name: entry for entry in entry_points(group=group)}


class CallableModule(ModuleType):
    """A module that can be called like the function in it that has its name.

    `longrope.search` is a package with a function `search`. Python binds the package to that name whenever any part of it is
    imported, so a function of the same name in `longrope` would be there or not depending on what was imported before. A
    module that can be called is both: `longrope.search(…)` and `longrope.search.recover_short(…)`.
    """

    @property
    def _function(self) -> Callable[..., Any]:
        return getattr(self, self.__name__.rpartition(".")[2])  # type: ignore[no-any-return]

    @property
    def __signature__(self) -> inspect.Signature:
        import inspect

        return inspect.signature(self._function)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._function(*arguments, **options)


def make_callable(module: str) -> None:
    """Make the module of this `__name__` a `CallableModule`."""
    sys.modules[module].__class__ = CallableModule
