"""Modules that are called like the function in them that has their name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import inspect


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
