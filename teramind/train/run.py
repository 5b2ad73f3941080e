"""Train a network on atlases: from names and options to a loop that runs."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.exc import BackendCompilerFailed

from teramind.atlas.store import Atlas
from teramind.diffusion.loss import Paths
from teramind.engine.lock import OutputLock
from teramind.engine.panel import match_genes
from teramind.engine.sizes import parse_bytes
from teramind.errors import InputError
from teramind.files import appears_whole, remove_leftovers
from teramind.model.checkpoint import load_checkpoint
from teramind.model.config import ModelConfig
from teramind.model.network import TeraMind
from teramind.model.policy import warn_if_slow
from teramind.train.average import Average
from teramind.train.crops import BEYOND, Area, Crops, Stream, areas_of
from teramind.train.distributed import Processes, processes
from teramind.train.evaluation import HeldOut, Pictures
from teramind.train.initialize import STARTS, start_fast
from teramind.train.loading import Loader, share
from teramind.train.logs import NAME as LOG
from teramind.train.logs import Log
from teramind.train.loop import CHECKPOINT, Loop, Report
from teramind.train.objective import Objective, loss_weights
from teramind.train.optimizer import make_optimizer
from teramind.train.options import GIVEN_BY_DATA, MAY_CHANGE, Options, check_names
from teramind.train.state import NAME as STATE
from teramind.train.state import Learner, Progress, load_state
from teramind.train.timesteps import timestep_quantile
from teramind.train.volumes import StoredVolume, check_alike, open_volumes, panel_of

logger = logging.getLogger(__name__)
CONFIG = "config.json"
SAMPLES = "samples"
LONGEST = 120  # characters of two values that fit into a sentence


def train(
    atlases: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    options: Options,
    model: Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
) -> Report:
    """Train a network, and leave it in ``OUTPUT/checkpoint.safetensors``.

    The same seed, options and atlases give the same network on one machine, however often the training was stopped and
    resumed; several processes share each step's crops.

    Args:
        atlases: stores with images.
        output: folder for the checkpoint, the state to go on from, the configuration, logs and pictures.
        options: how to train.
        model: fields of ``ModelConfig``; genes and stains are those of the atlases.
        resume: go on with an unfinished training.

    Raises:
        InputError: for atlases or options that do not fit together, or with what is to be resumed.
        ComputationError: for a loss that is not a number, with its step; the last state stands.
        Interrupted: after SIGTERM or SIGINT, with the state saved.
    """
    output = Path(output)
    with ExitStack() as stack:
        own = stack.enter_context(processes(options.device))
        stack.enter_context(torch.random.fork_rng([own.device] if own.device.type == "cuda" else []))
        if own.first:
            stack.enter_context(OutputLock(output))
        data = Data.open([Path(atlas) for atlas in atlases], options, dict(model or {}))
        loop = stack.enter_context(_loop(output, data, options, own, resume=resume))
        try:
            return loop.execute()
        except BackendCompilerFailed as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"the network cannot be compiled on this machine ({reason}); leave out --compile"
            ) from error


@dataclass(frozen=True)
class Data:
    """What is learned, and by what.

    Attributes:
        config: of the network.
        genes: names, in the order of its gene axis.
        atlases: to train on.
        training: where its crops lie.
        held_out: where those of tests lie; empty for none.
        picture: for generated pictures.
    """

    config: ModelConfig
    genes: list[str]
    atlases: list[Atlas]
    training: list[Area]
    held_out: list[Area]
    picture: Area

    @classmethod
    def open(cls, paths: Sequence[Path], options: Options, model: Mapping[str, Any]) -> Data:
        """Open the atlases and divide them.

        Raises:
            InputError: as ``train``.
        """
        if not paths:
            raise InputError("no atlas was given to train on")
        share_held_out, other = _held_out(options.held_out)
        atlases = [Atlas.open(path) for path in paths]
        opened = atlases + ([Atlas.open(other)] if other else [])
        if other and opened[-1].fingerprint in [atlas.fingerprint for atlas in atlases]:
            logger.warning("%s is also trained on: the error on it is no test", other)
        check_alike(opened)
        genes = panel_of(opened, options.genes)
        check_names(model, "model fields", [name for name in ModelConfig().to_dict() if name not in GIVEN_BY_DATA])
        config = ModelConfig.from_dict({**model, "genes": len(genes), "stains": len(atlases[0].stains)})
        volumes = open_volumes(opened, genes, parse_bytes(options.memory))
        parts = [
            areas_of(volume, atlas.shape, config, share_held_out) for volume, atlas in zip(volumes, opened, strict=True)
        ]
        training = [area for area, _ in parts[: len(atlases)]]
        held_out = [parts[-1][0]] if other else [area for _, area in parts if area]
        shown = (held_out or training)[-1]
        panel = match_genes(genes, len(genes), opened[-1].genes)
        picture = Area(StoredVolume(opened[-1], panel), shown.place, shown.windows)
        return cls(config, genes, atlases, training, held_out, picture)

    def identity(self, options: Options) -> dict[str, Any]:
        """What a resumed training has to have the same, by section of its configuration."""
        model = {name: value for name, value in self.config.to_dict().items() if name not in GIVEN_BY_DATA}
        data = {
            "atlases": [atlas.fingerprint for atlas in self.atlases],
            "genes": self.genes,
            "stains": self.atlases[0].stains,
        }
        return {"model": model, "training": options.to_dict(), "data": data}

    def describe(self) -> str:
        """A line for a person."""
        sizes = [sum(len(area.windows) * area.place.area for area in areas) for areas in (self.training, self.held_out)]
        return f"{len(self.genes)} genes; {sizes[0] / 1e6:.3g} Mpx x windows to train on, {sizes[1] / 1e6:.3g} held out"

    def about(self) -> dict[str, Any]:
        """Metadata of the checkpoint; the intensities only where all atlases show the same."""
        first = self.atlases[0]
        same = all(atlas.scaling == first.scaling for atlas in self.atlases)
        about = {"genes": self.genes, "stains": first.stains, "pixel_size": first.pixel_size}
        return about | ({"scaling": first.scaling} if same else {})


def _held_out(value: str | None) -> tuple[float, Path | None]:
    """A share of every atlas, or an atlas."""
    if value is None:
        return 0.0, None
    try:
        part = float(value)
    except ValueError:
        return 0.0, Path(value)
    if not 0 < part < 1:
        raise InputError(f"{value} of the atlases cannot be held out; give a share between 0 and 1, or an atlas")
    return part, None


def _prepare(output: Path, data: Data, options: Options, *, resume: bool) -> None:
    """Make the run's folder with its configuration, or compare with the one that is there.

    Raises:
        InputError: for a folder that is there and is not to be resumed, or was begun otherwise.
    """
    path, identity = output / CONFIG, data.identity(options)
    if output.exists() and any(output.iterdir()):
        if not resume:
            raise InputError(f"{output} is there already: go on with it by --resume, or choose another name")
        if not path.is_file():
            raise InputError(f"{output} is no training: it has no {CONFIG}")
        begun = _begun(path)
        for section, mine in identity.items():
            _compare(begun.get(section, {}), mine, output)
        for written in (CONFIG, STATE, CHECKPOINT, LOG):
            remove_leftovers(output / written)
    with appears_whole(path) as partial:
        partial.write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")


def _begun(path: Path) -> dict[str, Any]:
    """The sections of a run's configuration."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); begin anew in another folder") from error
    if not isinstance(content, dict) or not all(isinstance(section, dict) for section in content.values()):
        raise InputError(f"{path} is no configuration of a training; begin anew in another folder")
    return content


def _compare(begun: Mapping[str, Any], mine: Mapping[str, Any], output: Path) -> None:
    for name, value in mine.items():
        if name in MAY_CHANGE or begun.get(name) == value:
            continue
        how = f"{name} = {begun.get(name)!r} and cannot go on with {value!r}"
        if len(how) > LONGEST:
            how = f"another value of {name} and cannot go on with this one"
        raise InputError(f"{output} was begun with {how}; use the same, or another folder")


@contextmanager
def _loop(output: Path, data: Data, options: Options, own: Processes, *, resume: bool) -> Iterator[Loop]:
    """The parts of a training, put together in the state it begins in."""
    parts = own.count * options.accumulate
    if options.batch % parts:
        raise InputError(
            f"a batch of {options.batch} cannot be divided among {own.count} process(es) x {options.accumulate} "
            f"part(s); use a multiple of {parts}"
        )
    timesteps = timestep_quantile(options.timesteps, options.noise_mean, options.noise_spread)
    crops = Crops(data.training, data.config, options.seed, Stream.TRAINING, options.region, options.context, timesteps)
    goes_on = resume and (output / STATE).exists()
    learner = make_learner(data, options, own.device, goes_on=goes_on)
    if options.compile:
        learner.net.compile(dynamic=False)
    weights = loss_weights(options.loss, options.gamma, options.cap, options.deviation)
    paths: Paths = options.paths  # type: ignore[assignment]
    objective = Objective(learner.net, weights, paths, BEYOND[options.context], options.border).to(own.device)
    held_out = pictures = None
    if own.first:
        if data.held_out:
            tested = Crops(data.held_out, data.config, options.seed, Stream.HELD_OUT, options.region, options.context)
            held_out = HeldOut(tested, options.held_out_crops, options.batch // parts, objective)
        warn_if_slow(getattr(torch, options.dtype), own.device)
        logger.info("%s weights; %s", f"{sum(map(torch.numel, learner.net.parameters())):,}", data.describe())
        pictures = Pictures(data.picture, data.atlases[0].stains, data.atlases[0].pixel_size, output / SAMPLES)
        _prepare(output, data, options, resume=resume)
    progress = load_state(output, learner) if goes_on else Progress()
    make = share(crops, options.batch, parts, own.rank * options.accumulate, options.accumulate)
    with ExitStack() as stack:
        log = stack.enter_context(closing(Log(output, progress.step))) if own.first else None
        loader = stack.enter_context(Loader(make, own.device, progress.step * options.accumulate, options.workers))
        yield Loop(
            output, options, learner, objective, crops, loader, own, progress, log, held_out, pictures, data.about()
        )


def make_learner(data: Data, options: Options, device: torch.device, *, goes_on: bool) -> Learner:
    """A network as it starts, its optimiser and its average; if it ``goes_on``, its weights are still to come.

    Raises:
        InputError: for a checkpoint to start from that does not fit.
    """
    torch.manual_seed(options.seed)
    net = TeraMind(data.config)
    if options.init not in STARTS and not goes_on:
        _start_from(options.init, net, data.genes)
    elif options.init == "fast":
        start_fast(net)
    net = net.to(device).train()
    optimizer = make_optimizer(options.optimizer, net.parameters(), options.lr, options.betas, options.weight_decay)
    return Learner(net, optimizer, Average(net, options.average) if options.average else None)


def _start_from(path: str, net: TeraMind, genes: Sequence[str]) -> None:
    """Take over a checkpoint's weights."""
    trained, meta = load_checkpoint(path)
    if meta.get("genes", list(genes)) != list(genes):
        raise InputError(f"{path} was trained on other genes, or in another order: give its list with --genes FILE")
    try:
        net.load_upstream_state_dict(trained.state_dict())
    except InputError as error:
        raise InputError(f"{path} does not fit the model that was asked for: {error}") from None
