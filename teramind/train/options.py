"""The options of a training, with the reference's values as defaults, and the JSON files that hold them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from teramind.checks import integer_between
from teramind.errors import InputError
from teramind.train.crops import CONTEXTS
from teramind.train.objective import LOSSES, PATHS
from teramind.train.optimizer import OPTIMIZERS, SCHEDULES
from teramind.train.timesteps import TIMESTEPS

DTYPES = ("float32", "bfloat16", "float16")
GIVEN_BY_DATA = ("genes", "stains")  # fields of a model that the atlases decide
LARGEST = 2**31 - 1


def option(default: Any, text: str, **argument: Any) -> Any:
    """A field with its help, and what else the command's argument needs."""
    return field(default=default, metadata={"help": text, "argument": argument})


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to train; the defaults are the reference's.

    Raises:
        InputError: for a value that cannot be, naming it and what is allowed.
    """

    steps: int | None = option(None, "optimiser steps, at most")
    minutes: float | None = option(None, "time to train, at most, over all sessions")
    batch: int = option(32, "crops in an optimiser step, over all processes")
    accumulate: int = option(1, "parts in which a process works on its share of them")
    loss: str = option("plain", "weighting of timesteps; plain is the reference's", choices=LOSSES)
    gamma: float = option(5.0, "largest signal-to-noise ratio that counts in full (min-snr)")
    cap: float = option(300.0, "largest weight (velocity)")
    deviation: float = option(1.0, "standard deviation of the images, scaled to -1..1 (velocity)")
    timesteps: str = option("uniform", "how often which is seen; uniform is the reference's", choices=TIMESTEPS)
    noise_mean: float = option(-1.2, "mean of the noise level's logarithm (log-normal)")
    noise_spread: float = option(1.2, "standard deviation of the noise level's logarithm (log-normal)")
    paths: str = option("both", "boundary leaves out the decoder that inference does not use", choices=PATHS)
    border: float = option(1.0, "weight of the outermost pixels of patches, which are learned last", metavar="WEIGHT")
    centre_every: int = option(0, "steps between moves of means into centre taps, against seams; 0 for never")
    region: int = option(2, "encoder patches on a side of what is looked at in a crop")
    context: str = option("crop", "what is seen beyond a crop: nothing, or the atlas", choices=CONTEXTS)
    init: str = option("fresh", "initial weights: fresh, fast, or those of a checkpoint", metavar="INIT")
    optimizer: str = option("adam", "which one", choices=OPTIMIZERS)
    lr: float = option(2e-5, "learning rate")
    betas: tuple[float, float] = option((0.9, 0.999), "decay of the optimiser's two moments")
    weight_decay: float = option(0.0, "of the optimiser")
    schedule: str = option("constant", "of the learning rate", choices=SCHEDULES)
    warmup: int = option(0, "steps in which the learning rate rises to its value")
    clip: float = option(1.0, "largest gradient norm")
    average: float = option(0.0, "decay of the weights' moving average; 0 for none")
    dtype: str = option("float32", "of activations (autocast)", choices=DTYPES)
    compile: bool = option(False, "compile the network first: minutes, once, for steps up to twice as fast")
    seed: int = option(0, "of weights, crops, noise and dropout")
    genes: str | None = option(None, "intersection, or a file of names, where atlases differ", metavar="GENES")
    held_out: str | None = option(None, "to test on: a share of each atlas, e.g. 0.1, or an atlas", metavar="SHARE")
    held_out_crops: int = option(64, "crops of a test")
    device: str = option("auto", "auto, cpu, cuda, or cuda:1")
    log_every: int = option(50, "steps between lines of the log")
    evaluate_every: int = option(1000, "steps between tests on what is held out")
    sample_every: int = option(0, "steps between generated pictures; 0 for none")
    snapshot_minutes: float = option(10.0, "time between states to go on from, and checkpoints")
    checkpoint_dtype: str = option("float32", "of the weights in the checkpoint", choices=("float32", "float16"))
    workers: int = option(2, "threads that load crops")
    memory: str = option("2G", "for atlases kept in memory; larger ones are read as needed", metavar="BYTES")

    def __post_init__(self) -> None:
        if isinstance(self.betas, list):  # from JSON
            object.__setattr__(self, "betas", tuple(self.betas))
        hints = get_type_hints(Options)
        for each in fields(self):
            value, choices = getattr(self, each.name), each.metadata["argument"].get("choices")
            self._require(_is(value, hints[each.name]), each.name, f"of the type {each.type}")
            self._require(choices is None or value in choices, each.name, f"one of {', '.join(choices or ())}")
        self._require(self.steps is not None or self.minutes is not None, "steps", "given, or --minutes be")
        for name in ("batch", "accumulate", "log_every", "evaluate_every", "held_out_crops", "workers"):
            integer_between(name, getattr(self, name), 1, LARGEST)
        for name in ("warmup", "centre_every", "sample_every", *(["steps"] if self.steps is not None else [])):
            integer_between(name, getattr(self, name), 0, LARGEST)
        integer_between("seed", self.seed, 0, 2**64 - 1)
        for name in ("lr", "gamma", "cap", "deviation", "noise_spread", "border", "clip"):
            self._require(getattr(self, name) > 0, name, "a positive number")
        for name in ("weight_decay", "snapshot_minutes"):
            self._require(getattr(self, name) >= 0, name, "0 or more")
        self._require(self.minutes is None or self.minutes > 0, "minutes", "a positive number")
        self._require(0 <= self.average < 1, "average", "at least 0 and below 1")
        self._require(all(0 <= beta < 1 for beta in self.betas), "betas", "at least 0 and below 1")

    def _require(self, valid: bool, name: str, allowed: str) -> None:
        if not valid:
            raise InputError(f"the training's {name} is {getattr(self, name)!r}; it has to be {allowed}")

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able values."""
        return asdict(self) | {"betas": list(self.betas)}


def _is(value: object, hint: Any) -> bool:
    """Whether a value is of a field's type: int, float, str, one of these or None, or a tuple of them."""
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(hint, type):
        return isinstance(value, hint) and isinstance(value, bool) == (hint is bool)
    parts = get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_is, value, parts))
    return any(_is(value, part) for part in parts)


MAY_CHANGE = frozenset({
    "steps", "minutes", "accumulate", "device", "log_every", "evaluate_every", "sample_every", "held_out_crops",
    "snapshot_minutes", "checkpoint_dtype", "workers", "memory", "compile",
})  # fmt: skip
"""Options that a resumed run may have otherwise than it was begun with; the cosine ends where the new run does."""


def read_config(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of a model and of its training that a JSON file gives.

    Args:
        path: of ``{"model": {...}, "training": {...}}``; a run's own ``config.json`` is one.

    Raises:
        InputError: where it cannot be read, or names what there is not.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"the configuration {path} cannot be read ({error}); give a JSON file") from error
    sections = content.values() if isinstance(content, dict) else [content]
    if not all(isinstance(each, dict) for each in sections) or not set(content) <= {"model", "training", "data"}:
        raise InputError(f'the configuration {path} has to be {{"model": {{...}}, "training": {{...}}}}')
    model, training = content.get("model", {}), content.get("training", {})
    check_names(training, f"training options of {path}", [each.name for each in fields(Options)])
    return model, training


def check_names(given: Mapping[str, Any], what: str, known: list[str]) -> None:
    """Whether every name is known.

    Raises:
        InputError: naming those that are not.
    """
    if unknown := sorted(set(given) - set(known)):
        raise InputError(f"unknown {what}: {', '.join(unknown)}; there are {', '.join(known)}")
