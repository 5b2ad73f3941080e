"""Makes a phantom brain: a procedural atlas whose morphology is caused by its genes, with the truth known."""

from __future__ import annotations

import argparse
import sys

from teramind.atlas.phantom.build import build_phantom
from teramind.atlas.phantom.merscope import require_free, write_merscope
from teramind.atlas.phantom.phantom import Phantom
from teramind.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options; defaults are those of ``Phantom``."""
    parser.add_argument("--output", required=True, metavar="ATLAS.zarr", help="the store to write")
    parser.add_argument(
        "--size",
        nargs="+",
        type=int,
        default=[2048],
        metavar="PX",
        help="height and width of every slice, or one number for both (default: 2048)",
    )
    parser.add_argument("--slices", type=int, default=8, metavar="N", help="how many slices (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another number, another brain (default: 0)")
    parser.add_argument(
        "--pixel-size", type=float, default=0.4, metavar="UM", help="side of a pixel (default: %(default)s)"
    )
    parser.add_argument(
        "--z-step-um", type=float, default=10.0, metavar="UM", help="distance of the slices (default: %(default)s)"
    )
    parser.add_argument(
        "--morphology-seed",
        type=int,
        metavar="N",
        help="draw all that the genes do not decide about the images again: the same transcripts, other nuclei",
    )
    parser.add_argument(
        "--merscope",
        metavar="FOLDER",
        help="write the phantom as a MERSCOPE region folder, too, its slices as z planes",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an atlas of that name")


def run(arguments: argparse.Namespace) -> None:
    """Write the phantom and say what it holds."""
    if len(arguments.size) > 2:
        raise InputError(f"--size takes a height and a width, not {len(arguments.size)} numbers")
    phantom = Phantom(
        seed=arguments.seed,
        size=(arguments.size[0], arguments.size[-1]),
        slices=arguments.slices,
        pixel_size=arguments.pixel_size,
        z_step=arguments.z_step_um,
        morphology_seed=arguments.morphology_seed,
    )
    if arguments.merscope is not None:
        require_free(arguments.merscope)  # before the hours that the atlas may take
    atlas = build_phantom(phantom, arguments.output, overwrite=arguments.overwrite)
    if arguments.merscope is not None:
        write_merscope(phantom, arguments.merscope)
    slices, height, width = atlas.shape
    transcripts = sum(atlas.metadata.gene_transcripts or [])
    sys.stdout.write(
        f"{arguments.output}: {slices} slices of {height} x {width} px of {atlas.pixel_size:g} um, "
        f"{transcripts:,} transcripts of {len(atlas.genes)} genes, fingerprint {atlas.fingerprint[:16]}\n"
    )
