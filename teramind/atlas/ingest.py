"""Reads vendor folders into an atlas store."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from teramind.atlas.frame import parse_extent
from teramind.atlas.merscope import CONTROL_NAMES as MERSCOPE_CONTROLS
from teramind.atlas.merscope import PERCENTILES, PLANE_STEP_UM, read_merscope
from teramind.atlas.report import IngestReport
from teramind.atlas.tiles import TileReport, read_tiles
from teramind.atlas.tiles import add_arguments as add_tiles_arguments
from teramind.atlas.xenium import CONTROL_NAMES as XENIUM_CONTROLS
from teramind.atlas.xenium import MIN_QV, PIXEL_SIZE_UM, read_xenium

READERS: dict[str, Callable[..., IngestReport | TileReport]] = {
    "merscope": read_merscope,
    "xenium": read_xenium,
    "tiles": read_tiles,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a sub-command for every kind of folder; its options are the reader's parameters."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND", help="what to read")
    _add_merscope(kinds.add_parser("merscope", help="Vizgen MERSCOPE region folders"))
    _add_xenium(kinds.add_parser("xenium", help="10x Xenium output bundles"))
    add_tiles_arguments(kinds.add_parser("tiles", help="the published Tera-MIND tile files"))


def run(arguments: argparse.Namespace) -> None:
    """Read the folders and say what became of their rows."""
    options = dict(vars(arguments))
    read = READERS[options.pop("kind")]
    if options.get("scale"):
        options["scale"] = dict(options["scale"])
    sys.stdout.write(read(**options).as_text())


def _add_merscope(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="region folders, one a slice, in order")
    _add_store(parser)
    parser.add_argument("--z-planes", action="store_true", help="take the planes of a single folder as the slices")
    parser.add_argument(
        "--z-step-um",
        type=float,
        metavar="UM",
        help="distance of the slices; needed for several folders without --slice-table "
        f"(with --z-planes, default: {PLANE_STEP_UM})",
    )
    parser.add_argument("--image-z", type=int, metavar="PLANE", help="plane of the images (default: the middle one)")
    _add_frame(parser, pixel_size=None, size_help="the first folder's own")
    _add_content(parser, controls=MERSCOPE_CONTROLS)


def _add_xenium(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE", help="output bundles, one a slice, in order")
    _add_store(parser)
    parser.add_argument(
        "--z-step-um",
        type=float,
        metavar="UM",
        help="distance of the slices; needed for several bundles without --slice-table",
    )
    parser.add_argument(
        "--min-qv",
        type=float,
        default=MIN_QV,
        metavar="Q",
        help="drop transcripts of a lower Phred quality (default: %(default)g)",
    )
    _add_frame(parser, pixel_size=PIXEL_SIZE_UM, size_help=f"{PIXEL_SIZE_UM}, that of the published networks")
    _add_content(parser, controls=XENIUM_CONTROLS)


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="ATLAS.zarr", help="the store to write")
    parser.add_argument(
        "--stains",
        nargs="*",
        required=True,
        metavar="STAIN",
        help="stains to read, in the order of the image channels; none for an atlas without images (then --extent)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an atlas of that name")


def _add_frame(parser: argparse.ArgumentParser, pixel_size: float | None, size_help: str) -> None:
    parser.add_argument("--slice-table", metavar="CSV", help="a CSV with the column z_um, a row a slice, in order")
    parser.add_argument(
        "--affine",
        dest="affines",
        nargs="+",
        metavar="FILE",
        help="3x3 or 4x4 matrices as text, microns to atlas microns, one a folder in their order",
    )
    parser.add_argument(
        "--pixel-size", type=float, default=pixel_size, metavar="UM", help=f"pixel of the atlas (default: {size_help})"
    )
    parser.add_argument(
        "--extent",
        type=parse_extent,
        metavar="Y0:Y1,X0:X1",
        help="the part of the atlas plane to keep, in atlas microns; write --extent=... if it begins with a minus sign "
        "(default: all that the images cover)",
    )


def _add_content(parser: argparse.ArgumentParser, controls: str) -> None:
    parser.add_argument(
        "--genes",
        metavar="union|intersection|FILE",
        help="which genes, where folders differ; a file lists one name a line and sets their order",
    )
    parser.add_argument(
        "--controls",
        default=controls,
        metavar="PATTERN",
        help="regular expression, from the beginning of a name, of names that are no genes (default: %(default)s)",
    )
    parser.add_argument(
        "--scale",
        nargs="+",
        type=_scale,
        metavar="STAIN=LOW:HIGH",
        help="raw intensities shown as 0 and as 255 (default: the percentiles; 8-bit images are taken as they are)",
    )
    parser.add_argument(
        "--percentiles",
        nargs=2,
        type=float,
        default=PERCENTILES,
        metavar=("LOW", "HIGH"),
        help="percentiles of a stain's pixels above 0, over all slices, shown as 0 and as 255 "
        f"(default: {PERCENTILES[0]:g} {PERCENTILES[1]:g})",
    )
    parser.add_argument("--regions", metavar="FILE", help="label map of regions at bin resolution, .npy or .tif")
    parser.add_argument(
        "--region-names", metavar="CSV", help="its names, columns id and name (default: FILE with the ending .csv)"
    )


def _scale(text: str) -> tuple[str, tuple[float, float]]:
    """Read ``STAIN=LOW:HIGH``."""
    try:
        stain, limits = text.rsplit("=", 1)
        low, high = limits.split(":")
        return stain, (float(low), float(high))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not STAIN=LOW:HIGH") from None
