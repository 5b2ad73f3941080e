"""teramind: spatial transcriptomics in, tera-voxel tissue images out, with Tera-MIND networks.

The names below are the public interface. They are imported when first used, so that ``import teramind`` loads
neither torch nor zarr and touches no device.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Atlas": "teramind.atlas.store",
    "DDIMSchedule": "teramind.diffusion.schedule",
    "InputError": "teramind.errors",
    "ModelConfig": "teramind.model.config",
    "TeraMind": "teramind.model.network",
    "evaluate": "teramind.evaluate",
    "generate": "teramind.generate",
    "interact": "teramind.interaction.interact",
    "load_checkpoint": "teramind.model.checkpoint",
    "noise_field": "teramind.diffusion.noise",
    "perturb": "teramind.interaction.perturb",
    "rasterize": "teramind.atlas.binning",
    "sample": "teramind.diffusion.sampling",
    "save_checkpoint": "teramind.model.checkpoint",
    "training_loss": "teramind.diffusion.loss",
}


def _installed_path() -> list[str]:
    """The installed package, where these sources are not it.

    In a checkout, ``python -m teramind...`` finds the sources in the working directory before the installed package,
    but only the latter holds the compiled core and the kernels.
    """
    here = Path(__file__).parent
    if any(here.glob("_core.*.so")):
        return []
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        installed = Path(str(distribution("teramind").locate_file("teramind")))
    except PackageNotFoundError:
        return []
    return [str(installed)] if installed.is_dir() and installed != here else []


__path__ += _installed_path()
__all__ = ["__version__", *_HOME]  # noqa: PLE0604 - every name is in the table above


def __getattr__(name: str) -> Any:
    """Import a public name from the module it lives in."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
