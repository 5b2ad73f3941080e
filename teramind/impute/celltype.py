"""What cells are: a calibrated classifier over coordinates, sampled.

Tissue mixes types, so a cell's type is drawn from the distribution at its place, never the likeliest type: that one
alone would leave whole regions uniform. A temperature fitted on cells that training never saw makes the probabilities
honest.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from teramind.errors import InputError
from teramind.impute.cells import Cells, Labels
from teramind.impute.features import LARGEST, waves
from teramind.impute.interpolation import BetweenSlices
from teramind.impute.model_files import read_tensors, write_tensors
from teramind.impute.planes import Positions
from teramind.impute.sections import Section, find_sections
from teramind.impute.training import TrainingOptions, describe, train

KIND = "types"
Draws = Literal["independent", "even"]
HELD_OUT = 0.1  # of the labelled cells
CELLS_AT_ONCE = 8192
COLDEST, HOTTEST = 0.2, 5.0  # temperatures
CURVE_STEP, CURVE_BITS = 0.005, 20  # mm and bits of a coordinate, of the curve along which draws are spread evenly
GOLDEN = (5**0.5 - 1) / 2
GAPS_A_WAVE = 3  # least period across the slices, in gaps between them


@dataclass(frozen=True, kw_only=True)
class TypeConfig:
    """Shape of the network."""

    width: int = 256  # of the hidden layers
    depth: int = 2  # hidden layers of that width beside the first
    octaves: int = 5  # of the sines and cosines of a position

    def __post_init__(self) -> None:
        for name in ("width", "depth", "octaves"):
            if not 1 <= getattr(self, name) <= 4096:
                raise InputError(f"TypeConfig.{name} is {getattr(self, name)}; it has to be from 1 to 4096")


class TypeNet(nn.Module):
    """Logits of types at positions.

    Args:
        config: shape of the network.
        types: how many.
        octaves: of the sines and cosines of each coordinate, at most ``config.octaves``.
    """

    def __init__(self, config: TypeConfig, types: int, octaves: tuple[int, int, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(3 + 6 * config.octaves, config.width), nn.SiLU()]
        for _ in range(config.depth):
            layers += [nn.Linear(config.width, config.width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(config.width, types))
        self.octaves = config.octaves
        seen = torch.arange(config.octaves) < torch.tensor(octaves)[:, None]  # 3, octaves
        self.seen: Tensor
        self.register_buffer("seen", seen.flatten().repeat(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """X (n, 3) in units of the scale -> logits (n, types)."""
        return self.layers(torch.cat([x, waves(x, self.octaves) * self.seen], dim=1))  # n, types


class TypeModel:
    """A trained classifier.

    Attributes:
        names: of the types, in the order of the logits.
        centre: (3,) middle of the training cells, mm.
        scale: mm that count as 1.
        octaves: of the waves of each coordinate that the network sees.
        temperature: that logits are divided by.
        training: how it was trained; ``held_out_nll`` and, of the types' frequencies alone, ``frequency_nll``, in nats.
    """

    def __init__(
        self,
        net: TypeNet,
        config: TypeConfig,
        names: Sequence[str],
        centre: NDArray[np.float64],
        scale: float,
        octaves: tuple[int, int, int],
        temperature: float = 1.0,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        self.net, self.config, self.names = net, config, tuple(names)
        self.centre, self.scale, self.octaves, self.temperature = centre, scale, octaves, temperature
        self.training = dict(training or {})

    @torch.no_grad()
    def log_probabilities(self, positions: Positions, allowed: Collection[str] | None = None) -> Tensor:
        """(n, types) logarithms of the calibrated probabilities at positions (n, 3) mm.

        Args:
            positions: where.
            allowed: give all others the probability 0; those of one class, say. All types if None.

        Raises:
            InputError: ``allowed`` names a type that the model does not know.
        """
        device = next(self.net.parameters()).device
        logits = self.net(self._units(positions).to(device)) / self.temperature
        if allowed is not None:
            self.encode(np.array(sorted(allowed)))
            logits[:, [name not in allowed for name in self.names]] = -torch.inf
        return logits.log_softmax(1)

    def sample(
        self,
        positions: Positions,
        generator: torch.Generator,
        allowed: Collection[str] | None = None,
        temperature: float = 1.0,
        draws: Draws = "independent",
    ) -> Labels:
        """A type for each position (n, 3), drawn from the probabilities there by inverting their distribution.

        Args:
            positions: where.
            generator: of the draws.
            allowed: as for ``log_probabilities``.
            temperature: below 1 makes what is likely likelier: rare types get rarer than they are.
            draws: "independent" cells are neighbours by chance, as in tissue that mixes its types at random. "even"
                draws (``even_draws``) keep the share of each type and cut the noise of mixtures around a place, which
                scores that pool neighbourhoods reward; but cells next to each other then differ in type too often,
                so that nothing can be learned from them on which types touch.

        Raises:
            InputError: as ``log_probabilities``, a temperature that is not positive, or no such kind of draws.
        """
        if draws not in get_args(Draws):
            raise InputError(f"there are no draws of types called {draws!r}; choose from {', '.join(get_args(Draws))}")
        if not 0 < temperature < np.inf:
            raise InputError(f"the temperature of types is {temperature}; it has to be > 0")
        if draws == "even":
            start = float(torch.rand((), generator=generator))
            uniform = torch.from_numpy(even_draws(positions, start))[:, None]
        else:
            uniform = torch.rand(len(positions), 1, generator=generator, dtype=torch.float64)
        drawn = []
        for rows in torch.arange(len(positions)).split(CELLS_AT_ONCE):
            log_probability = self.log_probabilities(positions[rows], allowed).cpu().double()
            steps = (log_probability / temperature).softmax(1).cumsum(1)
            drawn.append((steps <= uniform[rows] * steps[:, -1:]).sum(1).numpy())
        return np.array(self.names)[np.concatenate([np.zeros(0, np.int64), *drawn])]

    def nll(self, cells: Cells) -> float:
        """Mean negative log-likelihood, in nats, of the types of cells that have one."""
        types = cells.require_types("the likelihood of types")
        known = cells[types != ""]
        codes = torch.from_numpy(self.encode(known.require_types("the likelihood of types")))
        parts = torch.arange(len(known)).split(CELLS_AT_ONCE)
        losses = [
            F.nll_loss(self.log_probabilities(known.positions[p]).cpu(), codes[p], reduction="sum") for p in parts
        ]
        return float(sum(losses) / max(1, len(known)))

    def encode(self, types: Labels) -> NDArray[np.int64]:
        """(n,) indices of types.

        Raises:
            InputError: a type that the model does not know.
        """
        index = {name: position for position, name in enumerate(self.names)}
        if unknown := sorted(set(types.tolist()) - set(index)):
            raise InputError(
                f"the model does not know type {unknown[0]!r} ({len(unknown)} such types, {len(self.names)} known);"
                " map them to its types, or leave them empty"
            )
        return np.array([index[name] for name in types.tolist()], dtype=np.int64)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as a .safetensors file."""
        frame = {"centre": self.centre.tolist(), "scale": self.scale, "octaves": self.octaves}
        header = {"config": asdict(self.config), "names": self.names, "frame": frame, "training": self.training}
        write_tensors(path, KIND, self.net.state_dict(), header | {"temperature": self.temperature})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TypeModel:
        """Read what ``save`` wrote; an ``InputError`` for anything else."""
        tensors, header = read_tensors(path, KIND)
        config, names, frame = TypeConfig(**header["config"]), header["names"], header["frame"]
        octaves = (frame["octaves"][0], frame["octaves"][1], frame["octaves"][2])
        net = TypeNet(config, len(names), octaves)
        net.load_state_dict(tensors)
        centre, temperature = np.asarray(frame["centre"]), header["temperature"]
        return cls(net.eval(), config, names, centre, frame["scale"], octaves, temperature, header["training"])

    def _units(self, positions: Positions) -> Tensor:
        return torch.from_numpy((positions - self.centre) / self.scale).float()


def train_types(
    cells: Cells,
    options: TrainingOptions,
    *,
    config: TypeConfig | None = None,
    start: TypeModel | None = None,
    state: Path | None = None,
    resume: bool = False,
) -> TypeModel:
    """Learn which types are where. Cells without a type are left out, and a tenth of the others to calibrate on.

    Args:
        cells: measured cells with types and sections.
        options: how to train.
        config: shape of a new network.
        start: a model to go on from (fine-tuning); the types have to be among its own.
        state: file for the state of training.
        resume: go on from that file if it is there.

    Raises:
        InputError: too few labelled cells, types that ``start`` does not know, or both ``config`` and ``start``.
    """
    if config is not None and start is not None:
        raise InputError("a model to start from has its own configuration; give one of the two")
    labelled = cells[cells.require_types("learning types") != ""]
    types = labelled.require_types("learning types")
    if len(np.unique(types)) < 2:
        raise InputError(f"{len(labelled)} cells have a type, of {len(np.unique(types))} kinds; two kinds are needed")
    model = _new_model(labelled, config or TypeConfig(), options.seed) if start is None else copy.deepcopy(start)
    codes = torch.from_numpy(model.encode(types))
    held_out = np.random.default_rng([options.seed, 1]).random(len(labelled)) < HELD_OUT
    between = BetweenSlices(labelled.positions, find_sections(labelled))
    shown = ~held_out

    def loss(generator: torch.Generator) -> Tensor:
        uniform = torch.rand(options.batch, 3, generator=generator, dtype=torch.float64).numpy()
        rows = between.draw(uniform)[0]  # cells of slices far apart stand for more tissue
        rows = rows[shown[rows]]
        return F.cross_entropy(model.net(model._units(labelled.positions[rows])), codes[rows])

    losses = train(model.net, loss, options, state, resume=resume)
    model.temperature = 1.0
    model.temperature = _temperature(model, labelled[held_out], codes[held_out])
    frequency = torch.bincount(codes[shown], minlength=len(model.names)).double() + 0.5
    model.training = describe(losses, options) | {
        "held_out_nll": model.nll(labelled[held_out]),
        "frequency_nll": float(-(frequency / frequency.sum()).log()[codes[held_out]].mean()),
    }
    return model


def _new_model(cells: Cells, config: TypeConfig, seed: int) -> TypeModel:
    names = np.unique(cells.require_types("learning types")).tolist()
    low, high = cells.positions.min(axis=0), cells.positions.max(axis=0)
    scale = float((high - low).max()) / 4
    octaves = _octaves(find_sections(cells), scale, config.octaves)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = TypeNet(config, len(names), octaves)
    return TypeModel(net, config, names, (low + high) / 2, scale, octaves)


def _octaves(sections: Sequence[Section], scale: float, most: int) -> tuple[int, int, int]:
    """Octaves of the waves of each coordinate: across the slices, none whose period is below three of their gaps.

    Between slices nothing tells a network what is there; seeing slow waves alone, it has to move borders smoothly from
    one slice to the next. Where slices were cut across several axes, each shows what lies between the others.
    """
    octaves = [most] * 3
    axes = {section.axis for section in sections}
    if len(axes) == 1:
        widest = float(np.diff([section.offset for section in sections]).max(initial=0.0)) / scale
        waves_seen = np.log2(2 * LARGEST / (GAPS_A_WAVE * widest)) + 1 + 1e-6 if widest else 1
        octaves[axes.pop()] = int(np.clip(waves_seen, 1, most))
    return octaves[0], octaves[1], octaves[2]


def even_draws(positions: Positions, start: float) -> NDArray[np.float64]:
    """(n,) draws in 0 .. 1 for positions (n, 3) mm, each uniform over ``start``, those of neighbours evenly spread.

    The positions are followed along a Z-order curve, which runs through one neighbourhood after the other, and each
    gets the last draw plus the golden ratio, modulo 1: any run of such draws covers 0 .. 1 evenly.
    """
    place = ((positions - positions.min(axis=0, initial=0.0)) / CURVE_STEP).astype(np.int64)
    code = np.zeros(len(positions), dtype=np.int64)
    for bit in range(CURVE_BITS):
        for axis in range(3):
            code |= (place[:, axis] >> bit & 1) << (3 * bit + axis)
    draws = np.empty(len(positions))
    draws[np.argsort(code, kind="stable")] = (start + np.arange(len(positions)) * GOLDEN) % 1
    return draws


def _temperature(model: TypeModel, cells: Cells, codes: Tensor) -> float:
    """The temperature that makes held-out cells likeliest (Guo et al. 2017)."""
    if not len(cells):
        return 1.0
    logits = model.log_probabilities(cells.positions).cpu().double()

    def nll(log_temperature: float) -> float:
        return float(F.cross_entropy(logits / np.exp(log_temperature), codes))

    bounds = (np.log(COLDEST), np.log(HOTTEST))
    return float(np.exp(minimize_scalar(nll, bounds=bounds, method="bounded").x))
