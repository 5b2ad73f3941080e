"""Where cells lie: a diffusion model of positions within any plane.

A cell of the tissue lies in many planes, one for each normal. Drawing measured cells and normals together shows the
network what the plane (n, n.p) contains, for all planes at once. Cells are independent draws given their plane, so a
hole of any shape is filled by sampling the plane and keeping what falls into it.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from teramind.errors import ComputationError, InputError
from teramind.impute.cells import Cells
from teramind.impute.diffusion import TIMESTEPS, Schedule, add_noise
from teramind.impute.features import LARGEST, waves
from teramind.impute.interpolation import BetweenSlices
from teramind.impute.model_files import read_tensors, write_tensors
from teramind.impute.planes import Plane, plane_basis
from teramind.impute.sections import find_sections
from teramind.impute.training import TrainingOptions, describe, train

KIND = "locations"
TIME_FREQUENCIES = 16
HIGHEST_TIME_FREQUENCY = 100.0  # radians over all of the diffusion; more would tell apart what rounding blurs


@dataclass(frozen=True, kw_only=True)
class LocationConfig:
    """Shape of the network: 0.3 M weights by default."""

    width: int = 448  # of the hidden layers
    depth: int = 2  # hidden layers of that width beside the first
    octaves: int = 6  # of the sines and cosines of a position and of the plane's offset

    def __post_init__(self) -> None:
        for name in ("width", "depth", "octaves"):
            if not 1 <= getattr(self, name) <= 4096:
                raise InputError(f"LocationConfig.{name} is {getattr(self, name)}; it has to be from 1 to 4096")


class LocationNet(nn.Module):
    """Predicts the noise in positions within a plane; all lengths in units of the scale."""

    def __init__(self, config: LocationConfig) -> None:
        super().__init__()
        inputs = 2 + 4 * config.octaves + 4 + 2 * config.octaves + 2 * TIME_FREQUENCIES
        layers: list[nn.Module] = [nn.Linear(inputs, config.width), nn.SiLU()]
        for _ in range(config.depth):
            layers += [nn.Linear(config.width, config.width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(config.width, 2))
        self.octaves = config.octaves
        times = HIGHEST_TIME_FREQUENCY ** torch.linspace(0, 1, TIME_FREQUENCIES)
        self.times: Tensor
        self.register_buffer("times", times, persistent=False)

    def forward(self, x: Tensor, plane: Tensor, t: Tensor) -> Tensor:
        """X (n, 2) noisy positions, plane (n, 4) normals and offsets, t (n,) timesteps -> noise (n, 2)."""
        angles = (t / TIMESTEPS)[:, None] * self.times  # n, 16
        features = [x, waves(x, self.octaves), plane, waves(plane[:, 3:], self.octaves), angles.sin(), angles.cos()]
        return self.layers(torch.cat(features, dim=1))  # n, 2


Guide = Callable[[NDArray[np.float64], float], NDArray[np.float64]]
"""From clean positions (n, 2) in mm, within the plane, and the variance (mm2) of the noise still in them, to the way
(n, 2) in mm to move them."""


class LocationModel:
    """A trained network with the frame it was trained in.

    Attributes:
        centre: (3,) middle of the training cells, mm.
        scale: mm that count as 1.
        training: how it was trained.
    """

    def __init__(
        self,
        net: LocationNet,
        config: LocationConfig,
        centre: NDArray[np.float64],
        scale: float,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        self.net, self.config, self.centre, self.scale = net, config, centre, scale
        self.training = dict(training or {})

    @torch.no_grad()
    def sample(
        self,
        plane: Plane,
        offsets: NDArray[np.float64],
        generator: torch.Generator,
        *,
        steps: int = 35,
        guide: Guide | None = None,
    ) -> NDArray[np.float64]:
        """Positions of cells, one for each offset.

        Args:
            plane: which.
            offsets: (n,) distance of each cell from the plane along the normal, mm: its own parallel plane is sampled.
            generator: of all draws.
            steps: of the diffusion, 1 .. 70.
            guide: moves the clean positions that each step implies.

        Returns:
            (n, 2) in the plane's coordinates, mm.

        Raises:
            ComputationError: the network gives values that are not numbers.
        """
        schedule, count = Schedule(steps), len(offsets)
        device = next(self.net.parameters()).device
        condition = torch.empty(count, 4)
        condition[:, :3] = torch.tensor(plane.normal)
        condition[:, 3] = torch.from_numpy((offsets + plane.offset - np.dot(plane.normal, self.centre)) / self.scale)
        condition = condition.to(device)
        middle = plane.flatten(self.centre[None])
        x = torch.randn(count, 2, generator=generator).to(device)
        for i, t in enumerate(schedule.timesteps):
            eps = self.net(x, condition, torch.full((count,), float(t), device=device))
            clean = schedule.clean(x, eps, i).clamp(-LARGEST, LARGEST)
            if guide is not None:
                variance = self.scale**2 * float(1 / schedule.abar[i] - 1)
                way = guide(clean.double().cpu().numpy() * self.scale + middle, variance)
                clean = clean + torch.from_numpy(way / self.scale).to(clean)
            x = schedule.step(x, clean, i, torch.randn(count, 2, generator=generator).to(device))
        flat = x.double().cpu().numpy() * self.scale + middle
        if not np.isfinite(flat).all():
            raise ComputationError("the location network gives values that are not numbers; train it again")
        return flat

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as a .safetensors file."""
        frame = {"centre": self.centre.tolist(), "scale": self.scale}
        header = {"config": asdict(self.config), "frame": frame, "training": self.training}
        write_tensors(path, KIND, self.net.state_dict(), header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LocationModel:
        """Read what ``save`` wrote; an ``InputError`` for anything else."""
        tensors, header = read_tensors(path, KIND)
        config = LocationConfig(**header["config"])
        net = LocationNet(config)
        net.load_state_dict(tensors)
        frame = header["frame"]
        return cls(net.eval(), config, np.asarray(frame["centre"]), frame["scale"], header["training"])


def train_locations(
    cells: Cells,
    options: TrainingOptions,
    *,
    config: LocationConfig | None = None,
    start: LocationModel | None = None,
    state: Path | None = None,
    resume: bool = False,
) -> LocationModel:
    """Learn where the cells of a tissue lie.

    Args:
        cells: measured cells with sections, in the common frame.
        options: how to train.
        config: shape of a new network.
        start: a model to go on from (fine-tuning); its frame is kept.
        state: file for the state of training.
        resume: go on from that file if it is there.

    Raises:
        InputError: no sections, or both ``config`` and ``start``.
    """
    if config is not None and start is not None:
        raise InputError("a model to start from has its own configuration; give one of the two")
    model = _new_model(cells, config or LocationConfig(), options.seed) if start is None else copy.deepcopy(start)
    draw = PlaneExamples(BetweenSlices(cells.positions, find_sections(cells)), model.centre, model.scale)

    def loss(generator: torch.Generator) -> Tensor:
        x, plane = draw(options.batch, generator)
        t = torch.randint(0, TIMESTEPS, (options.batch,), generator=generator)
        noise = torch.randn(x.shape, generator=generator)
        return (model.net(add_noise(x, t, noise), plane, t.float()) - noise).square().mean()

    losses = train(model.net, loss, options, state, resume=resume)
    model.training = describe(losses, options)
    return model


def _new_model(cells: Cells, config: LocationConfig, seed: int) -> LocationModel:
    """An untrained model; the largest extent of the cells is 4 units long."""
    low, high = cells.positions.min(axis=0), cells.positions.max(axis=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LocationModel(LocationNet(config), config, (low + high) / 2, float((high - low).max()) / 4)


class PlaneExamples:
    """Draws cells, moved between the slices, together with planes that they lie in.

    Half of the planes are parallel to a cell's own slice, the others have any normal.

    Args:
        between: the cells.
        centre: (3,) mm.
        scale: mm that count as 1.
    """

    def __init__(self, between: BetweenSlices, centre: NDArray[np.float64], scale: float) -> None:
        self.between, self.centre, self.scale = between, centre, scale

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Positions (count, 2) within planes, and the planes (count, 4): normal and offset; float32."""
        uniform = torch.rand(count, 4, generator=generator, dtype=torch.float64).numpy()
        rows, moved = self.between.draw(uniform[:, :3])
        position = (moved - self.centre) / self.scale
        normal = torch.randn(count, 3, generator=generator, dtype=torch.float64).numpy()
        own = uniform[:, 3] < 0.5
        normal[own] = np.eye(3)[self.between.axis[rows[own]]]
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        normal[normal[:, 0] < 0] *= -1  # as Plane has it; the first component is zero in slices' own planes alone
        flat = np.einsum("nij,nj->ni", plane_basis(normal), position)
        offset = (normal * position).sum(axis=1, keepdims=True)
        plane = np.concatenate([normal, offset], axis=1)
        return torch.from_numpy(flat).float(), torch.from_numpy(plane).float()
