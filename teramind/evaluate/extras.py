"""Libraries that only evaluation needs, which a plain installation leaves out."""

from __future__ import annotations

import importlib
from types import ModuleType

from teramind.errors import InputError

_PACKAGES = {"skimage": "scikit-image"}  # where the name to install is not the name to import


def required(module: str) -> ModuleType:
    """Import a module of the extra ``evaluate``.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != top:
            raise  # it is installed, and something that it needs is not
        raise InputError(
            f"evaluation needs {_PACKAGES.get(top, top)}, which is not installed: pip install 'teramind[evaluate]'"
        ) from None
