"""Tensors as safetensors files that appear whole."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from teramind.files import appears_whole


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able header; a file that is there stands until the new one is whole.

    Args:
        path: the file.
        tensors: by name, on any device; no two share memory.
        header: what belongs to them, kept under "teramind".

    Raises:
        OSError: it cannot be written, for instance because the disk is full.
    """
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with appears_whole(Path(path)) as partial:
        try:
            safetensors.torch.save_file(own, partial, metadata={"teramind": json.dumps(header)})
        except safetensors.SafetensorError as error:  # which tells a full disk from a bug by its text alone
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
