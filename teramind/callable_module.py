"""Modules that can be called like the function they are named after."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


def make_callable(module: str) -> None:
    """Let a module be called as the function of its own name that it holds.

    Importing a submodule binds its name in the package, over whatever the package offers under that name: this way
    ``teramind.generate`` can be both the module (``python -m teramind.generate``) and the function.

    Args:
        module: the module's ``__name__``.
    """
    sys.modules[module].__class__ = _CallableModule


class _CallableModule(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*arguments, **options)
