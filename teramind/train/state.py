"""What a run goes on from: one safetensors file with weights, moments, average, and where it was.

Random numbers need no state: they are functions of the seed and of the step.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from teramind.errors import InputError
from teramind.model.network import TeraMind
from teramind.tensor_files import save_tensors
from teramind.train.average import Average

NAME = "state.safetensors"
FORMAT = "teramind-training"


@dataclass
class Progress:
    """Where a run is.

    Attributes:
        step: optimiser steps done.
        seconds: of training, over all sessions.
        scaler: state of the loss scaling, with float16.
    """

    step: int = 0
    seconds: float = 0.0
    scaler: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Learner:
    """What learning changes."""

    net: TeraMind
    optimizer: torch.optim.Optimizer
    average: Average | None

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state under a name of its own."""
        held = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        if self.average:
            held |= {f"average.{name}": value for name, value in self.average.net.state_dict().items()}
        for name, parameter in self.net.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            held |= {f"optimizer.{key}.{name}": value for key, value in moments.items()}
        return held

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over what ``tensors`` gave."""
        groups: dict[str, dict[str, Tensor]] = {"net": {}, "average": {}, "optimizer": {}}
        for name, value in tensors.items():
            group, rest = name.split(".", 1)
            groups[group][rest] = value
        self.net.load_state_dict(groups["net"])
        if self.average:
            self.average.net.load_state_dict(groups["average"])
        moments: dict[int, dict[str, Tensor]] = {}
        numbers = {name: number for number, (name, _) in enumerate(self.net.named_parameters())}
        for name, value in groups["optimizer"].items():
            key, parameter = name.split(".", 1)
            moments.setdefault(numbers[parameter], {})[key] = value
        state = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})


def save_state(run: Path, learner: Learner, progress: Progress) -> None:
    """Write the state into the run's folder; the one before stands until it is whole."""
    save_tensors(run / NAME, learner.tensors(), {"format": FORMAT, "progress": asdict(progress)})


def load_state(run: Path, learner: Learner) -> Progress:
    """Go on from the state in a run's folder.

    Raises:
        InputError: where it is none, or damaged.
    """
    path = run / NAME
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["teramind"])
        if header["format"] != FORMAT:
            raise KeyError(FORMAT)
        learner.load(safetensors.torch.load_file(path))
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} is no whole state of a training ({error}); begin anew in another folder") from error
    return Progress(**header["progress"])
