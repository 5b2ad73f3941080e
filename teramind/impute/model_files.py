"""Networks and states of training as files: safetensors with a versioned header. Nothing is ever unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from teramind.errors import InputError
from teramind.tensor_files import save_tensors

FORMAT = "teramind-impute"
FORMAT_VERSION = 1


def write_tensors(
    path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> None:
    """Write tensors and a JSON-able header as one file, which appears under its name only when whole.

    Args:
        path: ending in ``.safetensors``.
        kind: what the file is, checked when it is read: "locations", "types", "expression", "training", ...
        tensors: by name.
        header: what belongs to them.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"a model is a .safetensors file; {path.name} would be mistaken for another format")
    own = {name: tensor.clone() for name, tensor in tensors.items()}  # some share memory
    save_tensors(path, own, {"format": FORMAT, "version": FORMAT_VERSION, "kind": kind, **header})


def read_tensors(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file that ``write_tensors`` wrote.

    Raises:
        InputError: no such file, damaged, of another kind, or written by a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["teramind"])
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}); copy or write it again") from None
    except (KeyError, json.JSONDecodeError):
        header = {}
        tensors = {}
    if not isinstance(header, dict) or header.get("format") != FORMAT or not isinstance(header.get("version"), int):
        raise InputError(f"{path} holds no model of teramind impute; train writes them")
    if header["version"] > FORMAT_VERSION:
        raise InputError(
            f"{path} has format {header['version']}; this teramind reads up to {FORMAT_VERSION}: update it"
        )
    if header.get("kind") != kind:
        raise InputError(f"{path} holds {header.get('kind')}, not {kind}")
    return tensors, header
