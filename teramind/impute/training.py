"""Training that a killed run can go on with to the same weights: AdamW, a moving average, state in one file.

All randomness of a step comes from the seed and the step's number, so that nothing of a generator has to be kept.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from teramind.checks import integer_between
from teramind.errors import ComputationError, InputError
from teramind.impute.model_files import read_tensors, write_tensors

log = logging.getLogger(__name__)

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW keeps for each weight."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How to train; see ``train``.

    Raises:
        InputError: for a value outside what is allowed.
    """

    steps: int = 2000  # updates in all
    batch: int = 1024  # examples an update
    learning_rate: float = 1e-3  # highest; it rises over the first 5 % of the steps and falls as a cosine to 0
    weight_decay: float = 0.0  # of AdamW
    average: float = 0.999  # decay of the moving average of weights, which is what training gives
    seed: int = 0  # of all draws
    save_every: int = 500  # updates between saved states

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "save_every"):
            integer_between(name, getattr(self, name), 1, 2**31)
        integer_between("seed", self.seed, 0, 2**31)
        for name, low, high in (("learning_rate", 0, 1), ("weight_decay", 0, 1), ("average", 0, 1)):
            value = getattr(self, name)
            if not low <= value < high:
                raise InputError(f"{name} is {value}; it has to be at least {low} and below {high}")


Loss = Callable[[torch.Generator], Tensor]
"""The loss of a batch that is drawn with this generator."""


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of one step's draws."""
    return torch.Generator().manual_seed((seed << 32) + step)


def train(
    net: nn.Module, loss: Loss, options: TrainingOptions, state: Path | None = None, *, resume: bool = False
) -> list[float]:
    """Train a network in place; its weights become their moving average.

    Args:
        net: the network; dropout is on while it trains.
        loss: of one batch. It draws from the generator it is given, and from torch's global one only through dropout.
        options: how.
        state: file to keep the state in, every ``save_every`` steps and at the end; none if None.
        resume: go on from that file if it is there.

    Returns:
        The loss of each step.

    Raises:
        InputError: the state belongs to other options or another network.
        ComputationError: the loss is not a number.
    """
    optimizer = torch.optim.AdamW(net.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    average = {name: value.detach().clone() for name, value in net.state_dict().items()}
    losses: list[float] = []
    if resume and state is not None and state.exists():
        losses = _restore(net, optimizer, average, options, state)
        log.info("going on from step %d of %d (%s)", len(losses), options.steps, state)
    net.train()
    for step in range(len(losses), options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * _rate(step, options.steps)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((options.seed << 32) + step)  # dropout draws from the global generator
            value = loss(step_generator(options.seed, step))
        if not torch.isfinite(value):
            raise ComputationError(f"the loss is {value.item()} at step {step}; lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
        _follow(average, net, min(options.average, (1 + step) / (10 + step)))
        if state is not None and ((step + 1) % options.save_every == 0 or step + 1 == options.steps):
            _save(net, optimizer, average, options, losses, state)
            log.info("step %d of %d: loss %.4f", step + 1, options.steps, sum(losses[-100:]) / len(losses[-100:]))
    net.load_state_dict(average)
    net.eval()
    return losses


def _rate(step: int, steps: int) -> float:
    """Learning rate at a step, of the highest."""
    rise = max(1, steps // 20)
    return min((step + 1) / rise, 0.5 + 0.5 * math.cos(math.pi * step / steps))


@torch.no_grad()
def _follow(average: dict[str, Tensor], net: nn.Module, decay: float) -> None:
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)


def _save(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
    options: TrainingOptions,
    losses: list[float],
    path: Path,
) -> None:
    tensors = {f"net.{name}": value for name, value in net.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.items()}
    for name, parameter in net.named_parameters():
        tensors |= {f"{moment}.{name}": optimizer.state[parameter][moment] for moment in MOMENTS}
    tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
    write_tensors(path, "training", tensors, {"options": asdict(options)})


def _restore(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
    options: TrainingOptions,
    path: Path,
) -> list[float]:
    tensors, header = read_tensors(path, "training")
    theirs, ours = header.get("options", {}), asdict(options)
    changed = sorted(name for name in ours if name != "save_every" and theirs.get(name) != ours[name])
    if changed:
        was = ", ".join(f"{name} {theirs.get(name)}" for name in changed)
        raise InputError(f"{path} was trained with {was}; give the same options to go on, or start without resume")
    shapes = {name: value.shape for name, value in net.state_dict().items()}
    if shapes != {name.removeprefix("net."): value.shape for name, value in tensors.items() if name.startswith("net.")}:
        raise InputError(f"{path} belongs to a network of another shape; start without resume")
    try:
        average.update({name: tensors[f"average.{name}"] for name in shapes})
        for name, parameter in net.named_parameters():
            optimizer.state[parameter] = {moment: tensors[f"{moment}.{name}"] for moment in MOMENTS}
        losses = tensors["losses"].tolist()
    except KeyError as error:
        raise InputError(f"{path} lacks the tensor {error}; start without resume") from None
    net.load_state_dict({name: tensors[f"net.{name}"] for name in shapes})
    return losses


def describe(losses: list[float], options: TrainingOptions) -> dict[str, Any]:
    """What a model's header says of its training."""
    last = losses[-max(1, len(losses) // 20) :]
    return asdict(options) | {"loss": sum(last) / len(last)}
