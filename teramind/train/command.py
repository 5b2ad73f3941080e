"""Train a network on atlases; the defaults are the reference's.

Several processes: torchrun --nproc-per-node N -m teramind.train ATLAS... --output RUN ...
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import Field, fields
from typing import Any, get_args, get_type_hints

from teramind.model.config import ATTENTION_KEYS, PATCH_SIZES, Z_KERNELS, ModelConfig
from teramind.train.options import GIVEN_BY_DATA, Options, read_config

MODEL_HELP: dict[str, tuple[str, dict[str, Any]]] = {
    "patch_size": ("px on a side of a patch", {"choices": PATCH_SIZES}),
    "gene_slices": ("gene slices in a window", {"choices": tuple(Z_KERNELS)}),
    "base_channels": ("channels at full resolution", {}),
    "channel_mult": ("channels of the four levels in multiples of them", {"nargs": 4, "metavar": "N"}),
    "res_blocks": ("residual blocks of an encoder level", {}),
    "embed_channels": ("width of the time embedding", {}),
    "attention_resolution": ("px on a side of the feature maps with attention", {}),
    "dropout": ("in residual blocks", {}),
    "attention_keys": ("source of the attention's keys", {"choices": ATTENTION_KEYS}),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments: the fields of ``Options`` and of ``ModelConfig``, over those of a file."""
    parser.add_argument("atlases", nargs="+", metavar="ATLAS", help="atlas store with images")
    parser.add_argument("--output", required=True, metavar="RUN", help="folder to write")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished training")
    parser.add_argument(
        "--config", metavar="FILE", help='JSON: {"model": {...}, "training": {...}}; options given here come first'
    )
    training = parser.add_argument_group("training")
    types = get_type_hints(Options)
    for each in fields(Options):
        _add(training, each, types[each.name], each.metadata["help"], each.metadata["argument"])
    model = parser.add_argument_group("model")
    types = get_type_hints(ModelConfig)
    for each in fields(ModelConfig):
        if each.name not in GIVEN_BY_DATA:
            _add(model, each, types[each.name], *MODEL_HELP[each.name])


def _add(group: Any, each: Field[Any], hint: Any, text: str, argument: dict[str, Any]) -> None:
    """Add a field's argument; it stays away where it is not given."""
    name = f"--{each.name.replace('_', '-')}"
    if hint is bool:
        group.add_argument(name, action="store_true", default=argparse.SUPPRESS, help=text)
        return
    kind, more = _argument_type(hint), dict(argument)
    if get_args(hint) and hint == tuple[float, float]:
        more["nargs"] = 2
    default = " ".join(map(str, each.default)) if isinstance(each.default, tuple) else each.default
    shown = "" if default is None else f" (default: {default})"
    if "choices" not in more and "metavar" not in more:
        more["metavar"] = {int: "N", float: "X"}.get(kind, each.name.upper())
    group.add_argument(name, type=kind, default=argparse.SUPPRESS, help=text + shown, **more)


def _argument_type(hint: Any) -> type:
    """int, float or str: of ``int | None``, ``tuple[float, float]`` and the like, the first of these inside."""
    if hint in (int, float, str):
        return hint  # type: ignore[no-any-return]
    inside = [part for part in get_args(hint) if part is not type(None) and part is not Ellipsis]
    return _argument_type(inside[0]) if isinstance(inside[0], type) else str


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    from teramind.train.run import train

    given = vars(arguments)
    model, training = read_config(given["config"]) if given["config"] else ({}, {})
    names = {each.name for each in fields(Options)}
    training |= {name: value for name, value in given.items() if name in names}
    model |= {name: value for name, value in given.items() if name in MODEL_HELP}
    if os.environ.get("RANK", "0") != "0":
        logging.getLogger().setLevel(logging.WARNING)
    report = train(given["atlases"], given["output"], Options(**training), model, resume=given["resume"])
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write(report.summary() + "\n")
    return 0
